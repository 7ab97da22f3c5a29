// Tests of the console's pure modules. The last argument takes what passed and what failed.

const done = arguments[arguments.length - 1];
const passed = [];
const failed = [];
const same = (seen, wanted, what) => {
  const [one, other] = [JSON.stringify(seen), JSON.stringify(wanted)];
  if (one !== other) throw new Error(`${what}: ${one} instead of ${other}`);
};
const test = async (name, body) => {
  try {
    await body();
    passed.push(name);
  } catch (error) {
    failed.push(`${name}: ${error.message}`);
  }
};
// The same numbers in each run.
const numbers = (seed) => (below) => {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return Math.floor((seed / 2 ** 32) * below);
};

Promise.all(["store", "tree", "waterfall", "format"].map((name) => import(`/console/${name}.js`))).then(async ([{ Store, Ring, Traffic }, tree, waterfall, format]) => {
  const IMAGE = "sha256:aa";
  const bytes = (parent, origin = 0) => ({ parent, ancestor: 0, origin });
  const event = (number, kind, data) => ({ type: "event", number, at_ms: number, kind, tenant: "default", functions: ["web"], vm: null, data });
  const member = (number, counter, vm, parent, ready = false) => event(number, "member", { image: IMAGE, epoch: { term: 1, counter }, vm, ready, places: [{ depth: 0, parent }], cause: "joined" });
  const left = (number, counter, vm) => event(number, "member_left", { image: IMAGE, epoch: { term: 1, counter }, vm });
  const members = (store) => [...(store.trees.get(IMAGE)?.members.values() ?? [])].map(({ vm, ready, places }) => `${vm}<${places[0].parent}${ready ? "!" : ""}`).sort();

  await test("a ring keeps the last", () => {
    const ring = new Ring(3);
    for (let number = 0; number < 5; number += 1) ring.push(number);
    same([...ring], [2, 3, 4], "kept");
    same(ring.at(0), 2, "oldest");
  });

  await test("a store applies what happens", () => {
    const store = new Store();
    store.receive([{ type: "hello", stream: "1.0", next: 1 }, member(1, 1, "a", null), member(2, 2, "b", "a"), member(3, 3, "c", "b")], 0);
    same(members(store), ["a<null", "b<a", "c<b"], "joined");
    store.receive([left(4, 4, "b"), member(5, 4, "c", "a", true)], 10);
    same(members(store), ["a<null", "c<a!"], "moved");
    same([...store.trees.get(IMAGE).changes].map(({ what, vm }) => `${vm} ${what}`), ["a joined", "b joined", "c joined", "b left", "c moved"], "changes");
    same(store.trees.get(IMAGE).members.get("c").mark, { what: "moved", at: 10 }, "mark");
  });

  await test("what is older changes nothing", () => {
    const store = new Store();
    store.receive([member(1, 9, "a", "x")], 0);
    store.receive([member(2, 8, "a", "y"), left(3, 7, "a")], 0);
    same(members(store), ["a<x"], "newer");
  });

  await test("a snapshot and the events around it converge", async () => {
    for (let seed = 1; seed <= 200; seed += 1) {
      const random = numbers(seed);
      const truth = new Map();
      const events = [];
      const views = [];
      const snapshot = (counter) => ({ image: IMAGE, epoch: { term: 1, counter }, members: [...truth].map(([vm, { parent, ready }]) => ({ vm, place: 0, parent, ready, children: [], blocks_present: 0, blocks_total: 1 })) });
      views.push(snapshot(0));
      for (let number = 1; number <= 30; number += 1) {
        const vm = `vm-${random(5)}`;
        if (random(4) === 0) {
          truth.delete(vm);
          events.push(left(number, number, vm));
        } else {
          const now = { parent: `vm-${random(5)}`, ready: random(2) === 1 };
          truth.set(vm, now);
          events.push(member(number, number, vm, now.parent, now.ready));
        }
        views.push(snapshot(number));
      }
      // The question is asked when `asked` events are here; the answer is of a later moment, and comes later still.
      const asked = random(31);
      const seen = asked + random(31 - asked);
      const answered = seen + random(31 - seen);
      const store = new Store();
      store.receive([{ type: "hello", stream: "1.0", next: 1 }, ...events.slice(0, asked)], 0);
      const ask = async () => {
        for (const one of events.slice(asked, answered)) store.receive([one], 0);
        return views[seen];
      };
      await store.load(ask, (known, view) => known.take_tree(view, 0), () => 0);
      store.receive(events.slice(answered), 0);
      same(members(store), [...truth].map(([vm, { parent, ready }]) => `${vm}<${parent}${ready ? "!" : ""}`).sort(), `seed ${seed}`);
    }
  });

  await test("counts are counted once, whatever is applied again", async () => {
    const store = new Store();
    store.receive([{ type: "hello", stream: "1.0", next: 1 }], 0);
    const refused = event(1, "refused", { code: "too_many", count: 3 });
    await store.load(async () => store.receive([refused], 0), () => {}, () => 0);
    same([...store.refused], [["too_many", 3]], "refused");
  });

  await test("a gap is told and asks for a snapshot", () => {
    const store = new Store();
    store.receive([{ type: "hello", stream: "1.0", next: 1 }, { type: "lost", from: 1, to: 5 }], 0);
    same([store.lost, store.is_stale, store.next], [5, true, 6], "lost");
    store.receive([{ type: "began", stream: "2.0" }], 0);
    same([store.stream, store.next], ["2.0", 1], "another life");
  });

  await test("starts are bounded", () => {
    const store = new Store();
    for (let number = 0; number < 6_000; number += 1) store.take_start("default", { id: String(number) });
    same(store.starts.size, 5_000, "kept");
    same(store.starts.has("5999"), true, "the latest");
  });

  await test("starts are in the order of their acceptance", () => {
    const store = new Store();
    const told = (number, id) => event(number, "start", { id, function: "web" });
    const order = () => store.starts_of("default").map(({ id }) => id);
    store.receive([told(100, "c"), told(200, "d")], 0);
    store.take_starts("default", ["d", "x", "c", "b", "a"].map((id) => ({ id, function: "web" })), 900);
    same(order(), ["d", "x", "c", "b", "a"], "a list's");
    store.receive([told(300, "c"), told(400, "e")], 0);
    same(order(), ["e", "d", "x", "c", "b", "a"], "and what came since");
    store.take_starts("default", [{ id: "y", function: "web", accepted_at_ms: 50 }], 900);
    same(order(), ["e", "d", "x", "c", "b", "a", "y"], "the manager says when");
    same(store.starts.get("y").is_dated, true, "dated");
  });

  await test("traffic is what has grown", () => {
    const traffic = new Traffic();
    traffic.take(IMAGE, "a", bytes(100), 1_000);
    traffic.take(IMAGE, "a", bytes(150, 7), 2_500);
    traffic.take(IMAGE, "a", bytes(120, 7), 2_600);
    same(traffic.total, { peers: 150, origin: 7 }, "an older report adds nothing");
    same(traffic.rate(4_000, 2), { peers: 25, origin: 3.5 }, "rate");
    same(traffic.rate(60_000, 2), { peers: 0, origin: 0 }, "it ends");
  });

  const placed = (parents) => new Map(parents.map((parent, place) => [`v${place}`, { vm: `v${place}`, ready: true, present: 0, total: 1, places: [{ parent: parent === null ? null : `v${parent}` }] }]));
  const all = (members, folding = new tree.Folding()) => tree.layout(members, 0, folding);
  const apart = (nodes) => {
    const list = [...nodes.values()].sort((one, other) => one.y - other.y || one.x - other.x);
    for (let one = 0; one < list.length; one += 1) {
      for (let other = one + 1; other < list.length && list[other].y - list[one].y < tree.NODE.height; other += 1) {
        if (Math.abs(list[other].x - list[one].x) < tree.NODE.width) throw new Error(`${list[one].vm} covers ${list[other].vm}`);
      }
    }
  };
  await test("a tree is laid out tidily", () => {
    const { nodes, roots, depth } = all(placed([null, 0, 0, 1, 1, 2, 2]));
    same([roots, depth, nodes.size], [["v0"], 2, 7], "shape");
    same(nodes.get("v0").x, (nodes.get("v1").x + nodes.get("v2").x) / 2, "above the middle");
    apart(nodes);
  });

  await test("siblings stand in the order of their names, however they became known", () => {
    const members = placed([null, ...Array(11).fill(0)]);
    const shuffled = new Map([...members].reverse());
    const names = (nodes) => [...nodes.values()].sort((one, other) => one.y - other.y || one.x - other.x).map((node) => node.vm);
    same(names(all(shuffled).nodes), Array.from({ length: 12 }, (_, number) => `v${number}`), "names");
  });

  await test("a branch is folded and opened", () => {
    const members = placed([null, 0, 0, 1, 1, 2, 2, 3]);
    const folding = new tree.Folding();
    folding.turn("v1", 1);
    const { nodes, depth } = all(members, folding);
    same([nodes.size, depth, nodes.get("v1").hidden.sort(), nodes.get("v2").hidden], [5, 3, ["v3", "v4", "v7"], []], "folded");
    folding.turn("v1", 1);
    same(all(members, folding).nodes.size, 8, "opened");
  });

  await test("what is no tree is drawn all the same", () => {
    same(all(new Map()).nodes.size, 0, "empty");
    same(all(placed([5, 0, null])).roots, ["v0", "v2"], "a parent that is gone");
    same([...all(placed([1, 0, null])).nodes.keys()].sort(), ["v0", "v1", "v2"], "a circle");
    same(tree.way_up(placed([1, 0]), 0, "v0"), ["v1", "v0"], "a circle ends");
    const chain = placed([null, ...Array.from({ length: 5_000 }, (_, place) => place)]);
    same(all(chain).depth, 5_000, "a chain");
  });

  await test("a thousand VMs are folded at first, and lie apart when they are not", () => {
    const large = placed([null, ...Array.from({ length: 999 }, (_, place) => place >> 1)]);
    const { nodes } = all(large, tree.Folding.at_first(large.size));
    same([...nodes.values()].reduce((sum, node) => sum + 1 + node.hidden.length, 0), 1_000, "shown or hidden");
    if (nodes.size > 80) throw new Error(`${nodes.size} are shown`);
    const whole = all(large);
    same(whole.nodes.size, 1_000, "unfolded");
    apart(whole.nodes);
    if (whole.width > 15_000) throw new Error(`it is ${whole.width} wide`);
    same(all(placed([null, 0, 0]), tree.Folding.at_first(3)).nodes.size, 3, "a small one");
  });

  await test("phases follow each other and end with the report", () => {
    const list = waterfall.phases({ waiting: 10, run: 50, ready: 100 });
    same(list.map(({ name, from, length }) => [name, from, length]), [["waiting", 0, 10], ["run", 10, 50], ["report", 60, 40]], "phases");
  });

  await test("numbers are readable", () => {
    same([format.size(1023), format.size(1536), format.duration(999), format.duration(12_345), format.duration(1_500_000)], ["1023 B", "1.5 KiB", "999 µs", "12 ms", "1.50 s"], "texts");
  });
  done({ passed, failed });
}, (error) => done({ passed, failed: [String(error)] }));
