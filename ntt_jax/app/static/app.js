// What ties the parts together: the header, the search, exports.

const header = {
  start() {
    byId("find").addEventListener("click", () => this.find(byId("choosing").checked ? [...grid.chosen] : null));
    byId("stop").addEventListener("click", () => attempt(() => ask("DELETE", "/v1/search")).then(() => store.refresh()));
    store.listeners.push(() => this.update());
  },

  async find(photos) {
    await attempt(() => ask("POST", "/v1/search", { photos }));
    await store.refresh();
  },

  update() {
    const { search, folder, classes: known } = store.state;
    byId("folder").textContent = folder ?? "";
    const choosing = byId("choosing").checked;
    byId("find").textContent = choosing ? `Find in ${plural(grid.chosen.size, "photo")}` : "Find in all photos";
    byId("find").title = known.some((one) => one.references) ? "" : "Show an object first: open a photo and click it";
    byId("find").disabled = Boolean(search.running) || !known.some((one) => one.references) || (choosing && !grid.chosen.size);
    byId("stop").hidden = !search.running;
    byId("steps").hidden = known.length > 0 || store.revision === null;
    const parts = [];
    if (search.running) parts.push(`Searching: ${search.done} of ${search.total}${search.seconds_left ? `, about ${Math.ceil(search.seconds_left)} s left` : ""}`);
    else if (search.total) parts.push(`${search.stopped ? "Stopped" : "Done"}: ${search.done} of ${search.total} searched`);
    const waiting = store.state.photos.filter((one) => !one.current && !one.problem).length;
    if (!search.running && search.total && waiting && known.some((one) => one.references)) parts.push(`${plural(waiting, "photo")} not searched with the references of now`);
    if (search.problem) parts.push(search.problem);
    byId("progress").textContent = parts.join(". ");
  },
};

const exports = {
  names: { coco: "COCO", labelme: "LabelMe", yolo: "YOLO", "yolo-boxes": "YOLO boxes", voc: "Pascal VOC", png: "PNG masks", csv: "CSV", parquet: "Parquet" },
  start() {
    store.listeners.push((changed) => changed && this.update());
  },
  update() {
    const formats = store.state.search.formats ?? [];
    if (byId("formats").children.length === formats.length) return;
    byId("formats").replaceChildren(...formats.map((name) => make("button", { type: "button", onclick: () => this.write(name) }, this.names[name] ?? name)));
  },
  async write(name) {
    byId("exported").textContent = "writing ...";
    const answer = await attempt(() => ask("POST", "/v1/exports", { formats: [name] }));
    byId("exported").textContent = answer ? `Written to ${answer.folder}` : "";
  },
};

grid.start();
classes.start();
editor.start();
exports.start();
header.start();
store.refresh();
