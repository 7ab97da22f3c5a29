// The frame around the pages: who is logged in, what is shown, and whether the manager is there.

import { Api, ApiError } from "./api.js";
import { button, h, setText } from "./dom.js";
import { Store } from "./store.js";
import { Stream } from "./stream.js";
import { login } from "./pages/login.js";
import { overview } from "./pages/overview.js";
import { functionPage } from "./pages/function.js";
import { vms } from "./pages/vms.js";
import { starts } from "./pages/starts.js";
import { start } from "./pages/start.js";
import { actors } from "./pages/actors.js";
import { events } from "./pages/events.js";
import { audit } from "./pages/audit.js";

const PAGES = { "": overview, functions: functionPage, vms, starts, start, actors, events, audit };
const MENU = [["", "Overview"], ["vms", "VMs", "all"], ["starts", "Starts"], ["actors", "Actors", "all"], ["events", "Events"], ["audit", "Audit", "admin"]];
const ROLES = ["viewer", "operator", "admin"];
const DEFAULT_TENANT = "default";
const NOTICE_MS = 8_000;
// Between two snapshots, when a slow console keeps losing events.
const SNAPSHOT_PAUSE_MS = 2_000;

class App {
  constructor() {
    this.api = new Api(() => this.signed_out());
    this.content = document.getElementById("content");
    this.banner = document.getElementById("banner");
    this.notices = document.getElementById("notices");
    this.session = null;
    this.page = null;
    this.topics = new Set();
    this.frame = 0;
    // To be waited for: how often the first snapshot behind a connection was taken.
    this.snapshots = 0;
    addEventListener("hashchange", () => this.session && this.show());
    addEventListener("unhandledrejection", (event) => {
      if (!(event.reason instanceof ApiError)) return;
      event.preventDefault();
      this.notice(event.reason.message, "bad");
    });
    this.set_theme(localStorage.getItem("theme") ?? "auto");
  }

  now() {
    return Date.now();
  }

  can(role) {
    return ROLES.indexOf(this.session.role) >= ROLES.indexOf(role);
  }

  get sees_all() {
    return this.session.tenant === null;
  }

  get tenant() {
    return this.session.tenant ?? this.api.tenant ?? DEFAULT_TENANT;
  }

  async begin() {
    try {
      this.signed_in(await this.api.get("/v1/session"));
    } catch (error) {
      if (error.status === 401) return;
      setText(this.banner, "The manager does not answer. Trying again…");
      setTimeout(() => this.begin(), 1_000);
    }
  }

  signed_out() {
    this.stream?.close();
    this.stream = null;
    this.session = null;
    this.close_page();
    document.getElementById("header").replaceChildren();
    setText(this.banner, "");
    this.content.replaceChildren(login(this));
    document.title = "Log in · FaaSNet";
    this.content.querySelector("input")?.focus();
  }

  signed_in(session) {
    this.session = session;
    this.api.tenant = session.tenant ? null : (localStorage.getItem("tenant") ?? null);
    this.store = new Store((topics) => this.changed(topics));
    this.tenants = new Set([DEFAULT_TENANT, this.tenant]);
    setText(this.banner, "");
    this.header();
    this.stream = new Stream({ on_items: (items) => this.receive(items), on_state: (state, failures) => this.stream_state(state, failures) });
    this.stream.open();
    this.show();
  }

  async sign_out() {
    await this.api.call("DELETE", "/v1/session").catch(() => {});
    this.signed_out();
  }

  header() {
    const links = MENU.filter(([, , only]) => !only || (only === "all" ? this.sees_all : this.can("admin")));
    this.links = links.map(([name, title]) => h("a", { href: `#/${name}`, "data-page": name }, title));
    this.state = h("span", { class: "state", role: "status" });
    this.tenant_list = h("datalist", { id: "tenants" });
    const tenant = h("input", { id: "tenant", list: "tenants", value: this.tenant, size: 10, spellcheck: false, autocomplete: "off", "aria-label": "Tenant" });
    tenant.addEventListener("change", () => this.set_tenant(tenant.value.trim() || DEFAULT_TENANT));
    const theme = button("", () => this.set_theme({ auto: "light", light: "dark", dark: "auto" }[this.theme]), { class: "plain" });
    this.theme_button = theme;
    this.set_theme(this.theme);
    document.getElementById("header").replaceChildren(
      h("a", { class: "brand", href: "#/" }, h("img", { src: "icon.svg", alt: "", width: 24, height: 24 }), "FaaSNet"),
      h("nav", { "aria-label": "Pages" }, this.links, h("a", { href: "../docs/", title: "The API, described and to be tried" }, "API")),
      h("div", { class: "row" },
        this.state,
        this.sees_all ? h("label", { class: "tenant" }, h("span", {}, "Tenant"), tenant, this.tenant_list) : h("span", { class: "dim" }, this.session.tenant),
        theme,
        button("Log out", () => this.sign_out(), { class: "plain", title: `${this.session.name}, ${this.session.role}` }),
      ),
    );
    this.header_tenants();
  }

