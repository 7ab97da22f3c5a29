// The event stream as it comes.

import { button, empty, h, setText } from "../dom.js";
import { clock, count } from "../format.js";
import { Table } from "../table.js";
import { heading } from "./parts.js";

const KINDS = ["function", "function_deleted", "start", "vm", "vm_removed", "member", "member_left", "transfer", "repair", "tree_dissolved", "refused", "audit"];
const SHOWN_MAX = 2_000;

function what({ kind, data }) {
  switch (kind) {
    case "function": return `${data.name}: ${data.ready} ready, ${data.starting} starting, image ${data.image_state.state}`;
    case "function_deleted": return data.name;
    case "start": return `${data.id} ${data.state}${data.vm ? ` on ${data.vm}` : ""}`;
    case "vm": return `${data.id} ${data.state}, ${data.instances.length} instances`;
    case "vm_removed": return data.id;
    case "member": return `${data.vm} below ${data.places[0]?.parent ?? "the registry"} (${data.cause})`;
    case "member_left": return `${data.vm} left`;
    case "transfer": return `${data.vm} has ${count(data.blocks_present)} of ${count(data.blocks_total)} blocks`;
    case "repair": return `${data.vm} lost ${data.lost}`;
    case "refused": return `${data.code} ×${count(data.count)}`;
    case "audit": return `${data.who}: ${data.method} ${data.path} → ${data.status}`;
    default: return "";
  }
}

export function events(app) {
  const { store } = app;
  let held = null;
  let chosen = null;
  const off = new Set();
  const kinds = KINDS.filter((kind) => kind !== "audit" || app.can("admin"));
  const text = h("input", { type: "search", placeholder: "Find: function, VM, tenant", "aria-label": "Find events" });
  const said = h("span", { class: "dim", role: "status" });
  const detail = h("pre", { class: "log detail", hidden: true, tabindex: 0, "aria-label": "The chosen event" });
  const pause = button("Pause", () => {
    held = held ? null : [...store.events];
    setText(pause, held ? "Go on" : "Pause");
    pause.setAttribute("aria-pressed", String(held !== null));
    draw();
  }, { "aria-pressed": "false" });
  const chips = kinds.map((kind) => {
    const chip = button(kind, () => {
      if (!off.delete(kind)) off.add(kind);
      chip.setAttribute("aria-pressed", String(!off.has(kind)));
      draw();
    }, { class: "chip", "aria-pressed": "true" });
    return chip;
  });
  const table = new Table({
    label: "Events, the latest first",
    key: (event) => event.number,
    height: "62vh",
    on_row: (event) => {
      chosen = event;
      detail.hidden = false;
      setText(detail, JSON.stringify(chosen, (name, value) => (name === "is_counted" ? undefined : value), 2));
    },
    columns: [
      { title: "At", class: "time", cell: (event) => clock(event.at_ms) },
      { title: "Number", class: "number", cell: (event) => String(event.number) },
      { title: "Kind", cell: (event) => ({ text: event.kind, kind: `badge ${event.kind === "repair" || event.kind === "refused" ? "wait" : "dim"}` }) },
      { title: "Functions", cell: (event) => event.functions?.join(", ") || "–" },
      { title: "What", class: "wide", cell: what },
    ],
    empty: empty(h("p", {}, "Nothing has happened since this page was opened, or nothing that passes the filter.")),
  });
  const passes = (event, wanted) => {
    if (off.has(event.kind)) return false;
    if (!wanted) return true;
    return `${event.tenant ?? ""} ${event.vm ?? ""} ${event.functions?.join(" ") ?? ""} ${event.data.id ?? ""} ${event.data.who ?? ""}`.toLowerCase().includes(wanted);
  };
  const draw = () => {
    const source = held ?? store.events;
    const wanted = text.value.trim().toLowerCase();
    const rows = [];
    // From the latest on, and no further than is shown: the rest of the ring costs nothing.
    for (let index = source.length - 1; index >= 0 && rows.length < SHOWN_MAX; index -= 1) {
      const event = held ? held[index] : store.events.at(index);
      if (passes(event, wanted)) rows.push(event);
    }
    table.update(rows);
    setText(said, `${count(store.seen)} seen${store.lost ? `, ${count(store.lost)} lost because this page was too slow` : ""}${held ? ", paused" : ""}`);
  };
  text.addEventListener("input", draw);
  return {
    title: "Events",
    element: h("div", {}, heading("Events", text, pause, said), h("div", { class: "row chips", role: "group", "aria-label": "Kinds" }, chips), table.element, detail),
    update(topics) {
      if (topics.has("events") && !held) draw();
      else if (table.rows.length === 0) draw();
    },
    close: () => table.close(),
  };
}
