// The grid of photos. Thumbnails are asked for when their place comes near the screen.

const grid = {
  cards: new Map(),
  chosen: new Set(),
  near: new Set(), // photos at or near the screen
  found: new Map(), // their detections, small masks
  watcher: null,

  start() {
    this.watcher = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting) this.near.add(target.dataset.id);
        else this.near.delete(target.dataset.id);
        const image = target.querySelector("img");
        if (isIntersecting && !image.hasAttribute("src")) image.src = `/v1/photos/${target.dataset.id}/thumbnail`;
        if (isIntersecting) this.draw(store.photo(target.dataset.id));
      }
    }, { rootMargin: "300px" });
    byId("filter").addEventListener("change", () => this.update());
    byId("choosing").addEventListener("change", () => this.update());
    store.listeners.push((changed) => changed && this.update());
  },

  /** The photos that the filter lets through. */
  shown() {
    const kind = byId("filter").value;
    const withReferences = new Set(store.state.references.map((one) => one.photo));
    return store.state.photos.filter((photo) => {
      if (kind === "found") return counted(photo) > 0;
      if (kind === "references") return withReferences.has(photo.id);
      return kind !== "waiting" || !photo.searched;
    });
  },

  update() {
    const photos = this.shown();
    const elements = photos.map((photo) => this.card(photo));
    const list = byId("photos");
    const same = list.children.length === elements.length && elements.every((element, i) => list.children[i] === element);
    if (!same) list.replaceChildren(...elements);
    byId("no-photos").hidden = photos.length > 0;
    for (const photo of photos) if (this.near.has(photo.id)) this.draw(photo);
  },

  /** What was found, on the thumbnail. */
  async draw(photo) {
    const canvas = this.cards.get(photo?.id)?.querySelector("canvas");
    if (!canvas) return;
    if (!photo.searched || photo.problem) {
      canvas.hidden = true;
      return;
    }
    let known = this.found.get(photo.id);
    if (known?.version !== photo.version) {
      known = { version: photo.version, content: null };
      this.found.set(photo.id, known);
      known.content = await ask("GET", `/v1/photos/${photo.id}/detections?side=256`).catch(() => null);
    }
    if (!known.content || this.found.get(photo.id) !== known) return;
    const scene = known.content;
    const shown = scene.detections.filter((one) => one.score >= store.threshold(one.class_name));
    canvas.hidden = false;
    paint(canvas, scene, shown.map((one) => ({ mask: maskOf(one.mask, one.mask.counts, null, scene), colour: store.colour(one.class_name) })));
  },

  card(photo) {
    if (!this.cards.has(photo.id)) {
      const image = make("img", { alt: "", decoding: "async" });
      const button = make("button", { type: "button", class: "open", onclick: () => editor.open(photo.id) }, make("span", { class: "view" }, image, make("canvas", { "aria-hidden": "true", hidden: true })), make("span", { class: "name" }, photo.name), make("span", { class: "count soft" }));
      const choose = make("input", { type: "checkbox", "aria-label": `search ${photo.name}`, onchange: (event) => this.choose(photo.id, event.target.checked) });
      const element = make("li", { "data-id": photo.id }, button, choose);
      image.addEventListener("error", () => {
        element.classList.add("unreadable");
        this.card(store.photo(photo.id) ?? photo);
      });
      this.cards.set(photo.id, element);
      this.watcher.observe(element);
    }
    const element = this.cards.get(photo.id);
    element.querySelector(".count").textContent = this.describe(photo);
    element.querySelector(".open").title = photo.problem ?? photo.name;
    element.querySelector("input").hidden = !byId("choosing").checked;
    element.classList.toggle("stale", photo.searched && !photo.current);
    return element;
  },

  choose(id, on) {
    if (on) this.chosen.add(id);
    else this.chosen.delete(id);
    header.update();
  },

  describe(photo) {
    if (photo.problem) return photo.problem;
    if (this.cards.get(photo.id).classList.contains("unreadable")) return "cannot be read";
    const references = store.state.references.filter((one) => one.photo === photo.id).length;
    const parts = references ? [plural(references, "reference")] : [];
    if (photo.searched) parts.push(`${counted(photo)} found${photo.current ? "" : ", with earlier references"}`);
    return parts.join(" · ");
  },
};

/** How many detections of a photo reach the thresholds of their classes. */
function counted(photo) {
  let count = 0;
  for (const [name, scores] of Object.entries(photo.scores ?? {})) {
    const threshold = store.threshold(name);
    count += scores.filter((score) => score >= threshold).length;
  }
  return count;
}
