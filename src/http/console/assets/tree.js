// Where the VMs of a tree stand on the plane. Pure: members in, places out.

export const NODE = { width: 104, height: 38, across: 120, down: 84, indent: 20, line: 48 };

// A large tree is folded at first from this depth on.
const FOLDED_ABOVE = 200;
const FOLDED_DEPTH = 5;
// Above so many VMs in sight, small branches become lists: a level of 512 leaves side by side is only a line.
const LISTS_ABOVE = 100;
const LIST_MAX = 16;

// What is folded: everything from a depth on, apart from what somebody opened, and what somebody closed.
export class Folding {
  constructor(depth = Infinity) {
    this.depth = depth;
    this.opened = new Set();
    this.closed = new Set();
  }

  static at_first(size) {
    return new Folding(size > FOLDED_ABOVE ? FOLDED_DEPTH : Infinity);
  }

  hides(vm, depth) {
    return this.closed.has(vm) || (depth >= this.depth && !this.opened.has(vm));
  }

  turn(vm, depth) {
    if (this.hides(vm, depth)) this.open(vm);
    else {
      this.opened.delete(vm);
      this.closed.add(vm);
    }
  }

  open(vm) {
    this.closed.delete(vm);
    this.opened.add(vm);
  }

  get signature() {
    return `${this.depth}|${[...this.opened]}|${[...this.closed]}`;
  }
}

// A name such that those of vm-2 and vm-10 sort as people would.
function sort_key(vm) {
  return vm.replace(/\d+/g, (digits) => digits.padStart(16, "0"));
}

// Children by parent in one stripe, in the order of names, which events do not change: siblings stay where they are.
// Whoever's parent is not there stands at the top.
function shape(members, stripe) {
  const children = new Map();
  const roots = [];
  const keyed = [...members.values()].filter((member) => member.places[stripe]).map((member) => ({ member, key: sort_key(member.vm) }));
  keyed.sort((one, other) => (one.key < other.key ? -1 : 1));
  const list = keyed.map(({ member }) => member);
  for (const member of list) {
    const { parent } = member.places[stripe];
    if (parent && members.get(parent)?.places[stripe]) {
      const known = children.get(parent);
      if (known) known.push(member.vm);
      else children.set(parent, [member.vm]);
    } else roots.push(member.vm);
  }
  return { roots, children, list };
}

// A text that is the same as long as the shape is.
export function signature(members, stripe, folding) {
  let text = "";
  for (const member of members.values()) {
    const place = member.places[stripe];
    if (place) text += `${member.vm}<${place.parent ?? ""};`;
  }
  return `${text}|${folding.signature}`;
}

// Leaves side by side, parents above the middle of their children. Trees are walked without recursion: what comes
// from the wire may be as deep as it is long.
export function layout(members, stripe, folding) {
  const { order, roots } = walk(members, stripe);
  const nodes = new Map(); // vm -> {vm, x, y, depth, parent, children, hidden, is_listed}
  let depth = 0;
  for (const { vm, parent, children, level } of order) {
    depth = Math.max(depth, level);
    const above = nodes.get(parent);
    if (parent && (!above || above.is_folded)) continue;
    nodes.set(vm, { vm, parent, depth: level, children, hidden: [], is_folded: children.length > 0 && folding.hides(vm, level), size: 1, is_listed: false, x: 0, y: level * NODE.down });
  }
  hide(order, nodes);
  const shown = [...nodes.values()];
  for (const node of shown) if (node.is_folded) node.children = [];
  // Parents come before their children: backwards, a branch is whole before it is added.
  for (const node of [...shown].reverse()) if (node.parent) nodes.get(node.parent).size += node.size;
  const has_lists = shown.length > LISTS_ABOVE;
  let [width, height] = [0, 0];
  for (const node of shown) {
    const above = node.parent && nodes.get(node.parent);
    if (above?.is_listed) node.is_listed = true;
    else if (has_lists && node.size <= LIST_MAX) {
      node.is_listed = true;
      const reach = list(node, nodes);
      for (const one of reach.nodes) {
        one.x += width;
        height = Math.max(height, one.y);
      }
      width += NODE.across + reach.indent;
      node.is_column = true;
    } else if (node.children.length === 0) {
      node.x = width;
      width += NODE.across;
    }
    height = Math.max(height, node.y);
  }
  for (const node of [...shown].reverse()) {
    if (node.is_listed || node.children.length === 0) continue;
    const below = node.children.map((vm) => nodes.get(vm).x);
    node.x = (Math.min(...below) + Math.max(...below)) / 2;
  }
  return { nodes, roots, width: Math.max(NODE.across, width), height: height + NODE.height, depth };
}

// All members, each before those below it and a branch before the next one. A circle, which no tree of ours has, hangs
// from its first place as if that were a root.
function walk(members, stripe) {
  const { roots, children, list } = shape(members, stripe);
  const order = [];
  const seen = new Set();
  const from = (root) => {
    const waiting = [{ vm: root, parent: null, level: 0 }];
    while (waiting.length > 0) {
      const step = waiting.pop();
      if (seen.has(step.vm)) continue;
      seen.add(step.vm);
      const own = (children.get(step.vm) ?? []).filter((vm) => !seen.has(vm));
      order.push({ ...step, children: own });
      for (let index = own.length - 1; index >= 0; index -= 1) waiting.push({ vm: own[index], parent: step.vm, level: step.level + 1 });
    }
  };
  roots.forEach(from);
  for (const { vm } of list) {
    if (seen.has(vm)) continue;
    roots.push(vm);
    from(vm);
  }
  return { order, roots };
}

// Tells each folded VM who is hidden below it: those behind it in the order, down to its own level.
function hide(order, nodes) {
  let top = null;
  for (const { vm, level } of order) {
    const node = nodes.get(vm);
    if (!node) top.hidden.push(vm);
    else if (node.is_folded) top = node;
    else if (level <= (top?.depth ?? 0)) top = null;
  }
}

// A branch as a list: each below the one before, further in than its parent.
function list(root, nodes) {
  const found = [];
  const waiting = [root];
  let indent = 0;
  while (waiting.length > 0) {
    const node = waiting.pop();
    const inward = (node.depth - root.depth) * NODE.indent;
    node.x = inward;
    node.y = root.depth * NODE.down + found.length * NODE.line;
    indent = Math.max(indent, inward);
    found.push(node);
    for (let index = node.children.length - 1; index >= 0; index -= 1) waiting.push(nodes.get(node.children[index]));
  }
  return { nodes: found, indent };
}

// What stands on the way from a VM to the top.
export function way_up(members, stripe, vm) {
  const way = [];
  const seen = new Set();
  let next = members.get(vm)?.places[stripe]?.parent;
  while (next && !seen.has(next)) {
    seen.add(next);
    way.push(next);
    next = members.get(next)?.places[stripe]?.parent;
  }
  return way;
}
