// The canvas beneath the SVG: edges beyond the cap, one plain stroke each (thousands of dashes would take seconds). While the view moves, its picture moves with it; once
// it rests it is painted anew, out of sight and in slices of a few milliseconds, so that whoever goes on meanwhile is not kept waiting.

const SLICE = 12; // milliseconds

function createUnderlay(canvas, root) {
  const back = document.createElement("canvas");
  let graph = null, seen = null, shown = 0, key = "", drawn = null, painting = null, timer = 0;

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
    if (!busy()) {
      canvas.style.transform = "";
      drawn = painting = null;
      if (canvas.width > 1) canvas.width = canvas.height = 1;
      return;
    }
    const ratio = window.devicePixelRatio || 1, { width, height } = root.getBoundingClientRect(), context = back.getContext("2d");
    back.width = Math.round(width * ratio);
    back.height = Math.round(height * ratio);
    context.setTransform(ratio * view.k, 0, 0, ratio * view.k, ratio * view.x, ratio * view.y);
    context.globalAlpha = 0.35;
    const style = getComputedStyle(root), colour = { positive: style.getPropertyValue("--mw-pos"), negative: style.getPropertyValue("--mw-neg"), neutral: style.getPropertyValue("--mw-muted") };
    painting = { ...view, key };
    stroke(context, colour, painting, graph, seen.edgeOn, Math.min(shown, graph.m) - 1);
  }

  // Weakest first, from edge `e` down to the cap, and then the picture takes the old one's place.
  function stroke(context, colour, at, from, edgeOn, e) {
    if (painting !== at) return; // the view went on
    const end = performance.now() + SLICE;
    for (; e >= CAP && performance.now() < end; e--) {
      if (!edgeOn[e]) continue;
      const p = curve(from, e);
      context.strokeStyle = colour[from.score ? signOf(from.score[e]) : "neutral"];
      context.lineWidth = strokeOf(from, e);
      context.beginPath();
      context.moveTo(p[0], p[1]);
      for (let k = 2; k < p.length; k += 6) context.bezierCurveTo(p[k], p[k + 1], p[k + 2], p[k + 3], p[k + 4], p[k + 5]);
      context.stroke();
    }
    if (e >= CAP) return (timer = setTimeout(() => stroke(context, colour, at, from, edgeOn, e), 0));
    canvas.width = back.width;
    canvas.height = back.height;
    canvas.getContext("2d").drawImage(back, 0, 0);
    canvas.style.transform = "";
    drawn = at;
    painting = null;
  }

  const isOf = (picture, view) => picture && picture.key === key && picture.k === view.k && picture.x === view.x && picture.y === view.y;

  function soon(view, dim) {
    if (!busy()) return paint(view, dim);
    if (isOf(painting ?? drawn, view)) return dimmed(dim);
    later(view, dim, 60);
  }

  function later(view, dim, wait) {
    clearTimeout(timer);
    painting = null;
    timer = setTimeout(() => paint(view, dim), wait);
  }

  // Carries the last picture along and repaints once the view has rested.
  function follow(view, dim) {
    if (!busy() || (!drawn && !painting)) return;
    if (drawn) {
      const k = view.k / drawn.k;
      canvas.style.transform = `translate(${view.x - drawn.x * k}px, ${view.y - drawn.y * k}px) scale(${k})`;
    }
    later(view, dim, 140);
  }

  return { set, paint, soon, follow };
}
