// Drawing: the graph as SVG. Edges are made when they are first shown; later steps only switch what has changed.

const CAP = 2000; // edges above this many are drawn on the canvas beneath (see canvas.js)
const VALUES = 14; // values written beside the edges of a node under the pointer
const HEAVY = 400; // from this many edges on, moving is simplified
const LIT = 250; // edges of a focus in a graph of so many: what hangs on the node first, then what is strongest

// `backdrop` lies beneath the canvas and holds the bands of the layers, `svg` above it and holds the graph.
function createDrawing(svg, backdrop, id) {
  const defs = svgElement("defs", {}, svg);
  for (const sign of ["positive", "negative", "neutral"]) {
    const marker = svgElement("marker", { id: `${id}-${sign}`, class: `mw-tip-${sign}`, viewBox: "0 0 10 10", refX: 1, refY: 5, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" }, defs);
    svgElement("path", { d: "M0 0L9 5L0 10Z" }, marker);
  }
  const world = svgElement("g", { class: "mw-world" }, svg), bands = svgElement("g", {}, backdrop);
  const layer = (name) => svgElement("g", { class: name, "aria-hidden": "true" }, world);
  const faint = layer("mw-ghosts"), base = layer("mw-edges"), lit = layer("mw-lit"), near = layer("mw-near");
  const nodes = svgElement("g", { class: "mw-nodes" }, world);
  const gutter = svgElement("g", { class: "mw-gutter", "aria-hidden": "true" }, svg);
  let graph = null, ghosts = [], paths = [], links = [], on = null, boxes = [], looks = [], showing = [], litEdges = [], resting = 0, drawnAt = null, settling = 0, lettered = LETTERS.least, widths = [];

  function build(next) {
    graph = next;
    for (const group of [bands, faint, base, lit, near, nodes, gutter]) group.replaceChildren();
    paths = [];
    links = [];
    litEdges = [];
    on = new Uint8Array(graph.all);
    graph.bands.forEach((band, i) => {
      svgElement("rect", { x: -1e5, y: band.top, width: 2e5, height: band.bottom - band.top, class: i % 2 ? "mw-band odd" : "mw-band" }, bands);
      const label = svgElement("text", { x: 12, class: "mw-layer" }, gutter);
      label.textContent = band.label;
    });
    for (const place of graph.places) drawPlace(place, graph.bottom, bands);
    ghosts = graph.ghosts.map(([e, bend]) => [e, svgElement("path", { d: pathOf(curve({ ...graph, bend: { [e]: bend }, routes: {} }, e)), "data-ends": `${graph.source[e]} ${graph.target[e]}`, class: `mw-edge is-ghost ${edgeClass(graph, e)}` }, faint)]);
    for (let e = graph.m; e < graph.all; e++) {
      links.push(edgePath(e, base));
      links.at(-1).style.display = "none"; // as `on` says
    }
    boxes = new Array(graph.n); // a node is made when it is first shown: of a thousand few are
    looks = [];
    widths = [];
    showing = new Array(graph.n).fill(false);
  }

  function edgePath(e, parent, extra = "") {
    const path = svgElement("path", { d: pathOf(shortened(graph, e, curve(graph, e))), "data-ends": `${graph.source[e]} ${graph.target[e]}`, "stroke-width": strokeOf(graph, e).toFixed(2), class: edgeClass(graph, e) + extra });
    if (graph.kind[e] !== LINK) path.setAttribute("marker-end", `url(#${id}-${graph.score ? signOf(graph.score[e]) : "neutral"})`);
    if (parent) parent.append(path);
    return path;
  }

  // Paint order is weakest first, so new (weaker) edges go in front of the older ones in the document.
  function grow(n) {
    const fresh = [];
    for (let e = paths.length; e < Math.min(n, graph.m, CAP); e++) {
      const path = edgePath(e, null);
      path.style.display = "none";
      paths.push(path);
      fresh.unshift(path);
    }
    base.prepend(...fresh);
  }

  function update(state, seen, focus) {
    grow(state.shown);
    for (let e = 0; e < paths.length; e++) toggle(paths[e], e, seen.edgeOn[e]);
    for (const [e, path] of ghosts) path.style.display = !focus && !seen.edgeOn[e] && seen.nodeOn[graph.source[e]] && seen.nodeOn[graph.target[e]] && passes(graph, state, e) ? "" : "none";
    links.forEach((path, k) => toggle(path, graph.m + k, seen.edgeOn[graph.m + k]));
    const roles = focus && focusRoles(graph, focus), roled = graph.role.some((role, i) => role && graph.type[i] !== "group");
    near.replaceChildren();
    base.classList.remove("is-faint");
    base.classList.toggle("is-dim", Boolean(focus));
    svg.classList.toggle("by-member", state.colour === "member");
    drawLit(focus, roles);
    let last = null;
    for (let i = 0; i < graph.n; i++) {
      const part = roles ? roles.nodes[i] : "";
      const shown = Boolean(seen.nodeOn[i] || (part && part !== "is-dim" && (part !== "is-reach" || paths.length < HEAVY)));
      if (shown && !boxes[i]) {
        boxes[i] = drawNode(graph, i, null);
        widen(i);
        last ? last.after(boxes[i]) : nodes.prepend(boxes[i]);
        showing[i] = true;
      }
      const box = boxes[i];
      if (!box) continue;
      last = box;
      if (shown !== showing[i]) box.style.display = (showing[i] = shown) ? "" : "none";
      const found = seen.searched && seen.searched[i];
      const isolated = !seen.used[i] && !part ? " is-isolated" : "";
      const look = `mw-node ${graph.type[i]} ${nodeSign(graph, i)}${roled ? (roleColour(graph, i) >= 0 ? " has-role" : " no-role") : ""} ${part}${found ? " is-found" : ""}${seen.pins.has(i) ? " is-pinned" : ""}${isolated}`;
      if (looks[i] === look) continue;
      looks[i] = look;
      box.setAttribute("class", look);
      box.firstChild.setAttribute("aria-pressed", String(part === "is-focus"));
    }
  }

  function toggle(path, e, wanted) {
    if (on[e] === wanted) return;
    on[e] = wanted;
    path.style.display = wanted ? "" : "none";
  }

  // The focused part is drawn once more above the dimmed graph, including direct edges below the threshold.
  function drawLit(focus, roles) {
    lit.replaceChildren();
    litEdges = [];
    if (!focus) return;
    const most = paths.length < HEAVY ? CAP : LIT;
    for (let e = 0; e < graph.all && litEdges.length < CAP; e++) if (roles.edges[e] && roles.edges[e] !== "is-reach") litEdges.push(e);
    for (let e = 0; e < graph.all && litEdges.length < most; e++) if (roles.edges[e] === "is-reach") litEdges.push(e);
    litEdges.sort((a, b) => a - b);
    lit.append(...litEdges.map((e) => edgePath(e, null, ` ${roles.edges[e]}`)).reverse());
  }

  // Redraws what hangs on one node while it is dragged.
  function moveNode(i, x, y) {
    graph.x[i] = x;
    graph.y[i] = y;
    boxes[i]?.setAttribute("transform", `translate(${x} ${y})`);
    for (const e of [...graph.incoming.of(i), ...graph.outgoing.of(i)]) {
      const path = e >= graph.m ? links[e - graph.m] : paths[e];
      if (path) path.setAttribute("d", pathOf(shortened(graph, e, curve(graph, e))));
    }
  }

  // The edges into and out of the node under the pointer, with their values; -1 clears them.
  function hover(i, wanted) {
    near.replaceChildren();
    base.classList.toggle("is-faint", i >= 0);
    if (i < 0) return;
    const edges = [...graph.incoming.of(i), ...graph.outgoing.of(i)].filter(wanted).sort((a, b) => a - b);
    for (const e of [...edges].reverse()) edgePath(e, near);
    const out = (e) => graph.source[e] === i;
    edges.filter((e) => graph.score && e < graph.m).slice(0, VALUES).forEach((e) => {
      const [x, y] = pointAt(curve(graph, e), out(e) ? 0.86 : 0.14);
      svgElement("text", { x, y, class: "mw-value" }, near).textContent = formatSigned(graph.score[e]);
    });
  }

  // A large graph is moved as one picture and drawn anew once it rests; `now` draws at once.
  function place(view, now = false) {
    if (!now && drawnAt && paths.length >= HEAVY) {
      const k = view.k / drawnAt.k, text = `translate(${view.x - drawnAt.x * k}px, ${view.y - drawnAt.y * k}px) scale(${k})`;
      for (const element of [svg, backdrop]) element.style.transform = text;
      clearTimeout(settling);
      settling = setTimeout(() => place(view, true), 200);
      return;
    }
    clearTimeout(settling);
    for (const element of [svg, backdrop]) element.style.transform = "";
    drawnAt = { ...view };
    for (const group of [world, bands]) group.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.k})`);
    svg.classList.toggle("far", view.k < 0.62);
    svg.classList.toggle("very-far", view.k < 0.34 && (graph.core === null || view.k < 0.25));
    letter(lettersAt(view.k));
    graph.bands.forEach((band, i) => {
      const label = gutter.children[i], height = (band.bottom - band.top) * view.k;
      label.setAttribute("y", (band.top + band.bottom) / 2 * view.k + view.y + 4);
      label.style.display = height < 13 ? "none" : "";
    });
  }

  function nameBands(names) {
    names.forEach((name, i) => { if (gutter.children[i].textContent !== name) gutter.children[i].textContent = name; });
  }

  function letter(size) {
    if (size === lettered) return;
    lettered = size;
    for (const group of [nodes, bands]) group.style.setProperty("--label", `${size}px`);
    for (let i = 0; i < graph.n; i++) if (boxes[i]) widen(i);
  }

  // A node as wide as its name is now.
  function widen(i) {
    const name = boxes[i].querySelector(".mw-label"), { wide, shrink } = pillOf(graph, i, lettered, name.textContent);
    name.style.fontSize = shrink < 1 ? `calc(var(--label, ${LETTERS.least}px) * ${shrink * (graph.type[i] === "kv" ? KV_SHARE : 1)})` : "";
    if (widths[i] === wide) return;
    widths[i] = wide;
    const [ring, shape] = boxes[i].firstChild.children, h = graph.height[i];
    ring.setAttribute("d", outlineOf(graph.type[i], wide + 10, h + 10));
    shape.setAttribute("d", outlineOf(graph.type[i], wide, h));
  }

  // Large graphs are drawn more simply while they move and in full once they rest.
  function moving() {
    if (paths.length < HEAVY) return;
    svg.classList.add("is-moving");
    clearTimeout(resting);
    resting = setTimeout(() => svg.classList.remove("is-moving"), 180);
  }

  return { build, update, place, moving, moveNode, nameBands, hover, button: (i) => boxes[i]?.firstChild, isShown: (i) => showing[i], lit: () => litEdges };
}

// The column of a token or span: a line at its left and its text at the foot.
function drawPlace(place, height, parent) {
  svgElement("line", { x1: place.left, x2: place.left, y1: 0, y2: height, class: "mw-place-line" }, parent);
  const x = (place.left + place.right) / 2, room = Math.max(5, Math.round((place.right - place.left) / 10));
  svgElement("text", { x, y: height + 20, class: "mw-place", "text-anchor": "middle" }, parent).textContent = shorten(place.label, room);
  if (place.words) svgElement("text", { x, y: height + 46, class: "mw-place words", "text-anchor": "middle" }, parent).textContent = shorten(place.words, room);
}

function edgeClass(graph, e) {
  if (graph.kind[e] === LINK) return "mw-edge link";
  const sign = graph.score ? signOf(graph.score[e]) : "neutral";
  return `mw-edge ${sign}${graph.member ? ` in${graph.member[e]}` : ""}`;
}

function nodeSign(graph, i) {
  return graph.total && graph.type[i] !== "logits" && graph.type[i] !== "kv" ? signOf(graph.total[i]) : "neutral";
}

// How each node and edge takes part in the focus, as class names.
function focusRoles(graph, focus) {
  const nodes = new Array(graph.n).fill("is-dim"), edges = new Array(graph.all).fill("");
  if (focus.path) {
    const widest = new Set(focus.path.widest);
    for (let i = 0; i < graph.n; i++) if (focus.path.nodes[i]) nodes[i] = "is-path";
    for (let e = 0; e < graph.all; e++) if (focus.path.edges[e]) edges[e] = widest.has(e) ? "is-widest" : "is-reach";
    nodes[focus.path.first] = nodes[focus.path.last] = "is-end";
  } else {
    for (let i = 0; i < graph.n; i++) if (focus.up.nodes[i] || focus.down.nodes[i]) nodes[i] = "is-reach";
    for (let e = 0; e < graph.all; e++) {
      if (focus.drawn[e]) {
        edges[e] = "is-direct";
        nodes[graph.source[e]] = nodes[graph.target[e]] = "is-near";
      } else if (focus.up.edges[e] || focus.down.edges[e]) edges[e] = "is-reach";
    }
  }
  nodes[focus.node] = "is-focus";
  return { nodes, edges };
}

function drawNode(graph, i, parent) {
  const w = graph.width[i], h = graph.height[i], type = graph.type[i];
  const box = svgElement("g", { class: "mw-node", transform: `translate(${graph.x[i]} ${graph.y[i]})`, "data-node": i }, parent);
  if (roleColour(graph, i) >= 0) box.style.setProperty("--role", `var(--mw-role-${roleColour(graph, i)})`);
  box.style.setProperty("--tint", `${Math.round(100 * tintOf(graph, i))}%`);
  // The button holds the name alone, so that what it shows and what it is called agree; marks and role stand beside it.
  const button = svgElement("g", { class: "mw-hit", role: "button", tabindex: "-1", "aria-label": nodeLabel(graph, i) }, box);
  svgElement("path", { d: outlineOf(type, w + 10, h + 10), class: "mw-ring" }, button);
  svgElement("path", { d: outlineOf(type, w, h), class: "mw-shape" }, button);
  const marks = type === "head" ? readerMarks(graph, i) : "";
  const label = svgElement("text", { class: "mw-label", y: marks ? -0.5 : 4.5 }, button);
  label.textContent = shorten(graph.label[i], type === "group" ? GROUP_LETTERS : 12);
  [..."qkv"].forEach((mark, k) => {
    if (!marks.includes(mark)) return;
    svgElement("text", { class: "mw-mark", "aria-hidden": "true", x: (k - 1) * graph.port * w, y: h / 2 - 4.5 }, box).textContent = mark;
  });
  if (type === "group") svgElement("text", { class: "mw-role", "aria-hidden": "true", x: 0, y: -h / 2 - 6, "text-anchor": "middle" }, box).textContent = graph.role[i];
  return box;
}

function readerMarks(graph, i) {
  const found = new Set();
  for (const e of graph.incoming.of(i)) if (graph.kind[e] < 3) found.add("qkv"[graph.kind[e]]);
  return [...found].join("");
}

// How strongly a node is tinted: its share of the largest absolute total, lifted so that small ones can be seen.
function tintOf(graph, i) {
  if (nodeSign(graph, i) === "neutral") return 0;
  return 0.08 + 0.3 * Math.sqrt(Math.abs(graph.total[i]) / graph.largestTotal);
}

function nodeLabel(graph, i) {
  const total = graph.total && graph.type[i] !== "logits" ? `, summed score ${formatSigned(graph.total[i])}` : "";
  const real = (list) => list.filter((e) => e < graph.m).length;
  const role = graph.role[i] ? `, ${graph.role[i]}` : "";
  return `${TYPE_WORDS[graph.type[i]]} ${graph.said[i]}${role}${total}, ${real(graph.incoming.of(i))} edges in, ${real(graph.outgoing.of(i))} edges out`;
}

function shorten(text, limit) {
  return text.length > limit ? `${text.slice(0, limit - 1)}…` : text;
}
