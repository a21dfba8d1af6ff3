// Masks: COCO's compressed run lengths onto a canvas.

const kindColours = {
  right: "#009e73", localisation: "#e69f00", classification: "#cc79a7", both: "#8a6fd1",
  duplicate: "#56b4e9", background: "#d55e00", ignored: "#999999",
};

/** Run lengths from the text, alternately outside and inside, column by column. */
function runLengths(text) {
  const runs = [];
  for (let i = 0; i < text.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = text.charCodeAt(i++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** A mask cut to its box: {x, y, wide, high, bytes}, row by row: 0 outside, 1 inside, 2 inside and at the edge. */
function decodeMask(text, scene) {
  const { width, height } = scene;
  const spans = []; // of one column each: column, first row, end row
  let place = 0;
  runLengths(text).forEach((run, i) => {
    const end = Math.min(place + run, width * height);
    for (let p = place; i % 2 && p < end; ) {
      const column = Math.floor(p / height);
      const stop = Math.min(end, (column + 1) * height);
      spans.push([column, p - column * height, stop - column * height]);
      p = stop;
    }
    place = end;
  });
  if (!spans.length) return { x: 0, y: 0, wide: 0, high: 0, bytes: new Uint8Array(0) };
  const x = spans[0][0];
  const wide = spans[spans.length - 1][0] + 1 - x;
  const y = spans.reduce((least, span) => Math.min(least, span[1]), height);
  const high = spans.reduce((most, span) => Math.max(most, span[2]), 0) - y;
  const bytes = new Uint8Array(wide * high);
  for (const [column, first, stop] of spans) {
    for (let row = first - y; row < stop - y; row++) bytes[row * wide + column - x] = 1;
  }
  return markEdges({ x, y, wide, high, bytes }, scene);
}

function boxMask([left, top, across, down], scene) {
  const [x, y] = [Math.max(0, Math.round(left)), Math.max(0, Math.round(top))];
  const wide = Math.max(0, Math.min(scene.width, Math.round(left + across)) - x);
  const high = Math.max(0, Math.min(scene.height, Math.round(top + down)) - y);
  return markEdges({ x, y, wide, high, bytes: new Uint8Array(wide * high).fill(1) }, scene);
}

function markEdges(mask, scene) {
  const { wide, high, bytes } = mask;
  const thick = Math.max(1, Math.round(Math.max(scene.width, scene.height) / 320));
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      const p = y * wide + x;
      if (!bytes[p]) continue;
      const outside = x < thick || y < thick || x >= wide - thick || y >= high - thick;
      if (outside || !bytes[p - thick] || !bytes[p + thick] || !bytes[p - thick * wide] || !bytes[p + thick * wide]) bytes[p] = 2;
    }
  }
  return mask;
}

const decoded = new WeakMap(); // masks of the objects and detections that are on the screen

function maskOf(row, text, box, scene) {
  if (!decoded.has(row)) decoded.set(row, text ? decodeMask(text, scene) : boxMask(box, scene));
  return decoded.get(row);
}

function forgetMasks(scene) {
  for (const row of [...scene.objects, ...scene.detections]) decoded.delete(row);
}

/** Whether a mask covers a pixel of the picture. */
const covers = ({ x, y, wide, high, bytes }, px, py) => px >= x && py >= y && px < x + wide && py < y + high && bytes[(py - y) * wide + px - x] > 0;

const rgb = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

/** Paint layers {mask, colour, dashed, faint}, the first one on top. */
function paint(canvas, scene, layers) {
  const { width, height } = scene;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const pixels = image.data;
  const unit = Math.max(3, Math.round(Math.max(width, height) / 80));
  for (const { mask, colour, dashed, faint } of [...layers].reverse()) {
    const [r, g, b] = rgb(colour);
    for (let row = 0; row < mask.high; row++) {
      for (let column = 0; column < mask.wide; column++) {
        const value = mask.bytes[row * mask.wide + column];
        if (!value) continue;
        const [x, y] = [mask.x + column, mask.y + row];
        let alpha = dashed ? 45 : faint ? 30 : 105;
        if (value === 2) alpha = dashed && Math.floor((x + y) / unit) % 2 ? 0 : faint ? 90 : 255;
        const q = 4 * (y * width + x);
        const over = alpha / 255;
        const under = (pixels[q + 3] / 255) * (1 - over);
        if (over + under === 0) continue;
        pixels[q] = (r * over + pixels[q] * under) / (over + under);
        pixels[q + 1] = (g * over + pixels[q + 1] * under) / (over + under);
        pixels[q + 2] = (b * over + pixels[q + 2] * under) / (over + under);
        pixels[q + 3] = 255 * (over + under);
      }
    }
  }
  context.putImageData(image, 0, 0);
  return context;
}

/** A line of text on its colour at the top left corner of a box. */
function caption(context, text, box, colour, scale) {
  const size = 12 * scale;
  context.font = `600 ${size}px system-ui, "DejaVu Sans", sans-serif`;
  const wide = context.measureText(text).width + 8 * scale;
  const high = size + 5 * scale;
  const x = Math.max(0, Math.min(box[0], context.canvas.width - wide));
  const y = Math.max(0, Math.min(box[1] - high, context.canvas.height - high));
  const [r, g, b] = rgb(colour);
  context.fillStyle = colour;
  context.fillRect(x, y, wide, high);
  context.fillStyle = 0.3 * r + 0.59 * g + 0.11 * b > 140 ? "#000" : "#fff";
  context.textBaseline = "middle";
  context.fillText(text, x + 4 * scale, y + high / 2 + scale / 2);
}
