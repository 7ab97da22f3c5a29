// What several pages show.

import { bar, button, h } from "../dom.js";
import { clock, day, duration, fraction, reason, short, size } from "../format.js";
import { PHASES } from "../waterfall.js";

const START_KIND = { waiting: "wait", starting: "loading", ready: "ready", ended: "dim" };

export function startState(start) {
  const is_failed = start.state === "ended" && start.reason && !["stopped", "idle"].includes(start.reason.kind);
  return { text: start.state, kind: `badge ${is_failed ? "bad" : START_KIND[start.state]}`, title: reason(start.reason) };
}

// The longest phase so far.
export function slowest(timeline) {
  let best = null;
  for (const [name, title] of PHASES) {
    const length = timeline[name];
    if (length !== null && length !== undefined && (!best || length > best.length)) best = { title, length };
  }
  return best ? `${best.title}, ${duration(best.length)}` : "–";
}

export const startColumns = {
  id: { title: "Start", cell: (start) => ({ text: short(start.id), href: `#/start/${start.id}`, title: start.id }) },
  at: { title: "At", class: "time", cell: (start) => (start.is_dated ? { text: clock(start.at), title: day(start.at) } : "earlier") },
  function: { title: "Function", cell: (start) => ({ text: start.function, href: `#/functions/${encodeURIComponent(start.function)}` }) },
  vm: { title: "VM", cell: (start) => start.vm ?? "–" },
  state: { title: "State", cell: startState },
  ready: { title: "Ready after", class: "number", cell: (start) => duration(start.timeline_us.ready) },
  slowest: { title: "Longest phase", class: "wide", cell: (start) => slowest(start.timeline_us) },
  stalls: { title: "Stalls", class: "number", cell: (start) => (start.stalls ? `${start.stalls}, ${duration(start.stalled_us)}` : "0") },
  peers: { title: "From VMs", class: "number", cell: (start) => size(start.bytes.parent + start.bytes.ancestor) },
  origin: { title: "From registry", class: "number", cell: (start) => size(start.bytes.origin) },
};

const IMAGE_KIND = { ready: "ready", converting: "loading", failed: "bad" };

export function imageText(state) {
  if (!state) return "–";
  if (state.state === "converting") {
    const done = state.total ? ` ${Math.floor(100 * fraction(state.done, state.total))} %` : "";
    return `${state.phase}${done}`;
  }
  return state.state;
}

export function imageBadge(view) {
  const states = [view.image_state, view.code_state].filter(Boolean);
  const worst = states.find((state) => state.state === "failed") ?? states.find((state) => state.state === "converting") ?? states[0];
  return { text: imageText(worst), kind: `badge ${IMAGE_KIND[worst.state]}`, title: worst.reason ?? "" };
}

export function meter(part, whole, text, kind = "") {
  return [`${text} ${kind}`, () => bar(fraction(part, whole), text, kind)];
}

// Buttons as a cell: made again only when what they say changes.
export function actions(list) {
  const signature = list.map(([text, , attributes]) => `${text} ${attributes?.disabled ?? ""}`).join("|");
  return [signature, () => h("span", { class: "row" }, list.map(([text, act, attributes]) => button(text, act, attributes)))];
}

export function heading(title, ...beside) {
  return h("div", { class: "heading" }, h("h1", {}, title), h("div", { class: "row" }, beside));
}
