// A token for a session.

import { field, h, setText } from "../dom.js";

export function login(app) {
  const token = h("input", { type: "password", name: "token", autocomplete: "current-password", spellcheck: false, required: true, id: "token", "aria-describedby": "login-error" });
  const error = h("p", { id: "login-error", class: "error", role: "alert" });
  const submit = h("button", { type: "submit", class: "primary" }, "Log in");
  const form = h("form", { class: "card login" },
    h("h1", {}, "FaaSNet"),
    field("API token", token),
    error,
    submit,
    h("p", { class: "dim" }, "The manager wrote the administrator's to ", h("code", {}, "admin.token"), " in its data folder; ", h("code", {}, "faasnet token create"), " makes others."),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    setText(error, "");
    try {
      app.signed_in(await app.api.call("POST", "/v1/session", { token: token.value.trim() }));
    } catch (refused) {
      setText(error, refused.message);
      token.select();
    } finally {
      submit.disabled = false;
    }
  });
  return form;
}
