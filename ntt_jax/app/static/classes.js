// The classes: how many references, what the doctor says of them, and from which score a detection counts.

const classes = {
  cards: new Map(),
  sending: null,

  start() {
    store.listeners.push((changed) => changed && this.update());
  },

  update() {
    const { classes: known } = store.state;
    byId("no-classes").hidden = known.length > 0;
    const elements = known.map((one) => this.card(one));
    for (const name of this.cards.keys()) if (!known.some((one) => one.name === name)) this.cards.delete(name);
    if (elements.some((element, i) => byId("classes").children[i] !== element) || byId("classes").children.length !== elements.length) byId("classes").replaceChildren(...elements);
    byId("class-names").replaceChildren(...known.map((one) => make("option", { value: one.name })));
  },

  card(one) {
    if (!this.cards.has(one.name)) {
      const slider = make("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": `threshold of ${one.name}` });
      slider.addEventListener("input", () => this.slide(one.name, Number(slider.value)));
      slider.addEventListener("change", () => this.send());
      const element = make("li", {}, make("div", { class: "class-head" }, make("b", {}, dot(store.colour(one.name)), one.name), make("span", { class: "soft counts" })),
        make("label", { class: "threshold" }, make("span", {}, "from score ", make("output")), slider),
        make("details", {}, make("summary", { "aria-label": `References of ${one.name}` }, "References"), make("ul", { class: "rows" })));
      this.cards.set(one.name, element);
    }
    const element = this.cards.get(one.name);
    element.querySelector(".counts").textContent = plural(one.references, "reference") + (one.negatives ? `, ${one.negatives} negative` : "");
    if (this.sending === null) this.place(element, store.threshold(one.name));
    const references = store.state.references.filter((reference) => reference.class_name === one.name);
    replaceRows(element.querySelector("ul"), references.map((reference) => referenceRow(reference)));
    return element;
  },

  place(element, value) {
    element.querySelector("input").value = value;
    element.querySelector("output").textContent = value.toFixed(2);
  },

  /** All pictures move at once; the server hears of it when the slider rests. */
  slide(name, value) {
    const one = store.state.classes.find((other) => other.name === name);
    one.threshold = value;
    this.place(this.cards.get(name), value);
    this.sending = { ...this.sending, [name]: value };
    requestAnimationFrame(() => {
      grid.update();
      editor.update();
    });
  },

  async send() {
    const thresholds = this.sending;
    if (thresholds === null) return;
    await attempt(() => ask("PUT", "/v1/thresholds", { thresholds }));
    this.sending = null;
  },
};

/** One reference with the doctor's word on it, where it is, and a button that forgets it. action: of a click on its name. */
function referenceRow(reference, name = reference.photo_name, action = () => editor.open(reference.photo)) {
  const words = reference.problem ?? (reference.words?.length ? reference.words.join("; ") : "");
  const what = reference.kind === "negative" ? "negative" : (reference.verdict ?? "");
  return make("li", { class: `row ${reference.problem ? "replace" : (reference.verdict ?? "")}` },
    make("button", { type: "button", class: "plain", title: name, disabled: reference.photo === null, onclick: action }, dot(store.colour(reference.class_name)), shortened(name, 60)),
    make("span", { class: "soft" }, [what, words].filter(Boolean).join(": ")),
    make("button", { type: "button", "aria-label": `Remove ${reference.class_name} of ${reference.photo_name}`, onclick: () => removeReference(reference.id) }, "Remove"));
}

async function removeReference(id) {
  await attempt(() => ask("DELETE", `/v1/references/${id}`));
  await store.refresh();
  await editor.load();
}
