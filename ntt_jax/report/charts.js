// Charts as plain SVG, as wide as their place, so that their text keeps its size on narrow screens.

/** The width to draw for an element, in pixels. */
const roomIn = (element) => Math.max(260, Math.min(480, element.clientWidth || 480));

/** The frame of a chart: axes from 0 to 1 horizontally, 0 to `top` vertically. Returns the svg and the two scales. */
function chart(label, { title, across, upward, top = 1, width = 480, height = 300, head = 26, ticks = [0, 0.25, 0.5, 0.75, 1] }) {
  const [left, right, above, below] = [46, 14, head, 40];
  const x = (value) => left + value * (width - left - right);
  const y = (value) => height - below - (value / top) * (height - above - below);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  svg.append(draw("text", { class: "title", x: left, y: 14 }, title));
  for (const tick of ticks) {
    svg.append(
      draw("line", { class: "grid", x1: x(0), x2: x(1), y1: y(tick * top), y2: y(tick * top) }),
      draw("text", { x: left - 6, y: y(tick * top) + 4, "text-anchor": "end" }, shortNumber(tick * top)),
      draw("text", { x: x(tick), y: height - below + 16, "text-anchor": "middle" }, String(tick)),
    );
  }
  svg.append(
    draw("line", { class: "axis", x1: x(0), x2: x(1), y1: y(0), y2: y(0) }),
    draw("text", { x: x(0.5), y: height - 6, "text-anchor": "middle" }, across),
    draw("text", { x: 12, y: y(top / 2), "text-anchor": "middle", transform: `rotate(-90 12 ${y(top / 2)})` }, upward),
  );
  return { svg, x, y };
}

function shortNumber(value) {
  if (value >= 10000) return `${Math.round(value / 1000)}k`;
  return String(Number.isInteger(value) ? value : Number(value.toPrecision(2)));
}

/** Precision over recall. lines: [[values in thousandths at 0, 0.01, ... 1], class, name]. */
function precisionChart(name, lines, width) {
  const said = lines.map(([values, , word]) => `${word} ${area(values)}`).join(", ");
  const { svg, x, y } = chart(`Precision over recall of ${name}: ${said}`, { title: shortened(name, Math.floor(width / 9)), across: "recall", upward: "precision", width });
  lines.forEach(([values, style, word], i) => {
    const points = values.map((value, j) => `${x(j / 100).toFixed(1)},${y(value / 1000).toFixed(1)}`).join(" ");
    const top = 44 + 18 * i;
    svg.append(
      draw("polyline", { class: `line ${style}`, points }),
      draw("line", { class: `line ${style}`, x1: width - 162, x2: width - 140, y1: top - 4, y2: top - 4 }),
      draw("text", { x: width - 134, y: top }, `${word}: ${area(values)}`),
    );
  });
  return svg;
}

const area = (values) => (values.reduce((sum, value) => sum + value, 0) / values.length / 10).toFixed(1);

/** Right and wrong detections by score, stacked; a line marks the threshold. */
function histogramChart(name, right, wrong, step, width) {
  const most = Math.max(4, ...right.map((value, i) => value + wrong[i]));
  const top = 4 * Math.ceil(most / 4);
  const total = (numbers) => numbers.reduce((sum, value) => sum + value, 0).toLocaleString("en");
  const label = `Scores of ${name}: ${total(right)} right and ${total(wrong)} wrong detections`;
  const { svg, x, y } = chart(label, { title: "Scores", across: "score", upward: "detections", top, width, head: 46 });
  const wide = (x(1) - x(0)) / right.length;
  right.forEach((value, i) => {
    const place = { x: x(i / right.length) + 0.5, width: wide - 1 };
    const range = `${(i / right.length).toFixed(2)} to ${((i + 1) / right.length).toFixed(2)}`;
    svg.append(
      draw("rect", { class: "right", ...place, y: y(value), height: y(0) - y(value) }, draw("title", {}, `${range}: ${value} right`)),
      draw("rect", { class: "wrong", ...place, y: y(value + wrong[i]), height: y(value) - y(value + wrong[i]) }, draw("title", {}, `${range}: ${wrong[i]} wrong`)),
    );
  });
  svg.append(draw("line", { class: "mark", x1: x(step / right.length), x2: x(step / right.length), y1: y(0), y2: 46 }));
  [["right", `right: ${total(right)}`, 46], ["wrong", `wrong: ${total(wrong)}`, 46 + (width - 46) / 2]].forEach(([style, text, left]) => {
    svg.append(draw("rect", { class: style, x: left, y: 24, width: 11, height: 11 }), draw("text", { x: left + 16, y: 34 }, text));
  });
  return svg;
}

/** Detections by score; a line marks the threshold. */
function scoreChart(name, values, step, width) {
  const top = 4 * Math.ceil(Math.max(4, ...values) / 4);
  const total = values.reduce((sum, value) => sum + value, 0);
  const { svg, x, y } = chart(`Scores of ${name}: ${plural(total, "detection")}`, { title: `Scores of ${shortened(name, Math.floor(width / 14))}`, across: "score", upward: "detections", top, width });
  values.forEach((value, i) => {
    const range = `${(i / values.length).toFixed(2)} to ${((i + 1) / values.length).toFixed(2)}`;
    svg.append(draw("rect", { class: "right", x: x(i / values.length) + 0.5, width: (x(1) - x(0)) / values.length - 1, y: y(value), height: y(0) - y(value) }, draw("title", {}, `${range}: ${value}`)));
  });
  svg.append(draw("line", { class: "mark", x1: x(step / values.length), x2: x(step / values.length), y1: y(0), y2: y(top) }));
  return svg;
}

/** Points of the memory on a plane: small ones are references, large ringed ones prototypes. */
function planeChart(memory, names, width) {
  const height = Math.round((width * 5) / 6);
  const all = [...memory.points.map(([, , a, b]) => [a, b]), ...memory.prototypes];
  const range = (k) => {
    const values = all.map((point) => point[k]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = 0.08 * (high - low || 1);
    return [low - margin, high + margin];
  };
  const [[x0, x1], [y0, y1]] = [range(0), range(1)];
  const x = (value) => ((value - x0) / (x1 - x0)) * width;
  const y = (value) => height - ((value - y0) / (y1 - y0)) * height;
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "References and prototypes on the two main components" });
  svg.append(draw("rect", { x: 0.5, y: 0.5, width: width - 1, height: height - 1, fill: "none", class: "grid" }));
  for (const [label, number, a, b] of memory.points) {
    const circle = draw("circle", { class: "point", cx: x(a).toFixed(1), cy: y(b).toFixed(1), r: 5, fill: names[label][1] });
    circle.append(draw("title", {}, `${names[label][0]}, reference ${number + 1}`));
    svg.append(circle);
  }
  memory.prototypes.forEach(([a, b], label) => {
    const size = 9;
    const points = [[0, -size], [size, 0], [0, size], [-size, 0]].map(([dx, dy]) => `${(x(a) + dx).toFixed(1)},${(y(b) + dy).toFixed(1)}`);
    const mark = draw("polygon", { points: points.join(" "), fill: names[label][1], class: "axis", "stroke-width": 2 });
    mark.append(draw("title", {}, `${names[label][0]}, prototype`));
    svg.append(mark);
  });
  return svg;
}
