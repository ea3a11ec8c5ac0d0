// What is drawn, and what follows from a focus: visible edges, ancestors, descendants, paths. Pure functions.

// Which edges pass threshold and filters; also which nodes are drawn. `last` is what was seen of this graph: of thousands of edges those that are drawn are looked for
// again only when something changed that decides it.
function visibility(graph, state, last = null) {
  const part = last && last.part.graph === graph && DECIDES.every((key) => last.part.state[key] === state[key]) ? last.part : edgesSeen(graph, state);
  const { allowed, edgeOn, used, nEdges, pins } = part, nodeOn = new Uint8Array(graph.n);
  let nNodes = 0;
  const focus = state.focus === null ? -1 : graph.index.get(state.focus) ?? -1;
  const searched = searchMask(graph, state.query), brought = searched && broughtBySearch(graph, searched, used);
  for (let i = 0; i < graph.n; i++) {
    const stays = used[i] || state.isolated || pins.has(i) || i === focus || (brought && brought.has(i));
    nodeOn[i] = allowed[i] && stays ? 1 : 0;
    nNodes += nodeOn[i];
  }
  return { part, nodeOn, edgeOn, used, nEdges, nNodes, searched, pins };
}

const DECIDES = ["shown", "nodes", "kinds", "types", "signs", "members", "confidence", "pins", "only"]; // with the graph itself

function edgesSeen(graph, state) {
  const allowed = new Uint8Array(graph.n), edgeOn = new Uint8Array(graph.all), used = new Uint8Array(graph.n);
  const kept = new Set(graph.order.slice(0, Math.max(state.nodes, 2)));
  const pins = new Set(state.pins.map((name) => graph.index.get(name)));
  if (state.only) for (let i = 0; i < graph.n; i++) pins.add(i);
  for (let i = 0; i < graph.n; i++) {
    const type = graph.type[i] === "kv" || graph.type[i] === "group" ? "head" : graph.type[i];
    allowed[i] = (state.types[type] && kept.has(i)) || pins.has(i) ? 1 : 0;
  }
  const first = prefixOf(graph, state.shown);
  let nEdges = 0;
  for (let e = 0; e < graph.m; e++) {
    const s = graph.source[e], t = graph.target[e];
    const within = e < first || (pins.has(s) && pins.has(t));
    if (!within || !allowed[s] || !allowed[t] || !passes(graph, state, e)) continue;
    edgeOn[e] = used[s] = used[t] = 1;
    nEdges++;
  }
  for (let e = graph.m; e < graph.all; e++) {
    const s = graph.source[e], t = graph.target[e];
    if (used[s] && used[t] && allowed[s] && allowed[t]) edgeOn[e] = 1;
  }
  return { graph, state, allowed, edgeOn, used, nEdges, pins };
}

// The nodes that a search brings in: all it finds, unless they are too many to be looked at. What is drawn already is marked in either case.
function broughtBySearch(graph, searched, used) {
  const found = graph.order.filter((i) => searched[i] && !used[i]);
  return new Set(found.length > FOUND ? [] : found);
}

// The filters on edges: kind, sign, membership, confidence.
function passes(graph, state, e) {
  const kind = KIND_NAMES[graph.kind[e]];
  if (!state.kinds[kind]) return false;
  if (graph.score && graph.score[e] !== 0 && !state.signs[signOf(graph.score[e])]) return false;
  if (graph.member && !state.members[graph.member[e]]) return false;
  return !(graph.confidence && graph.confidence[e] < state.confidence);
}

// Nodes whose name or role contains the query; null without a query.
function searchMask(graph, query) {
  const text = query.trim().toLowerCase();
  if (!text) return null;
  return graph.names.map((name, i) => name.toLowerCase().includes(text) || graph.said[i].toLowerCase().includes(text) || graph.role[i].toLowerCase().includes(text));
}

