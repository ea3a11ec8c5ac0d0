// Geometry: the outline of a node and the curve of an edge. The curve's formula is that of graph_layout.control_points.

const SVG = "http://www.w3.org/2000/svg";

function svgElement(tag, attributes = {}, parent = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (parent) parent.append(element);
  return element;
}

function htmlElement(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Headings continue the page's own order: a page of one graph starts at h1, a graph in a report stands below an h2.
function heading(depth, text, attributes = {}) {
  const top = document.body.classList.contains("mw-standalone") ? 1 : 3;
  return htmlElement(`h${top + depth}`, attributes, text);
}

// Control points of edge e as x, y in turn: one cubic curve, or a chain of them along the edge's route (routing.route_points).
function curve(graph, e) {
  const s = graph.source[e], t = graph.target[e], level = graph.y[s];
  // Between two places of one layer: an arch from side to side.
  if (Math.abs(level - graph.y[t]) < 1 && s !== t) {
    const x0 = graph.x[s] + graph.width[s] / 2, x3 = graph.x[t] - graph.width[t] / 2, lift = graph.bend[e] - 34;
    return [x0, level, x0 + 24, level + lift, x3 - 24, level + lift, x3, level];
  }
  const x0 = graph.x[s], y0 = graph.y[s] - graph.height[s] / 2;
  let x3 = graph.x[t];
  if (graph.type[t] === "head" && graph.kind[e] < 3) x3 += (graph.kind[e] - 1) * graph.port * graph.width[t];
  const y3 = graph.y[t] + graph.height[t] / 2;
  const route = graph.routes[e];
  if (route) return alongRoute(x0, y0, route, x3, y3);
  const rise = Math.min(150, Math.max(14, 0.45 * (y0 - y3)));
  const bend = graph.bend[e];
  return [x0, y0, x0 + bend, y0 - rise, x3 + bend, y3 + rise, x3, y3];
}

function alongRoute(x0, y0, route, x3, y3) {
  const points = [x0, y0], stops = [...route, x3, y3];
  let xa = x0, ya = y0;
  for (let k = 0; k < stops.length; k += 2) {
    const xb = stops[k], yb = stops[k + 1], rise = 0.5 * (ya - yb);
    points.push(xa, ya - rise, xb, yb + rise, xb, yb);
    [xa, ya] = [xb, yb];
  }
  return points;
}

const TIP = 7; // length of an arrowhead

// The curve without the part that its arrowhead covers.
function shortened(graph, e, points) {
  const p = points.slice(), n = p.length;
  if (Math.abs(graph.y[graph.source[e]] - graph.y[graph.target[e]]) < 1) p[n - 2] -= TIP - 1;
  else p[n - 1] += TIP - 1;
  return p;
}

function pathOf(points) {
  const p = points.map((v) => Math.round(v * 10) / 10);
  let text = `M${p[0]} ${p[1]}`;
  for (let k = 2; k < p.length; k += 6) text += `C${p.slice(k, k + 6).join(" ")}`;
  return text;
}

// The point at parameter t of a chain of cubics.
function pointAt(chain, share) {
  const n = (chain.length - 2) / 6, k = Math.min(n - 1, Math.floor(share * n)), t = share * n - k, p = chain.slice(6 * k, 6 * k + 8);
  const u = 1 - t, a = u * u * u, b = 3 * u * u * t, c = 3 * u * t * t, d = t * t * t;
  return [a * p[0] + b * p[2] + c * p[4] + d * p[6], a * p[1] + b * p[3] + c * p[5] + d * p[7]];
}

// Shape says type: pill = head, rectangle = MLP, trapezoids = the two ends, small pill = key/value group,
// double-edged rounded box = a group made by the reader.
function outlineOf(type, width, height) {
  const w = width / 2, h = height / 2, cut = Math.min(11, w / 3);
  switch (type) {
    case "input":
      return `M${-w} ${h}L${-w + cut} ${-h}H${w - cut}L${w} ${h}Z`;
    case "logits":
      return `M${-w} ${-h}L${-w + cut} ${h}H${w - cut}L${w} ${-h}Z`;
    case "mlp":
      return `M${-w} ${-h}H${w}V${h}H${-w}Z`;
    case "error":
      return `M${-w} 0L${-w + cut} ${-h}H${w - cut}L${w} 0L${w - cut} ${h}H${-w + cut}Z`;
    case "feature":
      return roundedBox(w, h, 6);
    case "group":
      return roundedBox(w, h, 9);
    default:
      return roundedBox(w, h, h);
  }
}

function roundedBox(w, h, radius) {
  const r = Math.min(radius, w, h);
  return `M${-w + r} ${-h}H${w - r}A${r} ${r} 0 0 1 ${w} ${-h + r}V${h - r}A${r} ${r} 0 0 1 ${w - r} ${h}H${-w + r}` +
    `A${r} ${r} 0 0 1 ${-w} ${h - r}V${-h + r}A${r} ${r} 0 0 1 ${-w + r} ${-h}Z`;
}
