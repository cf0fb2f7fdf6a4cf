// Shows the OpenAPI document with Swagger UI, which is served by this service and loads nothing from other hosts.

/** Shows descriptions as plain text: Swagger UI would assign HTML, which the Content-Security-Policy forbids. */
function plainText(system) {
  const Markdown = ({ source, className }) => system.React.createElement("p", { className }, source);
  return { wrapComponents: { Markdown: () => Markdown } };
}

window.SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  plugins: [plainText],
  validatorUrl: null,
  deepLinking: true,
});
