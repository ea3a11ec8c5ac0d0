// The tooltip of a node or an edge, for pointer and keyboard alike.

function createTooltip(app, tip) {
  // Placed by the style engine (100 % is the tip's own size): asking for its size would lay out the whole graph at every move of the pointer.
  const place = (x, y, lines) => {
    const { width, height } = app.view.size(), below = y + 16 + 18 * lines + 14 <= height;
    tip.style.transform = `translate(max(4px, min(${x + 14}px, ${width - 6}px - 100%)), ${below ? `${y + 16}px` : `max(4px, ${y - 8}px - 100%)`})`;
    tip.hidden = false;
  };
  const nodeLines = (i) => {
    const graph = app.graph(), lines = [graph.said[i] + (graph.role[i] ? ` – ${graph.role[i]}` : "")];
    if (graph.total && !["logits", "kv"].includes(graph.type[i])) lines.push(`summed score ${formatSigned(graph.total[i])}`);
    return lines;
  };
  const edgeLines = tellEdge(app);
  const show = (lines, x, y) => {
    tip.replaceChildren(...lines.map((line, k) => htmlElement(k ? "span" : "b", {}, line)));
    place(x, y, lines.length);
  };
  return {
    hide: () => (tip.hidden = true),
    node(i) {
      const graph = app.graph(), { k, x, y } = app.view.view;
      show(nodeLines(i), graph.x[i] * k + x, (graph.y[i] + graph.height[i] / 2) * k + y);
    },
    edge: (e, x, y) => show(edgeLines(e), x, y),
    at(i, x, y, findEdge) {
      if (i >= 0) return show(nodeLines(i), x, y);
      const e = x < 0 ? -1 : findEdge(...app.view.toWorld(x, y));
      if (e >= 0) show(edgeLines(e), x, y);
      else tip.hidden = true;
    },
  };
}

// What an edge is, line by line: its ends, score, uncertainty, and which circuit holds it.
function tellEdge(app) {
  return (e) => {
    const graph = app.graph(), kind = graph.kind[e];
    const lines = [`${graph.said[graph.source[e]]} → ${graph.said[graph.target[e]]}${kind < 3 ? ` (${KIND_NAMES[kind]})` : ""}`];
    if (graph.score) lines.push(`score ${formatSigned(graph.score[e])}${graph.error && graph.error[e] !== null ? ` ± ${formatNumber(graph.error[e])} (SE)` : ""}`);
    if (graph.other && graph.member[e] & 2) lines.push(`score in ${app.payload.compare[1]} ${formatSigned(graph.other[e])}`);
    if (graph.confidence) lines.push(`chosen in ${Math.round(100 * graph.confidence[e])} % of resamples`);
    if (graph.member) lines.push({ 1: `only in ${app.payload.compare[0]}`, 2: `only in ${app.payload.compare[1]}`, 3: "in both" }[graph.member[e]]);
    return lines;
  };
}
