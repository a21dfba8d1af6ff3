// The sections about the run, and the start of the page.

function showTiles(id, tiles) {
  byId(id).append(...tiles.map(([value, words]) => make("div", { class: "tile" }, make("b", {}, value), make("span", {}, words))));
}

function overview() {
  const { metrics } = data;
  const tiles = data.kinds.flatMap((kind) => ["AP", "AP50"].map((name) => [percent(metrics[kind][name]), `${kind} ${name}`]));
  const first = data.kinds[0]; // LVIS: rare, common and frequent classes
  const byFrequency = ["APr", "APc", "APf"].filter((name) => name in metrics[first]);
  tiles.push(...byFrequency.map((name) => [percent(metrics[first][name]), `${first} ${name}`]));
  if (metrics.semantic) tiles.push([percent(metrics.semantic.mIoU), "mIoU of pixels"]);
  const counted = [[metrics.images, "image"], [data.objects, "object"], [metrics.detections, "detection"], [data.classes.length, "class"]];
  tiles.push(...counted.map(([count, word]) => [count.toLocaleString("en"), plurals(count, word)]));
  showTiles("tiles", tiles);
  const names = Object.keys(metrics[data.kinds[0]]);
  const columns = [
    { title: "Compared", value: (kind) => kind, header: true, text: true },
    ...names.map((name) => ({ title: name, value: (kind) => metrics[kind][name], show: (kind) => percent(metrics[kind][name]) })),
  ];
  byId("all-metrics").append(sortableTable("All metrics, in percent", columns, data.kinds));
}

/** What a reader wants to know first, in sentences: list items of text and dots. */
function inShort() {
  const items = [];
  const best = data.threshold / data.bins;
  items.push(`The score threshold with the best F1 over all classes is about ${best.toFixed(2)}; the page starts from it.`);
  const [kind, count, cost] = [...data.errors].sort((a, b) => b[2] - a[2])[0];
  const what = plural(count, kind === "missed" ? "missed object" : `${kind} error`);
  if (cost > 0.001) items.push(`${what} ${count === 1 ? "costs" : "cost"} most: without ${count === 1 ? "it" : "them"}, AP50 would be ${percent(cost)} points higher (${errorWords[kind]}).`);
  const pair = confusedPairs(confusionCounts())[0];
  if (pair) items.push(`The most frequent confusion above the threshold: ${data.classes[pair[0]].name} taken for ${data.classes[pair[1]].name}, ${plural(pair[2], "time")}.`);
  const known = data.classes.filter((row) => row[data.kinds[0]].AP !== null).sort((a, b) => a[data.kinds[0]].AP - b[data.kinds[0]].AP);
  const named = (rows) => rows.map((row) => `${row.name} (${percent(row[data.kinds[0]].AP)})`).join(", ");
  if (known.length > 1) {
    const few = Math.min(3, Math.floor(known.length / 2));
    items.push(`Best classes by AP: ${named(known.slice(-few).reverse())}. Weakest: ${named(known.slice(0, few))}.`);
  }
  const ill = (data.references ?? []).filter((reference) => reference.verdict === "replace").length;
  if (ill) items.push(`${plural(ill, "reference")} should be replaced: see References.`);
  if (data.skipped.length) items.push(`${plural(data.skipped.length, "image")} could not be read and count as missed.`);
  byId("in-short").append(...items.map((text) => make("li", {}, text[0].toUpperCase() + text.slice(1))));
}

