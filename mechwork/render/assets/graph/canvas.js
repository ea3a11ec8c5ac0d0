// The canvas beneath the SVG: edges beyond the cap, one plain stroke each (thousands of dashes would take seconds). It is redrawn when the view rests; while the view
// moves, its picture moves with it.

function createUnderlay(canvas, root) {
  const context = canvas.getContext("2d");
  let graph = null, seen = null, shown = 0, key = "", drawn = null, timer = 0;

  function set(nextGraph, nextSeen, state) {
    const { focus, to, query, notes, roles, ...what } = state; // the rest decides which edges there are, and where
    graph = nextGraph;
    seen = nextSeen;
    shown = state.shown;
    key = JSON.stringify(what);
  }

  function busy() {
    return graph !== null && Math.min(shown, graph.m) > CAP;
  }

  const dimmed = (dim) => (canvas.style.opacity = dim ? 0.17 : 1);

  function paint(view, dim) {
    clearTimeout(timer);
    dimmed(dim);
    canvas.style.transform = "";
    drawn = { ...view, key };
    if (!busy()) {
      if (canvas.width > 1) canvas.width = canvas.height = 1;
      return;
    }
    const ratio = window.devicePixelRatio || 1, { width, height } = root.getBoundingClientRect();
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.setTransform(ratio * view.k, 0, 0, ratio * view.k, ratio * view.x, ratio * view.y);
    const style = getComputedStyle(root);
    const colour = { positive: style.getPropertyValue("--mw-pos"), negative: style.getPropertyValue("--mw-neg"), neutral: style.getPropertyValue("--mw-muted") };
    context.globalAlpha = 0.35;
    for (let e = Math.min(shown, graph.m) - 1; e >= CAP; e--) {
      if (!seen.edgeOn[e]) continue;
      const p = curve(graph, e), sign = graph.score ? signOf(graph.score[e]) : "neutral";
      context.strokeStyle = colour[sign];
      context.lineWidth = strokeOf(graph, e);
      context.beginPath();
      context.moveTo(p[0], p[1]);
      for (let k = 2; k < p.length; k += 6) context.bezierCurveTo(p[k], p[k + 1], p[k + 2], p[k + 3], p[k + 4], p[k + 5]);
      context.stroke();
    }
  }

  function soon(view, dim) {
    if (!busy()) return paint(view, dim);
    if (drawn && drawn.key === key && drawn.k === view.k && drawn.x === view.x && drawn.y === view.y) return dimmed(dim);
    clearTimeout(timer);
    timer = setTimeout(() => paint(view, dim), 60);
  }

  // Carries the last picture along and repaints once the view has rested.
  function follow(view, dim) {
    if (!busy() || !drawn) return;
    const k = view.k / drawn.k;
    canvas.style.transform = `translate(${view.x - drawn.x * k}px, ${view.y - drawn.y * k}px) scale(${k})`;
    clearTimeout(timer);
    timer = setTimeout(() => paint(view, dim), 140);
  }

  return { set, paint, soon, follow };
}