  header_tenants() {
    for (const view of this.store.vms.values()) if (view.tenant) this.tenants.add(view.tenant);
    for (const view of this.store.functions.values()) if (view.tenant) this.tenants.add(view.tenant);
    if (this.tenant_list.childElementCount === this.tenants.size) return;
    this.tenant_list.replaceChildren(...[...this.tenants].sort().map((name) => h("option", { value: name })));
  }

  set_tenant(name) {
    this.api.tenant = name;
    localStorage.setItem("tenant", name);
    if (location.hash.startsWith("#/functions/")) location.hash = "#/";
    this.snapshot();
    this.show();
  }

  set_theme(theme) {
    this.theme = theme;
    localStorage.setItem("theme", theme);
    const root = document.documentElement;
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
    document.dispatchEvent(new Event("faasnet-theme"));
    if (!this.theme_button) return;
    setText(this.theme_button, { auto: "◐", light: "☀", dark: "☾" }[theme]);
    const title = `Colours: ${{ auto: "as the system", light: "light", dark: "dark" }[theme]}`;
    this.theme_button.title = title;
    this.theme_button.setAttribute("aria-label", title);
  }

  receive(items) {
    this.store.receive(items, this.now());
    if (items[0]?.type === "hello" || this.store.is_stale) this.snapshot();
  }

  stream_state(state, failures) {
    if (!this.session) return;
    setText(this.state, { live: "live", connecting: "connecting…", away: "away" }[state]);
    this.state.className = `state ${state}`;
    document.body.dataset.stream = state;
    if (state === "live") this.banner.replaceChildren();
    else if (failures > 0 && this.banner.childElementCount === 0) {
      this.banner.replaceChildren(
        h("span", {}, "No connection to the manager: what you see is as it was. Functions go on without it. "),
        button("Try now", () => this.stream.now()),
      );
    }
    // A websocket does not say why it was refused; a question does.
    if (state === "away") this.api.get("/v1/session").catch(() => {});
  }

  // Views of what every page needs, and of what the present one does.
  async snapshot() {
    this.store.is_stale = false;
    if (this.is_asking) {
      this.asks_again = true;
      return;
    }
    this.is_asking = true;
    try {
      const tenant = this.tenant;
      const ask = async () => {
        const [functions, seen] = await Promise.all([this.api.get("/v1/functions"), this.sees_all ? this.api.get("/v1/vms") : null]);
        return { functions: functions.functions, vms: seen?.vms };
      };
      await this.store.load(ask, (store, views, now) => {
        store.take_functions(tenant, views.functions);
        if (views.vms) store.take_vms(views.vms, now);
      }, () => this.now());
      await this.page?.load?.();
      this.header_tenants();
      this.snapshots += 1;
      document.body.dataset.snapshots = this.snapshots;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (!error.is_away) this.notice(error.message, "bad");
    } finally {
      this.is_asking = false;
    }
    if (!this.asks_again) return;
    this.asks_again = false;
    setTimeout(() => this.session && this.snapshot(), SNAPSHOT_PAUSE_MS);
  }

  // Whatever happens between two frames is drawn once.
  changed(topics) {
    for (const topic of topics) this.topics.add(topic);
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const seen = this.topics;
      this.topics = new Set();
      if (this.session) this.page?.update?.(seen);
    });
  }

  close_page() {
    this.page?.close?.();
    this.page = null;
  }

  show() {
    const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
    const make = PAGES[name] ?? overview;
    // Another part of the same thing keeps its page.
    if (this.page?.moved?.(name, rest)) return;
    this.close_page();
    for (const link of this.links) {
      const is_here = link.dataset.page === (name === "start" ? "starts" : name === "functions" ? "" : name);
      if (is_here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.page = make(this, rest);
    document.title = `${this.page.title} · FaaSNet`;
    this.content.replaceChildren(this.page.element);
    scrollTo(0, 0);
    this.page.update?.(new Set(["functions", "starts", "vms", "trees", "refused", "events"]));
    this.page.load?.();
  }

  go(hash) {
    location.hash = hash;
  }

  // Does something and says how it went; gives what it gave, or null.
  async act(what, done) {
    try {
      const answer = await what();
      if (done) this.notice(done);
      return answer ?? true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.notice(error.message, "bad");
      return null;
    }
  }

  notice(text, kind = "good") {
    const element = h("div", { class: `notice ${kind}` }, text);
    const end = () => element.remove();
    element.append(button("×", end, { class: "plain", "aria-label": "Close" }));
    this.notices.append(element);
    while (this.notices.childElementCount > 3) this.notices.firstElementChild.remove();
    setTimeout(end, NOTICE_MS);
  }
}

new App().begin();
