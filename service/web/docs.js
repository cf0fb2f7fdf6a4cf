// Shows the OpenAPI document with Swagger UI, which is served by this service and loads nothing from other hosts.

const BOUNDS = {
  enum: (values) => `one of ${values.join(", ")}`,
  minimum: (value) => `at least ${value}`,
  exclusiveMinimum: (value) => `more than ${value}`,
  maximum: (value) => `at most ${value}`,
  exclusiveMaximum: (value) => `less than ${value > Number.MAX_SAFE_INTEGER ? `2^${Math.log2(value)}` : value}`,
  maxLength: (value) => `at most ${value} characters`,
  maxProperties: (value) => `at most ${value} pairs`,
};

/** Shows descriptions as plain text: Swagger UI would assign HTML, which the Content-Security-Policy forbids. */
function plainText(system) {
  const Markdown = ({ source, className }) =>
    system.React.createElement("p", { className }, source.replaceAll(/<\/?i>/g, ""));
  return { wrapComponents: { Markdown: () => Markdown } };
}

/** Return an option or parameter whose description states its bounds and an example; Swagger UI shows only some. */
function described(option) {
  const { schema = option } = option;
  const value = schema.anyOf?.find(({ type }) => type !== "null") ?? schema; // null is the same as leaving it out
  const limits = Object.entries(BOUNDS).filter(([name]) => name in value);
  const bounds = limits.map(([name, words]) => words(value[name])).join(", ");
  const example = option.example ?? option.examples?.[0] ?? schema.examples?.[0];
  const texts = [option.description, bounds && `Allowed: ${bounds}.`, `Example: ${asText(example)}`];
  const description = texts.filter(Boolean).join(" ");
  if (option.schema) return { ...option, schema: value, description };
  const { anyOf, ...rest } = option;
  return { ...rest, ...value, description };
}

const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** Describe all options and parameters of the document. */
function describeAll(api) {
  const operations = Object.values(api.paths).flatMap((methods) => Object.values(methods));
  for (const operation of operations) {
    operation.parameters = operation.parameters?.map(described);
    for (const { schema } of Object.values(operation.requestBody?.content ?? {})) {
      const options = Object.entries(schema.properties).map(([name, option]) => [name, described(option)]);
      schema.properties = Object.fromEntries(options);
    }
  }
  return api;
}

function responseInterceptor(response) {
  const isDocument = response.ok && new URL(response.url).pathname.endsWith("/openapi.json");
  if (isDocument) response.text = response.data = JSON.stringify(describeAll(JSON.parse(response.text)));
  return response;
}

window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  plugins: [plainText],
  responseInterceptor,
  validatorUrl: null,
  deepLinking: true,
});
