// The side panel: what is known about the focused node, or about the whole circuit. Measured facts stand apart from
// estimates, and both apart from interpretation.

function createPanel(app) {
  const body = htmlElement("div", { class: "mw-panel-body", tabindex: "0", role: "region", "aria-label": `Details of ${app.payload.title}` });
  const legend = createLegend(app);
  const element = htmlElement("aside", { class: "mw-panel", "aria-label": `Details and legend of ${app.payload.title}` }, body, legend.element);

  function update(state, seen, focus) {
    // Typing a note must not rebuild the field under the cursor.
    if (!body.contains(document.activeElement) || !document.activeElement.matches("textarea, input[type=text]")) {
      body.replaceChildren(...(focus ? nodeDetails(app, state, seen, focus) : overview(app, state, seen)), ...groupTools(app, state));
    }
    legend.update(state);
  }
  return { element, update };
}

function nodeDetails(app, state, seen, focus) {
  const graph = app.graph(), { store, payload } = app, i = focus.node, name = graph.names[i];
  const first = graph.members[i][0], many = graph.members[i].length > 1;
  const pinned = state.pins.includes(name);
  const head = htmlElement(
    "header", { class: "mw-panel-head" },
    heading(1, graph.said[i]), htmlElement("span", { class: "mw-kind" }, TYPE_WORDS[graph.type[i]]),
    htmlElement("button", { type: "button", class: "mw-button small", "aria-pressed": String(pinned), onclick: () => app.actions.pin(name) }, pinned ? "Unpin" : "Pin"),
    htmlElement("button", { type: "button", class: "mw-button small", onclick: () => app.actions.focus(null) }, "Clear"),
  );
  const parts = [head];
  if (many) parts.push(htmlElement("p", {}, `Members: ${graph.members[i].map((k) => app.base().said[k]).join(", ")}`));
  if (!many) parts.push(roleField(app, name, graph.role[i]));
  if (graph.total && !["logits", "kv"].includes(graph.type[i])) {
    parts.push(badgeLine("estimated", "Sum of outgoing scores", formatSigned(graph.total[i])));
  }
  if (!many && payload.nodes.cards[first]) parts.push(knownCards(payload.nodes.cards[first], name));
  parts.push(reachLine(app, focus), pathTools(app, state, focus));
  parts.push(edgeList(app, "Inputs", realEdges(graph, graph.incoming.of(i), seen, focus), "source"));
  parts.push(edgeList(app, "Outputs", realEdges(graph, graph.outgoing.of(i), seen, focus), "target"));
  const note = htmlElement("textarea", {
    rows: 2, class: "mw-note", placeholder: "Your note (kept in the JSON export)", "aria-label": `Note on ${name}`,
    oninput: (event) => store.set({ notes: { ...store.get().notes, [name]: event.target.value } }, `note ${name}`),
  });
  note.value = state.notes[name] ?? payload.nodes.note[first] ?? "";
  parts.push(heading(2, "Note"), note);
  return parts;
}

// What is known was written as markup in Python, every text of it escaped; scripts in it would not run.
function knownCards(markup, name) {
  const template = document.createElement("template");
  template.innerHTML = markup;
  const list = template.content.firstElementChild, picture = list.querySelector(".mw-pattern");
  if (picture && mechwork.enlarge?.has(name)) {
    picture.after(htmlElement("button", { type: "button", class: "mw-button small", onclick: () => mechwork.enlarge.show(name) }, "Enlarge, with tokens"));
  }
  return list;
}

// A role is interpretation, the reader's own included; it is kept in the exports.
function roleField(app, name, role) {
  const field = htmlElement("input", { type: "text", class: "mw-name", maxlength: 60, placeholder: "none; name one", "aria-label": `Role of ${name}`,
    onchange: (event) => app.store.set({ roles: { ...app.store.get().roles, [name]: event.target.value.trim() } }),
    onkeydown: (event) => event.key === "Enter" && event.target.blur() });
  field.value = role;
  return htmlElement("p", { class: "mw-fact" }, htmlElement("span", { class: "mw-badge interpretation" }, "interpretation"), htmlElement("label", { class: "mw-row" }, "Role:", field));
}

const TYPE_WORDS = { head: "attention head", mlp: "MLP", input: "input (residual stream entering block 0)", logits: "unembedding", kv: "key/value group", group: "supernode", feature: "feature", error: "reconstruction error" };

function badgeLine(certainty, label, text) {
  return htmlElement("p", { class: "mw-fact" }, htmlElement("span", { class: `mw-badge ${certainty}` }, certainty), htmlElement("span", {}, `${label}: `, htmlElement("b", {}, text)));
}

