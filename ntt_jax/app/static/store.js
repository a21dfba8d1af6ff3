// The state of the project as the server tells it, and what asks the server. No part of the page keeps a state of its own
// that the server should know: closing the browser loses nothing.

const palette = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a6fd1", "#e34a6f", "#4d9221", "#7f7f7f"];

const store = {
  state: { photos: [], classes: [], references: [], search: {}, revision: null },
  listeners: [],
  timer: null,
  revision: null,

  colour(name) {
    const place = this.state.classes.findIndex((one) => one.name === name);
    return palette[Math.max(0, place) % palette.length];
  },

  /** From which score a detection of a class counts. */
  threshold(name) {
    const value = this.state.classes.find((one) => one.name === name)?.threshold;
    return value ?? this.state.search.default_threshold ?? 0.5;
  },

  photo(id) {
    return this.state.photos.find((one) => one.id === id);
  },

  async refresh() {
    clearTimeout(this.timer);
    try {
      const since = this.revision ? `?since=${encodeURIComponent(this.revision)}` : "";
      const news = await ask("GET", `/v1/project${since}`);
      const changed = news.revision !== this.revision;
      this.state = changed ? news : { ...this.state, search: news.search };
      this.revision = news.revision;
      if (message.offline) message.clear();
      for (const listener of this.listeners) listener(changed);
    } catch (error) {
      message.show(error.message, error.offline);
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), this.state.search.running ? 700 : 3000);
  },
};

/** One request; what the server refuses becomes an Error with its one line. */
async function ask(method, path, body) {
  let answer;
  try {
    const sent = body === undefined ? {} : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    answer = await fetch(path, Object.assign(sent, { method }));
  } catch {
    throw Object.assign(new Error("The program does not answer. Is it still running? Nothing is lost: start it again on the same folder."), { offline: true });
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(content.detail ?? `the server answered ${answer.status}`);
  return content;
}

const message = {
  offline: false,
  show(text, offline = false) {
    this.offline = offline;
    this.place();
    byId("message").textContent = text;
    byId("message").hidden = false;
  },
  /** Where it is seen: an open photo covers the page. */
  place() {
    const editor = byId("editor");
    const before = editor.open ? editor.querySelector(".editor-head") : document.querySelector("header");
    if (before.nextElementSibling !== byId("message")) before.after(byId("message"));
  },
  clear() {
    this.offline = false;
    byId("message").hidden = true;
  },
};

/** Other rows in a list; the keyboard stays at the place where it was. */
function replaceRows(list, rows) {
  const at = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...rows);
  const buttons = list.querySelectorAll("button");
  if (at >= 0) buttons[Math.min(at, buttons.length - 1)]?.focus();
}

/** Run something that asks the server, and say what went wrong. */
async function attempt(action) {
  try {
    message.clear();
    return await action();
  } catch (error) {
    message.show(error.message, error.offline);
    return undefined;
  }
}
