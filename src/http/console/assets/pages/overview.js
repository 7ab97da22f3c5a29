// How everything is, on one page.

import { button, empty, field, h, setText } from "../dom.js";
import { count, size } from "../format.js";
import { Table } from "../table.js";
import { heading, imageBadge, startColumns } from "./parts.js";

const CHART_SECONDS = 120;
const RECENT = 50;

export function overview(app) {
  const { store } = app;
  const card = (title) => {
    const value = h("strong", {}, "–");
    const detail = h("span", { class: "dim" }, " ");
    return { element: h("section", { class: "card figure", "aria-label": title }, h("h2", {}, title), value, detail), value, detail };
  };
  const cards = {
    functions: card("Functions"), vms: card("VMs"), starts: card("Starts in flight"),
    origin: card("From the registry"), peers: card("Between VMs"), refused: card("Refusals"),
  };
  const shown = Object.entries(cards).filter(([name]) => name !== "vms" || app.sees_all);
  const chart = h("canvas", { class: "chart", role: "img", "aria-label": "Bytes in a second, from the registry and between VMs, over two minutes" });
  const functions = new Table({
    label: "Functions",
    key: (view) => view.name,
    height: "22rem",
    columns: [
      { title: "Function", cell: (view) => ({ text: view.name, href: `#/functions/${encodeURIComponent(view.name)}` }) },
      { title: "Image", class: "wide", cell: (view) => view.image },
      { title: "State", cell: imageBadge },
      { title: "Ready", class: "number", cell: (view) => count(view.ready) },
      { title: "Starting", class: "number", cell: (view) => count(view.starting) },
      { title: "Requests waiting", class: "number", cell: (view) => count(view.waiting) },
    ],
    empty: app.can("operator")
      ? empty(h("p", {}, "No function yet. Deploy your first one:"), h("pre", {}, "faasnet function deploy hello --image registry.example/team/hello:1"), button("Deploy a function…", () => deploy(app)))
      : empty(h("p", {}, `Tenant ${app.tenant} has no function yet.`)),
  });
  const recent = new Table({
    label: "Latest starts",
    key: (start) => start.id,
    height: "18rem",
    columns: ["at", "id", "function", "vm", "state", "ready", "slowest"].map((name) => startColumns[name]),
    empty: empty(h("p", {}, "No start since this page was opened. ", h("a", { href: "#/starts" }, "All starts"))),
  });
  const element = h("div", {},
    heading("Overview", app.can("operator") ? button("Deploy a function…", () => deploy(app), { class: "primary" }) : null),
    h("div", { class: "cards" }, shown.map(([, { element }]) => element)),
    h("section", { class: "card" }, h("h2", {}, "Traffic", h("span", { class: "legend inline" }, h("span", { class: "dot origin" }), "from the registry", h("span", { class: "dot parent" }), "between VMs")), chart),
    h("section", { class: "card" }, h("h2", {}, "Functions"), functions.element),
    h("section", { class: "card" }, h("h2", {}, "Latest starts"), recent.element),
  );

  const figures = () => {
    const views = [...store.functions.values()];
    const own = views.filter((view) => view.tenant === app.tenant);
    const sum = (name) => views.reduce((all, view) => all + view[name], 0);
    setText(cards.functions.value, count(own.length));
    setText(cards.functions.detail, `${count(sum("ready"))} instances ready`);
    const states = { up: 0, lost: 0, draining: 0, drained: 0 };
    for (const vm of store.vms.values()) states[vm.state] += 1;
    setText(cards.vms.value, count(states.up));
    setText(cards.vms.detail, ["lost", "draining", "drained"].filter((name) => states[name]).map((name) => `${states[name]} ${name}`).join(", ") || "all up");
    setText(cards.starts.value, count(sum("starting")));
    setText(cards.starts.detail, `${count(sum("waiting"))} requests wait`);
    const rate = store.traffic.rate(app.now());
    setText(cards.origin.value, `${size(Math.round(rate.origin))}/s`);
    setText(cards.origin.detail, `${size(store.traffic.total.origin)} in all`);
    setText(cards.peers.value, `${size(Math.round(rate.peers))}/s`);
    setText(cards.peers.detail, `${size(store.traffic.total.peers)} in all`);
    const refused = [...store.refused].sort((one, other) => other[1] - one[1]);
    setText(cards.refused.value, count(refused.reduce((all, [, number]) => all + number, 0)));
    setText(cards.refused.detail, refused.slice(0, 2).map(([code, number]) => `${code} ${count(number)}`).join(", ") || "since this page was opened");
  };
  const draw = () => {
    figures();
    drawChart(chart, store.traffic.seconds, app.now());
  };
  // Rates fall to zero by themselves, without any event.
  const tick = setInterval(draw, 1000);
  const redraw = () => draw();
  document.addEventListener("faasnet-theme", redraw);
  return {
    title: "Overview",
    element,
    update(topics) {
      figures();
      if (topics.has("functions")) functions.update([...store.functions.values()].filter((view) => view.tenant === app.tenant).sort((one, other) => (one.name < other.name ? -1 : 1)));
      if (topics.has("starts")) recent.update(store.starts_of(app.tenant).slice(0, RECENT));
      if (topics.has("vms")) drawChart(chart, store.traffic.seconds, app.now());
    },
    close() {
      clearInterval(tick);
      document.removeEventListener("faasnet-theme", redraw);
      functions.close();
      recent.close();
    },
  };
}