function reachLine(app, focus) {
  const count = (mask) => {
    let sum = 0;
    for (let k = 0; k < mask.length; k++) sum += mask[k];
    return sum;
  };
  const up = count(focus.up.nodes), down = count(focus.down.nodes);
  const all = count(focus.direct), drawn = count(focus.drawn);
  const few = drawn < all ? ` Of this node's ${all} edges the ${drawn} strongest are drawn.` : "";
  return htmlElement("p", { class: "mw-muted" }, `Over the edges shown: ${up} ${up === 1 ? "ancestor" : "ancestors"}, ${down} ${down === 1 ? "descendant" : "descendants"}.${few}`);
}

function pathTools(app, state, focus) {
  const graph = app.graph(), { store } = app;
  const choice = htmlElement("select", { "aria-label": "Show the paths to another node", onchange: (event) => store.set({ to: event.target.value || null }) });
  // Of a thousand nodes the list is made when it is asked for, not at every focus.
  const option = (i) => htmlElement("option", { value: graph.names[i], selected: state.to === graph.names[i] }, graph.said[i]);
  const fill = () => choice.childElementCount <= 2 && choice.replaceChildren(choice.firstChild, ...[...graph.names.keys()].filter((i) => i !== focus.node).map(option));
  choice.append(htmlElement("option", { value: "" }, "none"));
  if (state.to !== null && graph.index.has(state.to)) choice.append(option(graph.index.get(state.to)));
  if (graph.n <= 200) fill();
  for (const kind of ["pointerdown", "focus"]) choice.addEventListener(kind, fill);
  const line = htmlElement("p", { class: "mw-path" }, htmlElement("label", {}, "Paths to ", choice));
  if (!focus.path) return line;
  const { path } = focus;
  const said = !path.found
    ? "No path over the edges shown."
    : `${path.edges.slice(0, graph.m).reduce((sum, on) => sum + on, 0)} edges lie on paths. Widest path (largest smallest |score|): ${routeText(graph, path)}.`;
  return htmlElement("div", {}, line, htmlElement("p", { class: "mw-muted", role: "status" }, said));
}

function routeText(graph, path) {
  const hops = path.widest.map((e) => (graph.kind[e] < 3 ? ` →${KIND_NAMES[graph.kind[e]]} ` : " → ") + graph.said[graph.target[e]]);
  return graph.said[path.first] + hops.join("");
}

function overview(app, state, seen) {
  const graph = app.graph(), { payload } = app;
  const thousands = (n) => n.toLocaleString("en");
  const share = `${Number(((100 * payload.nEdgesOfCircuit) / payload.nEdgesOfGraph).toPrecision(3))} %`;
  const metric = payload.metric ? ` Scores are estimated effects on the ${payload.metric.replaceAll("_", " ")}.` : "";
  const said = payload.whole
    ? `All ${thousands(payload.nEdgesOfGraph)} edges of the model are scored; the strongest are shown.`
    : `${payload.compare ? "Both circuits together have" : payload.space ? "The circuit has" : "The graph has"} ${thousands(payload.nEdgesOfCircuit)} of ${payload.among} (${share}).`;
  const parts = [htmlElement("header", { class: "mw-panel-head" }, heading(1, "Overview"))];
  if (!graph.m) parts.push(htmlElement("p", { class: "mw-empty" }, "This circuit has no edges, so there is nothing to draw between input and logits."));
  parts.push(htmlElement("p", {}, said + (payload.scored ? metric : "")));
  parts.push(htmlElement("p", { class: "mw-muted" }, `${thousands(seen.nNodes)} nodes and ${thousands(seen.nEdges)} ${seen.nEdges === 1 ? "edge" : "edges"} are drawn. Click a node to see its inputs, outputs, ancestors and descendants; Shift-click a second one for the paths between them.`));
  if (payload.compare) parts.push(compareCounts(app));
  const visible = [];
  for (let e = 0; e < graph.m; e++) if (seen.edgeOn[e]) visible.push(e);
  if (graph.score) visible.sort((a, b) => Math.abs(graph.score[b]) - Math.abs(graph.score[a]));
  parts.push(edgeList(app, "Strongest edges", visible.slice(0, 8), "both"));
  return parts;
}

function compareCounts(app) {
  const { payload } = app, tally = { 1: 0, 2: 0, 3: 0 };
  for (const member of payload.edges.member) tally[member]++;
  const union = tally[1] + tally[2] + tally[3], [first, second] = payload.compare;
  const jaccard = union ? formatNumber(tally[3] / union) : "n/a";
  return htmlElement("p", {}, `Only ${first}: ${tally[1]}; only ${second}: ${tally[2]}; both: ${tally[3]}. Jaccard ${jaccard}.`);
}
