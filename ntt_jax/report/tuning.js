// The section about `ntt-jax tune`: the chosen rules, what was tried, and the operating points of the classes.

const signed = (value) => (value === null ? "–" : `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(100 * value).toFixed(1)}`);
const withSpread = (gain, spread) => (gain === null || spread === null ? signed(gain) : `${signed(gain)} ± ${percent(spread)}`);
const between = (bounds) => (bounds === null ? "–" : `${signed(bounds[0])} to ${signed(bounds[1])}`);

/** The middle of an interval, to sort by. */
const centreOf = (bounds) => (bounds === null ? null : (bounds[0] + bounds[1]) / 2);

/** Names of constants that may be broken behind an underscore or an equals sign, not in a word. */
const breakable = (name) => make("span", {}, ...name.match(/[^_=]*[_=]?/g).flatMap((part) => [part, make("wbr")]));

function tuningWords(tune) {
  const [choose, report] = tune.images;
  const main = tune.gains.find(({ kind }) => kind === tune.metric);
  const items = [
    `${plural(tune.configurations, "configuration")} tried with ${tune.memories === 1 ? "1 memory" : `${tune.memories} memories`} (search: ${tune.search}), chosen by ${tune.metric} AP on ${plural(choose, "image")}, reported on ${report} others.`,
  ];
  if (tune.chosen === "unchanged") {
    items.push(`Chosen: the constants as given${Object.keys(tune.method).length ? "" : ", the published ones"}. Nothing that was tried is better beyond the noise.`);
  } else if (main) {
    items.push(`On the images that nothing was chosen on, the chosen rules change ${tune.metric} AP by ${signed(main.gain)}${main.interval === null ? "" : `; 95 % of the resampled images and memories lie between ${signed(main.interval[0])} and ${signed(main.interval[1])}`}.`);
    if (main.interval === null) items.push("Too few of those images have objects to say how sure that is.");
    else if (tune.within_noise) items.push("That is within noise: the constants as they were may serve as well on other images.");
  }
  return items;
}

function tuning() {
  const { tune } = data;
  const main = tune.gains.find(({ kind }) => kind === tune.metric) ?? tune.gains[0];
  showTiles("tuning-tiles", [
    ...tune.gains.flatMap(({ kind, after, gain }) => [[percent(after), `${kind} AP`], [signed(gain), `gain in ${kind} AP`]]),
    ...(main ? main.shots.map(([count, gain]) => [signed(gain), `gain with ${plural(Number(count), "shot")}`]) : []),
  ]);
  byId("tuning-short").append(...tuningWords(tune).map((text) => make("li", {}, text)));
  const rules = Object.keys(tune.method).length ? pairList(tune.method) : make("p", { class: "empty" }, "The published constants.");
  byId("tuning-method").append(rules);

  const gains = [
    { title: "Compared", value: ({ kind }) => kind, header: true, text: true },
    { title: "AP before", value: ({ before }) => before, show: ({ before }) => percent(before) },
    { title: "after", value: ({ after }) => after, show: ({ after }) => percent(after) },
    { title: "gain", value: ({ gain }) => gain, show: ({ gain, spread }) => withSpread(gain, spread) },
    { title: "95 %", value: ({ interval }) => centreOf(interval), show: ({ interval }) => between(interval) },
    ...(main ? main.shots.map(([count], i) => ({
      title: plural(Number(count), "shot"),
      value: ({ shots }) => shots[i]?.[1] ?? null,
      show: ({ shots }) => (shots[i] ? withSpread(shots[i][1], shots[i][2]) : "–"),
    })) : []),
  ];
  byId("tuning-gains").append(sortableTable("Gain of the chosen rules", gains, tune.gains));

  const most = Math.max(1e-9, ...tune.rows.map(({ report }) => report[1] ?? 0));
  const columns = [
    { title: "Rules", value: ({ name }) => name, show: ({ name }) => breakable(name), header: true, text: true },
    { title: "chosen on: AP", value: ({ choose }) => choose[0], show: ({ choose }) => percent(choose[0]) },
    { title: "gain", value: ({ choose }) => choose[1], show: ({ choose }) => withSpread(choose[1], choose[2]) },
    { title: "reported on: AP", value: ({ report }) => report[0], show: ({ report }) => percent(report[0]) },
    { title: "gain", value: ({ report }) => report[1], show: ({ report }) => withSpread(report[1], report[2]), bar: ({ report }) => Math.max(0, report[1] ?? 0) / most },
    { title: "95 %", value: ({ interval }) => centreOf(interval), show: ({ interval }) => between(interval) },
  ];
  byId("tuning-table").append(sortableTable("Configurations that were tried", columns, tune.rows, 1));
  if (tune.rows.length < tune.configurations) byId("tuning-more").textContent = `The best ${tune.rows.length} of ${tune.configurations.toLocaleString("en")}.`;
  if (tune.points.length) operatingPoints(tune);
  else byId("tuning-points").remove();
}

