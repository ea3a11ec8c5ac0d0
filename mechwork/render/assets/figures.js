// Plotly figures: drawn from JSON, coloured by the page, and linked: a cell or a point that stands for a node selects it
// everywhere, and a selection made elsewhere is outlined here.

const prefersDark = matchMedia("(prefers-color-scheme: dark)"), onPaper = matchMedia("print");
const isDark = () => prefersDark.matches && !onPaper.matches; // paper is always light
const DARK_SCALE = ["#ffc49a", "#f9a566", "#f0833a", "#a4592a", "#4d3424", "#20252b", "#1c3a4d", "#26648a", "#4aa8e0", "#8accf2", "#bfe3f8"];

function themed(spec) {
  const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
  const layout = structuredClone(spec.layout), ink = colour("--mw-ink"), muted = colour("--mw-muted"), line = colour("--mw-line");
  layout.font = { ...layout.font, color: ink };
  layout.title = { ...layout.title, subtitle: { ...layout.title.subtitle, font: { ...layout.title.subtitle?.font, color: muted } }, font: { ...layout.title.font, color: ink } };
  layout.hoverlabel = { ...layout.hoverlabel, bgcolor: colour("--mw-raised"), bordercolor: colour("--mw-control"), font: { ...layout.hoverlabel?.font, color: ink } };
  for (const key of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(key)) layout[key] = { ...layout[key], color: muted, gridcolor: line, linecolor: line, zerolinecolor: colour("--mw-control"), tickcolor: line };
  }
  for (const note of layout.annotations ?? []) note.font = { ...note.font, color: paint(note.font?.color ?? ink) };
  for (const shape of layout.shapes ?? []) if (shape.line) shape.line.color = paint(shape.line.color);
  if (layout.coloraxis && isDark()) layout.coloraxis.colorscale = DARK_SCALE.map((value, i) => [i / (DARK_SCALE.length - 1), value]);
  const data = structuredClone(spec.data);
  for (const trace of data) {
    for (const part of [trace.line, trace.marker, trace.error_x, trace.error_y]) if (part?.color) part.color = Array.isArray(part.color) ? part.color.map(paint) : paint(part.color);
  }
  return { data, layout };
}

// The palette's light colours and their dark counterparts.
const DARK_COLOURS = { "#0072B2": "#4aa8e0", "#D55E00": "#f0833a", "#6e7781": "#919ba6", "#1b1f24": "#e8ebef", "#57606a": "#a3adb8", "#000000": "#e8ebef", "#7A5195": "#b48fd1", "#8C564B": "#c78f82", "#4D4D4D": "#b3b9c0" };
const paint = (colour) => (isDark() && DARK_COLOURS[colour]) || colour;

function mountFigure(root, spec) {
  const plot = document.createElement("div");
  root.replaceChildren(plot);
  root.style.minHeight = "";
  const config = { displaylogo: false, displayModeBar: "hover", responsive: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { format: "svg", filename: "mechwork-figure" } };
  const draw = () => {
    const { data, layout } = themed(spec);
    narrowed(root, data, layout);
    layout.shapes = [...(layout.shapes ?? []), ...outlines(root, spec)];
    return Plotly.react(plot, data, layout, config);
  };
  // Of a map that is cut off the end is shown, where the answer is made; the prompt begins at the other.
  draw().then(() => (root.scrollLeft = spec.data.some((trace) => trace.type === "heatmap") ? root.scrollWidth : 0));
  for (const query of [prefersDark, onPaper]) query.addEventListener("change", draw);
  const view = { select: draw };
  plot.on("plotly_click", (event) => {
    const point = event.points[0], data = point.customdata;
    const name = Array.isArray(data) ? data[data.length - 1] : "";
    if (!name) return;
    mechwork.select(mechwork.selection === name ? null : name, null);
  });
  mechwork.register(view);
}

// On a narrow screen a figure is as wide as the screen and its title and subtitle wrap; maps of many columns keep their width and scroll.
const LETTER = { title: 8.6, subtitle: 6.6 }, MANY_COLUMNS = 16;

function narrowed(root, data, layout) {
  const room = root.clientWidth, many = data.some((trace) => trace.type === "heatmap" && trace.x?.length > MANY_COLUMNS);
  if (onPaper.matches || room < 280 || room >= layout.width) return;
  if (!many) layout.width = room;
  const title = wrapped(layout.title.text, room / LETTER.title), subtitle = wrapped(layout.title.subtitle?.text ?? "", room / LETTER.subtitle), more = 20 * (title.length - 1) + 16 * (subtitle.length - 1);
  layout.title = { ...layout.title, text: title.join("<br>"), subtitle: { ...layout.title.subtitle, text: subtitle.join("<br>") } };
  layout.margin = { ...layout.margin, t: layout.margin.t + more };
  layout.height += more;
  if (layout.legend?.orientation === "h" && !many) layout.legend = { ...layout.legend, y: layout.legend.y * 1.2 };
}

function wrapped(text, letters) {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1) && lines.at(-1).length + word.length + 1 > letters) lines.push(word);
    else lines[lines.length - 1] += (lines.at(-1) ? " " : "") + word;
  }
  return lines;
}

// The frames around the cells of the selected node.
function outlines(root, spec) {
  if (root.dataset.mwFollow !== "cells" || mechwork.selection === null) return [];
  const found = [];
  spec.data.forEach((trace, k) => {
    (trace.customdata ?? []).forEach((row, y) => row.forEach?.((cell, x) => {
      if (!Array.isArray(cell) || cell[cell.length - 1] !== mechwork.selection) return;
      const style = getComputedStyle(document.documentElement);
      found.push({ type: "rect", xref: trace.xaxis ?? "x", yref: trace.yaxis ?? "y", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line: { color: style.getPropertyValue("--mw-accent").trim(), width: 2.5 } });
    }));
  });
  return found;
}

// One figure per frame, so that the page answers while many are drawn.
async function mountFigures(roots) {
  try {
    await mechwork.vendor("plotly");
  } catch {
    roots.forEach(mechwork.excuse);
    return;
  }
  for (const root of roots) {
    mechwork.withData(root, (spec) => mountFigure(root, spec));
    await new Promise((done) => setTimeout(done));
  }
}

for (const root of document.querySelectorAll("[data-mw-figure]")) root.style.minHeight = `${root.dataset.mwHeight}px`; // its room, until it is drawn

// A figure in a closed part has no size yet: it is drawn when the part opens.
const figures = [...document.querySelectorAll("[data-mw-figure]")], later = figures.filter((root) => root.closest("details:not([open])"));
mountFigures(figures.filter((root) => !later.includes(root)));
for (const part of new Set(later.map((root) => root.closest("details:not([open])")))) {
  part.addEventListener("toggle", () => mountFigures(later.filter((root) => part.contains(root) && !root.querySelector(".js-plotly-plot") && !root.closest("details:not([open])"))));
}
