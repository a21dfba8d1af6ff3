// What every part of the page uses. Text from files reaches the page through textContent and attributes only.

const data = JSON.parse(document.getElementById("data").textContent);
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const byId = (id) => document.getElementById(id);

/** An element with properties, attributes ("aria-label", "data-x", "class"), listeners ("onclick") and children. */
function make(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** The same for SVG. */
function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const percent = (value, digits = 1) => (value === null || value === undefined ? "–" : (100 * value).toFixed(digits));
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const kindWords = { segm: "masks", bbox: "boxes" };

/** A coloured dot; colours come from the program, never from a file. */
function dot(colour) {
  const element = make("span", { class: "dot", "aria-hidden": "true" });
  element.style.background = colour;
  return element;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  select.value = chosen;
}

function scrolled(label, table, extra = "") {
  return make("div", { class: `scroll ${extra}`, tabindex: "0", role: "region", "aria-label": label }, table);
}

// The score threshold, in steps of the histograms, is one for the whole page: moving any slider moves all.
const threshold = {
  step: data.threshold ?? 0,
  listeners: [],
  get score() {
    return this.step / data.bins;
  },
  /** Whether a score in whole steps of data.steps reaches the threshold. */
  passes(score) {
    return score * data.bins >= this.step * data.steps;
  },
  set(step) {
    this.step = step;
    for (const input of document.querySelectorAll(".threshold-input")) {
      input.value = step;
      input.setAttribute("aria-valuetext", this.score.toFixed(2));
    }
    for (const output of document.querySelectorAll("output.threshold")) output.textContent = this.score.toFixed(2);
    for (const listener of this.listeners) listener();
  },
  start() {
    let latest = null; // a slider fires more often than the screen is drawn
    for (const input of document.querySelectorAll(".threshold-input")) {
      Object.assign(input, { min: 0, max: data.bins, step: 1 });
      input.addEventListener("input", () => {
        if (latest === null) {
          requestAnimationFrame(() => {
            this.set(latest);
            latest = null;
          });
        }
        latest = Number(input.value);
      });
    }
    this.set(this.step);
  },
};
