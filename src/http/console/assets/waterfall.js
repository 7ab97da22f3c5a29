// The phases of a start, beside what is usual for its function. Why it was slow says the API.

import { duration, size } from "./format.js";
import { h } from "./dom.js";

// In their order, with what is at work in each.
export const PHASES = [
  ["waiting", "waiting for a VM"],
  ["placing", "placing"],
  ["connecting", "connecting to the parent"],
  ["index", "index"],
  ["metadata", "metadata and hot set"],
  ["whole", "whole image"],
  ["mount", "mount"],
  ["run", "run"],
  ["probe", "probe"],
];
// What is left between the phases and the whole: the way of the report to the manager.
const REPORT = "report";

export function phases(timeline) {
  let from = 0;
  const list = [];
  for (const [name, title] of PHASES) {
    const length = timeline[name];
    if (length === null || length === undefined) continue;
    list.push({ name, title, from, length });
    from += length;
  }
  if (timeline.ready !== null && timeline.ready !== undefined && timeline.ready > from) {
    list.push({ name: REPORT, title: "report to the manager", from, length: timeline.ready - from });
  }
  return list;
}

export function whole(timeline) {
  const list = phases(timeline);
  const last = list[list.length - 1];
  return timeline.ready ?? (last ? last.from + last.length : 0);
}

// The start's phases as bars, each with the usual one below it, on one scale.
export function draw(start, usual_us) {
  const own = phases(start.timeline_us);
  const usual = usual_us ? phases(usual_us) : [];
  const scale = Math.max(whole(start.timeline_us), usual_us ? whole(usual_us) : 0, 1);
  const by_name = new Map(usual.map((phase) => [phase.name, phase]));
  const names = [...PHASES.map(([name, title]) => ({ name, title })), { name: REPORT, title: "report to the manager" }];
  const place = (element, phase) => {
    element.style.left = `${(phase.from / scale) * 100}%`;
    element.style.width = `max(2px, ${(phase.length / scale) * 100}%)`;
    return element;
  };
  const rows = [];
  for (const { name, title } of names) {
    const mine = own.find((phase) => phase.name === name);
    const other = by_name.get(name);
    if (!mine && !other) continue;
    const track = h("div", { class: "track" });
    if (mine) track.append(place(h("span", { class: `phase ${name}` }), mine));
    if (other) track.append(place(h("span", { class: "phase typical" }), other));
    rows.push(
      h("tr", {},
        h("th", { scope: "row" }, title),
        h("td", { class: "wide" }, track),
        h("td", { class: "number" }, mine ? duration(mine.length) : "–"),
        h("td", { class: "number dim" }, other ? duration(other.length) : "–"),
      ),
    );
  }
  const total = (timeline) => (timeline ? duration(whole(timeline)) : "–");
  return h("table", { class: "waterfall", "aria-label": "Phases of the start" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Phase"), h("th", { scope: "col", class: "wide" }, h("span", { class: "scale" }, h("span", {}, "0"), h("span", {}, duration(scale)))), h("th", { scope: "col", class: "number" }, "This start"), h("th", { scope: "col", class: "number" }, "Median"))),
    h("tbody", {}, rows),
    h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "whole"), h("td", { class: "wide" }), h("td", { class: "number" }, total(start.timeline_us)), h("td", { class: "number dim" }, total(usual_us)))),
  );
}

// Where a start's bytes came from, as one bar.
export function sources(bytes) {
  const parts = [["parent", bytes.parent, "from the parent"], ["ancestor", bytes.ancestor, "from other VMs"], ["origin", bytes.origin, "from the registry"]];
  const sum = bytes.parent + bytes.ancestor + bytes.origin;
  const stack = h("div", { class: "stack", role: "img", "aria-label": parts.map(([, part, text]) => `${size(part)} ${text}`).join(", ") });
  for (const [name, part] of parts) {
    if (part === 0) continue;
    const piece = h("span", { class: name });
    piece.style.width = `${(part / sum) * 100}%`;
    stack.append(piece);
  }
  return h("div", {}, stack, h("ul", { class: "legend" }, parts.map(([name, part, text]) => h("li", {}, h("span", { class: `dot ${name}` }), `${size(part)} ${text}`))));
}
