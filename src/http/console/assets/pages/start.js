// One start: why was it slow?

import { badge, empty, facts, h } from "../dom.js";
import { day, duration, reason, size, startedAt } from "../format.js";
import { draw, explain, median, sources } from "../waterfall.js";
import { loadStarts } from "./function.js";
import { heading, startState } from "./parts.js";

export function start(app, [id]) {
  const { store, api } = app;
  const box = h("div", {});
  let drawn = "";
  return {
    title: "Start",
    element: h("div", {}, heading(`Start ${id}`), box),
    update() {
      const known = store.starts.get(id);
      if (!known) return;
      const others = store.starts_of(known.tenant, known.function).filter((other) => other.id !== id);
      const typical = median(others);
      const now = JSON.stringify([known, typical]);
      if (now === drawn) return;
      drawn = now;
      const { text, kind } = startState(known);
      box.replaceChildren(
        h("section", { class: "card answer" }, h("h2", {}, "Why did it take that long?"), explain(known, typical).map((sentence) => h("p", {}, sentence))),
        h("section", { class: "card" }, h("h2", {}, "Where its time went", typical ? h("span", { class: "legend inline" }, h("span", { class: "dot own" }), "this start", h("span", { class: "dot typical" }), `median of ${typical.count} others`) : null), draw(known, typical)),
        h("section", { class: "card" }, h("h2", {}, "Where its bytes came from"), sources(known.bytes)),
        h("section", { class: "card" }, h("h2", {}, "Stalls"), facts([
          ["Reads that waited for blocks", String(known.stalls)],
          ["Together", `${duration(known.stalled_us)}${typical ? ` (median ${duration(typical.stalled_us)})` : ""}`],
          ["Longest", duration(known.longest_stall_us)],
        ])),
        h("section", { class: "card" }, facts([
          ["State", h("span", {}, badge(text, kind.replace("badge ", "")), ` ${reason(known.reason)}`)],
          ["Function", h("a", { href: `#/functions/${encodeURIComponent(known.function)}` }, known.function)],
          ["VM", known.vm && app.sees_all ? h("a", { href: `#/vms/${encodeURIComponent(known.vm)}` }, known.vm) : (known.vm ?? "–")],
          ["Accepted", day(startedAt(known.id))],
          ["Bytes in all", size(known.bytes.parent + known.bytes.ancestor + known.bytes.origin)],
        ])),
      );
    },
    async load() {
      const tenant = app.tenant;
      let view;
      await store.load(async () => {
        view = await api.get(`/v1/starts/${encodeURIComponent(id)}`).catch((error) => {
          if (error.status !== 404 && error.status !== 400) throw error;
          box.replaceChildren(empty(h("p", {}, `There is no start ${id} for tenant ${tenant}; only the latest are kept. `), h("a", { href: "#/starts" }, "All starts")));
          return null;
        });
        return view;
      }, (known, found) => found && known.take_start(tenant, found), () => app.now());
      if (view) await loadStarts(app, view.function);
    },
  };
}
