// What every part of the page uses. Text from files reaches the page through textContent and attributes only.

const data = JSON.parse(document.getElementById("data").textContent);
const pictures = JSON.parse(document.getElementById("pictures").textContent);

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
