// A mask of the picture's size that can be painted on, and its run lengths (the inverse of decodeMask).

const brush = {
  /** Whole picture from a mask cut to its box, 0 or 1 per pixel, row by row. */
  bitmap(text, scene) {
    const bytes = new Uint8Array(scene.width * scene.height);
    if (text) {
      const mask = decodeMask(text, scene);
      for (let y = 0; y < mask.high; y++) {
        for (let x = 0; x < mask.wide; x++) {
          if (mask.bytes[y * mask.wide + x]) bytes[(y + mask.y) * scene.width + x + mask.x] = 1;
        }
      }
    }
    return bytes;
  },

  /** Set all pixels of a disc. */
  disc(bytes, scene, px, py, radius, value) {
    for (let y = Math.max(0, Math.ceil(py - radius)); y <= Math.min(scene.height - 1, py + radius); y++) {
      const half = Math.sqrt(Math.max(0, radius * radius - (y - py) ** 2));
      for (let x = Math.max(0, Math.ceil(px - half)); x <= Math.min(scene.width - 1, px + half); x++) bytes[y * scene.width + x] = value;
    }
  },

  /** A disc at every pixel of a stroke. */
  stroke(bytes, scene, from, to, radius, value) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])));
    for (let i = 0; i <= steps; i++) {
      const part = i / steps;
      this.disc(bytes, scene, from[0] + part * (to[0] - from[0]), from[1] + part * (to[1] - from[1]), radius, value);
    }
  },

  /** COCO's compressed run lengths of a bitmap: column by column, differences to the run before the last. */
  encode(bytes, { width, height }) {
    const runs = [];
    let [value, count] = [0, 0];
    for (let x = 0; x < width; x++) {
      for (let y = 0; y < height; y++) {
        if (bytes[y * width + x] === value) count++;
        else {
          runs.push(count);
          [value, count] = [1 - value, 1];
        }
      }
    }
    runs.push(count);
    let text = "";
    runs.forEach((run, i) => {
      let rest = i > 2 ? run - runs[i - 2] : run;
      let more = true;
      while (more) {
        let code = rest & 31;
        rest >>= 5;
        more = code & 16 ? rest !== -1 : rest !== 0;
        if (more) code |= 32;
        text += String.fromCharCode(code + 48);
      }
    });
    return text;
  },
};