function classTable() {
  const score = (kind, name) => ({
    title: `${kind} ${name}`,
    value: (row) => row[kind]?.[name] ?? null,
    show: (row) => percent(row[kind]?.[name]),
    bar: (row) => (name === "AP" ? (row[kind]?.[name] ?? null) : null),
  });
  const choose = (row) => {
    const label = data.classes.indexOf(row);
    byId("curve-class").value = label;
    curves();
    if (data.scenes.length) gallery.choose(label);
    byId("curves").scrollIntoView();
  };
  const columns = [
    {
      title: "Class",
      value: (row) => row.name,
      show: (row) => make("button", { type: "button", title: row.name, onclick: () => choose(row) }, dot(row.colour), shortened(row.name, 60)),
      header: true,
      text: true,
    },
    { title: "objects", value: (row) => row.objects },
    { title: "detections", value: (row) => row.detections },
    ...data.kinds.flatMap((kind) => ["AP", "AP50", "AP75"].map((name) => score(kind, name))),
    { title: "best threshold", value: (row) => row.threshold, show: (row) => row.threshold?.toFixed(2) },
    { title: "F1", value: (row) => row.f1, show: (row) => percent(row.f1) },
  ];
  byId("class-table").append(sortableTable("Numbers of each class, in percent", columns, data.classes, 3));
  if (data.classes.some((row) => row.threshold !== null)) {
    const use = `ntt-jax segment PHOTOS --memory memory.safetensors --out found --thresholds ${data.threshold_file}`;
    byId("threshold-use").append("These thresholds are in ", make("code", {}, data.threshold_file), ", beside the results. To use them: ", make("code", {}, use));
    byId("threshold-use").hidden = false;
  }
}

function meanCurves(all) {
  const defined = all.filter((curve) => curve !== null);
  const mean = (k, i) => defined.reduce((sum, curve) => sum + curve[k][i], 0) / defined.length;
  return defined.length ? [0, 1, 2].map((k) => defined[0][k].map((_, i) => mean(k, i))) : null;
}

function curves() {
  const label = Number(byId("curve-class").value);
  const kind = byId("curve-kind").value;
  const chosen = label < 0 ? meanCurves(data.curves[kind]) : data.curves[kind][label];
  const name = label < 0 ? "all classes, mean" : data.classes[label].name;
  const lines = chosen && [[chosen[0], "one", "IoU 0.5"], [chosen[1], "two", "IoU 0.75"], [chosen[2], "three", "mean .5–.95"]];
  byId("curve").replaceChildren(lines ? precisionChart(name, lines, roomIn(byId("curve"))) : make("p", { class: "empty" }, "The evaluated images hold no object of this class."));
  const [right, wrong] = data.histograms.map((table) => (label < 0 ? table.reduce((sum, row) => sum.map((v, i) => v + row[i])) : table[label]));
  byId("histogram").replaceChildren(histogramChart(name, right, wrong, threshold.step, roomIn(byId("histogram"))));
}

function startCurves() {
  options(byId("curve-class"), [[-1, "all classes"], ...data.classes.map(({ name }, i) => [i, name])], -1);
  options(byId("curve-kind"), data.kinds.map((kind) => [kind, kind]), data.kinds[0]);
  byId("curve-kind-label").hidden = data.kinds.length < 2;
  byId("curve-class").addEventListener("change", curves);
  byId("curve-kind").addEventListener("change", curves);
  threshold.listeners.push(curves);
  addEventListener("resize", curves);
}

const errorWords = {
  localisation: "the right class, but the outline is off (IoU 0.1 to 0.5)",
  classification: "a good outline with the wrong class",
  both: "outline and class are off",
  duplicate: "the object is found already by a better detection",
  background: "there is nothing (IoU under 0.1 with every object)",
  missed: "no detection finds the object, not even a bad one",
};

function errorTable() {
  const most = Math.max(1e-9, ...data.errors.map(([, , cost]) => cost));
  const columns = [
    { title: "Kind", value: ([kind]) => kind, show: ([kind]) => make("span", {}, dot(kindColours[kind] ?? "#c4321f"), kind), header: true, text: true },
    { title: "costs", value: ([, , cost]) => cost, show: ([, , cost]) => percent(cost), bar: ([, , cost]) => Math.max(0, cost) / most },
    { title: "number", value: ([, count]) => count },
    { title: "what it is", value: ([kind]) => errorWords[kind], text: true },
  ];
  byId("error-table").append(sortableTable("Kinds of errors", columns, data.errors, 1));
}

/** Confusion counts `[true][predicted]` above the threshold; the last column of a class counts its missed objects. */
function confusionCounts() {
  const size = data.classes.length;
  const table = Array.from({ length: size + 2 }, () => new Map());
  const taken = Array.from({ length: size }, () => 0);
  for (const [truth, predicted, bin, count] of data.confusion) {
    if (bin < threshold.step) continue;
    table[truth].set(predicted, (table[truth].get(predicted) ?? 0) + count);
    if (truth < size) taken[truth] += count;
  }
  taken.forEach((count, k) => table[k].set(size, data.classes[k].objects - count));
  return table;
}

