// The state of one graph as a value, with undo. Everything that a reader can change is in it, except pan and zoom.

function initialState(graph) {
  return {
    shown: graph.payload.shown, // how many edges, strongest first
    nodes: graph.n, // how many nodes, strongest first
    kinds: { q: true, k: true, v: true, mlp: true, logits: true },
    types: { input: true, head: true, mlp: true, logits: true, feature: true, error: true },
    signs: { positive: true, negative: true },
    members: { 1: true, 2: true, 3: true },
    confidence: 0,
    isolated: !graph.payload.whole && !graph.payload.levels.length && graph.payload.shown >= graph.m && graph.n <= 60, // whether nodes without a drawn edge stay
    colour: graph.payload.compare ? "member" : "sign",
    collapse: "", // layer, attention or role: such nodes as one (arrange.js)
    only: false, // the pinned nodes alone
    focus: null, // a node's name
    to: null, // the other end of a path
    query: "",
    pins: graph.payload.pins ?? [],
    groups: graph.payload.supernodes ?? [], // { name, members: [names] }
    notes: {},
    roles: {}, // the reader's own, by name
    moved: {}, // name -> [x, y]
  };
}

// A store with undo. `set(patch)` makes one step; patches with the same `merge` key in a row make one step together.
function createStore(first) {
  let state = first, lastMerge = null;
  const past = [], future = [], listeners = [];
  const tell = (before) => listeners.forEach((listener) => listener(state, before));
  return {
    get: () => state,
    subscribe: (listener) => listeners.push(listener),
    canUndo: () => past.length > 0,
    canRedo: () => future.length > 0,
    set(patch, merge = null) {
      const changed = Object.entries(patch).filter(([key, value]) => !same(state[key], value));
      if (!changed.length) return;
      const before = state;
      if (merge === null || merge !== lastMerge) past.push(state);
      if (past.length > 200) past.shift();
      future.length = 0;
      lastMerge = merge;
      state = { ...state, ...Object.fromEntries(changed) };
      tell(before);
    },
    undo() {
      if (!past.length) return;
      const before = state;
      future.push(state);
      state = past.pop();
      lastMerge = null;
      tell(before);
    },
    redo() {
      if (!future.length) return;
      const before = state;
      past.push(state);
      state = future.pop();
      lastMerge = null;
      tell(before);
    },
  };
}

function same(a, b) {
  return a === b || JSON.stringify(a) === JSON.stringify(b);
}

// A state read from a file: known keys of the right type only, everything else as it is now.
function adoptState(current, candidate) {
  const adopted = {};
  for (const [key, value] of Object.entries(candidate ?? {})) {
    if (!(key in current)) continue;
    const mine = current[key];
    const nullable = key === "focus" || key === "to";
    if (nullable ? value === null || typeof value === "string" : typeof value === typeof mine && Array.isArray(value) === Array.isArray(mine)) {
      adopted[key] = mine && typeof mine === "object" && !Array.isArray(mine) ? { ...mine, ...value } : value;
    }
  }
  const text = (value) => typeof value === "string", texts = (list) => Array.isArray(list) && list.every(text);
  if (adopted.collapse && !(adopted.collapse in COLLAPSES)) delete adopted.collapse;
  if (adopted.pins) adopted.pins = adopted.pins.filter(text);
  if (adopted.groups) adopted.groups = adopted.groups.filter((group) => text(group?.name) && texts(group?.members) && group.members.length);
  if (adopted.moved) adopted.moved = Object.fromEntries(Object.entries(adopted.moved).filter(([, at]) => Array.isArray(at) && at.length === 2 && at.every(Number.isFinite)));
  for (const key of ["notes", "roles"]) if (adopted[key]) adopted[key] = Object.fromEntries(Object.entries(adopted[key]).filter(([, said]) => text(said)));
  return adopted;
}
