// Exports: what is drawn, as SVG or PNG in the light theme; the edges shown as CSV; graph and state as JSON.

const LIGHT = {
  paper: "#ffffff", ink: "#1b1f24", muted: "#57606a", positive: "#0072B2", negative: "#D55E00", neutral: "#6e7781",
  in1: "#007A5A", in2: "#A8457F", in3: "#5b6570", accent: "#6639ba",
};
const ROLE_COLOURS = ["#009e73", "#8a63c9", "#c2519a", "#9a8400", "#1f8a9a", "#8b6b4a", "#5f8f2f", "#a05252"]; // as in static.py
const FONT = "Helvetica, Arial, sans-serif";

// The drawn part as a standalone SVG: same geometry, no classes, light colours, cropped, with a line on what is shown.
function svgText(app) {
  const graph = app.graph(), state = app.store.get(), seen = app.seen(), focus = app.focus();
  const roles = focus && focusRoles(graph, focus);
  const drawn = [];
  for (let e = 0; e < graph.all; e++) if (seen.edgeOn[e] || (roles && roles.edges[e])) drawn.push(e);
  const nodes = [...graph.names.keys()].filter((i) => seen.nodeOn[i] || (roles && roles.nodes[i] !== "is-dim"));
  const box = contentBox(graph, drawn, nodes);
  if (graph.places.length) box.height += 50;
  const caption = [app.payload.title, `${seen.nEdges} of ${app.payload.nEdgesOfGraph.toLocaleString("en")} edges`, ...activeFilters(app, state)].join(" · ");
  const svg = svgElement("svg", { xmlns: SVG, viewBox: `${box.x} ${box.y} ${box.width} ${box.height + 26}`, width: box.width, height: box.height + 26, "font-family": FONT });
  svgElement("title", {}, svg).textContent = caption;
  svgElement("rect", { x: box.x, y: box.y, width: box.width, height: box.height + 26, fill: LIGHT.paper }, svg);
  for (const band of graph.bands) {
    if (band.bottom < box.y || band.top > box.y + box.height) continue;
    svgElement("line", { x1: box.x, x2: box.x + box.width, y1: band.top, y2: band.top, stroke: "#e6e9ed", "stroke-width": 1 }, svg);
    if (band.bottom - band.top > 20) svgElement("text", { x: box.x + 8, y: (band.top + band.bottom) / 2 + 4, "font-size": 11, fill: LIGHT.muted }, svg).textContent = band.label;
  }
  for (const place of graph.places) {
    const x = (place.left + place.right) / 2, y = box.y + box.height - 34;
    svgElement("line", { x1: place.left, x2: place.left, y1: box.y, y2: y, stroke: "#e6e9ed" }, svg);
    svgElement("text", { x, y: y + 14, "font-size": 11, fill: LIGHT.muted, "text-anchor": "middle" }, svg).textContent = place.label;
    if (place.words) svgElement("text", { x, y: y + 28, "font-size": 11, fill: LIGHT.ink, "text-anchor": "middle" }, svg).textContent = shorten(place.words, Math.max(5, Math.round((place.right - place.left) / 6)));
  }
  const weak = svgElement("g", { fill: "none", "stroke-linecap": "butt" }, svg), strong = svgElement("g", { fill: "none" }, svg);
  for (const e of drawn.reverse()) drawEdge(graph, state, e, roles, roles && roles.edges[e] ? strong : weak);
  for (const i of nodes) drawExported(graph, i, roles ? roles.nodes[i] : "", svg);
  svgElement("text", { x: box.x + 8, y: box.y + box.height + 15, "font-size": 10.5, fill: LIGHT.muted }, svg).textContent = caption;
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(svg)}\n`;
}

function contentBox(graph, edges, nodes) {
  let left = Infinity, right = -Infinity, top = Infinity, bottom = -Infinity;
  const take = (x, y) => ((left = Math.min(left, x)), (right = Math.max(right, x)), (top = Math.min(top, y)), (bottom = Math.max(bottom, y)));
  for (const i of nodes) {
    take(graph.x[i] - graph.width[i] / 2, graph.y[i] - graph.height[i] / 2 - 20);
    take(graph.x[i] + graph.width[i] / 2, graph.y[i] + graph.height[i] / 2);
  }
  for (const e of edges) for (const t of [0.1, 0.25, 0.5, 0.75, 0.9]) take(...pointAt(curve(graph, e), t));
  if (left > right) [left, right, top, bottom] = [0, 200, 0, 100];
  return { x: left - 70, y: top - 16, width: right - left + 90, height: bottom - top + 32 };
}

function drawEdge(graph, state, e, roles, parent) {
  const link = graph.kind[e] === LINK, sign = link || !graph.score ? "neutral" : signOf(graph.score[e]);
  const byMember = state.colour === "member" && graph.member && !link;
  const dash = link ? "2 3" : sign === "negative" && !byMember ? "6 4" : null;
  const faded = roles && !roles.edges[e];
  const opacity = faded ? 0.1 : roles && roles.edges[e] === "is-reach" ? 0.45 : 0.9;
  const points = curve(graph, e), attributes = { d: pathOf(link ? points : shortened(graph, e, points)), stroke: byMember ? LIGHT[`in${graph.member[e]}`] : LIGHT[sign], "stroke-width": strokeOf(graph, e).toFixed(2), "stroke-opacity": opacity };
  if (dash) attributes["stroke-dasharray"] = dash;
  svgElement("path", attributes, parent);
  if (link) return;
  const x = points.at(-2), y = points.at(-1), half = 2.6 + 0.55 * strokeOf(graph, e);
  const level = Math.abs(graph.y[graph.source[e]] - graph.y[graph.target[e]]) < 1;
  const tip = level ? `M${x} ${y}L${x - TIP} ${y - half}V${y + half}Z` : `M${x} ${y}L${x - half} ${y + TIP}H${x + half}Z`;
  svgElement("path", { d: tip, fill: attributes.stroke, stroke: "none", "fill-opacity": opacity }, parent);
}

function drawExported(graph, i, part, parent) {
  const sign = nodeSign(graph, i), w = graph.width[i], h = graph.height[i];
  const box = svgElement("g", { transform: `translate(${graph.x[i]} ${graph.y[i]})`, "text-anchor": "middle" }, parent);
  if (part === "is-dim") box.setAttribute("opacity", 0.3);
  const role = roleColour(graph, i), colour = role >= 0 ? ROLE_COLOURS[role] : LIGHT[sign];
  const heavy = part === "is-focus" || part === "is-end";
  svgElement("path", { d: outlineOf(graph.type[i], w, h), fill: role >= 0 ? mixed(colour, 0.24) : mixed(LIGHT[sign], tintOf(graph, i)), stroke: colour, "stroke-width": heavy ? 3 : 1.6 }, box);
  const marks = graph.type[i] === "head" ? readerMarks(graph, i) : "";
  svgElement("text", { y: marks ? -0.5 : 4.5, "font-size": 12.5, "font-weight": 600, fill: LIGHT.ink }, box).textContent = shorten(graph.label[i], graph.type[i] === "group" ? GROUP_LETTERS : 12);
  [..."qkv"].forEach((mark, k) => marks.includes(mark) && (svgElement("text", { x: (k - 1) * graph.port * w, y: h / 2 - 4.5, "font-size": 9, fill: LIGHT.muted }, box).textContent = mark));
  if (graph.type[i] === "group") svgElement("text", { x: 0, y: -h / 2 - 6, "font-size": 11, "font-style": "italic", fill: LIGHT.muted, stroke: LIGHT.paper, "stroke-width": 3, "paint-order": "stroke" }, box).textContent = graph.role[i];
}

// `colour` at `share` over white, as #rrggbb, which every program reads.
function mixed(colour, share) {
  const part = (k) => Math.round(255 + (parseInt(colour.slice(k, k + 2), 16) - 255) * share).toString(16).padStart(2, "0");
  return `#${part(1)}${part(3)}${part(5)}`;
}