/** [true class, taken for, times] of different classes, the most frequent first. */
function confusedPairs(table) {
  const size = data.classes.length;
  const pairs = table.slice(0, size).flatMap((row, truth) => [...row].map(([predicted, count]) => [truth, predicted, count]));
  return pairs.filter(([truth, predicted]) => predicted < size && truth !== predicted).sort((a, b) => b[2] - a[2]);
}

const MATRIX_CLASSES = 30;

function confusionMatrix() {
  const size = data.classes.length;
  const table = confusionCounts();
  const at = (i, j) => table[i].get(j) ?? 0;
  const pairs = confusedPairs(table);
  const name = (k) => [dot(data.classes[k].colour), shortened(data.classes[k].name, 60)];
  const columns = [
    { title: "Is", value: ([truth]) => data.classes[truth].name, show: ([truth]) => make("span", {}, ...name(truth)), header: true, text: true },
    { title: "taken for", value: ([, predicted]) => data.classes[predicted].name, show: ([, predicted]) => make("span", {}, ...name(predicted)), text: true },
    { title: "times", value: ([, , count]) => count },
    { title: "of its objects", value: ([truth, , count]) => count / data.classes[truth].objects, show: ([truth, , count]) => `${percent(count / data.classes[truth].objects, 0)} %` },
  ];
  byId("confused").replaceChildren(pairs.length ? sortableTable("Most frequent confusions", columns, pairs.slice(0, 10), 2) : make("p", { class: "empty" }, "None above this threshold."));

  let shown = data.classes.map((_, k) => k);
  if (size > MATRIX_CLASSES) {
    const weight = Array.from({ length: size }, () => 0);
    for (const [truth, predicted, , count] of data.confusion) {
      if (truth >= size || truth === predicted) continue;
      weight[truth] += count;
      weight[predicted] += count;
    }
    shown = shown.sort((a, b) => weight[b] - weight[a]).slice(0, MATRIX_CLASSES).sort((a, b) => a - b);
  }
  byId("matrix-note").textContent = size > MATRIX_CLASSES ? `The ${MATRIX_CLASSES} classes that are confused most.` : "";
  const rowIds = [...shown, size, size + 1];
  const columnIds = [...shown, size];
  const heading = (k) => ({ name: data.classes[k].name, colour: data.classes[k].colour });
  const rows = [...shown.map(heading), { name: "nothing there", edge: true }, { name: "found already" }];
  const sums = rowIds.map((i) => [...table[i].values()].reduce((sum, value) => sum + value, 0));
  const share = (i, j) => (sums[i] ? at(rowIds[i], columnIds[j]) / sums[i] : 0);
  const possible = (i, j) => rowIds[i] < size || columnIds[j] < size;
  byId("matrix").replaceChildren(
    matrixTable("Confusion matrix", rows, [...shown.map(heading), { name: "missed", edge: true }], {
      shade: (i, j) => (possible(i, j) ? share(i, j) : 0),
      cell: (i, j) => (possible(i, j) ? String(at(rowIds[i], columnIds[j]) || "") : ""),
      title: (i, j) => {
        const target = j < shown.length ? `taken for ${data.classes[columnIds[j]].name}` : "missed";
        return `${rows[i].name}, ${target}: ${at(rowIds[i], columnIds[j])} (${percent(share(i, j), 0)} %)`;
      },
    }),
  );
}

function skippedTable() {
  const columns = [
    { title: "Image", value: ([name]) => name, header: true, text: true },
    { title: "why", value: ([, reason]) => reason, text: true },
  ];
  byId("skipped-table").append(sortableTable("Skipped images", columns, data.skipped));
}

function provenance() {
  for (const [heading, values] of Object.entries(data.provenance)) {
    byId("provenance-tables").append(make("h3", {}, heading), pairList(values));
  }
}

