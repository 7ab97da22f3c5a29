// Swagger UI over the description that this manager serves.

const is_dark = matchMedia("(prefers-color-scheme: dark)");

// The colours that were chosen in the console.
function colour() {
  const theme = localStorage.getItem("theme") ?? "auto";
  document.documentElement.classList.toggle("dark-mode", theme === "auto" ? is_dark.matches : theme === "dark");
}

is_dark.addEventListener("change", colour);
colour();

SwaggerUIBundle({
  dom_id: "#operations",
  url: "/v1/openapi.json",
  deepLinking: true,
  // Its maker's service would be sent the address of the description.
  validatorUrl: null,
  // With a session, whatever changes something has this header, which other sites cannot send.
  requestInterceptor: (request) => {
    request.headers["x-faasnet-csrf"] = "1";
    return request;
  },
});
