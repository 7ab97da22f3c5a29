// A table that has only the rows in sight as elements: a thousand VMs cost as much as thirty.

import { h, setText } from "./dom.js";

const ROW_PX = 36;
const BEYOND = 8;

// Columns: {title, cell(row), class}. A cell gives a text, a {text, href, kind, title}, or an element, which is
// made again only when its `signature` differs: cells that give elements give [signature, () => element].
export class Table {
  constructor({ label, columns, key, empty, on_row, height = "60vh" }) {
    this.columns = columns;
    this.key = key;
    this.rows = [];
    this.elements = new Map();
    this.head = h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.class }, column.title)));
    this.above = h("tr", { class: "space", "aria-hidden": true }, h("td", { colspan: columns.length }));
    this.below = h("tr", { class: "space", "aria-hidden": true }, h("td", { colspan: columns.length }));
    this.body = h("tbody", {}, this.above, this.below);
    this.table = h("table", { "aria-label": label }, h("thead", {}, this.head), this.body);
    this.scroll = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, this.table);
    this.scroll.style.maxHeight = height;
    this.none = h("div", { class: "empty" }, empty);
    this.element = h("div", { class: "table" }, this.scroll, this.none);
    this.on_row = on_row;
    this.frame = 0;
    const again = () => {
      this.frame ||= requestAnimationFrame(() => {
        this.frame = 0;
        this.draw();
      });
    };
    this.scroll.addEventListener("scroll", again, { passive: true });
    this.resized = new ResizeObserver(again);
    this.resized.observe(this.scroll);
  }

  close() {
    this.resized.disconnect();
    cancelAnimationFrame(this.frame);
  }

  // Called at most once in a frame.
  update(rows) {
    this.rows = rows;
    this.none.hidden = rows.length > 0;
    this.scroll.hidden = rows.length === 0;
    this.table.setAttribute("aria-rowcount", String(rows.length + 1));
    this.draw();
  }

  draw() {
    const height = this.scroll.clientHeight || 600;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / ROW_PX) - BEYOND);
    const last = Math.min(this.rows.length, first + Math.ceil(height / ROW_PX) + 2 * BEYOND);
    const wanted = new Set();
    let before = this.above;
    for (let index = first; index < last; index += 1) {
      const row = this.rows[index];
      const name = this.key(row);
      wanted.add(name);
      const element = this.elements.get(name) ?? this.make(name);
      element.row = row;
      element.setAttribute("aria-rowindex", String(index + 2));
      this.columns.forEach((column, place) => paint(element.cells[place], column.cell(row)));
      // A row that stands where it should is not touched: it may have the focus.
      if (before.nextSibling !== element) before.after(element);
      before = element;
    }
    for (const [name, element] of this.elements) {
      if (wanted.has(name)) continue;
      element.remove();
      this.elements.delete(name);
    }
    space(this.above, first);
    space(this.below, this.rows.length - last);
  }

  make(name) {
    const cells = this.columns.map((column) => h("td", { class: column.class, "data-title": column.title }));
    const element = h("tr", {}, cells);
    if (this.on_row) {
      element.classList.add("chosen-by-click");
      element.addEventListener("click", (event) => {
        if (!event.target.closest("a, button")) this.on_row(element.row);
      });
    }
    this.elements.set(name, element);
    return element;
  }
}

function space(row, rows) {
  const height = `${rows * ROW_PX}px`;
  if (row.style.height !== height) row.style.height = height;
  row.hidden = rows === 0;
}

function paint(cell, value) {
  if (Array.isArray(value)) {
    const [signature, make] = value;
    if (cell.signature === signature) return;
    cell.signature = signature;
    cell.replaceChildren(make());
    return;
  }
  if (value !== null && typeof value === "object") {
    const signature = `${value.text}\n${value.href ?? ""}\n${value.kind ?? ""}`;
    if (cell.signature === signature) return;
    cell.signature = signature;
    const tag = value.href ? "a" : "span";
    cell.replaceChildren(h(tag, { href: value.href, class: value.kind, title: value.title }, value.text));
    return;
  }
  cell.signature = null;
  setText(cell, value ?? "–");
}
