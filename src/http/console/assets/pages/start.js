// One start: why was it slow?

import { badge, empty, facts, h } from "../dom.js";
import { count, day, duration, reason, size } from "../format.js";
import { draw, sources, whole } from "../waterfall.js";
import { heading, startState } from "./parts.js";

// Least pause between two questions why, while the start goes on.
const ASK_AGAIN_MS = 500;

export function start(app, [id]) {
  const { store, api } = app;
  const box = h("div", {});
  let drawn = "";
  let why = null;
  let asked = "";
  let timer = null;
  // What is said of the start is asked for again when it has gone on.
  const ask = async (known) => {
    asked = JSON.stringify([known.state, known.timeline_us, known.stalls]);
    why = await api.get(`/v1/starts/${encodeURIComponent(id)}/explanation`).catch(() => why);
    app.changed(["starts"]);
  };
  const told = (known) => {
    if (timer || asked === JSON.stringify([known.state, known.timeline_us, known.stalls])) return;
    timer = setTimeout(() => {
      timer = null;
      ask(store.starts.get(id));
    }, why ? ASK_AGAIN_MS : 0);
  };
  const mean = ({ blocks, us }) => (blocks === 0 ? "no block" : `${duration(Math.round(us / blocks))} for each of ${count(blocks)} blocks`);
  return {
    title: "Start",
    element: h("div", {}, heading(`Start ${id}`), box),
    update() {
      const known = store.starts.get(id);
      if (!known) return;
      told(known);
      const now = JSON.stringify([known, why]);
      if (now === drawn) return;
      drawn = now;
      const { text, kind } = startState(known);
      const { waits, worst_stall: worst } = known;
      const others = why?.others ?? 0;
      box.replaceChildren(
        h("section", { class: "card answer" }, h("h2", {}, "Why did it take that long?"), h("p", {}, why?.text ?? "…"), h("p", {}, known.timeline_us.ready === null ? "It is not ready." : `It was ready after ${duration(known.timeline_us.ready)}${why?.usual_us ? `; the median of ${others} others is ${duration(whole(why.usual_us))}` : ""}.`)),
        h("section", { class: "card" }, h("h2", {}, "Where its time went", why?.usual_us ? h("span", { class: "legend inline" }, h("span", { class: "dot own" }), "this start", h("span", { class: "dot typical" }), `median of ${others} others`) : null), draw(known, why?.usual_us)),
        h("section", { class: "card" }, h("h2", {}, "Where its bytes came from"), sources(known.bytes)),
        h("section", { class: "card" }, h("h2", {}, "Stalls"), facts([
          ["Reads that waited for blocks", count(known.stalls)],
          ["Together", duration(known.stalled_us)],
          ["Longest", worst ? `${duration(worst.us)} for block ${count(worst.block)} from ${worst.from ?? "the registry"}, ${duration(worst.disk_us)} of it on its way to the disk` : duration(known.longest_stall_us)],
          ["Blocks from the parent took", mean(waits.parent)],
          ["From other VMs", mean(waits.ancestor)],
          ["From the registry", mean(waits.origin)],
          ["To the disk", mean(waits.disk)],
        ])),
        h("section", { class: "card" }, facts([
          ["State", h("span", {}, badge(text, kind.replace("badge ", "")), ` ${reason(known.reason)}`)],
          ["Function", h("a", { href: `#/functions/${encodeURIComponent(known.function)}` }, known.function)],
          ["VM", known.vm && app.sees_all ? h("a", { href: `#/vms/${encodeURIComponent(known.vm)}` }, known.vm) : (known.vm ?? "–")],
          ["Accepted", known.is_dated ? day(known.at) : "by an earlier release, which did not keep when"],
          ["Request", known.request_id ?? "–"],
          ["Bytes in all", size(known.bytes.parent + known.bytes.ancestor + known.bytes.origin)],
        ])),
      );
    },
    async load() {
      const tenant = app.tenant;
      const none = (error) => {
        if (error.status !== 404 && error.status !== 400) throw error;
        box.replaceChildren(empty(h("p", {}, `There is no start ${id} for tenant ${tenant}; only the latest are kept. `), h("a", { href: "#/starts" }, "All starts")));
        return null;
      };
      const look = () => api.get(`/v1/starts/${encodeURIComponent(id)}`).catch(none);
      await store.load(look, (known, found) => found && known.take_start(tenant, found), () => app.now());
    },
    close: () => clearTimeout(timer),
  };
}
