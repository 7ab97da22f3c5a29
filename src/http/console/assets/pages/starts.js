// All starts of a tenant, or those of one function.

import { empty, h } from "../dom.js";
import { Table } from "../table.js";
import { loadStarts } from "./function.js";
import { heading, startColumns } from "./parts.js";

// Functions whose starts are asked for when none is chosen.
const FUNCTIONS_ASKED = 20;

export function starts(app, [name = ""]) {
  const { store } = app;
  const which = h("select", { "aria-label": "Function" });
  which.addEventListener("change", () => app.go(which.value ? `#/starts/${encodeURIComponent(which.value)}` : "#/starts"));
  const failed = h("input", { type: "checkbox", id: "failed" });
  failed.addEventListener("change", () => app.changed(["starts"]));
  const table = new Table({
    label: "Starts",
    key: (start) => start.id,
    height: "70vh",
    on_row: (start) => app.go(`#/start/${start.id}`),
    columns: ["at", "id", "function", "vm", "state", "ready", "slowest", "stalls", "peers", "origin"].map((column) => startColumns[column]),
    empty: empty(h("p", {}, "No starts. "), h("pre", {}, "faasnet start hello --count 8 --wait")),
  });
  return {
    title: "Starts",
    element: h("div", {}, heading("Starts", which, h("label", { class: "check" }, failed, "only what failed")), table.element),
    update() {
      const names = [...store.functions.values()].filter((view) => view.tenant === app.tenant).map((view) => view.name).sort();
      if (name && !names.includes(name)) names.push(name);
      const wanted = JSON.stringify(names);
      if (which.dataset.shown !== wanted) {
        which.dataset.shown = wanted;
        which.replaceChildren(h("option", { value: "" }, "all functions"), ...names.map((one) => h("option", { value: one }, one)));
        which.value = name;
      }
      const own = store.starts_of(app.tenant, name || null);
      table.update(failed.checked ? own.filter((start) => start.state === "ended" && !["stopped", "idle"].includes(start.reason?.kind)) : own);
    },
    async load() {
      if (name) return loadStarts(app, name);
      const { functions } = await app.api.get("/v1/functions");
      const latest = functions.slice(0, FUNCTIONS_ASKED);
      await Promise.all(latest.map((view) => loadStarts(app, view.name, 200)));
    },
    close: () => table.close(),
  };
}
