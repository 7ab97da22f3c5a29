// What the console knows: views of the API, and the events since. Pure: no network, no clock, no document.
//
// An event carries the whole new state of its thing. Whoever takes a view therefore notes the number of the next
// event before asking, and applies the events from there on once more after the answer: whichever of the two is
// newer wins in the end.

const EVENTS_MAX = 10_000;
const STARTS_MAX = 5_000;
const CHANGES_MAX = 200;
const SECONDS_KEPT = 120;
const SNAPSHOT_TRIES = 3;

// The last so many of a sequence.
export class Ring {
  constructor(capacity) {
    this.capacity = capacity;
    this.items = [];
    this.first = 0;
  }

  get length() {
    return this.items.length;
  }

  push(item) {
    if (this.items.length < this.capacity) {
      this.items.push(item);
      return;
    }
    this.items[this.first] = item;
    this.first = (this.first + 1) % this.capacity;
  }

  // 0 is the oldest.
  at(index) {
    return this.items[(this.first + index) % this.items.length];
  }

  *[Symbol.iterator]() {
    for (let index = 0; index < this.length; index += 1) yield this.at(index);
  }
}

function is_older(one, other) {
  return one.term < other.term || (one.term === other.term && one.counter < other.counter);
}

export const key = (tenant, name) => `${tenant}/${name}`;

export class Store {
  constructor(on_change = () => {}) {
    this.on_change = on_change;
    this.functions = new Map(); // "tenant/name" -> {tenant, ...FunctionView}
    this.starts = new Map(); // id -> {tenant, ...StartView}
    this.vms = new Map(); // id -> VmView
    this.trees = new Map(); // image -> {image, epoch, members: vm -> Member, changes}
    this.refused = new Map(); // code -> count
    this.events = new Ring(EVENTS_MAX);
    this.traffic = new Traffic();
    this.stream = null;
    this.next = 0; // the number behind the last event
    this.seen = 0; // events in all
    this.rank = 1; // of the next start: later is higher
    this.lost = 0;
    this.is_stale = false;
  }

  // Takes the items of one message.
  receive(items, now) {
    const topics = new Set();
    for (const item of items) {
      if (item.type === "event") {
        this.next = item.number + 1;
        this.seen += 1;
        this.events.push(item);
        topics.add(this.apply(item, now)).add("events");
      } else if (item.type === "hello") {
        // Numbers of another life of the manager say nothing about those of this one.
        if (item.stream !== this.stream) this.events = new Ring(EVENTS_MAX);
        this.stream = item.stream;
        this.next = item.next;
      } else if (item.type === "lost") {
        this.lost += item.to - item.from + 1;
        this.next = item.to + 1;
        this.is_stale = true;
        topics.add("lost");
      } else if (item.type === "began") {
        this.stream = item.stream;
        this.events = new Ring(EVENTS_MAX);
        this.next = 1;
        this.is_stale = true;
      }
    }
    this.on_change(topics);
  }

  // Asks for a view and applies it, and what happened since the question.
  async load(ask, take, clock) {
    for (let attempt = 0; attempt < SNAPSHOT_TRIES; attempt += 1) {
      const from = this.next;
      const view = await ask();
      take(this, view, clock());
      const missing = this.events.length > 0 && this.next > from && this.events.at(0).number > from;
      for (const event of this.events) if (event.number >= from) this.apply(event, clock());
      this.on_change(new Set(["functions", "starts", "vms", "trees"]));
      if (!missing) return;
    }
  }

  apply(event, now) {
    const { kind, tenant, data } = event;
    switch (kind) {
      case "function":
        this.functions.set(key(tenant, data.name), { tenant, ...data });
        return "functions";
      case "function_deleted":
        this.functions.delete(key(tenant, data.name));
        return "functions";
      case "start":
        this.take_start(tenant, data, event.at_ms);
        return "starts";
      case "vm":
        this.take_vm(data, now);
        return "vms";
      case "vm_removed":
        this.vms.delete(data.id);
        return "vms";
      case "member":
        this.take_member(event, now);
        return "trees";
      case "member_left":
        this.member_left(event, now);
        return "trees";
      case "transfer":
        this.take_transfer(data, now);
        return "trees";
      case "repair":
        this.take_repair(event, now);
        return "trees";
      case "tree_dissolved":
        this.trees.delete(data.image);
        return "trees";
      case "refused":
        if (this.counted(event)) this.refused.set(data.code, (this.refused.get(data.code) ?? 0) + data.count);
        return "refused";
      default:
        return "events";
    }
  }

  // Whether an event that adds something is applied for the first time.
  counted(event) {
    if (event.is_counted) return false;
    event.is_counted = true;
    return true;
  }

  // `at` is when it was heard of first, by the manager's clock: for a start that was accepted by a manager of an
  // earlier release, which does not say when. One of which only a list tells has not even that.
  take_start(tenant, view, at = null) {
    const known = this.starts.get(view.id);
    if (!known && this.starts.size >= STARTS_MAX) this.starts.delete(this.starts.keys().next().value);
    const since = view.accepted_at_ms ?? at;
    const place = known ? { at: known.at, rank: known.rank, is_dated: known.is_dated } : { at: since ?? 0, rank: this.rank++, is_dated: since !== null };
    this.starts.set(view.id, { tenant, ...view, ...place });
  }

  // A list, the newest first. What it alone knows of is as old as its place says.
  take_starts(tenant, views, now) {
    let before = now;
    views.forEach((view, index) => {
      const known = this.starts.get(view.id);
      this.take_start(tenant, view);
      const taken = this.starts.get(view.id);
      if (!known?.is_dated) taken.rank = -index;
      if (taken.is_dated) before = Math.min(before, taken.at);
      else taken.at = before;
    });
  }

