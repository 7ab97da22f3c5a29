// Elements. All text goes through text nodes: what tenants write can never become markup.

// h("a", {href: "#/", class: "x", onclick: act}, "text", child, ...)
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else element.setAttribute(name, String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Writing the same text again would cost a layout.
export function setText(element, text) {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

export function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

export function setShown(element, is_shown) {
  if (element.hidden === is_shown) element.hidden = !is_shown;
}

// A bar of 0 to 1 with its text.
export function bar(value, text, kind = "") {
  const fill = h("span", { class: `fill ${kind}` });
  const label = h("span", { class: "label" }, text);
  const element = h("span", { class: "bar", role: "img", "aria-label": text }, fill, label);
  fill.style.width = `${Math.round(value * 100)}%`;
  return element;
}

export function button(text, act, attributes = {}) {
  return h("button", { type: "button", onclick: act, ...attributes }, text);
}

export function field(label, input) {
  return h("label", { class: "field" }, h("span", {}, label), input);
}

export function badge(text, kind) {
  return h("span", { class: `badge ${kind}` }, text);
}

export function empty(...children) {
  return h("div", { class: "empty" }, ...children);
}

// Definitions: pairs of a name and a value.
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

// Asks before something that cannot be taken back. Resolves to whether it was agreed to.
export function confirm(question, verb) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: "dialog", "aria-label": question });
    const end = (answer) => {
      dialog.close();
      dialog.remove();
      resolve(answer);
    };
    dialog.addEventListener("cancel", () => end(false));
    dialog.append(
      h("p", {}, question),
      h("div", { class: "row end" }, button("Cancel", () => end(false)), button(verb, () => end(true), { class: "danger" })),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}
