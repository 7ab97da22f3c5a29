// Plays a manager with many VMs to the console: answers its questions and sends the events of a stream, made from
// a fixed seed. Runs in the page before the console does; parameters are in `window.feed`.

(() => {
  const { vms = 1000, rate = 1000, fan_out = 2 } = window.feed ?? {};
  const BLOCKS = 2000;
  const TICK_MS = 50;
  const IMAGE = `sha256:${"5eed".repeat(16)}`;
  let state = 42;
  const random = (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const name = (place) => `vm-${place + 1}`;
  const id = (number) => `0199${String(number).padStart(4, "0")}-${String(1000 + (number % 9000))}-7000-8000-${String(number).padStart(12, "0")}`;
  const epoch = { term: 3, counter: vms };
  let members = [];
  const places = (place) => [{ place, parent: place === 0 ? null : (members[Math.floor((place - 1) / fan_out)]?.vm ?? name(Math.floor((place - 1) / fan_out))) }];
  members = Array.from({ length: vms }, (_, place) => ({
    vm: name(place), places: places(place), ready: place < vms * 0.6, present: place < vms * 0.6 ? BLOCKS : random(BLOCKS),
    bytes: { parent: place === 0 ? 0 : random(1 << 27), ancestor: 0, origin: place === 0 ? 1 << 28 : 0 },
  }));
  const start = (number, ready) => {
    const member = members[number % vms];
    const slow = number % 17 === 0 ? 900_000 : 0;
    return {
      id: id(number), function: "web", vm: member.vm, state: ready ? "ready" : "starting", reason: null,
      timeline_us: { waiting: 900, placing: 2_000 + random(2_000), connecting: 9_000 + random(9_000), index: 11_000, metadata: 52_000 + random(30_000), whole: null, mount: 14_000, run: ready ? 90_000 + random(30_000) : null, probe: ready ? 210_000 + random(90_000) + slow : null, ready: ready ? 420_000 + random(90_000) + slow : null },
      bytes: member.bytes, stalls: slow ? 31 : 4, stalled_us: slow ? 800_000 : 22_000, longest_stall_us: slow ? 300_000 : 9_000, worst_stall: null,
      waits: Object.fromEntries(["parent", "ancestor", "origin", "disk"].map((name) => [name, { blocks: 40, us: 80_000 }])),
    };
  };
  const vm = (member, number) => ({
    id: member.vm, address: `10.77.${number >> 8}.${number & 255}:7000`, state: number % 97 === 96 ? "lost" : number % 61 === 60 ? "draining" : "up", draining: number % 61 === 60,
    tenant: number % 5 === 4 ? null : "default", memory_bytes: 8 << 30 >>> 0 || 8_589_934_592, memory_used_bytes: random(8) * 536_870_912, cpu_millis: 4000, cpu_used_millis: random(8) * 500,
    instances: [id(number)], trees: [{ image: IMAGE, blocks_present: member.present, blocks_total: BLOCKS, bytes: member.bytes }], cold: [],
  });
  const view = () => ({
    name: "web", image: "registry.example/shop/web:41", memory_mib: 512, cpu_millis: 250, concurrency: 80, min_instances: 0, max_instances: null, keep_alive_ms: null, probe_path: "/healthz", mode: "lazy", env: { GREETING: "hello" }, code: null, command: null,
    image_state: { state: "ready", id: IMAGE, source: IMAGE, plain_bytes: BLOCKS * 524_288, stored_bytes: BLOCKS * 262_144 },
    ready: members.filter((member) => member.ready).length, starting: members.filter((member) => !member.ready).length, waiting: 3,
  });
  const tree = () => ({
    image: IMAGE, epoch, height: 10,
    members: members.map((member) => ({ vm: member.vm, place: member.places[0].place, parent: member.places[0].parent, children: [], ready: member.ready, blocks_present: member.present, blocks_total: BLOCKS })),
  });
  const actor = (kind, name, children = [], queues = []) => ({ kind, name, generation: 0, crashes: 0, mailbox: 0, state: "up", thread: "", queues, children, children_left_out: 0 });
  const answers = {
    "/v1/session": () => ({ name: "admin", role: "admin", tenant: null }),
    "/v1/functions": () => ({ functions: [view()] }),
    "/v1/functions/web/tree": tree,
    "/v1/functions/web/starts": () => ({ starts: Array.from({ length: 500 }, (_, number) => start(500 - number, true)) }),
    "/v1/vms": () => ({ vms: members.map(vm) }),
    "/v1/actors": () => ({ actors: [actor("manager", "manager", [actor("scheduler", "scheduler", [], [{ name: "requests", length: 12, limit: 6000 }]), actor("forest", "forest", [actor("function_tree", "default/web")]), { ...actor("fleet", "fleet", members.slice(0, 200).map((member) => actor("vm_node", member.vm, [], [{ name: "orders", length: 2, limit: 16 }]))), children_left_out: Math.max(0, vms - 200) }])] }),
  };
  const fetched = window.fetch;
  window.fetch = async (address, options) => {
    const path = String(address).split("?")[0];
    if (!path.startsWith("/v1/")) return fetched(address, options);
    const answer = answers[path] ?? (path.startsWith("/v1/starts/") ? () => start(Number(path.slice(-12)), true) : null);
    if (!answer) return new Response(JSON.stringify({ detail: "nothing here", code: "not_found" }), { status: 404 });
    return new Response(JSON.stringify(answer()), { status: 200 });
  };

  let number = 1;
  const event = (kind, vm, data) => ({ type: "event", number: number++, at_ms: Date.now(), kind, tenant: kind === "vm" ? null : "default", functions: kind === "vm" ? [] : ["web"], vm, data });
  const transfer = (member) => {
    member.present = Math.min(BLOCKS, member.present + 1 + random(60));
    member.bytes = { ...member.bytes, parent: member.bytes.parent + 262_144 * random(60) };
    return event("transfer", member.vm, { image: IMAGE, vm: member.vm, blocks_present: member.present, blocks_total: BLOCKS, bytes: member.bytes });
  };
  const placed = (member, cause) => event("member", member.vm, { image: IMAGE, epoch: { ...epoch }, vm: member.vm, ready: member.ready, places: member.places, cause });
  let turn = 0;
  const next = () => {
    const member = members[random(vms)];
    turn += 1;
    if (turn % 50 === 0) {
      // A VM is gone, the last one takes its place, and it comes back at the end.
      const hole = 1 + random(vms - 2);
      const [lost, last] = [members[hole], members[vms - 1]];
      epoch.counter += 1;
      members[hole] = { ...last, places: places(hole) };
      members[vms - 1] = { ...lost, places: places(vms - 1), present: 0, ready: false };
      const below = members.slice(hole * fan_out + 1, hole * fan_out + 1 + fan_out);
      for (const child of below) child.places = places(members.indexOf(child));
      return [
        ...below.map((child) => event("repair", child.vm, { image: IMAGE, epoch: { ...epoch }, vm: child.vm, lost: lost.vm })),
        event("member_left", lost.vm, { image: IMAGE, epoch: { ...epoch }, vm: lost.vm }),
        placed(members[hole], "moved"), ...below.map((child) => placed(child, "moved")), placed(members[vms - 1], "start"),
      ];
    }
    if (turn % 10 === 0) return [event("start", member.vm, start(500 + (turn % 3000), turn % 20 !== 0))];
    if (turn % 7 === 0) return [event("vm", member.vm, vm(member, members.indexOf(member)))];
    if (turn % 200 === 1) return [event("function", null, view())];
    if (turn % 31 === 0) return [event("refused", null, { code: "too_many", count: 1 + random(9) })];
    return [transfer(member)];
  };
  window.WebSocket = class {
    static OPEN = 1;

    constructor() {
      this.readyState = 0;
      setTimeout(() => {
        this.readyState = 1;
        this.say([{ type: "hello", stream: "3.0", next: number, oldest: 1 }]);
        let begun = performance.now();
        let sent = 0;
        this.timer = setInterval(() => {
          if (window.feed.is_paused) return;
          const due = ((performance.now() - begun) / 1000) * rate;
          const items = [];
          while (sent < due && items.length < 5000) {
            const made = next();
            sent += made.length;
            items.push(...made);
          }
          window.feed.sent = sent;
          for (let from = 0; from < items.length; from += 512) this.say(items.slice(from, from + 512));
        }, TICK_MS);
      }, 20);
    }

    say(items) {
      this.onmessage?.({ data: JSON.stringify(items) });
    }

    close() {
      clearInterval(this.timer);
      this.readyState = 3;
    }
  };
})();