  take_functions(tenant, views) {
    for (const [name, view] of this.functions) if (view.tenant === tenant) this.functions.delete(name);
    for (const view of views) this.functions.set(key(tenant, view.name), { tenant, ...view });
  }

  take_vms(views, now) {
    this.vms.clear();
    for (const view of views) this.take_vm(view, now);
  }

  take_vm(view, now) {
    this.vms.set(view.id, view);
    for (const held of view.trees) this.traffic.take(held.image, view.id, held.bytes, now);
  }

  // A tree as GET /v1/functions/NAME/tree gives it, or null when there is none.
  take_tree(view, now) {
    for (const tree of [view, view?.code]) {
      if (!tree) continue;
      const known = this.trees.get(tree.image);
      const members = new Map();
      for (const member of tree.members) {
        const places = [{ parent: member.parent }];
        members.set(member.vm, {
          vm: member.vm,
          epoch: tree.epoch,
          ready: member.ready,
          places,
          present: member.blocks_present,
          total: member.blocks_total,
          bytes: known?.members.get(member.vm)?.bytes ?? null,
          mark: known?.members.get(member.vm)?.mark ?? null,
        });
      }
      for (const stripe of tree.further_stripes ?? []) {
        for (const place of stripe) members.get(place.vm)?.places.push({ parent: place.parent });
      }
      this.trees.set(tree.image, { image: tree.image, epoch: tree.epoch, members, changes: known?.changes ?? new Ring(CHANGES_MAX) });
    }
  }

  tree(image, epoch) {
    let tree = this.trees.get(image);
    if (!tree) {
      tree = { image, epoch, members: new Map(), changes: new Ring(CHANGES_MAX) };
      this.trees.set(image, tree);
    }
    if (is_older(tree.epoch, epoch)) tree.epoch = epoch;
    return tree;
  }

  take_member(event, now) {
    const { image, epoch, vm, ready, places, cause } = event.data;
    const tree = this.tree(image, epoch);
    const known = tree.members.get(vm);
    if (known && is_older(epoch, known.epoch)) return;
    const moved = known && places.some((place, stripe) => known.places[stripe]?.parent !== place.parent);
    const mark = !known ? "joined" : moved ? "moved" : known.ready !== ready ? "ready" : null;
    tree.members.set(vm, {
      vm,
      epoch,
      ready,
      places,
      present: known?.present ?? 0,
      total: known?.total ?? 0,
      bytes: known?.bytes ?? null,
      mark: mark ? { what: mark, at: now } : (known?.mark ?? null),
    });
    if (mark && mark !== "ready" && this.counted(event)) {
      tree.changes.push({ at: event.at_ms, what: mark, vm, parent: places[0]?.parent ?? null, cause });
    }
  }

  member_left(event, now) {
    const { image, epoch, vm } = event.data;
    const tree = this.tree(image, epoch);
    const known = tree.members.get(vm);
    if (known && is_older(epoch, known.epoch)) return;
    tree.members.delete(vm);
    if (this.counted(event)) tree.changes.push({ at: event.at_ms, what: "left", vm, parent: null, seen: now });
  }

  take_transfer(data, now) {
    this.traffic.take(data.image, data.vm, data.bytes, now);
    const member = this.trees.get(data.image)?.members.get(data.vm);
    if (!member) return;
    if (data.blocks_present > member.present) member.moved_at = now;
    member.present = data.blocks_present;
    member.total = data.blocks_total;
    member.bytes = data.bytes;
  }

  take_repair(event, now) {
    const { image, epoch, vm, lost } = event.data;
    const tree = this.tree(image, epoch);
    const member = tree.members.get(vm);
    if (member) member.mark = { what: "repair", at: now };
    if (this.counted(event)) tree.changes.push({ at: event.at_ms, what: "repair", vm, parent: lost });
  }

  // Starts of a function, or of all of a tenant, newest first.
  starts_of(tenant, name = null) {
    const own = [...this.starts.values()].filter((start) => start.tenant === tenant && (!name || start.function === name));
    return own.sort((one, other) => other.at - one.at || other.rank - one.rank);
  }
}

// Bytes that VMs received, by where they came from: all that was told, and in each of the last seconds.
export class Traffic {
  constructor() {
    this.held = new Map(); // "image vm" -> {parent, ancestor, origin}
    this.total = { peers: 0, origin: 0 };
    this.seconds = []; // {second, peers, origin}, oldest first
  }

  take(image, vm, bytes, now) {
    const name = `${image} ${vm}`;
    const known = this.held.get(name);
    this.held.set(name, bytes);
    // Less than before is an older report, or an agent that counts from zero again: a new base.
    const grown = (source) => Math.max(0, bytes[source] - (known?.[source] ?? 0));
    const peers = grown("parent") + grown("ancestor");
    const origin = grown("origin");
    this.total.peers += peers;
    this.total.origin += origin;
    // What came before the console looked belongs to no second.
    if (!known || peers + origin === 0) return;
    const second = Math.floor(now / 1000);
    let last = this.seconds[this.seconds.length - 1];
    if (!last || last.second !== second) {
      last = { second, peers: 0, origin: 0 };
      this.seconds.push(last);
      if (this.seconds.length > SECONDS_KEPT) this.seconds.shift();
    }
    last.peers += peers;
    last.origin += origin;
  }

  // Bytes in a second, over the last few: VMs tell of theirs once in a second, not all at once.
  rate(now, over = 3) {
    const until = Math.floor(now / 1000);
    const sum = { peers: 0, origin: 0 };
    for (const { second, peers, origin } of this.seconds) {
      if (second < until - over || second >= until) continue;
      sum.peers += peers;
      sum.origin += origin;
    }
    return { peers: sum.peers / over, origin: sum.origin / over };
  }
}
