// A function: its live tree, its instances, what its starts read, its settings.

import { button, confirm, empty, facts, h, setClass, setText } from "../dom.js";
import { clock, count, fraction, imageName, size } from "../format.js";
import { Table } from "../table.js";
import { TreeView } from "../treeview.js";
import { actions, heading, imageBadge, imageText, meter, startColumns } from "./parts.js";

const TABS = [["tree", "Tree"], ["instances", "Instances"], ["profile", "Hot set"], ["settings", "Settings"]];
const LOG_BYTES = 65_536;

export function functionPage(app, [name, first = "tree"]) {
  const { store, api } = app;
  const view = () => store.functions.get(`${app.tenant}/${name}`);
  const makers = { tree: treePart, instances: instancesPart, profile: profilePart, settings: settingsPart };
  const state = h("span", { class: "badge" });
  const figures = h("span", { class: "dim" });
  const number = h("input", { type: "number", min: 1, max: 10000, value: 1, "aria-label": "Instances to start", class: "short", id: "start-count" });
  const act = h("form", { class: "row", id: "start-form" }, number, h("button", { type: "submit", class: "primary" }, "Start"));
  act.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = Number(number.value);
    await app.act(() => api.call("POST", api.function(name, "/starts"), { count: wanted }), `${wanted} ${wanted === 1 ? "start" : "starts"} accepted`);
  });
  const remove = button("Delete…", async () => {
    if (!(await confirm(`Delete the function ${name}? Its instances are stopped.`, "Delete"))) return;
    if (await app.act(() => api.call("DELETE", api.function(name)), `${name} is deleted`)) app.go("#/");
  }, { class: "danger" });
  const tabs = TABS.map(([tab, title]) => h("a", { href: `#/functions/${encodeURIComponent(name)}/${tab}`, "data-tab": tab }, title));
  const box = h("div", {});
  const missing = empty(h("p", {}, `There is no function ${name} for tenant ${app.tenant}. `), h("a", { href: "#/" }, "All functions"));
  missing.hidden = true;
  const element = h("div", {},
    heading(name, state, figures, app.can("operator") ? act : null, app.can("operator") ? remove : null),
    missing,
    h("nav", { class: "tabs", "aria-label": `Parts of ${name}` }, tabs),
    box,
  );
  let part;
  const open = (tab) => {
    part?.close?.();
    part = (makers[tab] ?? treePart)(app, name, view);
    for (const link of tabs) {
      if (link.dataset.tab === (makers[tab] ? tab : "tree")) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    box.replaceChildren(part.element);
  };
  open(first);
  return {
    title: name,
    element,
    moved(page, [other, tab = "tree"]) {
      if (page !== "functions" || other !== name) return false;
      open(tab);
      part.update?.();
      part.load?.();
      return true;
    },
    update() {
      const known = view();
      missing.hidden = known !== undefined || app.snapshots === 0;
      if (known) {
        const { text, kind } = imageBadge(known);
        setText(state, text);
        setClass(state, kind);
        setText(figures, `${count(known.ready)} ready, ${count(known.starting)} starting, ${count(known.waiting)} requests waiting`);
      }
      part.update?.();
    },
    load: () => part.load?.(),
    close: () => part.close?.(),
  };
}

// A function without an image, a tree or a profile has none to show; the page says so.
function nothingYet(error) {
  if (error.status === 404 || error.status === 409 || error.code === "image_not_ready") return null;
  throw error;
}

