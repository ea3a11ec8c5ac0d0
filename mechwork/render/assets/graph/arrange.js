// A layout of its own for what the reader has made: the graph collapsed by layer, attention or role, or the pinned nodes alone. Rows run upwards in the order in which
// the model runs; within a row nodes stand near what they are connected with; edges bow around foreign nodes.

const COLLAPSES = { layer: "layers", attention: "attention of a layer", role: "roles" };
const ROW_GAP = 92, SIDE_GAP = 44, ARRANGED = 400; // edges that are bent around nodes; further ones run straight
const BOWS = [0, -40, 40, -80, 80, -130, 130, -190, 190, -260, 260];

// The groups that hold: those made by the reader, or those of a collapse. A group of one node is that node.
function groupsOf(base, state) {
  if (!state.collapse) return state.groups;
  const found = new Map();
  base.names.forEach((name, i) => {
    const type = base.type[i], inner = !["input", "logits"].includes(type), attention = type === "head" || type === "kv";
    const role = state.roles[name] ?? base.role[i];
    const key = { layer: inner && `layer ${base.layer[i]}`, attention: attention && `attention ${base.layer[i]}`, role: inner && role }[state.collapse];
    if (key) found.set(key, [...(found.get(key) ?? []), name]);
  });
  return [...found].filter(([, members]) => members.length > 1).map(([name, members]) => ({ name, members }));
}

const isArranged = (state) => Boolean(state.collapse || state.only);

// Only the pinned nodes and the edges between them, whatever the threshold.
function pinnedOnly(graph, pins) {
  const kept = pins.map((name) => graph.index.get(name)).filter((i) => i !== undefined).sort((a, b) => a - b), place = new Map(kept.map((i, k) => [i, k]));
  const edges = [...graph.source.keys()].filter((e) => place.has(graph.source[e]) && place.has(graph.target[e])), scored = edges.filter((e) => e < graph.m);
  const nodes = (values) => values && kept.map((i) => values[i]), column = (values, which) => values && which.map((e) => values[e]);
  return finish({
    ...graph, names: nodes(graph.names), label: nodes(graph.label), said: nodes(graph.said), type: nodes(graph.type), layer: nodes(graph.layer), role: nodes(graph.role), members: nodes(graph.members),
    x: Float64Array.from(nodes(graph.x)), y: Float64Array.from(nodes(graph.y)), width: Float64Array.from(nodes(graph.width)), height: Float64Array.from(nodes(graph.height)), total: graph.total && Float64Array.from(nodes(graph.total)),
    source: edges.map((e) => place.get(graph.source[e])), target: edges.map((e) => place.get(graph.target[e])), kind: column(graph.kind, edges), bend: edges.map(() => 0), routes: [], ghosts: [], core: null,
    score: column(graph.score, scored), error: column(graph.error, scored), confidence: column(graph.confidence, scored), member: column(graph.member, scored), other: column(graph.other, scored),
    rank: scored.map(() => 0), m: scored.length,
  });
}

