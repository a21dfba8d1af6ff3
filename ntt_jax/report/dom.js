// Elements of a page. Text from files reaches it through textContent and attributes only. Shared by the report and the app.

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
