// Views of the state reached: a head's attention, the lens at one token, the circuit, two pinned states.
function drawAttention({ head, pattern }) {
  const tokens = screen.look.clean, canvas = el("canvas", { width: 300, height: 300, cls: "lv-pattern" });
  const pen = canvas.getContext("2d"), side = 300 / pattern.length;
  pattern.forEach((row, i) => row.forEach((p, j) => {
    const shade = Math.round(255 * (1 - p));
    pen.fillStyle = `rgb(${shade},${Math.round(255 - 141 * p)},${Math.round(255 - 77 * p)})`;
    pen.fillRect(j * side, i * side, Math.ceil(side), Math.ceil(side));
  }));
  const at = screen.at === "" ? pattern.length - 1 : Number(screen.at);
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

function drawCircuit(data) {
  const box = find("#lv-circuit-says");
  if (data.top) {
    box.replaceChildren(`${data.n_edges} edges are scored (an estimate). Strongest: ${data.top.slice(0, 5).map((t) => t.edge).join(", ")}. Now choose how many to keep.`);
    return;
  }
  const random = data.random.map((r) => num(r)).join(", ");
  box.replaceChildren(el("b", { text: `faithfulness ${num(data.faithfulness)}` }), ` with ${data.n_edges} edges, on ${data.n_pairs} held-out pairs; random circuits of that size: ${random}. `,
    "Click a node to take it out or put it back: ");
  const gone = screen.look.state.circuit?.without ?? [];
  const nodes = [...data.nodes.filter((n) => n !== "logits").map((n) => [n, true]), ...gone.map((n) => [n, false])];
  box.append(...nodes.map(([node, there]) => el("button", { type: "button", cls: "lv-node", "aria-pressed": there, data: { node }, text: node })));
}

function view(title, ...children) {
  const box = find("#lv-view");
  box.hidden = false;
  box.replaceChildren(el("h3", { text: title }), ...children);
}
