// Controls above the graph: search, view buttons, undo, export menu; threshold and filters.

// The slider is logarithmic in the number of edges, so that small circuits can be set exactly within large graphs.
const STEPS = 1000;
const countOf = (step, m) => Math.max(1, Math.round(Math.exp((step / STEPS) * Math.log(m))));
const stepOf = (count, m) => (m <= 1 ? STEPS : Math.round((STEPS * Math.log(Math.max(1, count))) / Math.log(m)));

function createControls(app) {
  const { store, payload, actions } = app;
  const button = (label, title, action, extra = {}) =>
    htmlElement("button", { type: "button", class: "mw-button", title, "aria-label": title, onclick: action, ...extra }, label);

  const search = htmlElement("input", {
    type: "search", class: "mw-search", placeholder: "Search nodes", "aria-label": "Search nodes by name or role", list: `${app.id}-names`, autocomplete: "off",
    oninput: (event) => store.set({ query: event.target.value }, "query"),
    onkeydown: (event) => {
      if (event.key === "Enter") actions.focusFound();
      if (event.key === "Escape") store.set({ query: "" });
    },
  });
  const names = htmlElement("datalist", { id: `${app.id}-names` }, ...app.graph().names.map((name) => htmlElement("option", { value: name })));
  const undo = button(icon("M7 3 3 7l4 4M3.5 7H10a3.5 3.5 0 0 1 0 7H6"), "Undo (Ctrl+Z)", store.undo), redo = button(icon("M9 3l4 4-4 4M12.5 7H6a3.5 3.5 0 0 0 0 7h4"), "Redo (Ctrl+Shift+Z)", store.redo);
  const full = button(icon("M3 6V3h3M10 3h3v3M13 10v3h-3M6 13H3v-3"), "Full screen (F)", actions.fullScreen);
  const bar = htmlElement(
    "div", { class: "mw-bar", role: "toolbar", "aria-label": "Graph tools" },
    heading(0, payload.title, { class: "mw-title" }), search, names,
    htmlElement("span", { class: "mw-set" }, button("−", "Zoom out (−)", actions.zoomOut), button("+", "Zoom in (+)", actions.zoomIn), button("Fit", "Fit the graph (0)", actions.fit), full),
    htmlElement("span", { class: "mw-set" }, undo, redo, button("Reset", "Reset filters, focus and positions", actions.reset)),
    createMenu(app), button("?", "Keys and help", actions.help),
  );

  const m = Math.max(1, payload.edges.source.length);
  const slider = htmlElement("input", {
    type: "range", min: 0, max: STEPS, step: 1, class: "mw-slider", "aria-label": "Edges shown, strongest first", disabled: m <= 1,
    oninput: (event) => store.set({ shown: countOf(Number(event.target.value), m) }, "shown"),
  });
  const exact = htmlElement("input", {
    type: "number", min: 1, max: m, class: "mw-exact", "aria-label": "Number of edges shown", disabled: m <= 1,
    onchange: (event) => store.set({ shown: Math.min(m, Math.max(1, Math.round(Number(event.target.value)) || 1)) }),
  });
  const counted = htmlElement("output", { class: "mw-counted", "aria-live": "polite" });
  const share = htmlElement("span", { class: "mw-share" });
  const threshold = htmlElement("div", { class: "mw-threshold" }, htmlElement("span", { class: "mw-caption" }, "Edges"), slider, exact, counted, share);
  const filters = createFilters(app);

  function update(state, seen) {
    const graph = app.graph(), shown = prefixOf(graph, state.shown);
    if (document.activeElement !== search) search.value = state.query;
    slider.value = stepOf(state.shown, m);
    const valued = `${state.shown} of ${m} edges`;
    if (slider.getAttribute("aria-valuetext") !== valued) slider.setAttribute("aria-valuetext", valued);
    exact.value = String(state.shown);
    const of = payload.nEdgesOfGraph.toLocaleString("en");
    const least = graph.score && shown > 0 ? `, |score| ≥ ${formatNumber(leastOf(graph.score, shown))}` : "";
    const said = `showing ${seen.nEdges.toLocaleString("en")} of ${of} edges${least}${foundWords(graph, seen)}`;
    if (counted.textContent !== said) counted.textContent = said;
    const carried = carriedShare(payload, Math.min(state.shown, m));
    share.textContent = carried === null || state.only ? "" : `alone they keep about ${formatNumber(Math.round(100 * carried) / 100)} of the faithfulness (between measured sizes, ${payload.ablation} ablation)`;
    undo.disabled = !store.canUndo();
    redo.disabled = !store.canRedo();
    filters.update(state);
  }

  return { elements: [bar, threshold, filters.element], update, search };
}

