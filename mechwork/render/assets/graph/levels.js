// Levels: the layouts of one graph by how many edges are shown. Few edges stand close together in few rows; see levels.py.

// The first level with as many edges as are shown, or -1 for the layout of the whole graph.
function levelOf(payload, shown) {
  return payload.levels.findIndex((level) => shown <= level.edges);
}

// The graph as that level places it. Nodes outside the level wait at the right end of the nearest row.
function atLevel(base, k) {
  const { payload } = base;
  if (k < 0) return { ...base, routes: [], ghosts: [], bands: payload.layers, core: null };
  const level = payload.levels[k], core = Uint8Array.from(level.x, (x) => (x === null ? 0 : 1));
  const x = Float64Array.from(level.x, (value) => value ?? 0), y = Float64Array.from(level.y, (value) => value ?? 0);
  const placed = [...core.keys()].filter((i) => core[i]), filled = new Map();
  const places = level.places ? base.places.map((place, i) => ({ ...place, ...level.places[i] })) : base.places;
  for (let i = 0; i < base.n; i++) {
    if (core[i]) continue;
    let near = placed[0];
    for (const j of placed) if (Math.abs(base.layer[j] - base.layer[i]) < Math.abs(base.layer[near] - base.layer[i])) near = j;
    y[i] = y[near];
    if (level.places) {
      // In its own column, below the row.
      const { left, right } = places[payload.nodes.place[i]], key = `${y[i]} ${left}`, beside = filled.get(key) ?? 0;
      filled.set(key, beside + 1);
      y[i] += 46;
      x[i] = (left + right) / 2 + 40 * beside;
      continue;
    }
    const count = filled.get(y[i]) ?? 0;
    filled.set(y[i], count + 1);
    x[i] = rowEnd(level, placed, y[i]) + 56 + 78 * count;
  }
  const routes = level.routes.slice();
  for (const [link, route] of level.links) routes[base.m + link] = route;
  const bend = base.bend.slice();
  level.bends?.forEach((bow, e) => (bend[e] = bow));
  return { ...base, x, y, routes, bend, places, bottom: level.size[1], ghosts: level.ghosts, bands: level.layers, core };
}

const rowEnd = (level, placed, y) => Math.max(...placed.filter((i) => level.y[i] === y).map((i) => level.x[i]));

// Nodes from outside the level that a focus or a search brings in stand side by side, so that each can be seen.
function placeExtras(graph, seen, focus) {
  if (!graph.core || graph.places.length) return [];
  const near = new Set(), moved = [], filled = new Map(), ends = new Map();
  for (let j = 0; j < graph.n; j++) if (graph.core[j]) ends.set(graph.y[j], Math.max(ends.get(graph.y[j]) ?? -Infinity, graph.x[j]));
  if (focus) {
    for (let e = 0; e < graph.m; e++) if (focus.drawn[e]) near.add(graph.source[e]).add(graph.target[e]);
  }
  for (let i = 0; i < graph.n; i++) {
    if (graph.core[i] || graph.type[i] === "group" || !(seen.nodeOn[i] || near.has(i))) continue;
    const count = filled.get(graph.y[i]) ?? 0;
    filled.set(graph.y[i], count + 1);
    const end = ends.get(graph.y[i]);
    if (end !== undefined) moved.push([i, end + 110 + 78 * count]);
  }
  return moved;
}

// What each band is called: nodes of other layers that were brought in stand in its row too.
function bandNames(graph, brought) {
  return graph.bands.map((band) => {
    const strangers = brought.filter(([i]) => graph.y[i] >= band.top && graph.y[i] < band.bottom).map(([i]) => graph.layer[i]);
    if (!strangers.length) return band.label;
    const all = [...band.label.match(/\d+/g).map(Number), ...strangers], low = Math.min(...all), high = Math.max(...all);
    return low === high ? `layer ${low}` : `layers ${low}–${high}`;
  });
}
