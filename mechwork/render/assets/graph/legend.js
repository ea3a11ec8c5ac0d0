// The legend: what shape, colour, dash and width mean, and which filters are active.

function createLegend(app) {
  const { payload } = app, graph = app.graph();
  const sample = (draw, label) => {
    const svg = svgElement("svg", { class: "mw-sample", width: 34, height: 18, viewBox: "-17 -9 34 18", "aria-hidden": "true" });
    draw(svg);
    return htmlElement("li", {}, svg, label);
  };
  const shape = (type, label) => graph.type.includes(type) && sample((svg) => svgElement("path", { d: outlineOf(type, 28, 14), class: "mw-shape" }, svg), label);
  const line = (name, label, width = 2.4) => sample((svg) => svgElement("path", { d: "M-16 0H16", class: `mw-edge ${name}`, "stroke-width": width }, svg), label);
  const shapes = () => [shape("head", "attention head (an edge feeds q left, k middle, v right)"), shape("kv", "key/value group of several heads"), shape("mlp", "MLP"), shape("feature", "feature"), shape("error", "reconstruction error")];
  const signs = payload.scored
    ? [line("positive", "positive score: the clean value raises the metric"), line("negative", "negative score: it lowers it")]
    : [line("neutral", "edge (no scores known)")];
  const members = payload.compare ? [line("in1", `only ${payload.compare[0]}`), line("in2", `only ${payload.compare[1]}`), line("in3", "in both")] : [];
  const width = () => payload.scored
    && sample((svg) => svgElement("path", { d: "M-16 .4L16 -3.4V3.4L-16 -.4Z", class: "mw-wedge" }, svg), `width: |score|, largest ${formatNumber(graph.largest)}`);
  const roles = () => payload.roles.slice(0, 8).map((role, k) => {
    const item = sample((svg) => svgElement("path", { d: outlineOf("head", 28, 14), class: "mw-shape" }, svg), shorten(role, 60));
    item.className = "mw-role-item";
    item.style.setProperty("--role", `var(--mw-role-${k})`);
    return item;
  });
  const ghost = () => payload.levels.some((level) => level.ghosts.length) && line("is-ghost", "weaker edges of the circuit between these nodes", 1);
  const list = (...items) => htmlElement("ul", {}, ...items.filter(Boolean));
  const bySign = list(...roles(), ...shapes(), ...signs, ghost(), width()), byMember = list(...shapes(), ...members, width());
  const active = htmlElement("p", { class: "mw-active", "aria-live": "polite" });
  const body = htmlElement("div", { class: "mw-legend-body" }, bySign, byMember, active);
  const details = htmlElement("details", { class: "mw-legend", open: window.innerWidth > 700 }, htmlElement("summary", {}, "Legend"), body);

  function update(state) {
    bySign.hidden = state.colour === "member";
    byMember.hidden = !bySign.hidden;
    const filters = activeFilters(app, state);
    active.textContent = filters.length ? `Filters: ${filters.join("; ")}` : "No filters";
    active.classList.toggle("has-filters", filters.length > 0);
  }
  return { element: details, update };
}

// The active filters in words; the same words go into exported pictures.
function activeFilters(app, state) {
  const { payload } = app, graph = app.graph(), m = payload.edges.source.length, found = [];
  const hidden = (group, words) => Object.entries(words).filter(([key]) => !state[group][key]).map(([, word]) => word);
  if (state.shown < m) found.push(`strongest ${state.shown.toLocaleString("en")} of ${m.toLocaleString("en")} edges`);
  if (state.nodes < graph.n) found.push(`strongest ${state.nodes} of ${graph.n} nodes`);
  const off = [
    ...hidden("types", { head: "heads", mlp: "MLPs", input: "input", logits: "logits", feature: "features", error: "errors" }),
    ...hidden("kinds", { q: "q edges", k: "k edges", v: "v edges", mlp: "MLP edges", logits: "logits edges" }),
    ...hidden("signs", { positive: "positive", negative: "negative" }),
    ...(payload.compare ? hidden("members", { 1: `only ${payload.compare[0]}`, 2: `only ${payload.compare[1]}`, 3: "both" }) : []),
  ];
  if (off.length) found.push(`without ${off.join(", ")}`);
  if (state.confidence > 0) found.push(`confidence ≥ ${state.confidence}`);
  if (state.only) found.push("pinned nodes alone");
  if (state.collapse) found.push(`${COLLAPSES[state.collapse]} collapsed`);
  if (state.groups.length && !state.collapse) found.push(`${state.groups.length} supernode${state.groups.length > 1 ? "s" : ""}`);
  if (payload.cut) found.push(`${payload.cut.toLocaleString("en")} weakest edges were left out of this page`);
  return found;
}
