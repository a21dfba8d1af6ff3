// The API's own description as a page: FastAPI's would fetch its scripts from elsewhere.

const resolve = (api, schema) => (schema?.$ref ? schema.$ref.split("/").slice(1).reduce((part, key) => part[key], api) : schema);

/** A schema in one line. */
function kind(api, given) {
  const schema = resolve(api, given) ?? {};
  if (schema.anyOf) return schema.anyOf.map((one) => kind(api, one)).filter((text) => text !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if (schema.prefixItems) return `[${schema.prefixItems.map((one) => kind(api, one)).join(", ")}]`;
  if (schema.type === "array") return `list of ${kind(api, schema.items)}`;
  if (schema.properties) return `{${Object.keys(schema.properties).join(", ")}}`;
  if (schema.type === "string" && (schema.format === "binary" || schema.contentMediaType)) return "file";
  return schema.type ?? "any";
}

function table(api, rows) {
  const lines = rows.map(([name, schema, required, text]) => make("tr", {}, make("td", {}, make("code", {}, name)), make("td", {}, kind(api, schema)), make("td", {}, required ? "required" : ""), make("td", {}, text ?? "")));
  return make("table", {}, make("tbody", {}, lines));
}

function operation(api, path, method, about) {
  const parts = [make("h2", {}, make("code", {}, `${method.toUpperCase()} ${path}`)), make("p", {}, about.summary ?? "")];
  const given = (about.parameters ?? []).map((one) => [one.name, one.schema, one.required, one.description]);
  for (const [type, content] of Object.entries(about.requestBody?.content ?? {})) {
    const schema = resolve(api, content.schema);
    parts.push(make("p", { class: "soft" }, `body: ${type}`));
    given.push(...Object.entries(schema.properties ?? {}).map(([name, one]) => [name, one, (schema.required ?? []).includes(name), one.description]));
  }
  if (given.length) parts.push(table(api, given));
  for (const [status, answer] of Object.entries(about.responses ?? {})) {
    const schema = answer.content?.["application/json"]?.schema;
    parts.push(make("p", { class: "soft" }, `${status}: ${schema ? kind(api, schema) : answer.description}`));
  }
  return make("section", {}, parts);
}

fetch("/v1/openapi.json").then((answer) => answer.json()).then((api) => {
  byId("title").textContent = `${api.info.title} ${api.info.version}`;
  byId("about").textContent = api.info.description;
  byId("operations").replaceChildren(...Object.entries(api.paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, about]) => operation(api, path, method, about))));
});
