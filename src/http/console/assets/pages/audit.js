// What was changed, by whom: all that the manager's log of events still has, and what comes.

import { empty, h, setShown } from "../dom.js";
import { count, day } from "../format.js";
import { Ring } from "../store.js";
import { Stream } from "../stream.js";
import { Table } from "../table.js";
import { heading } from "./parts.js";

const KEPT = 2_000;

export function audit(app) {
  const search = h("input", { type: "search", placeholder: "Find: who, path", "aria-label": "Find changes" });
  const gap = h("p", { class: "dim", hidden: true }, "Older changes are in the manager's log; its list of events begins later.");
  const entries = new Ring(KEPT);
  let last = 0;
  let frame = 0;
  const table = new Table({
    label: "Changes, the latest first",
    key: (event) => event.number,
    height: "70vh",
    columns: [
      { title: "At", class: "time", cell: (event) => day(event.at_ms) },
      { title: "Who", cell: (event) => event.data.who },
      { title: "Role", cell: (event) => event.data.role },
      { title: "Tenant", cell: (event) => event.tenant ?? "–" },
      { title: "Request", class: "wide", cell: (event) => `${event.data.method} ${event.data.path}` },
      { title: "Answer", class: "number", cell: (event) => ({ text: String(event.data.status), kind: `badge ${event.data.status < 400 ? "ready" : "bad"}` }) },
    ],
    empty: empty(h("p", {}, "Nothing was changed since this manager runs.")),
  });
  const draw = () => {
    const wanted = search.value.trim().toLowerCase();
    const rows = [...entries].reverse().filter(({ data }) => !wanted || `${data.who} ${data.method} ${data.path}`.toLowerCase().includes(wanted));
    table.update(rows);
  };
  const again = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  };
  search.addEventListener("input", again);
  // A stream of its own, from the beginning: the one of all pages began when somebody logged in.
  const stream = new Stream({
    query: { kind: "audit", since: 0 },
    on_state: () => {},
    on_items: (items) => {
      for (const item of items) {
        if (item.type === "lost") setShown(gap, true);
        // After a new connection what is known comes again.
        if (item.type === "hello" && item.stream !== stream.name) {
          stream.name = item.stream;
          last = 0;
        }
        if (item.type !== "event" || item.number <= last) continue;
        last = item.number;
        entries.push(item);
      }
      again();
    },
  });
  return {
    title: "Audit",
    element: h("div", {}, heading("Audit", search, h("span", { class: "dim" }, count(KEPT), " latest changes at most")), gap, table.element),
    load() {
      if (!stream.socket && !stream.is_closed) stream.open();
      draw();
    },
    close() {
      stream.close();
      cancelAnimationFrame(frame);
      table.close();
    },
  };
}
