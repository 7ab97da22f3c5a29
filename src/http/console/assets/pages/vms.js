// The VMs: whose they are, their load, their cache and their trees.

import { button, confirm, empty, facts, h, setText } from "../dom.js";
import { cores, count, imageName, short, size } from "../format.js";
import { Table } from "../table.js";
import { actions, heading, meter } from "./parts.js";

const KIND = { up: "ready", lost: "bad", draining: "wait", drained: "dim" };
const state = (vm) => ({ text: vm.state === "lost" && vm.draining ? "lost, draining" : vm.state, kind: `badge ${KIND[vm.state]}` });

export function vms(app, [name]) {
  return name ? one(app, name) : all(app);
}

const drain = async (app, vm) => {
  const question = `Drain ${vm.id}? It gets no starts any more, and its ${vm.instances.length} instances are moved.`;
  if (!(await confirm(question, "Drain"))) return;
  const path = `/v1/vms/${encodeURIComponent(vm.id)}/drain`;
  try {
    await app.api.call("POST", path);
    app.notice(`${vm.id} is draining`);
  } catch (refused) {
    if (refused.status !== 409) throw refused;
    if (await confirm(`${refused.message}. Drain it all the same?`, "Drain")) await app.act(() => app.api.call("POST", `${path}?force=true`), `${vm.id} is draining`);
  }
};

const undrain = (app, vm) => app.act(() => app.api.call("POST", `/v1/vms/${encodeURIComponent(vm.id)}/undrain`), `${vm.id} takes starts again`);

const remove = async (app, vm) => {
  if (!(await confirm(`Forget ${vm.id}? Its name is free again then.`, "Forget"))) return;
  await app.act(() => app.api.call("DELETE", `/v1/vms/${encodeURIComponent(vm.id)}`), `${vm.id} is forgotten`);
};

const operate = (app, vm) => [
  vm.draining ? ["Undrain", () => undrain(app, vm)] : ["Drain…", () => drain(app, vm)],
  ...(vm.state === "lost" ? [["Forget…", () => remove(app, vm)]] : []),
];

const blocks = (vm) => [...vm.trees, ...vm.cold].reduce((sum, held) => sum + held.blocks_present, 0);

function all(app) {
  const { store, api } = app;
  const pools = h("div", { class: "cards" });
  const search = h("input", { type: "search", placeholder: "Find: name, tenant, state", "aria-label": "Find VMs" });
  const shown = h("span", { class: "dim", role: "status" });
  const token = h("pre", { class: "log", hidden: true });
  const join = async () => {
    const made = await app.act(() => api.call("POST", "/v1/join-tokens", {}));
    if (!made) return;
    token.hidden = false;
    setText(token, `FAASNET_JOIN_TOKEN=${made.token} faasnet agent --name NAME --manager HOST:7071`);
  };
  const table = new Table({
    label: "VMs",
    key: (vm) => vm.id,
    height: "65vh",
    columns: [
      { title: "VM", cell: (vm) => ({ text: vm.id, href: `#/vms/${encodeURIComponent(vm.id)}` }) },
      { title: "State", cell: state },
      { title: "Pool", cell: (vm) => vm.tenant ?? "free" },
      { title: "Memory", class: "wide", cell: (vm) => meter(vm.memory_used_bytes, vm.memory_bytes, `${size(vm.memory_used_bytes)} of ${size(vm.memory_bytes)}`) },
      { title: "CPU", class: "wide", cell: (vm) => meter(vm.cpu_used_millis, vm.cpu_millis, `${cores(vm.cpu_used_millis)} of ${cores(vm.cpu_millis)}`) },
      { title: "Instances", class: "number", cell: (vm) => count(vm.instances.length) },
      { title: "Trees", class: "number", cell: (vm) => count(vm.trees.length) },
      { title: "Blocks kept", class: "number", cell: (vm) => count(blocks(vm)) },
      ...(app.can("admin") ? [{ title: "", cell: (vm) => actions(operate(app, vm)) }] : []),
    ],
    empty: empty(h("p", {}, "No VM yet. Let one join:"), h("pre", {}, "faasnet vm join-token\nFAASNET_JOIN_TOKEN=fnj_... faasnet agent --name vm-1 --manager HOST:7071")),
  });
  search.addEventListener("input", () => app.changed(["vms"]));
  const element = h("div", {},
    heading("VMs", search, shown, app.can("admin") ? button("Make a join token", join) : null),
    token, pools, table.element);
  const update = () => {
    const list = [...store.vms.values()].sort((one, other) => one.id.localeCompare(other.id, "en", { numeric: true }));
    const groups = new Map([["free", []]]);
    for (const vm of list) {
      const pool = vm.state === "up" ? (vm.tenant ?? "free") : vm.state;
      if (groups.has(pool)) groups.get(pool).push(vm);
      else groups.set(pool, [vm]);
    }
    const wanted = JSON.stringify([...groups].map(([pool, own]) => [pool, own.length, own.reduce((sum, vm) => sum + vm.instances.length, 0)]));
    if (pools.dataset.shown !== wanted) {
      pools.dataset.shown = wanted;
      pools.replaceChildren(...[...groups].slice(0, 12).map(([pool, own]) => h("section", { class: "card figure" }, h("h2", {}, pool), h("strong", {}, count(own.length)), h("span", { class: "dim" }, `${count(own.reduce((sum, vm) => sum + vm.instances.length, 0))} instances`))));
    }
    const text = search.value.trim().toLowerCase();
    const matching = text ? list.filter((vm) => `${vm.id} ${vm.tenant ?? "free"} ${vm.state}`.toLowerCase().includes(text)) : list;
    setText(shown, text ? `${matching.length} of ${list.length}` : "");
    table.update(matching);
  };
  return { title: "VMs", element, update, close: () => table.close() };
}