// Everything reachable from `start` over edges that are on: downstream = towards the logits.
function reach(graph, edgeOn, start, downstream) {
  const nodes = new Uint8Array(graph.n), edges = new Uint8Array(graph.all), stack = [start];
  const adjacent = downstream ? graph.outgoing : graph.incoming;
  const far = downstream ? graph.target : graph.source;
  while (stack.length) {
    for (const e of adjacent.of(stack.pop())) {
      if (!edgeOn[e]) continue;
      edges[e] = 1;
      if (!nodes[far[e]]) {
        nodes[far[e]] = 1;
        stack.push(far[e]);
      }
    }
  }
  return { nodes, edges };
}

const BROUGHT = 120; // edges that a focus draws beside those shown: of a hub with hundreds nobody could follow more
const FOUND = 60; // nodes that a search brings in beside those drawn; more than that are counted, not drawn

// The focused part: direct edges (whatever the threshold says; of a hub the strongest), ancestors, descendants; or the paths to a second node. `direct` are all edges of
// the node that pass the filters, `drawn` those of them that are drawn.
function focusOf(graph, state, seen) {
  const node = state.focus === null ? -1 : graph.index.get(state.focus) ?? -1;
  if (node < 0) return null;
  const direct = new Uint8Array(graph.all), drawn = new Uint8Array(graph.all), on = seen.edgeOn.slice(), more = [];
  for (const side of [graph.incoming, graph.outgoing]) {
    for (const e of side.of(node)) {
      if (e < graph.m && !passes(graph, state, e)) continue;
      direct[e] = 1;
      if (on[e] || e >= graph.m) drawn[e] = on[e] = 1;
      else more.push(e);
    }
  }
  const size = (e) => (graph.score ? Math.abs(graph.score[e]) : 0);
  if (more.length > BROUGHT) more.sort((a, b) => size(b) - size(a) || a - b).splice(BROUGHT);
  for (const e of more) drawn[e] = on[e] = 1;
  const up = reach(graph, on, node, false), down = reach(graph, on, node, true);
  const focus = { node, direct, drawn, up, down, path: null };
  const other = state.to === null ? -1 : graph.index.get(state.to) ?? -1;
  if (other >= 0 && other !== node) focus.path = pathsBetween(graph, on, node, other);
  return focus;
}

// All edges on any path between two nodes, in whichever direction one exists, and the path whose weakest edge is strongest.
function pathsBetween(graph, on, a, b) {
  const aDown = reach(graph, on, a, true);
  const [first, last] = aDown.nodes[b] ? [a, b] : [b, a];
  const down = first === a ? aDown : reach(graph, on, first, true), up = reach(graph, on, last, false);
  const edges = new Uint8Array(graph.all), nodes = new Uint8Array(graph.n);
  for (let e = 0; e < graph.all; e++) {
    const starts = graph.source[e] === first || down.nodes[graph.source[e]];
    const ends = graph.target[e] === last || up.nodes[graph.target[e]];
    if (on[e] && starts && ends && down.edges[e] && up.edges[e]) {
      edges[e] = nodes[graph.source[e]] = nodes[graph.target[e]] = 1;
    }
  }
  return { first, last, nodes, edges, found: Boolean(down.nodes[last]), widest: widestPath(graph, edges, first, last) };
}

function widestPath(graph, edges, first, last) {
  const best = new Float64Array(graph.n).fill(-1), via = new Int32Array(graph.n).fill(-1), open = new Set([first]);
  best[first] = Infinity;
  while (open.size) {
    let node = -1;
    for (const candidate of open) if (node < 0 || best[candidate] > best[node]) node = candidate;
    open.delete(node);
    if (node === last) break;
    for (const e of graph.outgoing.of(node)) {
      if (!edges[e]) continue;
      const strength = e >= graph.m || !graph.score ? Infinity : Math.abs(graph.score[e]);
      const width = Math.min(best[node], strength), t = graph.target[e];
      if (width > best[t]) {
        best[t] = width;
        via[t] = e;
        open.add(t);
      }
    }
  }
  const path = [];
  for (let node = last; node !== first && via[node] >= 0; node = graph.source[via[node]]) path.unshift(via[node]);
  return path;
}