function treePart(app, name, view) {
  const { store, api } = app;
  const which = h("select", { "aria-label": "Image" });
  const stripes = h("select", { "aria-label": "Stripe" });
  const search = h("input", { type: "search", placeholder: "Find a VM", "aria-label": "Find a VM", class: "short" });
  const found = h("span", { class: "dim", role: "status" });
  const summary = h("p", { class: "summary", id: "tree-summary", role: "status" }, " ");
  const chosen = h("div", { class: "card chosen" });
  const changes = h("ol", { class: "changes", "aria-label": "Changes of the tree" });
  const none = empty(h("p", {}, "No VM has this image. Start an instance, and its VM becomes the root of a tree."));
  const tree = new TreeView({ on_select: () => app.changed(["trees"]) });
  const table = new Table({
    label: "VMs of the tree",
    key: (member) => member.vm,
    height: "24rem",
    on_row: (member) => {
      tree.select(member.vm);
      tree.go_to(member.vm);
    },
    columns: [
      { title: "VM", cell: (member) => (app.sees_all ? { text: member.vm, href: `#/vms/${encodeURIComponent(member.vm)}` } : member.vm) },
      { title: "Parent", cell: (member) => member.places[stripe()]?.parent ?? "root" },
      { title: "State", cell: (member) => ({ text: member.ready ? "ready" : "loading", kind: `badge ${member.ready ? "ready" : "loading"}` }) },
      { title: "Blocks", class: "wide", cell: (member) => meter(member.present, member.total, `${count(member.present)} of ${count(member.total)}`, member.ready ? "ready" : "loading") },
      { title: "From VMs", class: "number", cell: (member) => (member.bytes ? size(member.bytes.parent + member.bytes.ancestor) : "–") },
      { title: "From registry", class: "number", cell: (member) => (member.bytes ? size(member.bytes.origin) : "–") },
    ],
    empty: "",
  });
  const stripe = () => Number(stripes.value) || 0;
  search.addEventListener("input", () => {
    const number = tree.search(search.value);
    setText(found, search.value.trim() ? `${number} found` : "");
  });
  for (const select of [which, stripes]) select.addEventListener("change", () => app.changed(["trees"]));
  const board = h("div", { class: "board" }, tree.element, h("aside", {}, chosen, h("section", { class: "card" }, h("h2", {}, "Changes"), changes)));
  const whole = h("div", {},
    h("div", { class: "row tools-row" }, which, stripes, search, found, button("Fold", () => tree.fold_all(true)), button("Unfold", () => tree.fold_all(false))),
    summary, board, h("section", { class: "card" }, h("h2", {}, "VMs of the tree"), table.element));
  const element = h("div", {}, none, whole);
  const images = () => [["image", view()?.image_state?.id], ["code", view()?.code_state?.id]].filter(([, id]) => id);

  const options = (select, list) => {
    const wanted = JSON.stringify(list);
    if (select.dataset.options !== wanted) {
      const before = select.value;
      select.dataset.options = wanted;
      select.replaceChildren(...list.map(([value, text]) => h("option", { value }, text)));
      if (list.some(([value]) => value === before)) select.value = before;
    }
    select.hidden = list.length < 2;
  };
  const drawChosen = (known) => {
    const member = known.members.get(tree.selected);
    if (!member) {
      chosen.replaceChildren(h("p", { class: "dim" }, "Choose a VM to see who feeds it. Again, or Enter, folds what is below it."));
      return;
    }
    const of = (number) => (known.stripes > 1 ? `, stripe ${number + 1}` : "");
    chosen.replaceChildren(h("h2", {}, member.vm), facts([
      ["State", member.ready ? "ready" : "loading"],
      ["Blocks", `${count(member.present)} of ${count(member.total)}`],
      ...member.places.map((place, number) => [`Fed by${of(number)}`, place.parent ?? "the registry"]),
      ["Feeds", String([...known.members.values()].filter((other) => other.places.some((place) => place.parent === member.vm)).length)],
      ["Bytes", member.bytes ? `${size(member.bytes.parent + member.bytes.ancestor)} from VMs, ${size(member.bytes.origin)} from the registry` : "–"],
    ]));
  };
  const drawChanges = (known) => {
    const all = [...known.changes].slice(-30).reverse();
    const wanted = all.map((change) => `${change.at}${change.vm}${change.what}`).join();
    if (changes.dataset.shown === wanted) return;
    changes.dataset.shown = wanted;
    const text = ({ what, vm, parent }) => ({
      joined: `${vm} joined below ${parent ?? "the registry"}`,
      moved: `${vm} moved below ${parent ?? "the registry"}`,
      left: `${vm} left`,
      repair: `${vm} lost ${parent}`,
    })[what];
    changes.replaceChildren(...all.map((change) => h("li", { class: change.what }, h("time", {}, clock(change.at)), ` ${text(change)}`)));
    if (all.length === 0) changes.append(h("li", { class: "dim" }, "None since this page was opened."));
  };
  return {
    element,
    update() {
      options(which, images().map(([title, id]) => [id, `${title} ${imageName(id)}`]));
      const known = store.trees.get(which.value || images()[0]?.[1]);
      const is_there = known !== undefined && known.members.size > 0;
      none.hidden = is_there;
      whole.hidden = !is_there;
      if (!is_there) return;
      let number = 0;
      let ready = 0;
      let filled = 0;
      for (const member of known.members.values()) {
        number = Math.max(number, member.places.length);
        ready += member.ready ? 1 : 0;
        filled += fraction(member.present, member.total);
      }
      known.stripes = number;
      options(stripes, Array.from({ length: number }, (_, index) => [String(index), `stripe ${index + 1} of ${number}`]));
      tree.update(known.members, stripe());
      const { size: all } = known.members;
      setText(summary, `${count(ready)} of ${count(all)} VMs ready, height ${tree.placed.depth}, ${Math.floor((filled / all) * 100)} % of all blocks, epoch ${known.epoch.term}.${known.epoch.counter}`);
      drawChosen(known);
      drawChanges(known);
      table.update([...known.members.values()].sort((one, other) => (one.places[stripe()]?.place ?? 0) - (other.places[stripe()]?.place ?? 0)));
    },
    async load() {
      const ask = () => api.get(api.function(name, "/tree")).catch(nothingYet);
      await store.load(ask, (known, tree, now) => known.take_tree(tree, now), () => app.now());
    },
    close() {
      tree.close();
      table.close();
    },
  };
}

