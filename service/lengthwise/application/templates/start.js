// Starts Swagger UI: a file of its own, so that no page needs a script within it.
const place = document.getElementById("swagger-ui");
if (window.SwaggerUIBundle) {
  SwaggerUIBundle({
    url: place.dataset.openapi,
    domNode: place,
    deepLinking: true,
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
  });
} else {
  place.textContent = "The script of this page could not be loaded. The calls are in " + place.dataset.openapi;
}