function drawChart(canvas, seconds, now) {
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const paint = canvas.getContext("2d");
  paint.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const until = Math.floor(now / 1000);
  const most = Math.max(1024, ...seconds.map((one) => one.origin + one.peers));
  const step = width / CHART_SECONDS;
  const floor = height - 16;
  for (const { second, origin, peers } of seconds) {
    const left = width - (until - second) * step;
    if (left < 0) continue;
    const low = (origin / most) * (floor - 14);
    const high = (peers / most) * (floor - 14);
    paint.fillStyle = colour("origin");
    paint.fillRect(left, floor - low, Math.max(1, step - 1), low);
    paint.fillStyle = colour("parent");
    paint.fillRect(left, floor - low - high, Math.max(1, step - 1), high);
  }
  paint.strokeStyle = colour("line");
  paint.beginPath();
  paint.moveTo(0, floor + 0.5);
  paint.lineTo(width, floor + 0.5);
  paint.stroke();
  paint.fillStyle = colour("dim");
  paint.font = "11px system-ui, sans-serif";
  paint.textBaseline = "top";
  paint.fillText(`${size(most)}/s`, 0, 0);
  paint.textBaseline = "bottom";
  paint.fillText("2 min ago", 0, height);
  paint.textAlign = "right";
  paint.fillText("now", width, height);
}

function deploy(app) {
  const text = (name, attributes = {}) => h("input", { name, autocomplete: "off", spellcheck: false, ...attributes });
  const name = text("name", { required: true, pattern: "[a-z0-9]([a-z0-9\\-]*[a-z0-9])?", placeholder: "hello" });
  const image = text("image", { required: true, placeholder: "registry.example/team/hello:1" });
  const memory = text("memory", { type: "number", min: 16, value: 256 });
  const probe = text("probe", { value: "/" });
  const error = h("p", { class: "error", role: "alert" });
  const dialog = h("dialog", { class: "dialog", "aria-label": "Deploy a function" });
  const form = h("form", {},
    h("h2", {}, "Deploy a function"),
    field("Name", name), field("Image", image), field("Memory of an instance, MiB", memory), field("Readiness probe", probe),
    error,
    h("div", { class: "row end" }, button("Cancel", () => dialog.close()), h("button", { type: "submit", class: "primary" }, "Deploy")),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const spec = { image: image.value.trim(), memory_mib: Number(memory.value), probe_path: probe.value };
    try {
      const view = await app.api.call("PUT", app.api.function(name.value.trim()), spec);
      dialog.close();
      app.go(`#/functions/${encodeURIComponent(view.name)}`);
    } catch (refused) {
      setText(error, refused.message);
    }
  });
  dialog.addEventListener("close", () => dialog.remove());
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
  name.focus();
}