function one(app, name) {
  const { store } = app;
  const box = h("div", {});
  const buttons = h("div", { class: "row" });
  let drawn = "";
  const held = (list, title, none) => h("section", { class: "card" }, h("h2", {}, title), list.length === 0 ? h("p", { class: "dim" }, none) : h("ul", { class: "held" }, list.map((image) => {
    const functions = [...store.functions.values()].filter((view) => view.image_state.id === image.image || view.code_state?.id === image.image);
    const used = functions.map((view) => h("a", { href: `#/functions/${encodeURIComponent(view.name)}` }, view.name));
    const [, make] = meter(image.blocks_present, image.blocks_total, `${count(image.blocks_present)} of ${count(image.blocks_total)} blocks`);
    const from = image.bytes ? `${size(image.bytes.parent + image.bytes.ancestor)} from VMs, ${size(image.bytes.origin)} from the registry` : "";
    return h("li", {}, h("span", { class: "row" }, h("code", {}, imageName(image.image)), ...used), make(), h("span", { class: "dim" }, from));
  })));
  return {
    title: name,
    element: h("div", {}, heading(name, buttons), box),
    update() {
      const vm = store.vms.get(name);
      const now = JSON.stringify(vm ?? null);
      if (now === drawn) return;
      drawn = now;
      if (!vm) {
        buttons.replaceChildren();
        box.replaceChildren(empty(h("p", {}, `The manager knows no VM ${name}. `), h("a", { href: "#/vms" }, "All VMs")));
        return;
      }
      const { text, kind } = state(vm);
      buttons.replaceChildren(h("span", { class: kind }, text), ...(app.can("admin") ? operate(app, vm).map(([label, act]) => button(label, act)) : []));
      box.replaceChildren(
        h("section", { class: "card" }, facts([
          ["Address", vm.address ?? "–"],
          ["Pool", vm.tenant ?? "free"],
          ["Memory", `${size(vm.memory_used_bytes)} of ${size(vm.memory_bytes)}`],
          ["CPU", `${cores(vm.cpu_used_millis)} of ${cores(vm.cpu_millis)} cores`],
        ])),
        h("section", { class: "card" }, h("h2", {}, "Instances"), vm.instances.length === 0 ? h("p", { class: "dim" }, "None.") : h("ul", {}, vm.instances.map((id) => h("li", {}, h("a", { href: `#/start/${id}`, title: id }, short(id)))))),
        held(vm.trees, "Trees that it is in", "None."),
        held(vm.cold, "Kept of trees that it has left", "Nothing."),
      );
    },
  };
}
