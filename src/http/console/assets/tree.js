// Where the VMs of a tree stand on the plane. Pure: members in, places out.

export const NODE = { width: 104, height: 38, across: 120, down: 84 };

// Children by parent in one stripe, in the order of places; whoever's parent is not there stands at the top.
export function shape(members, stripe) {
  const children = new Map();
  const roots = [];
  const list = [...members.values()].filter((member) => member.places[stripe]);
  list.sort((one, other) => one.places[stripe].place - other.places[stripe].place);
  for (const member of list) {
    const { parent } = member.places[stripe];
    if (parent && members.get(parent)?.places[stripe]) {
      const known = children.get(parent);
      if (known) known.push(member.vm);
      else children.set(parent, [member.vm]);
    } else roots.push(member.vm);
  }
  return { roots, children };
}

// A text that is the same as long as the shape is.
export function signature(members, stripe, collapsed) {
  let text = "";
  for (const member of members.values()) {
    const place = member.places[stripe];
    if (place) text += `${member.vm}<${place.parent ?? ""}@${place.place};`;
  }
  return `${text}|${[...collapsed].join(",")}`;
}

// Below this depth a large tree is folded at first.
const FOLDED_ABOVE = 200;
const FOLDED_DEPTH = 5;

export function folded_at_first(members, stripe) {
  const collapsed = new Set();
  if (members.size <= FOLDED_ABOVE) return collapsed;
  const { roots, children } = shape(members, stripe);
  let level = roots;
  for (let depth = 0; depth < FOLDED_DEPTH; depth += 1) level = level.flatMap((vm) => children.get(vm) ?? []);
  for (const vm of level) if (children.has(vm)) collapsed.add(vm);
  return collapsed;
}

// Leaves side by side, parents above the middle of their children. Trees are walked without recursion: what comes
// from the wire may be as deep as it is long. A circle, which no tree of ours has, is not entered.
export function layout(members, stripe, collapsed) {
  const { roots, children } = shape(members, stripe);
  const nodes = new Map(); // vm -> {vm, x, y, depth, parent, hidden}
  const seen = new Set();
  let across = 0;
  let height = 0;
  const steps = roots.map((vm) => ({ vm, depth: 0, parent: null, is_done: false })).reverse();
  while (steps.length > 0) {
    const step = steps.pop();
    const { vm, depth, parent } = step;
    const below = collapsed.has(vm) ? [] : (children.get(vm) ?? []);
    if (!step.is_done) {
      if (seen.has(vm)) continue;
      seen.add(vm);
      height = Math.max(height, depth);
      steps.push({ ...step, is_done: true });
      for (let index = below.length - 1; index >= 0; index -= 1) steps.push({ vm: below[index], depth: depth + 1, parent: vm, is_done: false });
      continue;
    }
    const placed = below.map((child) => nodes.get(child)).filter((child) => child?.parent === vm);
    let x;
    if (placed.length === 0) {
      x = across * NODE.across;
      across += 1;
    } else x = (placed[0].x + placed[placed.length - 1].x) / 2;
    nodes.set(vm, { vm, x, y: depth * NODE.down, depth, parent, children: below, hidden: collapsed.has(vm) ? below_of(vm, children) : [] });
  }
  return { nodes, roots, width: Math.max(1, across) * NODE.across, height: (height + 1) * NODE.down, depth: height };
}

// All VMs below one.
function below_of(vm, children) {
  const found = [];
  const seen = new Set([vm]);
  const waiting = [...(children.get(vm) ?? [])];
  while (waiting.length > 0) {
    const next = waiting.pop();
    if (seen.has(next)) continue;
    seen.add(next);
    found.push(next);
    waiting.push(...(children.get(next) ?? []));
  }
  return found;
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
