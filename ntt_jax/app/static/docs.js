// The API's own description as a page: FastAPI's would fetch its scripts from elsewhere.

const resolve = (api, schema) => (schema?.$ref ? schema.$ref.split("/").slice(1).reduce((part, key) => part[key], api) : schema);

/** A schema in one line. */
function kind(api, given) {
  const schema = resolve(api, given) ?? {};
  if (schema.anyOf) return schema.anyOf.map((one) => kind(api, one)).filter((text) => text !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.prefixItems) return `[${schema.prefixItems.map((one) => kind(api, one)).join(", ")}]`;
  if (schema.type === "array") return `list of ${kind(api, schema.items)}`;
  if (schema.properties) return `{${Object.entries(schema.properties).map(([name, one]) => `${name}: ${kind(api, one)}`).join(", ")}}`;
  if (schema.type === "string" && (schema.format === "binary" || schema.contentMediaType)) return "file";
  return schema.type ?? "any";
}

/** Text in which what stands in backticks is code. */
const spans = (text) => text.split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part));

function table(heads, rows) {
  const head = make("tr", {}, heads.map((text) => make("th", { scope: "col" }, text)));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, rows.map((cells) => make("tr", {}, cells.map((cell) => make("td", {}, cell))))));
}

function parameter(api, place, name, schema, required, text) {
  const otherwise = schema?.default === undefined || schema.default === null ? "" : `${JSON.stringify(schema.default)} by default`;
  return [make("code", {}, name), place, kind(api, schema), required ? "required" : otherwise, text ?? ""];
}

function operation(api, path, method, about) {
  const parts = [make("h2", {}, make("code", {}, `${method.toUpperCase()} ${path}`)), make("p", {}, about.summary ?? "")];
  const given = (about.parameters ?? []).map((one) => parameter(api, one.in, one.name, one.schema, one.required, one.description));
  for (const [type, content] of Object.entries(about.requestBody?.content ?? {})) {
    const schema = resolve(api, content.schema);
    given.push(...Object.entries(schema.properties ?? {}).map(([name, one]) => parameter(api, type === "application/json" ? "JSON" : "form", name, one, (schema.required ?? []).includes(name), one.description)));
  }
  if (given.length) parts.push(table(["name", "in", "type", "", ""], given));
  for (const [status, answer] of Object.entries(about.responses ?? {})) {
    const type = Object.keys(answer.content ?? {})[0];
    const schema = answer.content?.["application/json"]?.schema;
    if (Number(status) < 400) parts.push(make("p", {}, `Answers ${status}: `, make("code", {}, schema && Object.keys(schema).length ? kind(api, schema) : (type ?? "nothing"))));
  }
  return make("section", {}, parts);
}

/** What the answers mean that are none, of all operations together. */
function errors(api) {
  const found = new Map();
  for (const about of Object.values(api.paths).flatMap((methods) => Object.values(methods))) {
    for (const [status, answer] of Object.entries(about.responses ?? {})) if (Number(status) >= 400) found.set(status, answer.description);
  }
  return make("section", {}, make("h2", {}, "Errors"), table(["status", "because"], [...found].sort()));
}

fetch("/v1/openapi.json").then((answer) => answer.json()).then((api) => {
  byId("title").textContent = `${api.info.title} ${api.info.version}`;
  byId("about").replaceChildren(...api.info.description.split("\n\n").map((text) => make("p", {}, spans(text))));
  const shown = api.paths["/v1/predict"] ? `curl -H "Authorization: Bearer TOKEN" -F image=@photo.jpg ${location.origin}/v1/predict` : "";
  byId("example").textContent = shown;
  byId("operations").replaceChildren(...Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, about]) => operation(api, path, method, about))), errors(api));
});
