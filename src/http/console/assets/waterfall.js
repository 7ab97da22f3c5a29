// Why was this start slow? The phases of a start beside those of others of its function.

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

function middle(values) {
  const sorted = [...values].sort((one, other) => one - other);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : Math.round((sorted[half - 1] + sorted[half]) / 2);
}

// The median of each phase over starts that became ready, or null when there is none.
export function median(starts) {
  const ready = starts.filter((start) => start.timeline_us.ready !== null && start.timeline_us.ready !== undefined);
  if (ready.length === 0) return null;
  const timeline = {};
  for (const name of [...PHASES.map(([name]) => name), "ready"]) {
    const values = ready.map((start) => start.timeline_us[name]).filter((value) => value !== null && value !== undefined);
    // A phase that most of them do not have is not typical.
    timeline[name] = values.length * 2 > ready.length ? middle(values) : null;
  }
  return { count: ready.length, timeline, stalled_us: middle(ready.map((start) => start.stalled_us)) };
}

// What made the start as slow as it was, in sentences: the first is the answer.
export function explain(start, typical) {
  const own = phases(start.timeline_us);
  if (own.length === 0) return ["It waits for a VM with room."];
  const usual = (name) => typical?.timeline[name] ?? 0;
  const excess = own.map((phase) => ({ ...phase, more: phase.length - (phase.name === REPORT ? 0 : usual(phase.name)) }));
  const worst = excess.reduce((one, other) => (other.more > one.more ? other : one));
  const took = whole(start.timeline_us);
  const is_ready = start.timeline_us.ready !== null && start.timeline_us.ready !== undefined;
  const sentences = [];
  const compared = typical && typical.count > 1;
  if (!is_ready) sentences.push(`It has come this far in ${duration(took)}.`);
  else if (!compared) sentences.push(`It was ready after ${duration(took)}; there is no other start to compare it with.`);
  else {
    const more = took - typical.timeline.ready;
    if (more > 0.1 * typical.timeline.ready) {
      sentences.push(`It was ready after ${duration(took)}, ${duration(more)} later than the median of ${typical.count} starts.`);
    } else sentences.push(`It was ready after ${duration(took)}: as fast as the median of ${typical.count} starts, or faster.`);
  }
  const share = took > 0 ? Math.round((worst.length / took) * 100) : 0;
  sentences.push(`Most of that went into “${worst.title}”: ${duration(worst.length)}, ${share} % of the whole. ${cause(worst, start)}`);
  return sentences;
}

function cause(phase, start) {
  const from = start.bytes.origin > start.bytes.parent + start.bytes.ancestor ? "the registry" : "its parent";
  switch (phase.name) {
    case "waiting":
      return "No VM had room for it at first.";
    case "placing":
      return "The VM was given to it, but the order waited: others were being started there, or the manager was busy.";
    case "connecting":
      return "The VM above it in the tree, or the registry, was slow to answer.";
    case "index":
    case "metadata":
    case "whole":
      return `That is data that must be there before the mount; most of its bytes came from ${from}.`;
    case "mount":
      return "The VM's disk or kernel was slow.";
    case "run":
      return start.stalled_us * 2 > phase.length
        ? `The container runtime waited for blocks from ${from}.`
        : "The container runtime was slow: the VM's disk or its cores were busy.";
    case "probe":
      return start.stalled_us * 2 > phase.length
        ? `The container waited ${duration(start.stalled_us)} for blocks from ${from}, in ${start.stalls} stalls.`
        : "The container's own start took that long: it hardly waited for blocks.";
    default:
      return "";
  }
}

// The start's phases as bars, each with the median's below it, on one scale.
export function draw(start, typical) {
  const own = phases(start.timeline_us);
  const usual = typical ? phases(typical.timeline) : [];
  const scale = Math.max(whole(start.timeline_us), typical ? whole(typical.timeline) : 0, 1);
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
    h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "whole"), h("td", { class: "wide" }), h("td", { class: "number" }, total(start.timeline_us)), h("td", { class: "number dim" }, total(typical?.timeline)))),
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
