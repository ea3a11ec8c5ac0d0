// Circuits in the formats of Python's Circuit.save, of Neuronpedia's attribution graphs and of the MIB benchmark: the edges that
// pass threshold and filters, with the reader's roles, notes and supernodes. Python reads all three back (tests/render).

// Edges as [source, reader, score]; a group's members stay what they are.
function shownEdges(app) {
  const graph = app.base(), state = app.store.get(), seen = visibility(graph, { ...state, groups: [], only: false }), list = [];
  const alone = state.only && new Set(groupsOf(graph, state).filter((group) => state.pins.includes(group.name)).flatMap((group) => group.members).concat(state.pins));
  for (let e = 0; e < graph.m; e++) {
    if (alone ? !(alone.has(graph.names[graph.source[e]]) && alone.has(graph.names[graph.target[e]])) : !seen.edgeOn[e]) continue;
    const kind = graph.kind[e], target = graph.names[graph.target[e]].replace(".kv", ".h");
    list.push({ source: graph.names[graph.source[e]], reader: kind < 3 ? `${target}<${KIND_NAMES[kind]}>` : target, kind: KIND_NAMES[kind], node: graph.names[graph.target[e]], score: graph.score ? graph.score[e] : null });
  }
  return list;
}

// What the reader and the circuit say about nodes; empty words are left out.
function labelsOf(app) {
  const graph = app.base(), state = app.store.get(), { payload } = app;
  const said = (own, known) => Object.fromEntries(graph.names.map((name, i) => [name, own[name] ?? known[i] ?? ""]).filter(([name, text]) => text && !name.includes(".kv")));
  const supernodes = Object.fromEntries(state.groups.map((group) => [group.name, group.members.filter((name) => graph.index.has(name) && !name.includes(".kv"))]).filter(([, members]) => members.length));
  return { roles: said(state.roles, payload.nodes.role), notes: said(state.notes, payload.nodes.note), supernodes };
}

function nodesOf(app, edges) {
  const used = new Set(["input", "logits", ...edges.flatMap(({ source, node }) => [source, node])]);
  return app.base().names.filter((name) => used.has(name) && !name.includes(".kv"));
}

function saveJson(app, value, ending) {
  save(new Blob([JSON.stringify(value, null, 1), "\n"], { type: "application/json" }), `${fileStem(app)}-${ending}.json`);
}

function exportCircuit(app) {
  const { payload } = app, edges = shownEdges(app), labels = labelsOf(app);
  saveJson(app, {
    what: "mechwork circuit", format: 2, space: payload.space, n_edges: edges.length, n_edges_of_graph: payload.nEdgesOfGraph, n_requested: payload.requested,
    nodes: nodesOf(app, edges), edges: edges.map(({ source, reader, score }) => ({ edge: `${source}->${reader}`, ...(score === null ? {} : { score }) })),
    ...labels, extras: {}, provenance: payload.provenance,
  }, "circuit");
}

// Signs as for the loss (minus the metric), whose convention the file names: positive scores help.
function exportMib(app) {
  const { payload } = app, { space } = payload, edges = shownEdges(app), group = space.n_heads / space.n_kv_heads, listed = {};
  const all = ["input"];
  for (let layer = 0; layer < space.n_layers; layer++) {
    for (let head = 0; head < space.n_heads; head++) all.push(`a${layer}.h${head}`);
    if (!space.attn_only) all.push(`m${layer}`);
  }
  const used = new Set(nodesOf(app, edges));
  for (const { source, reader, kind, score } of edges) {
    const shared = kind === "k" || kind === "v" ? group : 1, [layer, rest] = reader.split(".h");
    for (let i = 0; i < shared; i++) {
      const target = shared === 1 ? reader : `${layer}.h${parseInt(rest, 10) * group + i}<${kind}>`;
      listed[`${source}->${target}`] = { score: (score ?? 0) / shared, in_graph: true };
    }
  }
  saveJson(app, {
    cfg: { n_layers: space.n_layers, n_heads: space.n_heads, parallel_attn_mlp: space.parallel, d_model: payload.provenance.model?.anatomy?.d_model ?? null },
    nodes: Object.fromEntries([...all, "logits"].map((name) => [name, { in_graph: used.has(name) }])), edges: listed,
    mechwork: { format: 1, convention: "loss", scored: payload.scored, space, n_requested: payload.requested, ...labelsOf(app), provenance: payload.provenance },
  }, "mib");
}

// Every node stands at the last token, as in graph_file.graph_of.
function exportNeuronpedia(app) {
  const { payload } = app, { space } = payload, graph = app.base(), edges = shownEdges(app), labels = labelsOf(app), last = Math.max(0, payload.prompt.length - 1);
  const place = (name) => {
    if (name === "input") return ["E", 0, `E_0_${last}`];
    if (name === "logits") return [String(space.n_layers + 1), 0, `${space.n_layers + 1}_0_${last}`];
    const mlp = name.startsWith("m"), [layer, head] = mlp ? [name.slice(1), space.n_heads] : name.slice(1).split(".h");
    return [layer, Number(head), `${layer}_${head}_${last}`];
  };
  const names = nodesOf(app, edges), id = Object.fromEntries(names.map((name) => [name, place(name)[2]]));
  const nodes = names.map((name) => ({
    node_id: id[name], jsNodeId: id[name].replaceAll("_", "-"), feature: place(name)[1], layer: place(name)[0], ctx_idx: last, reverse_ctx_idx: 0, run_idx: 0,
    feature_type: { input: "embedding", logits: "logit", mlp: "mlp" }[graph.type[graph.index.get(name)]] ?? "attention head", token_prob: 0, is_target_logit: name === "logits",
    clerp: labels.roles[name] ? `${name}: ${labels.roles[name]}` : name,
  }));
  // A key/value group's edges are shared by its heads that are in the circuit.
  const heads = (node) => (node.includes(".kv") ? [...graph.outgoing.of(graph.index.get(node))].filter((e) => e >= graph.m).map((e) => graph.names[graph.target[e]]).filter((name) => name in id) : [node]);
  const links = edges.flatMap(({ source, node, kind, score }) => heads(node).map((target, _, all) => ({ source: id[source], target: id[target], weight: (score ?? 0) / all.length, kind: kind === "mlp" || kind === "logits" ? "" : kind })));
  saveJson(app, {
    metadata: {
      slug: fileStem(app), scan: payload.provenance.model?.name ?? "", transcoder_list: [], prompt_tokens: payload.prompt, prompt: payload.prompt.join(""), schema_version: 1,
      mechwork: { format: 1, space, names: Object.fromEntries(names.map((name) => [id[name], name])), n_requested: payload.requested, ...labels, provenance: payload.provenance },
    },
    qParams: {
      pinnedIds: app.store.get().pins.filter((name) => name in id).map((name) => id[name]), linkType: "both", clickedId: "", sg_pos: "",
      supernodes: Object.entries(labels.supernodes).map(([name, members]) => [name, ...members.filter((member) => member in id).map((member) => id[member])]),
    },
    nodes, links,
  }, "neuronpedia");
}
