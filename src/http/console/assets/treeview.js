// Draws a tree on a canvas: moved, zoomed, folded and searched with mouse, fingers or keys.

import { button, h, setText } from "./dom.js";
import { fraction } from "./format.js";
import { Folding, NODE, layout, signature, way_up } from "./tree.js";

// How long a change is seen.
const FLASH_MS = 4_000;
// A VM that got blocks within this time is receiving.
const ACTIVE_MS = 2_500;
const ZOOM_MIN = 0.02;
const ZOOM_MAX = 2.5;
const LABELS_FROM = 0.42;
const MARGIN = 24;
// A finger or mouse that moved less has clicked.
const CLICK_PX = 5;

export class TreeView {
  constructor({ on_select, clock = () => Date.now() }) {
    this.on_select = on_select;
    this.clock = clock;
    this.members = new Map();
    this.stripe = 0;
    this.folding = new Folding();
    this.is_folded_by_hand = false;
    this.selected = null;
    this.found = new Set();
    this.view = { x: 0, y: 0, zoom: 1 };
    this.is_fitted = true;
    this.signature = "";
    this.placed = layout(new Map(), 0, this.folding);
    this.canvas = h("canvas", {
      class: "tree", tabindex: 0, role: "application",
      "aria-label": "The tree. Arrow keys go from VM to VM, Enter folds, plus and minus zoom, 0 shows everything.",
    });
    this.said = h("p", { class: "sr-only", "aria-live": "polite" });
    const zoom = (factor) => () => this.zoom_at(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2, factor);
    this.tools = h("div", { class: "tools" },
      button("+", zoom(1.3), { "aria-label": "Zoom in", title: "Zoom in" }),
      button("−", zoom(1 / 1.3), { "aria-label": "Zoom out", title: "Zoom out" }),
      button("Fit", () => this.fit(), { title: "Show everything (0)" }),
    );
    this.element = h("div", { class: "tree-box" }, this.canvas, this.tools, this.said);
    this.listen();
    this.resized = new ResizeObserver(() => this.again());
    this.resized.observe(this.canvas);
    this.theme = matchMedia("(prefers-color-scheme: dark)");
    this.on_theme = () => {
      this.colours = null;
      this.again();
    };
    this.theme.addEventListener("change", this.on_theme);
    document.addEventListener("faasnet-theme", this.on_theme);
  }

  close() {
    this.resized.disconnect();
    this.theme.removeEventListener("change", this.on_theme);
    document.removeEventListener("faasnet-theme", this.on_theme);
    cancelAnimationFrame(this.frame);
    this.is_closed = true;
  }

  // Shows these members; drawn with the next frame.
  update(members, stripe) {
    if (!this.is_folded_by_hand) {
      const wanted = Folding.at_first(members.size);
      if (wanted.depth !== this.folding.depth) this.folding = wanted;
    }
    this.members = members;
    this.stripe = stripe;
    const now = signature(members, stripe, this.folding);
    if (now !== this.signature) {
      this.signature = now;
      this.placed = layout(members, stripe, this.folding);
      if (this.selected && !members.has(this.selected)) this.select(null);
    }
    this.again();
  }

