// Supernodes: the graph with the members of every group replaced by one node, their edges redirected and summed.

const GROUP_HEIGHT = 42, GROUP_LETTERS = 24;
const groupWidth = (name) => Math.max(104, 9.4 * Math.min(name.length, GROUP_LETTERS) + 22);

function deriveGraph(base, state) {
  const groups = groupsOf(base, state).filter((group) => group.members.some((name) => base.index.has(name)));
  const moved = Object.entries(state.moved).filter(([name]) => base.index.has(name) || groups.some((g) => g.name === name));
  const named = Object.entries(state.roles).filter(([name]) => base.index.has(name));
  if (named.length) {
    const role = base.role.slice();
    for (const [name, text] of named) role[base.index.get(name)] = text;
    base = { ...base, role };
  }
  // Never the base itself: dragging writes positions.
  let graph = groups.length ? makeRoom(merge(base, groups)) : { ...base, x: base.x.slice(), y: base.y.slice() };
  if (state.only) graph = pinnedOnly(graph, state.pins);
  if (isArranged(state)) graph = arrange({ ...graph, baseLayer: base.layer }, state);
  for (const [name, [x, y]] of moved) {
    const i = graph.index.get(name);
    if (i !== undefined) {
      graph.x[i] = x;
      graph.y[i] = y;
      unroute(graph, i);
    }
  }
  return graph;
}

function merge(base, groups) {
  const owner = new Int32Array(base.n).fill(-1);
  groups.forEach((group, g) => group.members.forEach((name) => base.index.has(name) && (owner[base.index.get(name)] = g)));
  const single = [...base.names.keys()].filter((i) => owner[i] < 0);
  const members = groups.map((_, g) => [...base.names.keys()].filter((i) => owner[i] === g));
  const place = new Int32Array(base.n);
  single.forEach((i, k) => (place[i] = k));
  for (let i = 0; i < base.n; i++) if (owner[i] >= 0) place[i] = single.length + owner[i];
  const mean = (values, list) => list.reduce((sum, i) => sum + values[i], 0) / list.length;
  const column = (values, ofGroup) => [...single.map((i) => values[i]), ...members.map(ofGroup)];
  const edges = redirect(base, place, owner);
  return finish({
    ...base,
    names: column(base.names, (_, g) => groups[g].name),
    said: column(base.said, (_, g) => groups[g].name),
    label: column(base.label, (_, g) => groups[g].name),
    type: column(base.type, () => "group"),
    layer: column(base.layer, (list) => Math.min(...list.map((i) => base.layer[i]))),
    x: Float64Array.from(column(base.x, (list) => mean(base.x, list))),
    y: Float64Array.from(column(base.y, (list) => mean(base.y, list))),
    width: Float64Array.from(column(base.width, (_, g) => groupWidth(groups[g].name))),
    height: Float64Array.from(column(base.height, () => GROUP_HEIGHT)),
    total: base.total && Float64Array.from(column(base.total, (list) => list.reduce((sum, i) => sum + base.total[i], 0))),
    role: column(base.role, (list) => `${list.length} nodes`),
    core: base.core && Uint8Array.from(column(base.core, () => 1)),
    ghosts: [],
    members: column(base.members, (list) => list),
    ...edges,
  });
}

// A supernode is wider than its members were: what stands in its row moves aside, in the order in which it stands.
function makeRoom(graph) {
  const gap = 2 * GROWTH + 6;
  for (const g of [...graph.names.keys()].filter((i) => graph.type[i] === "group")) {
    const beside = (i) => (graph.core === null || graph.core[i]) && Math.abs(graph.y[i] - graph.y[g]) < (graph.height[i] + graph.height[g]) / 2 + 8;
    const row = [...graph.names.keys()].filter((i) => i !== g && beside(i));
    for (const side of [-1, 1]) {
      let last = g;
      for (const i of row.filter((i) => (graph.x[i] < graph.x[g] ? -1 : 1) === side).sort((a, b) => side * (graph.x[a] - graph.x[b]))) {
        const away = (graph.width[last] + graph.width[i]) / 2 + gap, x = side * Math.max(side * graph.x[i], side * graph.x[last] + away);
        if (x !== graph.x[i]) unroute(graph, i);
        graph.x[i] = x;
        last = i;
      }
    }
  }
  return graph;
}