// Toggle buttons for node types, edge kinds, signs, membership; sliders for confidence and number of nodes.
function createFilters(app) {
  const { store, payload } = app, graph = app.graph(), toggles = [];
  const toggle = (group, key, label, title) => {
    const element = htmlElement("button", {
      type: "button", class: `mw-toggle ${group} key-${key}`, title, "aria-label": title,
      onclick: () => store.set({ [group]: { ...store.get()[group], [key]: !store.get()[group][key] } }),
    }, label);
    toggles.push({ element, group, key });
    return element;
  };
  const set = (caption, ...children) =>
    htmlElement("span", { class: "mw-set", role: "group", "aria-label": `Filter: ${caption}` }, htmlElement("span", { class: "mw-caption" }, caption), ...children);
  const has = (type) => graph.type.includes(type), kinds = new Set(payload.edges.kind);
  const parts = [
    set("Nodes", has("head") && toggle("types", "head", "heads", "Show attention heads"), has("mlp") && toggle("types", "mlp", "MLPs", "Show MLPs"),
      has("feature") && toggle("types", "feature", "features", "Show features"), has("error") && toggle("types", "error", "errors", "Show error nodes"),
      toggle("types", "input", "input", "Show the input"), toggle("types", "logits", "logits", "Show the logits")),
    set("Into", ...["q", "k", "v", "mlp", "logits"].map((key, k) => kinds.has(k) && toggle("kinds", key, key === "mlp" ? (has("feature") ? "others" : "MLPs") : key, key === "logits" || key === "mlp" ? `Show edges into ${READER_WORDS[key]}` : `Show edges into ${READER_WORDS[key]} (${key})`))),
  ];
  if (payload.scored) parts.push(set("Sign", toggle("signs", "positive", "+", "Show edges with positive score"), toggle("signs", "negative", "−", "Show edges with negative score")));
  if (payload.compare) {
    const [first, second] = payload.compare;
    parts.push(set("In", toggle("members", 1, `only ${first}`, `Show edges only in ${first}`), toggle("members", 2, `only ${second}`, `Show edges only in ${second}`), toggle("members", 3, "both", "Show edges in both")));
  }
  const range = (key, caption, title, attributes, read) => {
    const element = htmlElement("input", { type: "range", class: "mw-slider short", "aria-label": title, title, ...attributes, oninput: (event) => store.set({ [key]: read(event.target) }, key) });
    toggles.push({ element, range: key });
    return set(caption, element);
  };
  if (payload.edges.confidence) parts.push(range("confidence", "Confidence", "Least share of resamples in which an edge is chosen", { min: 0, max: 1, step: 0.05 }, (input) => Number(input.value)));
  if (graph.n > 12) parts.push(range("nodes", "Strongest nodes", "Number of nodes kept, strongest first", { min: 2, max: graph.n, step: 1 }, (input) => Number(input.value)));
  const collapse = htmlElement("select", { "aria-label": "Collapse nodes into one", title: "Collapse nodes into one", onchange: (event) => store.set({ collapse: event.target.value, focus: null, to: null }) }, htmlElement("option", { value: "" }, "nothing"),
    ...Object.entries(COLLAPSES).filter(([key]) => key !== "role" || payload.roles.length).map(([key, label]) => htmlElement("option", { value: key }, label)));
  if (!payload.places.length) parts.push(set("Collapse", collapse));
  const isolated = htmlElement("input", { type: "checkbox", onchange: (event) => store.set({ isolated: event.target.checked }) });
  parts.push(htmlElement("label", { class: "mw-check" }, isolated, "unconnected nodes"));
  if (payload.compare) {
    const colour = htmlElement("input", { type: "checkbox", onchange: (event) => store.set({ colour: event.target.checked ? "member" : "sign" }) });
    toggles.push({ element: colour, colour: true });
    parts.push(htmlElement("label", { class: "mw-check" }, colour, "colour by circuit"));
  }

  function update(state) {
    for (const { element, group, key, range: name, colour } of toggles) {
      if (colour) element.checked = state.colour === "member";
      else if (name) element.value = state[name];
      else element.setAttribute("aria-pressed", String(Boolean(state[group][key])));
    }
    isolated.checked = state.isolated;
    collapse.value = state.collapse;
  }
  const element = htmlElement("details", { class: "mw-more", open: window.innerWidth > 760 }, htmlElement("summary", {}, "Filters"), htmlElement("div", { class: "mw-filters" }, ...parts));
  return { element, update };
}