  again() {
    if (this.is_closed) return;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  fold(vm) {
    this.is_folded_by_hand = true;
    this.folding.turn(vm, this.placed.nodes.get(vm).depth);
    this.update(this.members, this.stripe);
  }

  fold_all(is_folded) {
    this.is_folded_by_hand = true;
    this.folding = is_folded ? Folding.at_first(Infinity) : new Folding();
    this.is_fitted = true;
    this.update(this.members, this.stripe);
  }

  fit() {
    this.is_fitted = true;
    this.again();
  }

  // Marks the VMs whose name has the text, and goes to the first.
  search(text) {
    const wanted = text.trim().toLowerCase();
    this.found = new Set(wanted ? [...this.members.keys()].filter((vm) => vm.toLowerCase().includes(wanted)) : []);
    const first = this.members.has(wanted) ? wanted : this.found.values().next().value;
    if (first) {
      this.is_folded_by_hand = true;
      for (const above of way_up(this.members, this.stripe, first)) this.folding.open(above);
      this.update(this.members, this.stripe);
      this.select(first);
      this.go_to(first);
    }
    this.again();
    return this.found.size;
  }

  go_to(vm) {
    const node = this.placed.nodes.get(vm);
    if (!node) return;
    this.is_fitted = false;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    this.view.zoom = Math.max(this.view.zoom, 0.7);
    this.view.x = width / 2 - node.x * this.view.zoom;
    this.view.y = height / 2 - node.y * this.view.zoom;
    this.again();
  }

  select(vm) {
    this.selected = vm;
    const member = this.members.get(vm);
    if (member) setText(this.said, `${vm}, ${member.ready ? "ready" : "not ready"}, ${member.present} of ${member.total} blocks`);
    this.on_select(vm);
    this.again();
  }

  // What a reader of the drawing must see comes into sight.
  keep_in_sight(vm) {
    const node = this.placed.nodes.get(vm);
    if (!node) return;
    const { zoom, x, y } = this.view;
    const at = { x: node.x * zoom + x, y: node.y * zoom + y };
    const inside = at.x > MARGIN && at.y > MARGIN && at.x < this.canvas.clientWidth - MARGIN && at.y < this.canvas.clientHeight - MARGIN;
    if (!inside) this.go_to(vm);
  }

  listen() {
    const { canvas } = this;
    const pointers = new Map();
    let moved = 0;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) {
        canvas.classList.toggle("over", this.hit(at(event)) !== null);
        return;
      }
      const here = at(event);
      const [dx, dy] = [here.x - before.x, here.y - before.y];
      moved += Math.abs(dx) + Math.abs(dy);
      if (pointers.size === 1) {
        if (moved > CLICK_PX) {
          this.view.x += dx;
          this.view.y += dy;
          this.is_fitted = false;
        }
      } else {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const apart = (point) => Math.hypot(point.x - other.x, point.y - other.y);
        this.zoom_at((here.x + other.x) / 2, (here.y + other.y) / 2, apart(here) / Math.max(1, apart(before)));
      }
      pointers.set(event.pointerId, here);
      this.again();
    });
    const up = (event) => {
      const was_alone = pointers.size === 1;
      if (pointers.delete(event.pointerId) && was_alone && moved <= CLICK_PX && event.type === "pointerup") {
        const vm = this.hit(at(event));
        if (vm && vm === this.selected && this.has_children(vm)) this.fold(vm);
        this.select(vm);
      }
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { x, y } = at(event);
      this.zoom_at(x, y, Math.exp(-event.deltaY * 0.0015));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (this.key(event.key)) event.preventDefault();
    });
  }

  has_children(vm) {
    const node = this.placed.nodes.get(vm);
    return node !== undefined && (node.children.length > 0 || node.hidden.length > 0);
  }

  key(name) {
    const { nodes, roots } = this.placed;
    const node = nodes.get(this.selected);
    const brothers = node ? (node.parent ? nodes.get(node.parent).children : roots) : roots;
    const beside = (step) => brothers[brothers.indexOf(this.selected) + step];
    let next;
    switch (name) {
      case "ArrowUp": next = node?.parent; break;
      case "ArrowDown": next = node ? node.children[0] : roots[0]; break;
      case "ArrowLeft": next = beside(-1); break;
      case "ArrowRight": next = beside(1); break;
      case "Home": next = roots[0]; break;
      case "Enter": case " ":
        if (node && this.has_children(this.selected)) this.fold(this.selected);
        return true;
      case "+": case "=": this.zoom_at(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2, 1.3); return true;
      case "-": this.zoom_at(this.canvas.clientWidth / 2, this.canvas.clientHeight / 2, 1 / 1.3); return true;
      case "0": this.fit(); return true;
      case "Escape": this.select(null); return true;
      default: return false;
    }
    if (next) {
      this.select(next);
      this.keep_in_sight(next);
    }
    return true;
  }

  zoom_at(x, y, factor) {
    const zoom = Math.min(ZOOM_MAX, Math.max(ZOOM_MIN, this.view.zoom * factor));
    const by = zoom / this.view.zoom;
    this.view = { zoom, x: x - (x - this.view.x) * by, y: y - (y - this.view.y) * by };
    this.is_fitted = false;
    this.again();
  }

  hit(point) {
    const { zoom, x, y } = this.view;
    const at = { x: (point.x - x) / zoom, y: (point.y - y) / zoom };
    for (const node of this.placed.nodes.values()) {
      if (Math.abs(node.x - at.x) <= NODE.width / 2 && Math.abs(node.y - at.y) <= NODE.height / 2) return node.vm;
    }
    return null;
  }

  fit_now(width, height) {
    const inner = { width: this.placed.width + MARGIN, height: this.placed.height + 2 * MARGIN };
    const zoom = Math.min(1, width / inner.width, height / inner.height);
    this.view = {
      zoom: Math.max(ZOOM_MIN, zoom),
      x: (width - (this.placed.width - NODE.across) * zoom) / 2,
      y: (MARGIN + NODE.height / 2) * zoom + Math.max(0, (height - inner.height * zoom) / 3),
    };
  }

  paint() {
    if (this.colours) return this.colours;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.colours = Object.fromEntries(["text", "dim", "line", "panel", "ready", "loading", "fill", "warn", "accent", "bad"].map((name) => [name, colour(name)]));
    return this.colours;
  }

  draw() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (width === 0 || height === 0) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    if (this.is_fitted) this.fit_now(width, height);
    const paint = canvas.getContext("2d");
    const colours = this.paint();
    const { zoom, x, y } = this.view;
    const now = this.clock();
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.clearRect(0, 0, width, height);
    paint.setTransform(zoom * ratio, 0, 0, zoom * ratio, x * ratio, y * ratio);
    // What is out of sight costs nothing.
    const sight = { left: -x / zoom - NODE.across, right: (width - x) / zoom + NODE.across, top: -y / zoom - NODE.down, bottom: (height - y) / zoom + NODE.down };
    const is_seen = (node) => node.x > sight.left && node.x < sight.right && node.y > sight.top && node.y < sight.bottom;
    this.draw_edges(paint, colours, now, zoom, sight);
    let is_moving = false;
    for (const node of this.placed.nodes.values()) {
      const member = this.members.get(node.vm);
      if (!member) continue;
      if (member.mark && now - member.mark.at < FLASH_MS) is_moving = true;
      if (is_seen(node)) this.draw_node(paint, colours, now, zoom, node, member);
    }
    if (is_moving) this.again();
  }

  draw_edges(paint, colours, now, zoom, sight) {
    const { nodes } = this.placed;
    const quiet = new Path2D();
    const active = new Path2D();
    for (const node of nodes.values()) {
      const above = node.parent && nodes.get(node.parent);
      if (!above || node.y < sight.top || above.y > sight.bottom) continue;
      const member = this.members.get(node.vm);
      const path = member && now - (member.moved_at ?? 0) < ACTIVE_MS && member.present < member.total ? active : quiet;
      if (Math.max(node.x, above.x) < sight.left || Math.min(node.x, above.x) > sight.right) continue;
      const from = above.y + NODE.height / 2;
      if (node.is_listed && !node.is_column) {
        const rail = above.x - NODE.width / 2 + NODE.indent / 2;
        path.moveTo(rail, from);
        path.lineTo(rail, node.y);
        path.lineTo(node.x - NODE.width / 2, node.y);
        continue;
      }
      const to = node.y - NODE.height / 2;
      const half = (from + to) / 2;
      path.moveTo(above.x, from);
      path.bezierCurveTo(above.x, half, node.x, half, node.x, to);
    }
    paint.lineWidth = Math.max(1.2, 0.7 / zoom);
    paint.strokeStyle = colours.line;
    paint.stroke(quiet);
    paint.lineWidth = Math.max(2.4, 1.2 / zoom);
    paint.strokeStyle = colours.loading;
    paint.stroke(active);
  }

  draw_node(paint, colours, now, zoom, node, member) {
    const [width, height] = [NODE.width, NODE.height];
    const [left, top] = [node.x - width / 2, node.y - height / 2];
    const all = node.hidden.length > 0 ? [member, ...node.hidden.map((vm) => this.members.get(vm)).filter(Boolean)] : [member];
    const filled = all.reduce((sum, one) => sum + fraction(one.present, one.total), 0) / all.length;
    const is_ready = all.every((one) => one.ready);
    const colour = is_ready ? colours.ready : colours.loading;
    const marks = all.map((one) => one.mark).filter((mark) => mark && now - mark.at < FLASH_MS);
    const mark = marks.find((one) => one.what === "repair" || one.what === "moved") ?? marks[0];
    if (mark) {
      const age = (now - mark.at) / FLASH_MS;
      paint.globalAlpha = 1 - age;
      paint.fillStyle = mark.what === "repair" || mark.what === "moved" ? colours.warn : colours.accent;
      const grown = 6 + 8 * age;
      paint.beginPath();
      paint.roundRect(left - grown, top - grown, width + 2 * grown, height + 2 * grown, 12);
      paint.fill();
      paint.globalAlpha = 1;
    }
    if (node.hidden.length > 0) {
      paint.fillStyle = colours.panel;
      paint.strokeStyle = colour;
      paint.lineWidth = 1.2;
      for (const offset of [8, 4]) {
        paint.beginPath();
        paint.roundRect(left + offset, top + offset, width, height, 6);
        paint.fill();
        paint.stroke();
      }
    }
    paint.beginPath();
    paint.roundRect(left, top, width, height, 6);
    paint.fillStyle = colours.panel;
    paint.fill();
    paint.save();
    paint.clip();
    paint.globalAlpha = 0.35;
    paint.fillStyle = colour;
    paint.fillRect(left, top, width * filled, height);
    paint.restore();
    const is_selected = node.vm === this.selected;
    const is_found = this.found.has(node.vm) || node.hidden.some((vm) => this.found.has(vm));
    paint.lineWidth = Math.max(is_selected || is_found ? 3.5 : 1.6, (is_selected || is_found ? 2 : 0.6) / zoom);
    paint.strokeStyle = is_selected ? colours.accent : is_found ? colours.warn : colour;
    paint.beginPath();
    paint.roundRect(left, top, width, height, 6);
    paint.stroke();
    if (zoom < LABELS_FROM) return;
    paint.textAlign = "center";
    paint.textBaseline = "middle";
    paint.fillStyle = colours.text;
    paint.font = "600 12px system-ui, sans-serif";
    paint.fillText(node.vm, node.x, node.y - 8, width - 8);
    paint.font = "11px system-ui, sans-serif";
    paint.fillStyle = colours.dim;
    const percent = `${Math.floor(filled * 100)} %`;
    const said = node.hidden.length > 0 ? `+${node.hidden.length} · ${percent}` : is_ready ? `ready · ${percent}` : percent;
    paint.fillText(said, node.x, node.y + 9, width - 8);
  }
}
