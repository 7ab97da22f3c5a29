// Plays a recorded event stream to the console: answers its questions from the views that the recording begins with,
// and sends the events since at a steady rate. Runs in the page before the console does; `window.feed` has `views` by
// path, `events` and `rate`. It sends between `play()` and `pause()`.

(() => {
  const { feed } = window;
  const TICK_MS = 50;
  const ITEMS_MAX = 512;
  feed.sent = 0;
  const fetched = window.fetch;
  window.fetch = async (address, options) => {
    const path = String(address).split("?")[0];
    if (!path.startsWith("/v1/")) return fetched(address, options);
    const view = feed.views[path];
    if (!view) return new Response(JSON.stringify({ detail: "nothing here", code: "not_found" }), { status: 404 });
    return new Response(JSON.stringify(view), { status: 200 });
  };

  window.WebSocket = class {
    static OPEN = 1;

    constructor() {
      this.readyState = 0;
      setTimeout(() => {
        this.readyState = 1;
        this.say([{ type: "hello", stream: "1.0", next: feed.events[0].number }]);
        feed.play = () => {
          const [begun, before] = [performance.now(), feed.sent];
          feed.timer = setInterval(() => {
            const due = before + Math.floor(((performance.now() - begun) / 1000) * feed.rate);
            while (feed.sent < Math.min(due, feed.events.length)) {
              const items = feed.events.slice(feed.sent, Math.min(due, feed.sent + ITEMS_MAX));
              feed.sent += items.length;
              this.say(items);
            }
          }, TICK_MS);
        };
        feed.pause = () => clearInterval(feed.timer);
      }, 20);
    }

    say(items) {
      this.onmessage?.({ data: JSON.stringify(items) });
    }

    close() {
      feed.pause();
      this.readyState = 3;
    }
  };
})();