// Edges between the same two places and of the same kind become one; edges inside a group vanish. They stay in the order of
// the whole graph, each at the place of its first edge (`rank`), so that a prefix of edges is still what is shown and exported.
function redirect(base, place, owner) {
  const table = new Map(), links = [];
  for (let e = 0; e < base.all; e++) {
    const s = place[base.source[e]], t = place[base.target[e]];
    if (s === t) continue;
    const grouped = owner[base.source[e]] >= 0 || owner[base.target[e]] >= 0;
    const key = e >= base.m ? `link ${s} ${t}` : `${s} ${t} ${base.kind[e]}`;
    const known = table.get(key);
    if (known) {
      known.score += base.score ? base.score[e] : 0;
      known.bend = 0;
      known.route = null;
      known.error = null;
      known.confidence = Math.max(known.confidence, base.confidence ? base.confidence[e] : 0);
      known.member |= base.member ? base.member[e] : 0;
    } else {
      const row = {
        s, t, rank: e, kind: base.kind[e], bend: grouped ? 0 : base.bend[e], route: grouped ? null : base.routes[e] ?? null,
        score: base.score && e < base.m ? base.score[e] : 0,
        error: base.error && e < base.m ? base.error[e] : null,
        confidence: base.confidence && e < base.m ? base.confidence[e] : 0,
        member: base.member && e < base.m ? base.member[e] : 0,
      };
      table.set(key, row);
      if (e >= base.m) links.push(row);
    }
  }
  const scored = [...table.values()].filter((row) => row.kind !== LINK);
  const rows = [...scored, ...links];
  return {
    source: rows.map((r) => r.s),
    target: rows.map((r) => r.t),
    kind: rows.map((r) => r.kind),
    bend: rows.map((r) => r.bend),
    routes: rows.map((r) => r.route),
    score: base.score && scored.map((r) => r.score),
    error: base.error && scored.map((r) => r.error),
    confidence: base.confidence && scored.map((r) => r.confidence),
    member: base.member && scored.map((r) => r.member),
    other: null,
    rank: scored.map((r) => r.rank),
    m: scored.length,
  };
}

// Suggested groups: heads of neighbouring layers whose signed profiles of edges point the same way (cosine >= 0.6).
function suggestGroups(graph) {
  const heads = [...graph.names.keys()].filter((i) => graph.type[i] === "head");
  const profile = new Map(heads.map((i) => [i, new Map()]));
  for (let e = 0; e < graph.m; e++) {
    const weight = graph.score ? graph.score[e] : 1, s = graph.source[e], t = graph.target[e];
    profile.get(s)?.set(`to ${t} ${graph.kind[e]}`, weight);
    profile.get(t)?.set(`from ${s} ${graph.kind[e]}`, weight);
  }
  const cosine = (a, b) => {
    let dot = 0, aa = 0, bb = 0;
    for (const [key, value] of a) (aa += value * value), (dot += value * (b.get(key) ?? 0));
    for (const value of b.values()) bb += value * value;
    return aa && bb ? dot / Math.sqrt(aa * bb) : 0;
  };
  const found = [], taken = new Set();
  for (const i of heads) {
    if (taken.has(i)) continue;
    const group = [i];
    for (const j of heads) {
      const alike = (k) => Math.abs(graph.layer[k] - graph.layer[j]) <= 1 && cosine(profile.get(k), profile.get(j)) >= 0.6;
      if (j > i && !taken.has(j) && group.every(alike)) group.push(j);
    }
    if (group.length > 1) {
      group.forEach((k) => taken.add(k));
      found.push(group.map((k) => graph.names[k]));
    }
  }
  return found;
}

// Edges of a node that stands elsewhere are drawn as plain curves: their routes led to its old place.
function unroute(graph, i) {
  graph.routes = graph.routes.slice();
  for (const e of [...graph.incoming.of(i), ...graph.outgoing.of(i)]) graph.routes[e] = null;
}
