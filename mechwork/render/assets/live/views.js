// Views of the state reached: a head's attention, the lens at one token, the circuit, two pinned states.
function drawAttention({ head, pattern }) {
  const tokens = screen.look.clean, canvas = el("canvas", { width: 300, height: 300, cls: "lv-pattern" });
  const pen = canvas.getContext("2d"), side = 300 / pattern.length;
  pattern.forEach((row, i) => row.forEach((p, j) => {
    const less = p < 0, size = Math.min(1, Math.abs(p)); // blue: more; orange: less (a difference only)
    pen.fillStyle = less ? `rgb(255,${Math.round(255 - 130 * size)},${Math.round(255 * (1 - size))})` : `rgb(${Math.round(255 * (1 - size))},${Math.round(255 - 141 * size)},${Math.round(255 - 77 * size)})`;
    pen.fillRect(j * side, i * side, Math.ceil(side), Math.ceil(side));
  }));
  const at = column();
  const keys = pattern[at].map((p, j) => [p, j]).sort((a, b) => b[0] - a[0]).slice(0, 4);
  const says = keys.map(([p, j]) => `“${shown(tokens[j])}” (${j}) ${percent(p)}`).join(", ");
  view(`Where ${head} looks`, el("p", { text: `From “${shown(tokens[at])}” (${at}) to ${says}.` }), canvas,
    el("p", { cls: "mw-muted", text: "Rows: the token that looks. Columns: what it looks at." }));
}

function drawLens({ column, places, words, p }) {
  const rows = places.map((name, i) => {
    const bar = el("span", { cls: "lv-bar" });
    bar.style.width = `${100 * p[i][0][0]}%`;
    return el("tr", {}, el("th", { scope: "row", text: name }), el("td", {}, bdi(words[i][0][0])), el("td", {}, el("span", { cls: "lv-track" }, bar)),
      el("td", { cls: "number", text: percent(p[i][0][0]) }));
  }).reverse();
  view(`What the stream says at token ${column} “${shown(screen.look.clean[column])}”`, el("table", { cls: "lv-lens" }, el("tbody", {}, ...rows)));
}

function drawDifference({ a, b, change, words }) {
  view("From A to B", el("p", { text: `The ${lead()} goes from ${num(a)} (A) to ${num(b)} (B): ${num(change, true)}.` }),
    el("table", {}, el("thead", {}, el("tr", {}, ...["next token", "A", "B"].map((text) => el("th", { text })))),
      el("tbody", {}, ...words.map((w) => el("tr", {}, el("td", {}, bdi(w.word)), el("td", { cls: "number", text: percent(w.a) }), el("td", { cls: "number", text: percent(w.b) }))))));
}

function drawFeatures({ site, column: at, features, n_active }) {
  const chips = features.map((row) => el("button", { type: "button", cls: "lv-node", data: { feature: row.place }, text: `f${row.place.split("/f")[1]} ${num(row.value)}` }));
  view(`Features of ${site} at “${shown(screen.look.clean.at(at))}”`, el("p", { text: `${n_active} are active. Click one, then Ablate or Scale it.` }), el("div", {}, ...chips));
}

// A view of B less the same of A.
function drawMoved(moved) {
  if (moved.view === "attention") { drawAttention(moved); find("#lv-view h3").textContent = `Where ${moved.head} looks in B, less in A`; return; }
  if (moved.view === "attribution") { paint(moved); return; }
  const rows = moved.view === "lens"
    ? moved.places.map((name, i) => [name, moved.a[i], moved.b[i]].map((cell) => (Array.isArray(cell) ? `${shown(cell[0])} ${percent(cell[1])}` : cell))).reverse()
    : moved.features.map((row) => [`f${row.place.split("/f")[1]}`, num(row.a), num(row.b)]);
  view(moved.view === "lens" ? "What the stream says in A and in B" : `Features of ${moved.site} in A and in B`,
    el("table", { cls: "lv-lens" }, el("thead", {}, el("tr", {}, ...["", "A", "B"].map((text) => el("th", { text })))),
      el("tbody", {}, ...rows.map((cells) => el("tr", { cls: cells[1] === cells[2] ? "" : "moved" }, ...cells.map((text, i) => el(i ? "td" : "th", { text })))))));
}

function drawCircuit(data) {
  const box = find("#lv-circuit-says");
  if (data.top) {
    box.replaceChildren(`${data.n_edges} edges are scored by ${data.method} (an estimate). Strongest: ${data.top.slice(0, 5).map((t) => t.edge).join(", ")}. Now choose how many to keep.`);
    return;
  }
  const random = data.random === null ? "being run …" : data.random.map((r) => num(r)).join(", ") || "none";
  const here = data.pair ? ` On this pair the circuit alone says “${shown(data.pair.top[0].word)}” (${percent(data.pair.top[0].p)}), ${lead()} ${num(data.pair.metric)}.` : "";
  box.replaceChildren(el("b", { text: `faithfulness ${num(data.faithfulness)}` }), ` with ${data.n_edges} edges, on ${data.n_pairs} held-out pairs; random circuits of that size: ${random}.${here}`);
  find("#lv-parts").hidden = false;
  const gone = screen.look.state.circuit?.without ?? [];
  const chip = (names, there, text = names.join(" ")) => el("button", { type: "button", cls: `lv-node${names.every((n) => screen.chosen.has(n)) ? " chosen" : ""}`,
    "aria-pressed": there, data: { node: names.join(" ") }, text });
  const groups = Object.entries(data.groups ?? {}).map(([name, nodes]) => chip(nodes.filter((n) => data.nodes.includes(n)), true, `${shown(name, 40)} (together)`)).filter((c) => c.dataset.node);
  const isEdge = (part) => part.includes("->");
  replace(find("#lv-nodes"), [...groups, ...data.nodes.filter((n) => n !== "logits").map((n) => chip([n], true)), ...gone.filter((n) => !isEdge(n)).map((n) => chip([n], false))]);
  replace(find("#lv-edge-list"), [...data.edges.map((e) => chip([e], true)), ...gone.filter(isEdge).map((e) => chip([e], false))]);
}

function view(title, ...children) {
  const box = find("#lv-view");
  box.hidden = false;
  box.replaceChildren(el("h3", { text: title }), ...children);
}
