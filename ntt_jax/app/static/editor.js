// One photo: clicks become a mask, a mask becomes a reference; what was found is confirmed or refused.

const editor = {
  id: null, // of the photo
  scene: null, // {width, height} of the picture
  here: { detections: [], references: [] },
  points: [], // [x, y, label]
  box: null, // x, y, width, height
  choices: [],
  choice: 0,
  painted: null, // bytes of the picture's size, once brush or eraser was used
  tool: "point",
  focus: null, // the row whose mask stands out
  cross: null, // of the keyboard
  corner: null, // where a box began
  searching: null, // the photo that a search was asked for
  dragging: null,
  asked: 0,

  start() {
    const stage = byId("stage");
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    stage.addEventListener("pointerup", (event) => this.up(event));
    stage.addEventListener("pointercancel", () => this.cancel());
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("keydown", (event) => this.stageKey(event));
    byId("editor").addEventListener("keydown", (event) => this.key(event));
    byId("editor").addEventListener("close", () => this.closed());
    byId("close").addEventListener("click", () => byId("editor").close());
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    byId("find-here").addEventListener("click", () => this.find());
    byId("undo").addEventListener("click", () => this.undo());
    byId("clear").addEventListener("click", () => this.clear());
    byId("naming").addEventListener("submit", (event) => {
      event.preventDefault();
      this.add("reference");
    });
    byId("class-name").addEventListener("focus", (event) => event.target.select()); // another name replaces the last one
    byId("add-negative").addEventListener("click", () => this.add("negative"));
    for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => this.use(button.dataset.tool));
    addEventListener("resize", () => this.update());
    let searched = null;
    store.listeners.push((changed) => {
      byId("find-here").disabled = Boolean(store.state.search.running) || !store.state.classes.some((one) => one.references);
      const photo = this.id && store.photo(this.id);
      const now = photo ? `${photo.searched} ${store.revision}` : null;
      if (changed && photo && now !== searched) this.load();
      if (photo && this.searching === this.id && !store.state.search.running) this.found();
      searched = now;
    });
  },

  async open(id) {
    this.id = id;
    this.scene = null;
    this.here = { detections: [], references: [] };
    this.clear();
    const photo = store.photo(id);
    byId("editor-title").textContent = photo.name;
    byId("photo").removeAttribute("src");
    byId("photo").alt = photo.name;
    if (!byId("editor").open) byId("editor").showModal();
    byId("editor").scrollTop = 0;
    this.say("opening ...");
    await this.load();
    if (this.id !== id) return;
    if (!this.scene) return this.say("this photo cannot be shown");
    byId("photo").src = `/v1/photos/${id}/picture`;
    this.say("encoding the photo for clicks ...");
    const ready = await attempt(() => ask("POST", `/v1/photos/${id}/encoding`));
    if (this.id === id) this.say(ready ? "ready for clicks" : "");
  },

  /** What was found and shown here, from the server. */
  async load() {
    const id = this.id;
    if (id === null) return;
    const content = await attempt(() => ask("GET", `/v1/photos/${id}/detections`));
    if (!content || this.id !== id) return;
    this.scene = { width: content.width, height: content.height };
    this.here = content;
    this.focus = null;
    byId("stage").style.aspectRatio = `${content.width} / ${content.height}`;
    byId("stage").style.setProperty("--ratio", content.width / content.height);
    this.update();
  },

  async find() {
    this.say("searching this photo ...");
    if (!(await attempt(() => ask("POST", "/v1/search", { photos: [this.id] })))) return this.say("");
    this.searching = this.id;
    return store.refresh();
  },

  /** What the search that was asked for here has found. */
  async found() {
    this.searching = null;
    await this.load();
    this.say(`${this.shownDetections().length} found`);
  },

  closed() {
    message.place();
    const element = grid.cards.get(this.id);
    this.id = null;
    element?.querySelector("button")?.focus();
  },

  step(by) {
    const shown = grid.shown();
    const next = shown[shown.findIndex((photo) => photo.id === this.id) + by];
    if (next) this.open(next.id);
  },

  say(text) {
    byId("stage-status").textContent = text;
  },

  use(tool) {
    this.tool = tool;
    for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    byId("brush-size-label").hidden = !this.painting;
    if (this.painting && this.scene && this.painted === null) this.painted = brush.bitmap(this.choices[this.choice]?.mask.counts, this.scene);
    this.update();
  },

  clear() {
    Object.assign(this, { points: [], box: null, choices: [], choice: 0, painted: null, corner: null, dragging: null });
    this.asked++;
    if (this.tool !== "point") this.use("point");
    this.update();
  },

  get painting() {
    return this.tool === "brush" || this.tool === "eraser";
  },

  undo() {
    if (this.painted !== null) {
      this.painted = null;
      return this.use("point");
    }
    if (this.points.length) this.points.pop();
    else this.box = null;
    this.decode();
  },

  // Pointer

  place(event) {
    const box = byId("overlay").getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.scene.width;
    const y = ((event.clientY - box.top) / box.height) * this.scene.height;
    return [Math.min(Math.max(x, 0), this.scene.width - 1), Math.min(Math.max(y, 0), this.scene.height - 1)];
  },

  down(event) {
    if (!this.scene || event.button > 2 || event.button === 1) return;
    byId("stage").setPointerCapture(event.pointerId);
    const at = this.place(event);
    this.dragging = { from: at, to: at, away: event.button === 2 || event.altKey || this.tool === "away" };
    if (this.painting) this.paint(at, at);
  },

  move(event) {
    if (!this.dragging || !this.scene) return;
    const at = this.place(event);
    if (this.painting) this.paint(this.dragging.to, at);
    this.dragging.to = at;
    this.draw();
  },

  up(event) {
    if (!this.dragging || !this.scene) return;
    const { from, away } = this.dragging;
    const to = this.place(event);
    this.dragging = null;
    if (this.painting) return this.update();
    const far = 0.01 * Math.max(this.scene.width, this.scene.height);
    const boxed = !away && Math.abs(to[0] - from[0]) > far && Math.abs(to[1] - from[1]) > far;
    return boxed ? this.setBox(from, to) : this.addPoint(from, away);
  },

  cancel() {
    this.dragging = null;
    this.update();
  },

  paint(from, to) {
    const radius = (Number(byId("brush-size").value) / 400) * Math.max(this.scene.width, this.scene.height) / 2;
    this.painted ??= brush.bitmap(null, this.scene);
    brush.stroke(this.painted, this.scene, from, to, radius, this.tool === "brush" ? 1 : 0);
    this.draw();
  },

  addPoint([x, y], away) {
    if (away && !this.points.length && !this.box) return this.say("click the object first; then take away what is too much");
    this.points.push([x, y, away ? 0 : 1]);
    return this.decode();
  },

  setBox(from, to) {
    this.box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1])];
    return this.decode();
  },

  /** The masks that clicks and box may mean; an answer that comes after a newer click is dropped. */
  async decode() {
    this.painted = null;
    const number = ++this.asked;
    if (!this.points.length && !this.box) {
      Object.assign(this, { choices: [], choice: 0 });
      this.update();
      return;
    }
    const body = { points: this.points.map(([x, y]) => [x, y]), labels: this.points.map((point) => point[2]), box: this.box };
    const asked = attempt(() => ask("POST", `/v1/photos/${this.id}/masks`, body));
    this.draw(); // while the server works
    const found = await asked;
    if (number !== this.asked || !found) return;
    Object.assign(this, { choices: found, choice: 0 });
    this.say(`${plural(found.length, "mask")} to choose from`);
    this.update();
  },

  // Keyboard

  key(event) {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey) return;
    const key = event.key.toLowerCase();
    if (key === "n") this.step(1);
    else if (key === "p") this.step(-1);
    else if (key === "z") this.undo();
    else if (/^[1-4]$/.test(key) && this.choices[key - 1]) this.choose(key - 1);
    else return;
    event.preventDefault();
  },

  stageKey(event) {
    if (!this.scene) return;
    const { width, height } = this.scene;
    this.cross ??= [width / 2, height / 2];
    const step = Math.max(width, height) * (event.shiftKey ? 0.1 : 0.01);
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) {
      this.cross = [Math.min(Math.max(this.cross[0] + step * way[0], 0), width - 1), Math.min(Math.max(this.cross[1] + step * way[1], 0), height - 1)];
      this.say(`cross at ${Math.round((100 * this.cross[0]) / width)} % across, ${Math.round((100 * this.cross[1]) / height)} % down`);
    } else if (event.key === "Enter" || event.key === " ") {
      if (this.painting) this.paint(this.cross, this.cross);
      else this.addPoint([...this.cross], event.altKey || this.tool === "away");
    } else if (event.key.toLowerCase() === "b") {
      if (this.corner) {
        this.setBox(this.corner, this.cross);
        this.corner = null;
      } else {
        this.corner = [...this.cross];
        this.say("a corner of the box; move the cross and press B again");
      }
    } else return;
    event.preventDefault();
    this.update();
  },

  // What becomes of a mask

  choose(index) {
    this.choice = index;
    this.painted = null;
    this.update();
  },

  async add(kind) {
    const name = byId("class-name").value.trim();
    if (!name) {
      byId("class-name").focus();
      return message.show("Which class is it? Write its name.");
    }
    const body = { class_name: name, kind };
    if (this.painted !== null) body.mask = { size: [this.scene.height, this.scene.width], counts: brush.encode(this.painted, this.scene) };
    else if (this.choices.length) {
      body.prompt = { points: this.points.map(([x, y]) => [x, y]), labels: this.points.map((point) => point[2]), box: this.box };
      body.choice = this.choice;
    } else return message.show("Which object? Click it first.");
    if (await this.send(body)) this.clear();
  },

  async send(body) {
    const added = await attempt(() => ask("POST", `/v1/photos/${this.id}/references`, body));
    if (!added) return false;
    await store.refresh();
    await this.load();
    const made = store.state.references.find((one) => one.id === added.id);
    const words = made?.words?.length ? ` The doctor: ${made.words.join("; ")}.` : "";
    this.say(`${body.kind === "negative" ? "negative" : "reference"} added.${words}`);
    return true;
  },

  // The screen

  shownDetections() {
    return this.here.detections.map((one, i) => ({ ...one, index: i, row: one })).filter((one) => one.score >= store.threshold(one.class_name));
  },

  update() {
    byId("choosing-mask").hidden = !this.scene || !this.choices.length;
    if (this.id === null || !this.scene) {
      byId("choices").replaceChildren();
      return;
    }
    this.lists();
    this.draw();
  },

  /** The canvas alone: for what happens many times a second. */
  draw() {
    const { width, height } = this.scene;
    const canvas = byId("overlay");
    const scale = width / Math.max(1, canvas.clientWidth);
    const layers = [];
    if (this.painted !== null) layers.push({ mask: markEdges({ x: 0, y: 0, wide: width, high: height, bytes: Uint8Array.from(this.painted) }, this.scene), colour: "#ffd400" });
    else if (this.choices.length) layers.push({ mask: this.maskOf(this.choices[this.choice].mask), colour: "#ffd400" });
    const active = layers.length > 0;
    for (const one of this.here.references) layers.push({ mask: this.maskOf(one.mask), colour: store.colour(one.class_name), dashed: one.kind === "negative", faint: active && this.focus !== one });
    const detections = this.shownDetections();
    for (const one of detections) layers.push({ mask: this.maskOf(one.row.mask), colour: store.colour(one.class_name), faint: active || (this.focus !== null && this.focus !== one.row) });
    const context = paint(canvas, this.scene, layers);
    if (!active) for (const one of [...detections].reverse()) caption(context, `${shortened(one.class_name, 24)} ${one.score.toFixed(2)}`, this.boxOf(one.row.mask), store.colour(one.class_name), scale);
    this.marks(context, scale);
  },

  /** Decoded once, kept with the object that the server sent. */
  maskOf(mask) {
    return maskOf(mask, mask.counts, null, this.scene);
  },

  boxOf(mask) {
    const { x, y, wide, high } = this.maskOf(mask);
    return [x, y, wide, high];
  },

  marks(context, scale) {
    context.lineWidth = 2 * scale;
    const drag = this.dragging && !this.painting && !this.dragging.away ? [this.dragging.from, this.dragging.to] : this.corner && this.cross ? [this.corner, this.cross] : null;
    const box = drag ? [drag[0][0], drag[0][1], drag[1][0] - drag[0][0], drag[1][1] - drag[0][1]] : this.box;
    if (box) {
      context.strokeStyle = "#ffd400";
      context.strokeRect(...box);
    }
    for (const [x, y, label] of this.points) {
      context.beginPath();
      context.arc(x, y, 6 * scale, 0, 2 * Math.PI);
      context.fillStyle = label ? "#00c853" : "#d50000";
      context.fill();
      context.strokeStyle = "#fff";
      context.stroke();
    }
    if (this.cross && document.activeElement === byId("stage")) {
      const [x, y] = this.cross;
      for (const [colour, wide] of [["#000", 4], ["#fff", 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = wide * scale;
        context.beginPath();
        context.moveTo(x - 12 * scale, y);
        context.lineTo(x + 12 * scale, y);
        context.moveTo(x, y - 12 * scale);
        context.lineTo(x, y + 12 * scale);
        context.stroke();
      }
    }
  },

  lists() {
    const rated = (one, i) => `${i + 1}: ${(100 * one.predicted_iou).toFixed(0)} %`;
    byId("choices").replaceChildren(...this.choices.map((one, i) => make("button", { type: "button", "aria-pressed": String(i === this.choice && this.painted === null), "aria-label": `mask ${rated(one, i)}`, title: "how much of the object SAM 2 expects this mask to cover", onclick: () => this.choose(i) }, rated(one, i))));
    const none = (text) => make("li", { class: "soft" }, text);
    const references = this.here.references.map((one) => referenceRow(store.state.references.find((other) => other.id === one.id) ?? { ...one, photo: this.id, photo_name: byId("editor-title").textContent }, one.class_name, () => this.stand(one)));
    replaceRows(byId("here-references"), references.length ? references : [none("none")]);
    const photo = store.photo(this.id);
    const detections = this.shownDetections().map((one) => this.detectionRow(one));
    replaceRows(byId("here-detections"), detections.length ? detections : [none(photo?.searched ? "nothing from the thresholds on" : "not searched yet")]);
  },

  detectionRow(one) {
    const name = `${one.class_name} ${one.score.toFixed(2)}`;
    const body = (kind) => ({ class_name: one.class_name, kind, detection: one.index });
    const shown = make("button", { type: "button", class: "plain", title: name, "aria-pressed": String(this.focus === one.row), onclick: () => this.stand(one.row) }, dot(store.colour(one.class_name)), `${shortened(one.class_name, 40)} ${one.score.toFixed(2)}`);
    const said = this.here.references.find((other) => other.class_name === one.class_name && other.mask.counts === one.mask.counts);
    if (said) return make("li", { class: "row" }, shown, make("span", { class: "soft" }, said.kind === "negative" ? "wrong" : "right"), make("button", { type: "button", "aria-label": `Take back what was said of ${name}`, onclick: () => removeReference(said.id) }, "Take back"));
    return make("li", { class: "row" }, shown,
      make("button", { type: "button", "aria-label": `${name} is right: add as a reference`, onclick: () => this.send(body("reference")) }, "Right"),
      make("button", { type: "button", "aria-label": `${name} is wrong: add as a negative`, onclick: () => this.send(body("negative")) }, "Wrong"));
  },

  stand(row) {
    this.focus = this.focus === row ? null : row;
    this.update();
  },
};
