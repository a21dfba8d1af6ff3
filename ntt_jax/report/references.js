// The sections about the references and the memory.

const CARDS_AT_FIRST = 24;

function referenceCard(reference, index) {
  const [name, colour] = data.memory.classes[reference.label];
  const picture = pictures.references[index];
  const where = reference.image ? `${reference.image}, annotation ${reference.annotation}` : `reference ${reference.number + 1}`;
  const numbers = [];
  if (reference.own !== null) numbers.push(`own class ${reference.own.toFixed(2)}`);
  if (reference.nearest !== null) numbers.push(`${data.memory.classes[reference.nearest][0]} ${reference.nearest_cosine.toFixed(2)}`);
  const alternative = reference.replacement;
  return make(
    "article",
    { class: `reference ${reference.verdict}` },
    make("div", { class: "frame" }, picture ? make("img", { src: picture, alt: `${name}: ${where}`, loading: "lazy" }) : "no picture"),
    make(
      "div",
      { class: "body" },
      make("p", {}, dot(colour), make("b", { title: name }, shortened(name, 60))),
      make("p", { class: `verdict ${reference.verdict}` }, reference.verdict),
      ...reference.findings.map((finding) => make("p", {}, finding.text)),
      alternative ? make("p", {}, `try instead: ${alternative.image}, annotation ${alternative.annotation}`) : null,
      numbers.length ? make("p", { class: "soft" }, `alike: ${numbers.join(", ")}`) : null,
      make("p", { class: "soft" }, where),
    ),
  );
}

function references() {
  const verdicts = ["replace", "check", "good"];
  const total = (verdict) => data.references.filter((reference) => reference.verdict === verdict).length;
  byId("reference-summary").textContent =
    `${plural(data.references.length, "reference")}: ${total("replace")} to replace, ${total("check")} to check, ${total("good")} good. ` +
    "“Alike” is the cosine of its mean feature with its class’s other references, and with the most similar other class.";
  options(byId("reference-class"), [[-1, "all classes"], ...data.memory.classes.map(([name], i) => [i, name])], -1);
  options(byId("reference-verdict"), [["all", "all"], ["replace", "to replace"], ["check", "to check"], ["good", "good"]], "all");
  const show = () => {
    const label = Number(byId("reference-class").value);
    const verdict = byId("reference-verdict").value;
    const chosen = data.references
      .map((reference, i) => [reference, i])
      .filter(([reference]) => (label < 0 || reference.label === label) && (verdict === "all" || reference.verdict === verdict))
      .sort(([a], [b]) => verdicts.indexOf(a.verdict) - verdicts.indexOf(b.verdict));
    const cards = byId("reference-cards");
    cards.replaceChildren(chosen.length ? "" : make("p", { class: "empty" }, "None."));
    const add = (count) => {
      const at = cards.querySelectorAll("article").length;
      cards.append(...chosen.slice(at, at + count).map(([reference, i]) => referenceCard(reference, i)));
      byId("reference-more").hidden = at + count >= chosen.length;
      byId("reference-more").textContent = `Show all ${chosen.length}`;
    };
    add(CARDS_AT_FIRST);
    byId("reference-more").onclick = () => add(chosen.length);
  };
  byId("reference-class").addEventListener("change", show);
  byId("reference-verdict").addEventListener("change", show);
  show();
  const number = (title, value, digits = 2) => ({ title, value, show: (row) => value(row)?.toFixed(digits) });
  const columns = [
    { title: "Class", value: (row) => data.memory.classes[row.label][0], header: true, text: true },
    { title: "image", value: (row) => row.image ?? String(row.number + 1), text: true },
    { title: "annotation", value: (row) => row.annotation ?? null },
    { title: "verdict", value: (row) => row.verdict, show: (row) => make("span", { class: `verdict ${row.verdict}` }, row.verdict), text: true },
    number("own class", (row) => row.own),
    { title: "nearest other", value: (row) => (row.nearest === null ? null : data.memory.classes[row.nearest][0]), text: true },
    number("its cosine", (row) => row.nearest_cosine),
    number("margin", (row) => row.margin),
    { title: "of the grid", value: (row) => row.shape?.share ?? null, show: (row) => (row.shape ? `${percent(row.shape.share)} %` : null) },
    number("px to border", (row) => row.shape?.border ?? null, 0),
    number("enlarged", (row) => row.shape?.enlargement ?? null, 1),
    { title: "findings", value: (row) => row.findings.map((finding) => finding.text).join("; ") || null, text: true },
  ];
  byId("reference-table").append(sortableTable("All numbers of the references", columns, data.references));
}

function memorySection() {
  const { memory } = data;
  const names = memory.classes;
  const explained = memory.explained.map((share) => `${percent(share, 0)} %`).join(" and ");
  byId("plane-note").textContent = `Mean features of the references (dots) and prototypes (diamonds) on their two main components, which hold ${explained} of the variance.`;
  const plane = () => byId("plane").replaceChildren(planeChart(memory, names, roomIn(byId("plane"))));
  addEventListener("resize", plane);
  plane();
  byId("plane-legend").append(...names.slice(0, 40).map(([name, colour]) => make("li", { title: name }, dot(colour), shortened(name, 40))));
  const total = memory.points.length;
  byId("cluster-note").textContent =
    `k-means into as many clusters as classes, started from each class’s first reference: ${memory.pure} of ${total} references end in a cluster that is mostly of their class.`;
  if (memory.clusters.length) {
    const rows = memory.clusters.map((_, i) => ({ name: `cluster ${i + 1}` }));
    const heads = names.map(([name, colour]) => ({ name, colour }));
    const sums = memory.clusters.map((row) => Math.max(1, row.reduce((a, b) => a + b, 0)));
    const size = (i, j) => memory.clusters[i][j];
    byId("clusters").append(
      matrixTable("References of each class in each cluster", rows, heads, {
        shade: (i, j) => size(i, j) / sums[i],
        cell: (i, j) => String(size(i, j) || ""),
        title: (i, j) => `cluster ${i + 1}: ${size(i, j)} of ${heads[j].name}`,
      }),
    );
  }
  byId("patches").hidden = !pictures.patches.length;
  pictures.patches.forEach((strips, label) => {
    const images = strips.map((src, i) => make("img", { src, width: 444, height: 148, loading: "lazy", alt: `Patches of reference ${i + 1} of ${names[label][0]}` }));
    byId("patch-rows").append(make("p", { class: "lead" }, dot(names[label][1]), names[label][0]), make("div", { class: "strips" }, images));
  });
  if (memory.similarity.length) {
    const heads = names.map(([name, colour]) => ({ name, colour }));
    byId("similarity").append(
      matrixTable("Cosine of the prototypes, in percent", heads, heads, {
        shade: (i, j) => (i === j ? 0 : Math.max(0, memory.similarity[i][j]) / 100),
        cell: (i, j) => (i === j ? "" : String(memory.similarity[i][j])),
        title: (i, j) => `${heads[i].name} and ${heads[j].name}: ${memory.similarity[i][j]} %`,
      }),
    );
  } else {
    const columns = [
      { title: "Class", value: ([a]) => names[a][0], header: true, text: true },
      { title: "and", value: ([, b]) => names[b][0], text: true },
      { title: "cosine", value: ([, , cosine]) => cosine, show: ([, , cosine]) => cosine.toFixed(3) },
    ];
    byId("pairs").append(sortableTable("The most similar classes", columns, memory.pairs, 2));
  }
}