function instancesPart(app, name) {
  const { store, api } = app;
  const title = h("h2", {}, "Output");
  const output = h("pre", { class: "log", tabindex: 0 });
  const logs = h("section", { class: "card", hidden: true }, title, output);
  let shown = null;
  const show = async (id) => {
    shown = id;
    const text = await app.act(() => api.text(`/v1/starts/${id}/logs?tail=${LOG_BYTES}`));
    if (typeof text !== "string") return;
    logs.hidden = false;
    title.replaceChildren(`Output of ${id} `, button("Read again", () => show(shown)));
    setText(output, text || "It printed nothing.");
    output.scrollTop = output.scrollHeight;
  };
  const stop = (id) => app.act(() => api.call("DELETE", `/v1/starts/${id}`), "It is being stopped");
  const operate = (start) => actions([
    ["Output", () => show(start.id), { disabled: start.vm === null || start.state === "ended" }],
    ...(app.can("operator") ? [["Stop", () => stop(start.id), { disabled: start.state === "ended" }]] : []),
  ]);
  const table = new Table({
    label: "Instances",
    key: (start) => start.id,
    columns: [...["id", "at", "vm", "state", "ready", "peers", "origin"].map((column) => startColumns[column]), { title: "", cell: operate }],
    empty: empty(h("p", {}, "No instance runs. A request to ", h("code", {}, `/fn/${name}/`), " starts one; so does Start above.")),
  });
  const past = h("input", { type: "checkbox", id: "ended" });
  past.addEventListener("change", () => app.changed(["starts"]));
  return {
    element: h("div", {}, h("label", { class: "check" }, past, "also those that have ended"), table.element, logs),
    update() {
      table.update(store.starts_of(app.tenant, name).filter((start) => past.checked || start.state !== "ended"));
    },
    load: () => loadStarts(app, name),
    close: () => table.close(),
  };
}

export function loadStarts(app, name, limit = 1000) {
  const tenant = app.tenant;
  const ask = () => app.api.get(app.api.function(name, `/starts?limit=${limit}`));
  return app.store.load(ask, (store, answer, now) => store.take_starts(tenant, answer.starts, now), () => app.now());
}

