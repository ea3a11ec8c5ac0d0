// The view: pan, zoom, fit, full screen, and the pointer. Coordinates: screen = world * k + (x, y).

const MIN_ZOOM = 0.02, MAX_ZOOM = 6;

function createView(stage, onChange) {
  const view = { x: 0, y: 0, k: 1 };
  let touched = false, size = { width: 1, height: 1 };

  // Asking the page for sizes is slow, so it happens when the stage changes and not at every step.
  function measure() {
    size = { width: stage.clientWidth, height: stage.clientHeight };
  }

  function change() {
    onChange(view);
  }

  function zoomAt(px, py, factor) {
    const k = Math.min(MAX_ZOOM, Math.max(MIN_ZOOM, view.k * factor));
    view.x = px - (px - view.x) * (k / view.k);
    view.y = py - (py - view.y) * (k / view.k);
    view.k = k;
    touched = true;
    change();
  }

  function zoom(factor) {
    zoomAt(size.width / 2, size.height / 2, factor);
  }

  function pan(dx, dy) {
    view.x += dx;
    view.y += dy;
    touched = true;
    change();
  }

  // Shows the whole of `box` (world units), never larger than natural size times 1.15.
  function fit(box) {
    measure();
    const pad = { left: 62, right: 18, top: 18, bottom: 18 };
    const width = Math.max(40, size.width - pad.left - pad.right), height = Math.max(40, size.height - pad.top - pad.bottom);
    view.k = Math.min(width / box.width, height / box.height, 1.15);
    view.x = pad.left + (width - box.width * view.k) / 2 - box.x * view.k;
    view.y = pad.top + (height - box.height * view.k) / 2 - box.y * view.k;
    touched = false;
    change();
  }

  // Moves a world point to the middle if it is not comfortably inside.
  function reveal(x, y) {
    const sx = x * view.k + view.x, sy = y * view.k + view.y;
    const inside = sx > 60 && sy > 40 && sx < size.width - 60 && sy < size.height - 40;
    if (inside) return;
    pan(size.width / 2 - sx, size.height / 2 - sy);
  }

  const toWorld = (px, py) => [(px - view.x) / view.k, (py - view.y) / view.k];
  return { view, measure, zoom, zoomAt, pan, fit, reveal, toWorld, size: () => size, touched: () => touched };
}

// Pointer handling on the stage: drag the background to pan, a node to move it, click to focus, two fingers to zoom.
function attachPointer(stage, view, actions) {
  const pointers = new Map();
  let press = null, pinch = 0;

  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const nodeAt = (event) => event.target.closest?.(".mw-node");

  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const [x, y] = at(event);
    pointers.set(event.pointerId, [x, y]);
    if (pointers.size === 2) pinch = spread(pointers);
    const node = nodeAt(event);
    press = { x, y, lastX: x, lastY: y, node: node ? Number(node.dataset.node) : -1, moved: false, keys: event };
    stage.setPointerCapture(event.pointerId);
  });

  stage.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (!press) {
      const node = nodeAt(event);
      actions.hover(node ? Number(node.dataset.node) : -1, x, y);
      return;
    }
    pointers.set(event.pointerId, [x, y]);
    if (pointers.size === 2) {
      const now = spread(pointers), points = [...pointers.values()];
      view.zoomAt((points[0][0] + points[1][0]) / 2, (points[0][1] + points[1][1]) / 2, now / (pinch || now));
      pinch = now;
      press.moved = true;
      return;
    }
    if (!press.moved && Math.hypot(x - press.x, y - press.y) < 4) return;
    if (!press.moved) stage.classList.add("is-dragging");
    press.moved = true;
    if (press.node >= 0) actions.drag(press.node, (x - press.lastX) / view.view.k, (y - press.lastY) / view.view.k);
    else view.pan(x - press.lastX, y - press.lastY);
    press.lastX = x;
    press.lastY = y;
  });

  const release = (event) => {
    pointers.delete(event.pointerId);
    stage.classList.remove("is-dragging");
    if (!press) return;
    const { node, moved, keys } = press, press0 = press;
    press = null;
    if (event.type === "pointercancel") return;
    if (moved && node >= 0) actions.drop(node);
    if (!moved) actions.click(node, keys.shiftKey, press0.x, press0.y, keys.pointerType === "touch");
  };
  stage.addEventListener("pointerup", release);
  stage.addEventListener("pointercancel", release);
  stage.addEventListener("pointerleave", () => actions.hover(-1, -1, -1));

  // In a longer page the wheel scrolls the page until the graph has the focus.
  stage.addEventListener(
    "wheel",
    (event) => {
      const alone = document.body.classList.contains("mw-standalone");
      if (!alone && !event.ctrlKey && !stage.contains(document.activeElement)) return;
      event.preventDefault();
      const [x, y] = at(event);
      view.zoomAt(x, y, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
    },
    { passive: false },
  );
}

function spread(pointers) {
  const [a, b] = [...pointers.values()];
  return Math.hypot(a[0] - b[0], a[1] - b[1]);
}

// The drawn edge nearest to a world point, or -1. `reach` is in world units.
function createEdgeFinder(graph) {
  const N = 28, samples = new Map();
  const points = (e) => {
    let list = samples.get(e);
    if (!list) {
      const p = curve(graph, e);
      list = new Float32Array(2 * (N + 1));
      for (let i = 0; i <= N; i++) list.set(pointAt(p, i / N), 2 * i);
      samples.set(e, list);
    }
    return list;
  };
  return (x, y, candidates, reach) => {
    let best = -1, distance = reach;
    for (const e of candidates) {
      const p = points(e);
      for (let i = 0; i < N; i++) {
        const d = toSegment(x, y, p[2 * i], p[2 * i + 1], p[2 * i + 2], p[2 * i + 3]);
        if (d < distance) {
          distance = d;
          best = e;
        }
      }
    }
    return best;
  };
}

function toSegment(x, y, x0, y0, x1, y1) {
  const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
  const t = length ? Math.max(0, Math.min(1, ((x - x0) * dx + (y - y0) * dy) / length)) : 0;
  return Math.hypot(x - x0 - t * dx, y - y0 - t * dy);
}