// A small line drawing, since many fonts lack the usual symbols.
function icon(path) {
  const svg = svgElement("svg", { class: "mw-icon", width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" });
  svgElement("path", { d: path }, svg);
  return svg;
}

const READER_WORDS = { q: "queries", k: "keys", v: "values", mlp: "MLPs", logits: "the logits" };

// The export menu: a button that opens a list of actions.
function createMenu(app) {
  const items = [
    ["SVG (vector, light)", () => exportSvg(app)], ["PNG (3× pixels, light)", () => exportPng(app)], ["CSV (edges shown)", () => exportCsv(app)],
    ["JSON (graph and state)", () => exportJson(app)],
    // Formats of circuits say nothing of places, nor of two circuits at once.
    ...(app.payload.space ? [["Circuit JSON (for Python)", () => exportCircuit(app)]] : []),
    ...(app.payload.space && !app.payload.space.split_input ? [["Neuronpedia JSON", () => exportNeuronpedia(app)], ["MIB JSON", () => exportMib(app)]] : []), // both know one input
    ["Open a saved JSON…", () => openState(app)],
  ];
  const list = htmlElement("div", { class: "mw-menu", role: "menu", hidden: true });
  const opener = htmlElement("button", { type: "button", class: "mw-button", "aria-haspopup": "menu", "aria-expanded": "false", onclick: () => open(list.hidden) }, "Export ▾");
  const open = (wanted) => {
    list.hidden = !wanted;
    opener.setAttribute("aria-expanded", String(wanted));
    if (wanted) list.firstElementChild.focus();
  };
  for (const [label, action] of items) {
    list.append(htmlElement("button", { type: "button", role: "menuitem", class: "mw-menu-item", onclick: () => (open(false), opener.focus(), app.flush(), action()) }, label));
  }
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key], all = [...list.children];
    if (step) all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
    else if (event.key === "Escape") (open(false), opener.focus());
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const holder = htmlElement("span", { class: "mw-set mw-menu-holder" }, opener, list);
  document.addEventListener("pointerdown", (event) => holder.contains(event.target) || open(false));
  return holder;
}

// How many nodes a search found, where they are too many to be brought in.
function foundWords(graph, seen) {
  if (!seen.searched) return "";
  const found = seen.searched.filter(Boolean).length, drawn = seen.searched.filter((is, i) => is && seen.nodeOn[i]).length;
  return `; ${found.toLocaleString("en")} ${found === 1 ? "node" : "nodes"} found${drawn < found ? `, ${drawn} of them drawn: type more to see the others` : ""}`;
}

function leastOf(scores, n) {
  let least = Infinity;
  for (let e = 0; e < n; e++) least = Math.min(least, Math.abs(scores[e]));
  return least;
}

// The faithfulness of a circuit of `n` edges, on the line between the measured sizes around it; null where none were measured.
function carriedShare(payload, n) {
  const points = payload.faithfulness, k = points.findIndex(([size]) => size >= n);
  if (k < 0) return null;
  const [x1, y1] = points[k], [x0, y0] = points[Math.max(0, k - 1)];
  return x1 === x0 ? y1 : y0 + ((y1 - y0) * (n - x0)) / (x1 - x0);
}
