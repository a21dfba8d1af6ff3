// The gallery: a card per image, annotations beside detections.

const view = { label: -1, kind: "all", order: "given", colour: "class", shown: [] };
const annotated = !data.found; // else there is nothing to compare with: one pane, no kinds of errors
const RIGHT = data.error_kinds ? data.error_kinds.indexOf("right") : 0;

// The page's data are lists, to be small; these give their items names.
const objectOf = ([label, box, mask, found, crowd]) => ({ label, box, mask, found, crowd });
const detectionOf = ([label, score, mask, box, kind, object, overlap]) => ({ label, score, mask, box, kind, object, overlap });

for (const scene of data.scenes ?? []) {
  scene.objects = scene.objects.map(objectOf);
  scene.detections = scene.detections.map(detectionOf);
}

const isFound = (scene, object) => object.found >= 0 && threshold.passes(scene.detections[object.found].score);
const isMissed = (scene, object) => !object.crowd && !isFound(scene, object);

/** Whether class filter and kind filter leave a detection on the screen, the threshold aside. */
function isChosen(scene, detection) {
  const kind = data.error_kinds[detection.kind];
  const ofClass = view.label < 0 || detection.label === view.label || scene.objects[detection.object]?.label === view.label;
  if (!ofClass) return false;
  if (view.kind === "all" || view.kind === "missed") return true;
  return view.kind === "wrong" ? !["right", "ignored"].includes(kind) : kind === view.kind;
}

const visible = (scene) => scene.detections.filter((d) => threshold.passes(d.score) && isChosen(scene, d));

function counts(scene) {
  const objects = scene.objects.filter((o) => !o.crowd && (view.label < 0 || o.label === view.label));
  const missing = objects.filter((o) => isMissed(scene, o)).length;
  const wrong = visible(scene).filter((d) => d.kind !== RIGHT && data.error_kinds[d.kind] !== "ignored").length;
  return { objects: objects.length, missed: missing, wrong };
}

function belongs(scene) {
  const { objects, missed } = counts(scene);
  if (view.kind === "missed") return missed > 0;
  if (view.kind !== "all") return visible(scene).length > 0;
  return view.label < 0 || objects > 0 || visible(scene).length > 0;
}

const className = (label) => data.classes[label].name;
const colourOf = (detection) => (view.colour === "class" ? data.classes[detection.label].colour : kindColours[data.error_kinds[detection.kind]]);

/** Paint a scene's annotations. focus: the object to bring out, if any. */
function paintObjects(canvas, scene, captions = 0, focus = null) {
  const layers = scene.objects.map((object) => ({
    mask: maskOf(object, object.mask, object.box, scene),
    colour: view.label < 0 || object.label === view.label ? data.classes[object.label].colour : "#999999",
    dashed: isMissed(scene, object) || object.crowd,
    faint: focus !== null && focus !== object,
  }));
  const context = paint(canvas, scene, layers);
  if (captions) {
    for (const object of scene.objects) {
      if (focus === null || focus === object) caption(context, shortened(className(object.label), 32), object.box, data.classes[object.label].colour, captions);
    }
  }
}

/** Paint a scene's detections above the threshold. focus: the detection to bring out, if any. */
function paintDetections(canvas, scene, captions = 0, focus = null) {
  const shown = visible(scene);
  const layers = shown.map((detection) => ({
    mask: maskOf(detection, detection.mask, detection.box, scene),
    colour: colourOf(detection),
    faint: focus !== null && focus !== detection,
  }));
  if (focus !== null) layers.sort((a, b) => (a.faint ? 1 : 0) - (b.faint ? 1 : 0));
  const context = paint(canvas, scene, layers);
  if (captions) {
    for (const detection of [...shown].reverse()) {
      if (focus === null || focus === detection) {
        const text = `${shortened(className(detection.label), 32)} ${(detection.score / data.steps).toFixed(2)}`;
        caption(context, text, detection.box, colourOf(detection), captions);
      }
    }
  }
}

function pane(index, label) {
  const picture = pictures.scenes[index];
  const canvas = make("canvas", { role: "img", "aria-label": label });
  const problem = data.scenes[index].problem;
  return {
    canvas,
    element: make("span", { class: "pane" }, picture ? make("img", { "data-src": picture, alt: "" }) : make("span", { class: "problem" }, problem), canvas),
  };
}

function showPicture(element) {
  for (const image of element.querySelectorAll("img[data-src]")) {
    image.src = image.dataset.src;
    image.removeAttribute("data-src");
  }
}

function makeCard(index) {
  const scene = data.scenes[index];
  const truth = pane(index, "annotations");
  const found = pane(index, "detections");
  const summary = make("span");
  const element = make(
    "button",
    { type: "button", class: "card", tabindex: "-1", "data-index": index, onclick: () => viewer.open(index) },
    make("span", { class: annotated ? "panes" : "panes alone" }, annotated ? truth.element : null, found.element),
    make("span", { class: "caption" }, make("b", { title: scene.name }, shortened(scene.name, 80)), summary),
  );
  return {
    element,
    onScreen: false,
    update() {
      const { objects, missed, wrong } = counts(scene);
      const detections = plural(visible(scene).length, "detection");
      const text = !annotated ? detections : `${plural(objects, "object")}, ${missed} missed, ${detections}, ${wrong} wrong`;
      summary.textContent = text;
      element.setAttribute("aria-label", `${scene.name}: ${text}`);
      if (this.onScreen) this.paint();
    },
    paint() {
      showPicture(element);
      paintObjects(truth.canvas, scene);
      paintDetections(found.canvas, scene);
    },
  };
}

