// The supervision tree: who lives, who was rebuilt, what waits where.

import { button, empty, h, setText } from "../dom.js";
import { count } from "../format.js";
import { Table } from "../table.js";
import { heading, meter } from "./parts.js";

const LOOK_AGAIN_MS = 2_000;

export function actors(app) {
  const { api, store } = app;
  const which = h("select", { "aria-label": "Process" });
  const said = h("span", { class: "dim", role: "status" });
  const closed = new Set();
  let roots = [];
  let timer;
  let is_closed = false;
  const toggle = (row) => {
    if (!closed.delete(row.path)) closed.add(row.path);
    draw();
  };
  const fold = (row) => {
    if (row.children === 0) return [`leaf ${row.depth} ${row.title}`, () => indent(row, h("span", {}, row.title))];
    const is_open = !closed.has(row.path);
    return [`${is_open} ${row.depth} ${row.title}`, () => indent(row, button(`${is_open ? "▾" : "▸"} ${row.title}`, () => toggle(row), { class: "plain", "aria-expanded": String(is_open) }))];
  };
  const table = new Table({
    label: "Actors",
    key: (row) => row.path,
    height: "75vh",
    columns: [
      { title: "Actor", class: "wide", cell: fold },
      { title: "Mailbox", class: "number", cell: (row) => count(row.mailbox) },
      { title: "Rebuilt", class: "number", cell: (row) => (row.generation ? { text: count(row.generation), kind: "badge wait" } : "0") },
      { title: "Crashes", class: "number", cell: (row) => (row.crashes ? { text: count(row.crashes), kind: "badge bad", title: "within the last minute" } : "0") },
      { title: "State", class: "wide", cell: (row) => row.state },
      { title: "Queues", class: "whole", cell: (row) => queues(row) },
      { title: "Thread", cell: (row) => row.thread || "–" },
    ],
    empty: empty(h("p", {}, "Asking…")),
  });
  const draw = () => {
    const rows = [];
    const waiting = roots.map((actor) => ({ actor, depth: 0, above: "" })).reverse();
    while (waiting.length > 0) {
      const { actor, depth, above } = waiting.pop();
      const path = `${above}/${actor.kind} ${actor.name}`;
      const title = actor.kind === actor.name ? actor.kind : `${actor.kind} ${actor.name}`;
      rows.push({ ...actor, path, depth, title, children: actor.children.length });
      if (closed.has(path)) continue;
      if (actor.children_left_out > 0) rows.push({ path: `${path}/more`, depth: depth + 1, title: `and ${count(actor.children_left_out)} more`, children: 0, state: "", queues: [], mailbox: 0, generation: 0, crashes: 0, thread: "" });
      for (const child of [...actor.children].reverse()) waiting.push({ actor: child, depth: depth + 1, above: path });
    }
    table.update(rows);
  };
  const look = async () => {
    clearTimeout(timer);
    try {
      const query = which.value === "agents" ? "?agents=true" : which.value ? `?vm=${encodeURIComponent(which.value.slice(3))}` : "";
      roots = (await api.get(`/v1/actors${query}`)).actors;
      setText(said, "");
      draw();
    } catch (error) {
      if (error.is_away === undefined) throw error;
      setText(said, error.message);
    }
    // Actors are asked, they do not tell: while somebody looks, again and again.
    if (!is_closed) timer = setTimeout(() => (document.hidden ? (timer = setTimeout(look, LOOK_AGAIN_MS)) : look()), LOOK_AGAIN_MS);
  };
  which.addEventListener("change", look);
  return {
    title: "Actors",
    element: h("div", {}, heading("Actors", which, said), table.element),
    update() {
      const names = [...store.vms.keys()].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
      const wanted = names.join();
      if (which.dataset.shown === wanted) return;
      which.dataset.shown = wanted;
      const before = which.value;
      which.replaceChildren(h("option", { value: "" }, "manager"), h("option", { value: "agents" }, "all agents"), ...names.map((name) => h("option", { value: `vm ${name}` }, `agent of ${name}`)));
      if (before) which.value = before;
    },
    load: look,
    close() {
      is_closed = true;
      clearTimeout(timer);
      table.close();
    },
  };
}

function indent(row, child) {
  const box = h("span", { class: "indent" }, child);
  box.style.paddingInlineStart = `${row.depth * 1.1}rem`;
  return box;
}

function queues(row) {
  const signature = row.queues.map((queue) => `${queue.name} ${queue.length}/${queue.limit}`).join("|");
  return [signature, () => h("span", { class: "row queues" }, row.queues.map((queue) => {
    const is_full = queue.limit > 0 && queue.length * 10 >= queue.limit * 9;
    return meter(queue.length, queue.limit, `${queue.name} ${count(queue.length)} of ${count(queue.limit)}`, is_full ? "bad" : "")[1]();
  }))];
}
