// The model: the payload as columns, with adjacency. Pure functions; nothing here knows the page.
//
// A graph has n nodes and m scored edges, of which every prefix is the strongest connected part (skeleton.py), then the links of key/value groups to their heads, which
// carry no score. Kinds are numbers: 0 q, 1 k, 2 v, 3 mlp, 4 logits, 5 link.

const LINK = 5;
const KIND_NAMES = ["q", "k", "v", "mlp", "logits", "link"];

function decode(payload) {
  const { nodes, edges, links } = payload;
  const type = nodes.type.map((code) => payload.types[code]);
  return finish({
    payload,
    names: nodes.name, // unique
    label: nodes.label ?? nodes.name, // as written in the node
    said: nodes.name.map((name, i) => (payload.places.length && nodes.place[i] >= 0 ? `${nodes.label[i]}@${payload.places[nodes.place[i]].label}` : name)), // in lists
    type,
    layer: Int32Array.from(nodes.layer),
    x: Float64Array.from(nodes.x),
    y: Float64Array.from(nodes.y),
    width: Float64Array.from(nodes.type, (code) => payload.widths[code]),
    height: Float64Array.from(nodes.type, (code) => payload.heights[code]),
    port: payload.port,
    total: nodes.score ? Float64Array.from(nodes.score) : null,
    role: nodes.role,
    members: nodes.name.map((_, i) => [i]),
    source: [...edges.source, ...links.map((pair) => pair[0])],
    target: [...edges.target, ...links.map((pair) => pair[1])],
    kind: [...edges.kind, ...links.map(() => LINK)],
    score: edges.score,
    routes: [],
    ghosts: [],
    bands: payload.layers,
    places: payload.places,
    bottom: payload.size[1], // where the columns of places end
    core: null,
    bend: [...edges.bend, ...links.map(() => 0)],
    error: edges.error,
    confidence: edges.confidence,
    member: edges.member,
    other: edges.other ?? null, // scores in the second circuit
    rank: null, // of merged edges: the first edge of the whole graph in each (derive.js)
    m: edges.source.length,
  });
}

// Adds what is computed from the columns: index by name, largest score, and who is connected with whom.
function finish(graph) {
  graph.n = graph.names.length;
  graph.all = graph.source.length;
  graph.index = new Map(graph.names.map((name, i) => [name, i]));
  graph.largest = graph.score ? graph.score.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12) : 1;
  graph.largestTotal = graph.total ? Math.max(1e-12, ...graph.total.map(Math.abs)) : 1;
  graph.outgoing = adjacency(graph.n, graph.source);
  graph.incoming = adjacency(graph.n, graph.target);
  graph.order = nodeOrder(graph);
  return graph;
}

// Edges by node, as one flat list with offsets.
function adjacency(n, ends) {
  const start = new Int32Array(n + 1);
  for (const node of ends) start[node + 1]++;
  for (let i = 0; i < n; i++) start[i + 1] += start[i];
  const fill = start.slice(), list = new Int32Array(ends.length);
  ends.forEach((node, e) => (list[fill[node]++] = e));
  return { start, list, of: (node) => list.subarray(start[node], start[node + 1]) };
}

// Nodes by absolute total, strongest first; the two ends of the model always lead.
function nodeOrder(graph) {
  const ends = (i) => (graph.type[i] === "input" || graph.type[i] === "logits" ? 1 : 0);
  const size = (i) => (graph.total ? Math.abs(graph.total[i]) : 0);
  return [...graph.names.keys()].sort((a, b) => ends(b) - ends(a) || size(b) - size(a) || a - b);
}

// How many edges of this graph, supernodes merged, hold one of the first `shown` edges of the whole graph: always a prefix.
function prefixOf(graph, shown) {
  if (!graph.rank) return Math.min(shown, graph.m);
  const k = graph.rank.findIndex((rank) => rank >= shown);
  return k < 0 ? graph.m : k;
}

function signOf(value) {
  return value > 0 ? "positive" : value < 0 ? "negative" : "neutral";
}

// Width of an edge in pixels at zoom 1.
function strokeOf(graph, e) {
  if (graph.kind[e] === LINK) return 1;
  if (!graph.score) return 1.6;
  return 0.7 + 4.3 * Math.sqrt(Math.abs(graph.score[e]) / graph.largest);
}

function edgeName(graph, e) {
  const kind = graph.kind[e];
  const mark = kind < 3 ? `<${KIND_NAMES[kind]}>` : "";
  return `${graph.names[graph.source[e]]}->${graph.names[graph.target[e]]}${mark}`;
}

function formatNumber(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "n/a";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : Number(value.toPrecision(3)).toString();
  return text.replace("-", "\u2212");
}

function formatSigned(value) {
  return value > 0 ? `+${formatNumber(value)}` : formatNumber(value);
}

// Which colour a node's role has, -1 for none: roles in the order of the payload, then the reader's own.
function roleColour(graph, i) {
  const role = graph.type[i] === "group" ? graph.names[i] : graph.role[i]; // a role collapsed into one node keeps its colour
  if (!role || (graph.type[i] === "group" && !graph.payload.roles.includes(role))) return -1;
  const known = graph.payload.roles.includes(role) ? graph.payload.roles : [...graph.payload.roles, ...new Set(graph.role.filter((r, k) => r && graph.type[k] !== "group" && !graph.payload.roles.includes(r)))];
  const k = known.indexOf(role);
  return k < 8 ? k : -1;
}