const gallery = {
  cards: new Map(),
  observer: null,

  start() {
    const found = new Set(data.scenes.flatMap((scene) => [...scene.objects, ...scene.detections].map((row) => row.label)));
    const classes = data.classes.map(({ name }, i) => [i, name]).filter(([i]) => found.has(i));
    options(byId("gallery-class"), [[-1, "all classes"], ...classes], -1);
    const kinds = data.error_kinds.filter((kind) => kind !== "right" && kind !== "ignored");
    const words = kinds.map((kind) => [kind, `${kind} errors`]);
    options(byId("gallery-kind"), [["all", "everything"], ["right", "right"], ["wrong", "anything wrong"], ...words, ["missed", "missed objects"]], "all");
    const orders = annotated ? [["wrong", "most wrong first"], ["missed", "most missed first"]] : [["wrong", "most detections first"]];
    options(byId("gallery-order"), [["given", "as in the file"], ...orders, ["name", "by name"]], "given");
    for (const id of ["gallery-kind-label", "gallery-colour-label", "gallery-sides", "viewer-truth"]) byId(id).hidden = !annotated;
    options(byId("gallery-colour"), [["class", "by class"], ["kind", "by what is wrong"]], "class");
    for (const [id, name] of [["gallery-class", "label"], ["gallery-kind", "kind"], ["gallery-order", "order"], ["gallery-colour", "colour"]]) {
      byId(id).addEventListener("change", (event) => {
        view[name] = name === "label" ? Number(event.target.value) : event.target.value;
        this.arrange();
      });
    }
    this.observer = new IntersectionObserver((entries) => entries.forEach((entry) => this.seen(entry)), { rootMargin: "400px" });
    byId("cards").addEventListener("keydown", (event) => this.move(event));
    threshold.listeners.push(() => this.arrange());
  },

  choose(label) {
    view.label = label;
    byId("gallery-class").value = label;
    this.arrange();
  },

  seen(entry) {
    const index = Number(entry.target.dataset.index);
    const card = this.cards.get(index);
    if (entry.isIntersecting && !card.onScreen) {
      card.onScreen = true;
      card.paint();
    } else if (!entry.isIntersecting && card.onScreen) {
      card.onScreen = false;
      if (!viewer.shows(index)) forgetMasks(data.scenes[index]);
    }
  },

  /** Which cards are shown, in which order, with which numbers. */
  arrange() {
    const shown = data.scenes.map((_, i) => i).filter((i) => belongs(data.scenes[i]));
    const number = (i, name) => counts(data.scenes[i])[name];
    if (view.order === "name") shown.sort((a, b) => data.scenes[a].name.localeCompare(data.scenes[b].name, "en", { numeric: true }));
    else if (view.order !== "given") shown.sort((a, b) => number(b, view.order) - number(a, view.order));
    for (const i of shown) if (!this.cards.has(i)) this.cards.set(i, makeCard(i));
    const same = shown.length === view.shown.length && shown.every((value, i) => value === view.shown[i]);
    if (!same || !byId("cards").children.length) {
      view.shown = shown;
      this.observer.disconnect();
      for (const card of this.cards.values()) card.onScreen = false;
      const elements = shown.map((i) => this.cards.get(i).element);
      byId("cards").replaceChildren(...(elements.length ? elements : [make("p", { class: "empty" }, "No image is like that.")]));
      elements.forEach((element) => this.observer.observe(element));
      elements.forEach((element, i) => (element.tabIndex = i ? -1 : 0));
    }
    for (const i of shown) this.cards.get(i).update();
    const { images } = data.metrics ?? data.found;
    const all = images === data.scenes.length ? "" : ` (of ${plural(images, annotated ? "evaluated image" : "image")}, ${data.scenes.length} are in this page)`;
    byId("gallery-count").textContent = `${shown.length} of ${plural(data.scenes.length, "image")}${all}.`;
    const legend = view.colour === "kind" ? Object.entries(kindColours) : data.classes.slice(0, 40).map(({ name, colour }) => [name, colour]);
    byId("legend").replaceChildren(...legend.map(([name, colour]) => make("li", { title: name }, dot(colour), shortened(name, 40))));
    viewer.update();
  },

  /** Arrow keys, Home and End among the cards. */
  move(event) {
    const cards = [...byId("cards").querySelectorAll(".card")];
    const at = cards.indexOf(document.activeElement);
    if (at < 0) return;
    const columns = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: cards.length - 1 - at }[event.key];
    if (step === undefined || !cards[at + step]) return;
    event.preventDefault();
    this.focus(cards[at + step]);
  },

  focus(card) {
    for (const other of byId("cards").querySelectorAll('.card[tabindex="0"]')) other.tabIndex = -1;
    card.tabIndex = 0;
    card.focus();
  },
};