function arrange(graph, state) {
  const n = prefixOf(graph, state.shown), drawn = [...Array(n).keys()].concat([...Array(graph.all - graph.m).keys()].map((k) => k + graph.m));
  const used = new Uint8Array(graph.n), near = graph.names.map(() => []);
  for (const e of drawn) {
    const s = graph.source[e], t = graph.target[e], pull = e < graph.m && graph.score ? Math.abs(graph.score[e]) / graph.largest + 0.05 : 1;
    if (e < graph.m) used[s] = used[t] = 1;
    near[s].push([t, pull]);
    near[t].push([s, pull]);
  }
  graph.names.forEach((name, i) => (used[i] ||= ["input", "logits"].includes(graph.type[i]) || state.only ? 1 : 0));
  const rank = { input: -1e6, kv: 0.2, head: 0.4, group: 0.4, feature: 0.4, mlp: 0.7, error: 0.8, logits: 1e6 };
  const layerOf = (i) => (graph.type[i] === "group" ? graph.members[i].reduce((sum, k) => sum + graph.baseLayer[k], 0) / graph.members[i].length : graph.layer[i]);
  const keys = graph.names.map((_, i) => layerOf(i) + rank[graph.type[i]]), rows = new Map();
  for (const i of graph.names.keys()) if (used[i]) rows.set(keys[i], [...(rows.get(keys[i]) ?? []), i]);
  const order = [...rows.keys()].sort((a, b) => a - b).map((key) => rows.get(key));
  const x = new Float64Array(graph.n), y = new Float64Array(graph.n), height = ROW_GAP * (order.length + 1);
  const spread = (row) => {
    const wide = row.reduce((sum, i) => sum + graph.width[i] + SIDE_GAP, -SIDE_GAP);
    row.reduce((left, i) => ((x[i] = left + graph.width[i] / 2), left + graph.width[i] + SIDE_GAP), -wide / 2);
  };
  order.forEach((row, r) => (spread(row), row.forEach((i) => (y[i] = height - ROW_GAP * (r + 1)))));
  for (let sweep = 0; sweep < 8; sweep++) {
    for (const row of sweep % 2 ? [...order].reverse() : order) {
      const pull = new Map(row.map((i) => [i, mean(near[i].filter(([j]) => used[j] && y[j] !== y[i]).map(([j, w]) => [x[j], w]), x[i])]));
      row.sort((a, b) => pull.get(a) - pull.get(b) || a - b);
      spread(row);
    }
  }
  const right = Math.max(0, ...order.flat().map((i) => x[i] + graph.width[i] / 2));
  const spare = [...graph.names.keys()].filter((i) => !used[i]);
  spare.forEach((i, k) => ((x[i] = right + 90 + 80 * (k % 4)), (y[i] = height - ROW_GAP * (1 + Math.floor(k / 4)))));
  const placed = { ...graph, x, y, routes: [], ghosts: [], core: null, bands: bandsOf(graph, order, y), bend: graph.bend.map(() => 0) };
  const nodes = order.flat();
  for (const e of drawn.slice(0, ARRANGED)) placed.bend[e] = bowOf(placed, e, nodes);
  return placed;
}

const mean = (pairs, otherwise) => {
  const total = pairs.reduce((sum, [, w]) => sum + w, 0);
  return total ? pairs.reduce((sum, [v, w]) => sum + v * w, 0) / total : otherwise;
};

// One band per layer whose nodes stand in rows of their own.
function bandsOf(graph, order, y) {
  const rows = order.map((row) => [new Set(row.map((i) => (graph.type[i] === "group" ? NaN : graph.layer[i]))), y[row[0]], row[0]]);
  return rows.filter(([layers, , i]) => layers.size === 1 && !["input", "logits", "group"].includes(graph.type[i])).map(([layers, at]) => ({ layer: [...layers][0], label: `layer ${[...layers][0]}`, top: at - ROW_GAP / 2, bottom: at + ROW_GAP / 2 }));
}

// The smallest bow whose curve runs over the fewest foreign nodes.
function bowOf(graph, e, nodes) {
  let best = 0, fewest = Infinity;
  for (const bow of BOWS) {
    graph.bend[e] = bow;
    const points = curve(graph, e);
    let hits = 0;
    for (const i of nodes) {
      if (i === graph.source[e] || i === graph.target[e]) continue;
      for (let k = 1; k < 24 && hits < fewest; k++) {
        const [px, py] = pointAt(points, k / 24);
        if (Math.abs(px - graph.x[i]) < graph.width[i] / 2 + 4 && Math.abs(py - graph.y[i]) < graph.height[i] / 2 + 4) {
          hits++;
          break;
        }
      }
    }
    if (hits < fewest) [best, fewest] = [bow, hits];
    if (!hits) break;
  }
  return best;
}
