// One image at full size, with the lists of its objects and detections.

const viewer = {
  index: null,
  focus: null,
  panes: null,

  start() {
    byId("viewer-previous").addEventListener("click", () => this.step(-1));
    byId("viewer-next").addEventListener("click", () => this.step(1));
    byId("viewer-close").addEventListener("click", () => byId("viewer").close());
    byId("viewer").addEventListener("close", () => this.closed());
    byId("viewer").addEventListener("keydown", (event) => this.key(event));
    addEventListener("resize", () => this.update());
  },

  shows(index) {
    return this.index === index;
  },

  open(index) {
    this.index = index;
    this.focus = null;
    const scene = data.scenes[index];
    byId("viewer-title").textContent = scene.name;
    this.panes = [pane(index, "annotations"), pane(index, "detections")];
    const titles = ["Annotations", "Detections"];
    byId("viewer-panes").replaceChildren(
      ...this.panes.map(({ element }, i) => {
        element.style.aspectRatio = `${scene.width} / ${scene.height}`;
        return make("figure", { hidden: !annotated && !i }, element, make("figcaption", {}, titles[i]));
      }),
    );
    showPicture(byId("viewer-panes"));
    this.panes.forEach(({ canvas }, i) => canvas.addEventListener("click", (event) => this.pick(event, canvas, i)));
    if (!byId("viewer").open) byId("viewer").showModal();
    byId("viewer").scrollTop = 0;
    this.update();
  },

  closed() {
    const scene = data.scenes[this.index];
    const card = gallery.cards.get(this.index);
    this.index = null;
    if (!card.onScreen) forgetMasks(scene);
    if (card.element.isConnected) gallery.focus(card.element);
  },

  step(by) {
    const at = view.shown.indexOf(this.index);
    const next = view.shown[at + by];
    if (next === undefined) return;
    const before = this.index;
    this.open(next);
    if (!gallery.cards.get(before).onScreen) forgetMasks(data.scenes[before]);
  },

  key(event) {
    if (event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.step(by);
  },

  /** The object or detection under the pointer, the smallest one where several lie. */
  pick(event, canvas, side) {
    const scene = data.scenes[this.index];
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * scene.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * scene.height);
    const rows = (side ? visible(scene) : scene.objects).filter((row) => covers(maskOf(row, row.mask, row.box, scene), x, y));
    rows.sort((a, b) => a.box[2] * a.box[3] - b.box[2] * b.box[3]);
    this.select(rows[0] === this.focus ? null : (rows[0] ?? null));
  },

  select(row) {
    this.focus = row;
    this.update();
  },

  update() {
    if (this.index === null) return;
    const scene = data.scenes[this.index];
    const shown = visible(scene);
    if (this.focus && !scene.objects.includes(this.focus) && !shown.includes(this.focus)) this.focus = null;
    const isObject = scene.objects.includes(this.focus);
    const scale = scene.width / Math.max(1, this.panes[1].canvas.clientWidth);
    const about = this.focus && !isObject ? (scene.objects[this.focus.object] ?? null) : null;
    paintObjects(this.panes[0].canvas, scene, scale, isObject ? this.focus : about);
    paintDetections(this.panes[1].canvas, scene, scale, isObject ? null : this.focus);
    this.list("viewer-objects", scene.objects, (object) => [
      data.classes[object.label].colour,
      className(object.label),
      object.crowd ? "crowd, not counted" : isFound(scene, object) ? `found, score ${(scene.detections[object.found].score / data.steps).toFixed(2)}` : "missed",
    ]);
    this.list("viewer-detections", shown, (detection) => {
      const kind = data.error_kinds[detection.kind];
      const object = scene.objects[detection.object];
      const what = object ? ` · IoU ${(detection.overlap / 100).toFixed(2)} with ${className(object.label)}` : "";
      return [colourOf(detection), `${className(detection.label)} ${(detection.score / data.steps).toFixed(2)}`, annotated ? `${kind}${what}` : ""];
    });
  },

  list(id, rows, describe) {
    const list = byId(id);
    const place = list.contains(document.activeElement) ? [...list.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    const items = rows.map((row) => {
      const [colour, what, aside] = describe(row);
      const button = make(
        "button",
        { type: "button", "aria-pressed": String(row === this.focus), onclick: () => this.select(row === this.focus ? null : row) },
        dot(colour),
        make("span", { class: "what" }, what),
        make("span", { class: "aside" }, aside),
      );
      return make("li", {}, button);
    });
    list.replaceChildren(...(items.length ? items : [make("li", { class: "row" }, "none")]));
    if (place >= 0) list.querySelectorAll("button")[Math.min(place, items.length - 1)]?.focus();
  },
};