function operatingPoints(tune) {
  const wish = tune.target === "f1" ? "the best F1" : `a ${tune.target.split(" ")[0]} of at least ${tune.target.split(" ")[1]}`;
  byId("tuning-wish").textContent = `From this score on a detection of the class is believed, for ${wish} at IoU 0.5. `;
  const show = () => {
    const point = tune.points[Number(byId("tuning-class").value)];
    const none = () => make("p", { class: "empty" }, "Nothing was found of this class, or it has no object here.");
    byId("tuning-curve").replaceChildren(point.curve.length ? operatingChart(point, roomIn(byId("tuning-curve"))) : none());
    byId("tuning-scores").replaceChildren(...(point.curve.length ? [scoreCurves(point, roomIn(byId("tuning-scores")))] : []));
  };
  const choose = (point) => {
    byId("tuning-class").value = tune.points.indexOf(point);
    show();
    byId("tuning-class").scrollIntoView({ block: "nearest" });
  };
  const columns = [
    { title: "Class", value: ({ name }) => name, show: (point) => make("button", { type: "button", title: point.name, onclick: () => choose(point) }, shortened(point.name, 60)), header: true, text: true },
    { title: "threshold", value: ({ threshold: score }) => score, show: ({ threshold: score }) => score?.toFixed(3) },
    { title: "95 %", value: ({ interval }) => centreOf(interval), show: ({ interval }) => (interval === null ? "–" : `${interval[0].toFixed(3)} to ${interval[1].toFixed(3)}`) },
    { title: "precision", value: ({ precision }) => precision, show: ({ precision }) => percent(precision), bar: ({ precision }) => precision },
    { title: "recall", value: ({ recall }) => recall, show: ({ recall }) => percent(recall), bar: ({ recall }) => recall },
    { title: "F1", value: ({ f1 }) => f1, show: ({ f1 }) => percent(f1) },
    { title: "objects", value: ({ objects }) => objects },
  ];
  byId("tuning-thresholds").append(sortableTable("Operating points of the classes", columns, tune.points));
  options(byId("tuning-class"), tune.points.map(({ name }, i) => [i, name]), 0);
  byId("tuning-class").addEventListener("change", show);
  addEventListener("resize", show);
  show();
}

/** Precision over recall of a class; a ring marks its threshold. */
function operatingChart(point, width) {
  const { name, curve, threshold: score, precision, recall } = point;
  const chosen = score === null ? "no threshold" : `at ${score.toFixed(3)}: precision ${percent(precision)}, recall ${percent(recall)}`;
  const { svg, x, y } = chart(`Precision over recall of ${name}, ${chosen}`, { title: shortened(name, Math.floor(width / 11)), across: "recall", upward: "precision", width, head: 46 });
  const points = curve.map(([, p, r]) => `${x(r).toFixed(1)},${y(p).toFixed(1)}`).join(" ");
  svg.append(draw("polyline", { class: "line one", points }), draw("text", { x: 46, y: 34 }, chosen));
  if (score !== null) svg.append(draw("circle", { class: "line two", cx: x(recall), cy: y(precision), r: 6 }));
  return svg;
}

/** Precision and recall over the threshold; a line marks the chosen one, a band its interval. */
function scoreCurves(point, width) {
  const { name, curve, threshold: score, interval } = point;
  const { svg, x, y } = chart(`Precision and recall of ${name} over the threshold`, { title: "Over the threshold", across: "threshold", upward: "share", width, head: 46 });
  if (interval !== null) svg.append(draw("rect", { class: "band", x: x(interval[0]), width: Math.max(1, x(interval[1]) - x(interval[0])), y: y(1), height: y(0) - y(1) }));
  ["one", "two"].forEach((style, i) => {
    const points = curve.map((row) => `${x(row[0]).toFixed(1)},${y(row[1 + i]).toFixed(1)}`).join(" ");
    const left = 46 + (i * (width - 46)) / 2;
    svg.append(
      draw("polyline", { class: `line ${style}`, points }),
      draw("line", { class: `line ${style}`, x1: left, x2: left + 22, y1: 30, y2: 30 }),
      draw("text", { x: left + 28, y: 34 }, i ? "recall" : "precision"),
    );
  });
  if (score !== null) svg.append(draw("line", { class: "mark", x1: x(score), x2: x(score), y1: y(0), y2: y(1) }));
  return svg;
}
