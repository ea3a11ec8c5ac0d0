// Lists in the side panel: edges of a node, pinned nodes, supernodes.

const LIST_LIMIT = 40;

// The scored edges of a node that are drawn (those of the focus always are), strongest first.
function realEdges(graph, edges, seen, focus) {
  const size = (e) => (graph.score ? Math.abs(graph.score[e]) : 0);
  return [...edges].filter((e) => e < graph.m && (seen.edgeOn[e] || focus.direct[e])).sort((a, b) => size(b) - size(a) || a - b);
}

function edgeList(app, title, edges, far) {
  const graph = app.graph();
  const rows = edges.slice(0, LIST_LIMIT).map((e) => edgeRow(app, e, far));
  const more = edges.length > LIST_LIMIT ? htmlElement("p", { class: "mw-muted" }, `and ${edges.length - LIST_LIMIT} weaker ones (all are in the CSV export)`) : null;
  const count = far === "both" ? "" : ` (${edges.length})`;
  if (!rows.length) rows.push(htmlElement("li", { class: "mw-muted" }, "none"));
  return htmlElement("section", {}, heading(2, title + count), htmlElement("ol", { class: "mw-edge-list" }, ...rows), more);
}

function edgeRow(app, e, far) {
  const graph = app.graph(), kind = graph.kind[e];
  const link = (node) => htmlElement("button", { type: "button", class: "mw-link", onclick: () => app.actions.focus(graph.names[node], { keep: true }) }, graph.said[node]);
  const mark = kind < 3 ? htmlElement("span", { class: "mw-chip", title: `feeds the ${READER_WORDS[KIND_NAMES[kind]]}` }, KIND_NAMES[kind]) : null;
  const ends = far === "both" ? [link(graph.source[e]), " → ", link(graph.target[e]), mark] : [link(graph[far][e]), mark];
  const row = htmlElement("li", { class: "mw-edge-row" }, htmlElement("span", {}, ...ends));
  if (graph.score) {
    const sign = signOf(graph.score[e]), share = Math.abs(graph.score[e]) / graph.largest;
    const bar = htmlElement("span", { class: `mw-bar-cell ${sign}`, "aria-hidden": "true" });
    bar.style.setProperty("--share", `${Math.max(2, 100 * share)}%`);
    row.append(bar, htmlElement("span", { class: `mw-number ${sign}`, title: uncertaintyText(graph, e) }, formatSigned(graph.score[e])));
  }
  return row;
}

function uncertaintyText(graph, e) {
  const parts = [];
  if (graph.other && graph.member[e] & 2) parts.push(`in the second circuit ${formatSigned(graph.other[e])}`);
  if (graph.error && graph.error[e] !== null) parts.push(`standard error ${formatNumber(graph.error[e])}`);
  if (graph.confidence) parts.push(`chosen in ${Math.round(100 * graph.confidence[e])} % of resamples`);
  return parts.join("; ");
}

// Pins and supernodes: shown when there are any; pinning two nodes offers to group them.
function groupTools(app, state) {
  const { store, actions } = app, parts = [];
  const chip = (name) => htmlElement("li", {}, htmlElement("button", { type: "button", class: "mw-link", onclick: () => actions.focus(name) }, name),
    htmlElement("button", { type: "button", class: "mw-x", "aria-label": `Unpin ${name}`, onclick: () => actions.pin(name) }, "×"));
  if (state.pins.length) parts.push(heading(2, `Pinned (${state.pins.length})`), htmlElement("ul", { class: "mw-chips" }, ...state.pins.map(chip)));
  const groupable = state.pins.filter((name) => app.base().index.has(name));
  if (groupable.length > 1) {
    const name = htmlElement("input", { type: "text", class: "mw-name", placeholder: "Name of the supernode", "aria-label": "Name of the supernode", maxlength: 40 });
    const make = () => actions.group(name.value.trim() || `group ${state.groups.length + 1}`, groupable);
    name.addEventListener("keydown", (event) => event.key === "Enter" && (event.preventDefault(), name.blur(), make()));
    parts.push(htmlElement("p", { class: "mw-row" }, name, htmlElement("button", { type: "button", class: "mw-button small", onclick: make }, "Group pinned")));
  }
  if (state.pins.length) parts.push(htmlElement("p", {}, htmlElement("button", { type: "button", class: "mw-button small", "aria-pressed": String(state.only), onclick: actions.onlyPinned }, state.only ? "Back to the whole graph" : "Pinned nodes alone")));
  if (state.groups.length && !state.collapse) {
    const rows = state.groups.map((group) => htmlElement("li", {}, htmlElement("button", { type: "button", class: "mw-link", onclick: () => actions.focus(group.name) }, group.name), ` (${group.members.join(", ")}) `,
      htmlElement("button", { type: "button", class: "mw-button small", onclick: () => actions.ungroup(group.name) }, "Ungroup")));
    parts.push(heading(2, "Supernodes"), htmlElement("ul", { class: "mw-plain" }, ...rows));
  }
  if (state.focus === null && app.base().m > 1 && !state.groups.length && !isArranged(state)) {
    const suggest = htmlElement("button", { type: "button", class: "mw-button small", onclick: () => showSuggestions(app, suggest) }, "Suggest supernodes");
    parts.push(htmlElement("p", {}, suggest));
  }
  return parts;
}

function showSuggestions(app, button) {
  const found = suggestGroups(app.base());
  const rows = found.map((members) => htmlElement("li", {}, members.join(", "), " ", htmlElement("button", { type: "button", class: "mw-button small", onclick: () => app.actions.group(members.join(" + "), members) }, "Group")));
  const said = found.length ? "Heads of neighbouring layers with alike signed edges (a suggestion, not a finding):" : "No two neighbouring heads have alike signed edges.";
  button.replaceWith(htmlElement("div", { role: "status" }, htmlElement("p", { class: "mw-muted" }, said), htmlElement("ul", { class: "mw-plain" }, ...rows)));
}