/** Links to the sections, the one on the screen marked. What a link leads to lies below the bar that stays on top. */
function navigation() {
  const bar = document.querySelector(".top");
  const room = () => {
    const stays = getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
    document.documentElement.style.setProperty("--bar-height", `${stays}px`);
  };
  new ResizeObserver(room).observe(bar);
  room();
  const links = new Map();
  for (const section of document.querySelectorAll("main > section")) {
    const link = make("a", { href: `#${section.id}` }, section.dataset.title);
    links.set(section, link);
    byId("sections").append(make("li", {}, link));
  }
  const mark = () => {
    const middle = innerHeight * 0.4;
    let current = null;
    for (const section of links.keys()) if (section.getBoundingClientRect().top <= middle) current = section;
    for (const [section, link] of links) {
      if (section === (current ?? links.keys().next().value)) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

/** A page without annotations: counts and areas of the classes, their scores, the gallery. */
function foundSection() {
  const { images, detections, skipped } = data.found;
  const counted = [[images, "photo"], [detections, "detection"], [data.classes.length, "class"], ...(skipped ? [[skipped, "unread photo"]] : [])];
  showTiles("found-tiles", counted.map(([count, word]) => [count.toLocaleString("en"), plurals(count, word)]));
  const scores = () => {
    const label = Number(byId("found-class").value);
    const values = label < 0 ? data.histograms.reduce((sum, row) => sum.map((v, i) => v + row[i]), Array(data.bins).fill(0)) : data.histograms[label];
    byId("found-scores").replaceChildren(scoreChart(label < 0 ? "all classes" : data.classes[label].name, values, threshold.step, roomIn(byId("found-scores"))));
  };
  const choose = (row) => {
    const label = data.classes.indexOf(row);
    byId("found-class").value = label;
    scores();
    if (data.scenes.length) gallery.choose(label);
  };
  const pixels = (value) => (value === null ? "–" : value.toLocaleString("en"));
  const columns = [
    { title: "Class", value: (row) => row.name, show: (row) => make("button", { type: "button", title: row.name, onclick: () => choose(row) }, dot(row.colour), shortened(row.name, 60)), header: true, text: true },
    { title: "detections", value: (row) => row.detections },
    { title: "photos", value: (row) => row.images },
    { title: "area", value: (row) => row.area, show: (row) => pixels(row.area) },
    { title: "smallest", value: (row) => row.least_area, show: (row) => pixels(row.least_area) },
    { title: "largest", value: (row) => row.most_area, show: (row) => pixels(row.most_area) },
    { title: "share of the photo", value: (row) => row.share, show: (row) => (row.share === null ? "–" : `${percent(row.share, 2)} %`) },
  ];
  byId("found-table").append(sortableTable("Counts and areas of each class", columns, data.classes, 1));
  options(byId("found-class"), [[-1, "all classes"], ...data.classes.map(({ name }, i) => [i, name])], -1);
  byId("found-class").addEventListener("change", scores);
  threshold.listeners.push(scores);
  addEventListener("resize", scores);
  byId("skipped-cost")?.remove();
}

function start() {
  for (const section of document.querySelectorAll("[data-needs]")) {
    const content = data[section.dataset.needs];
    if (!content || (section.id === "skipped" && !content.length) || (section.id === "gallery" && !content.length)) section.remove();
  }
  byId("notes").append(...(data.notes ?? []).map((note) => make("p", { class: "note" }, note)));
  if (data.found) {
    foundSection();
    if (data.scenes.length) {
      gallery.start();
      viewer.start();
    }
    threshold.start();
    if (data.skipped.length) skippedTable();
    provenance();
  }
  if (data.metrics) {
    overview();
    inShort();
    classTable();
    startCurves();
    errorTable();
    threshold.listeners.push(confusionMatrix);
    if (data.scenes.length) {
      gallery.start();
      viewer.start();
    }
    threshold.start();
    if (data.skipped.length) skippedTable();
    provenance();
  }
  if (data.tune) {
    tuning();
    if (!data.metrics) {
      if (data.skipped.length) skippedTable();
      provenance();
    }
  }
  if (data.references) references();
  if (data.memory) memorySection();
  navigation();
}

start();
