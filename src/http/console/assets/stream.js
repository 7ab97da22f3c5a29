// The event stream: one websocket, and another one after a pause when it ends.

const PAUSE_MIN_MS = 250;
const PAUSE_MAX_MS = 10_000;
// A connection that says nothing for so long is asked whether the manager is there at all: a browser tells
// nobody of the pings that it answers.
const SILENCE_MS = 20_000;
const LOOK_MS = 5_000;

export class Stream {
  // `on_items` gets each message's items; `on_state` "connecting", "live" or "away".
  constructor({ query = {}, on_items, on_state }) {
    this.query = query;
    this.on_items = on_items;
    this.on_state = on_state;
    this.failures = 0;
    this.socket = null;
    this.timer = null;
    this.silence = null;
    this.is_closed = false;
  }

  open() {
    if (this.is_closed) return;
    this.on_state("connecting", this.failures);
    const url = new URL("/v1/events", location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    for (const [name, value] of Object.entries(this.query)) url.searchParams.set(name, value);
    const socket = new WebSocket(url);
    this.socket = socket;
    socket.onmessage = (message) => {
      if (this.socket !== socket) return;
      const items = JSON.parse(message.data);
      this.heard();
      if (items[0]?.type === "hello") {
        this.failures = 0;
        this.on_state("live", 0);
      }
      this.on_items(items);
    };
    socket.onclose = () => {
      if (this.socket === socket) this.again();
    };
    this.heard();
  }

  heard() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.look(), SILENCE_MS);
  }

  async look() {
    const socket = this.socket;
    const is_there = await fetch("/healthz", { signal: AbortSignal.timeout(LOOK_MS) }).then((answer) => answer.ok, () => false);
    if (this.socket !== socket || this.is_closed) return;
    if (is_there && socket.readyState === WebSocket.OPEN) this.heard();
    else this.again();
  }

  again() {
    this.drop();
    if (this.is_closed) return;
    this.failures += 1;
    // Spread, so that all consoles of a manager that was restarted do not come at once.
    const pause = Math.min(PAUSE_MAX_MS, PAUSE_MIN_MS * 2 ** (this.failures - 1)) * (0.7 + 0.6 * Math.random());
    this.on_state("away", this.failures);
    this.timer = setTimeout(() => this.open(), pause);
  }

  drop() {
    clearTimeout(this.timer);
    clearTimeout(this.silence);
    const socket = this.socket;
    this.socket = null;
    if (socket) socket.close();
  }

  now() {
    this.drop();
    this.open();
  }

  close() {
    this.is_closed = true;
    this.drop();
  }
}