function exportSvg(app) {
  save(new Blob([svgText(app)], { type: "image/svg+xml" }), `${fileStem(app)}.svg`);
}

async function exportPng(app) {
  const text = svgText(app), picture = new Image();
  const loaded = new Promise((resolve, reject) => ((picture.onload = resolve), (picture.onerror = reject)));
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await loaded;
  const scale = Math.min(3, 12000 / Math.max(picture.width, picture.height));
  const canvas = htmlElement("canvas", { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => save(blob, `${fileStem(app)}.png`), "image/png");
}

function exportCsv(app) {
  const graph = app.graph(), seen = app.seen(), rows = [["source", "target", "kind", "score", "standard_error", "confidence"]];
  const quoted = (value) => {
    const plain = String(value ?? ""), formula = /^[=+\-@\t\r\n]/.test(plain) && !Number.isFinite(Number(plain));
    const text = formula ? `'${plain}` : plain; // a spreadsheet would run it
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  for (let e = 0; e < graph.m; e++) {
    if (seen.edgeOn[e]) rows.push([graph.names[graph.source[e]], graph.names[graph.target[e]], KIND_NAMES[graph.kind[e]], graph.score?.[e], graph.error?.[e], graph.confidence?.[e]]);
  }
  save(new Blob([rows.map((row) => row.map(quoted).join(",")).join("\n"), "\n"], { type: "text/csv" }), `${fileStem(app)}.csv`);
}

function exportJson(app) {
  const { cards, ...nodes } = app.payload.nodes; // the facts are in it as text; cards are markup
  save(new Blob([JSON.stringify({ ...app.payload, nodes, state: app.store.get() }, null, 1), "\n"], { type: "application/json" }), `${fileStem(app)}.json`);
}

// Takes pins, notes, supernodes, positions and filters from a JSON exported earlier for the same graph.
function openState(app) {
  const input = htmlElement("input", { type: "file", accept: ".json,application/json" });
  input.addEventListener("change", async () => {
    try {
      const data = JSON.parse(await input.files[0].text());
      if (data.what !== "mechwork graph" || !data.state) throw new Error("it is not a graph exported from mechwork");
      if (data.format > app.payload.format) throw new Error(`it has format ${data.format}, this page reads up to ${app.payload.format}; export it again with this version`);
      app.store.set(adoptState(app.store.get(), data.state));
    } catch (error) {
      app.actions.say(`This file was not opened: ${error.message}.`);
    }
  });
  input.click();
}

function fileStem(app) {
  return app.payload.title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "circuit";
}

function save(blob, name) {
  const link = htmlElement("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
