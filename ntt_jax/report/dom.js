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
const plural = (count, word) => `${count.toLocaleString("en")} ${plurals(count, word)}`;
const plurals = (count, word) => (count === 1 ? word : word.endsWith("s") ? `${word}es` : `${word}s`);

/** A long name with its middle left out, as names often differ at their end only. */
function shortened(name, most) {
  const letters = [...name];
  if (letters.length <= most) return name;
  const kept = most - 1;
  return `${letters.slice(0, Math.ceil(kept / 2)).join("")}…${letters.slice(letters.length - Math.floor(kept / 2)).join("")}`;
}

/** A coloured dot; colours come from the program, never from a file. */
function dot(colour) {
  const element = make("span", { class: "dot", "aria-hidden": "true" });
  element.style.background = colour;
  return element;
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value, title: text }, shortened(String(text), 60))));
  select.value = chosen;
}

/** A table that scrolls within itself; shadows and a line of text say so where there is more of it. */
function scrolled(label, table, extra = "") {
  const inside = make("div", { class: `scroll ${extra}`, tabindex: "0", role: "region", "aria-label": label }, table);
  const hint = make("p", { class: "hint", hidden: true }, "The table goes on to the right: scroll it sideways.");
  const outside = make("div", { class: `scrolled ${extra}` }, make("div", { class: "frame-of-scroll" }, inside), hint);
  const look = () => {
    const more = (size, seen, at) => size - seen - at > 1;
    outside.classList.toggle("more-right", more(inside.scrollWidth, inside.clientWidth, inside.scrollLeft));
    outside.classList.toggle("more-below", more(inside.scrollHeight, inside.clientHeight, inside.scrollTop));
    hint.hidden = inside.scrollWidth - inside.clientWidth <= 1;
  };
  inside.addEventListener("scroll", look, { passive: true });
  const watch = new ResizeObserver(() => requestAnimationFrame(look));
  watch.observe(inside);
  watch.observe(table);
  return outside;
}