function profilePart(app, name) {
  const { api } = app;
  const said = h("div", { class: "card" });
  const table = new Table({
    label: "Parts of files that starts read, in their order",
    key: (part) => part.index,
    columns: [
      { title: "File", class: "wide", cell: (part) => part.path },
      { title: "From", class: "number", cell: (part) => count(part.start) },
      { title: "To", class: "number", cell: (part) => count(part.end) },
      { title: "Bytes", class: "number", cell: (part) => size(part.end - part.start) },
    ],
    empty: empty(h("p", {}, "Nothing was recorded yet: the first starts of a function are.")),
  });
  const load = async () => {
    const profile = await api.get(api.function(name, "/profile")).catch(nothingYet);
    const parts = profile?.profile.parts ?? [];
    table.update(parts.map((part, index) => ({ ...part, index })));
    if (!profile) {
      said.replaceChildren(h("p", { class: "dim" }, "What a start of this function reads is not known yet."));
      return;
    }
    const pack = async () => {
      await app.act(() => api.call("POST", api.function(name, "/optimize"), {}), "The image will be packed");
      await load();
    };
    said.replaceChildren(
      facts([
        ["Recorded starts", count(profile.recordings)],
        ["Read", `${size(profile.plain_bytes)} of ${count(profile.files)} files`],
        ["Lies in", profile.blocks === null ? "not looked at yet" : `${count(profile.blocks)} blocks, ${size(profile.stored_bytes)} stored`],
        ["Image", `${imageName(profile.image)}, ${profile.is_packed ? "packed: what starts read lies together" : "not packed"}`],
        ["Packing", profile.packing.state === "running" ? imageText({ state: "converting", ...profile.packing }) : (profile.packing.reason ?? profile.packing.state)],
      ]),
      h("div", { class: "row" }, app.can("operator") && !profile.is_packed ? button("Pack now", pack) : null, button("Look again", load)),
    );
  };
  return { element: h("div", {}, said, table.element), load, close: () => table.close() };
}

function settingsPart(app, name, view) {
  const { api } = app;
  const shown = h("div", { class: "card" });
  const text = h("textarea", { rows: 18, spellcheck: false, "aria-label": "The function's description as JSON" });
  const error = h("p", { class: "error", role: "alert" });
  const form = h("form", { class: "card", hidden: true }, h("p", { class: "dim" }, "Saving another image or environment replaces the instances."), text, error, h("div", { class: "row end" }, button("Cancel", () => edit(false)), h("button", { type: "submit", class: "primary" }, "Save")));
  // All but what the manager adds to what the user said.
  const spec = () => {
    const { tenant, name: _name, image_state, code_state, ready, starting, waiting, ...said } = view();
    return said;
  };
  const edit = (is_open) => {
    form.hidden = !is_open;
    setText(error, "");
    if (!is_open) return;
    text.value = JSON.stringify(spec(), null, 2);
    text.focus();
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await api.call("PUT", api.function(name), JSON.parse(text.value));
      app.notice("Saved");
      edit(false);
    } catch (refused) {
      setText(error, refused.message);
    }
  });
  let drawn = "";
  return {
    element: h("div", {}, shown, form),
    update() {
      const known = view();
      if (!known) return;
      const now = JSON.stringify([spec(), known.image_state, known.code_state]);
      if (now === drawn) return;
      drawn = now;
      const state = known.image_state;
      shown.replaceChildren(
        facts([
          ["Image", known.image],
          ["Block image", state.state === "ready" ? `${state.id}, ${size(state.stored_bytes)} stored, ${size(state.plain_bytes)} plain` : (state.reason ?? imageText(state))],
          ...(known.code ? [["Code", `${known.code}, ${known.code_state?.reason ?? imageText(known.code_state)}`]] : []),
          ["Command", known.command?.join(" ") ?? "the image's"],
          ["Memory", `${count(known.memory_mib)} MiB`],
          ["CPU", `${known.cpu_millis / 1000} cores`],
          ["Requests at once", count(known.concurrency)],
          ["Instances", `${count(known.min_instances)} to ${known.max_instances === null ? "as many as the manager allows" : count(known.max_instances)}`],
          ["Kept without a request", known.keep_alive_ms === null ? "as the manager's settings say" : `${known.keep_alive_ms / 1000} s`],
          ["Readiness probe", known.probe_path],
          ["How much of the image", known.mode],
          // Values may be secrets.
          ["Environment", Object.keys(known.env).join(", ") || "none"],
        ]),
        ...(app.can("operator") ? [button("Edit…", () => edit(true))] : []),
      );
    },
  };
}
