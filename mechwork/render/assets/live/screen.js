// What is on the screen, drawn from one object; parts are updated in place, so the focus stays where it is.
const screen = { look: null, component: "", at: "", answer: null, gesture: null, values: null, valuesWhat: "", lost: false, chosen: new Set() };

const isFeature = () => screen.component.includes("/f");
// The one token that is meant: the chosen one, the last of a chosen span, or the prompt's last.
const column = () => (screen.at === "" ? screen.look.clean.length - 1 : /^\d+$/.test(screen.at) ? Number(screen.at) : screen.look.spans[screen.at].at(-1));
const place = () => (screen.component && screen.at !== "" ? `${screen.component}@${screen.at}` : screen.component);
const layerOf = (component) => Number(/^(?:[aml]|[a-z_]+\.)(\d+)/.exec(component)?.[1] ?? 0);
const lead = () => {
  const [right, wrong] = screen.look.answers;
  return screen.look.metric_name === "logit_difference" ? `lead of “${shown(right)}” over “${shown(wrong)}”` : screen.look.metric_name;
};

function drawAll() {
  drawPrompt();
  drawGrid();
  drawPanel();
  drawHistory();
  const look = screen.look;
  find("#lv-what").textContent = `${look.model} · ${look.task} · pair ${look.state.own ? "of your own" : `${look.state.row + 1} of ${look.n_rows}`}`;
  find("#lv-undo").disabled = !line.port || !look.can_undo;
  find("#lv-redo").disabled = !line.port || !look.can_redo;
  find("#lv-difference").disabled = !line.port || !look.pins.includes("A");
  for (const name of "AB") find(`#lv-pin${name}`).setAttribute("aria-pressed", look.pins.includes(name));
}

function drawPrompt() {
  const look = screen.look;
  for (const [id, tokens, live] of [["#lv-clean", look.clean, true], ["#lv-corrupt", look.corrupt, false]]) {
    const box = find(id);
    const cells = tokens.map((token, i) => {
      const differs = live ? look.differs[i] : look.clean[i] !== token;
      const cls = `lv-token${differs ? " differs" : ""}`;
      if (!live) return el("span", { cls }, bdi(token));
      const button = el("button", { cls, type: "button", "aria-pressed": String(i) === screen.at, data: { at: i }, title: `position ${i}` }, bdi(token));
      return button;
    });
    replace(box, cells);
  }
  const spans = Object.entries(look.spans).filter(([, columns]) => columns.length);
  replace(find("#lv-spans"), spans.map(([name, columns]) => el("button", { cls: "lv-token", type: "button", "aria-pressed": name === screen.at, data: { at: name },
    title: `positions ${columns.join(", ")}` }, bdi(name))));
  find("#lv-spans").parentElement.hidden = !spans.length;
  drawTop(find("#lv-top"), look.now.top.slice(0, 3), look.state.changes.length ? look.plain.top : null);
  find("#lv-metric").textContent = num(look.now.metric);
  find("#lv-lead").textContent = lead();
  find("#lv-all").setAttribute("aria-pressed", screen.at === "");
}

// Keeps the focus on the element that stands in the same place.
function replace(box, children) {
  const held = [...box.children].indexOf(document.activeElement?.closest?.(`#${box.id} > *`));
  box.replaceChildren(...children);
  if (held >= 0) box.children[held]?.focus?.({ preventScroll: true });
}

function drawTop(box, top, before) {
  const was = new Map((before ?? []).map(({ word, p }) => [word, p]));
  box.replaceChildren(...top.map(({ word, p }) => {
    const bar = el("span", { cls: "lv-bar" });
    bar.style.width = `${Math.max(1, 100 * p)}%`;
    const row = el("li", {}, el("span", { cls: "lv-word" }, bdi(word)), el("span", { cls: "lv-track" }, bar), el("span", { cls: "lv-p", text: percent(p) }));
    if (before) row.append(el("span", { cls: "lv-was", text: was.has(word) ? `was ${percent(was.get(word))}` : "was lower" }));
    return row;
  }));
}

function drawGrid() {
  const look = screen.look, table = find("#lv-cells");
  const changed = new Map(look.state.changes.map((change) => [change.place.split("@")[0], change]));
  const largest = Math.max(1e-9, ...Object.values(screen.values ?? {}).map(Math.abs));
  const columns = [...Array(look.n_heads).keys()].map((h) => `h${h}`).concat(look.has_mlps ? ["MLP"] : [], ["stream"]);
  const name = (layer, column) => (column === "MLP" ? `m${layer}` : column === "stream" ? `resid_pre.${layer}` : `a${layer}.${column}`);
  if (table.dataset.shape !== `${look.n_layers}/${columns.length}`) {
    table.dataset.shape = `${look.n_layers}/${columns.length}`;
    const head = el("tr", {}, el("th", { text: "layer", scope: "col" }), ...columns.map((c) => el("th", { text: c, scope: "col" })));
    const rows = [...Array(look.n_layers).keys()].reverse().map((layer) => el("tr", {}, el("th", { text: layer, scope: "row" }),
      ...columns.map((c) => el("td", {}, el("button", { type: "button", cls: "lv-cell", tabindex: -1, data: { place: name(layer, c) } })))));
    table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
  }
  const cells = [...table.querySelectorAll(".lv-cell")];
  for (const cell of cells) {
    const where = cell.dataset.place, value = screen.values?.[where], change = changed.get(where);
    cell.setAttribute("aria-pressed", where === screen.component);
    cell.classList.toggle("changed", change !== undefined);
    const share = value === undefined ? 0 : Math.abs(value) / largest;
    cell.style.setProperty("--share", `${Math.round(55 * share)}%`);
    cell.classList.toggle("negative", value < 0);
    const mark = change ? { ablate: "✕", patch: "⇄", scale: "×", steer: "→" }[change.do] : "";
    cell.textContent = change ? mark : value !== undefined && share > 0.15 ? num(value) : "";
    const says = value === undefined ? "" : `, ${screen.valuesWhat} ${num(value, true)}`;
    cell.setAttribute("aria-label", `${where}${says}${change ? `, changed: ${change.do}` : ""}`);
    cell.title = `${where}${says}`;
    cell.tabIndex = -1;
  }
  (cells.find((cell) => cell.dataset.place === screen.component) ?? cells[0]).tabIndex = 0;
  const sites = look.feature_sites ?? [], select = find("#lv-site");
  find("#lv-features").hidden = !sites.length;
  if (select.options.length !== sites.length) select.replaceChildren(...sites.map((site) => el("option", { text: site })));
  const chips = find("#lv-changes");
  chips.hidden = !look.state.changes.length;
  chips.replaceChildren("changed now: ", ...look.state.changes.map((change) => el("button", { type: "button", cls: "lv-node", data: { restores: change.place },
    title: "take this change back", disabled: !line.port, text: `${change.do} ${change.place} ✕` })));
  find("#lv-colours").textContent = screen.values ? `colour: ${screen.valuesWhat}; blue raises the ${lead()}, orange lowers it` : "";
}

function drawPanel() {
  const look = screen.look, chosen = place();
  const words = screen.at === "" ? "every token" : look.clean[screen.at] === undefined ? `span ${screen.at}` : `token ${screen.at} “${shown(look.clean[screen.at])}”`;
  find("#lv-place").textContent = chosen ? `${screen.component} at ${words}` : "Click a box of the model";
  const off = !line.port || !chosen;
  for (const button of document.querySelectorAll(".lv-actions button")) button.disabled = off;
  find("#lv-attention").disabled = off || !/^a\d+\.h/.test(screen.component);
  find("#lv-restore").disabled = !line.port || !look.state.changes.length;
  if (isFeature()) for (const name of ["patch", "steer"]) find(`[data-action="${name}"]`).disabled = true;
  drawAnswer();
}

const DONE = { ablate: "Without", patch: "With the other prompt’s value at", scale: "With a scaled", steer: "Steered after", feature: "With a scaled" };

function drawAnswer() {
  const box = find("#lv-answer"), answer = screen.answer;
  box.hidden = !answer;
  if (!answer) return;
  const { data, gesture } = answer;
  const what = `${gesture.do === "feature" && gesture.factor === 0 ? "Without" : DONE[gesture.do]} ${data.place}`;
  find("#lv-says").replaceChildren(`${what} the ${lead()} goes from `, el("b", { text: num(data.before) }), " to ", el("b", { text: num(data.metric) }),
    ` (${num(data.change, true)}).`);
  find("#lv-control").textContent = data.controls ? controlSentence(data, gesture) : "Random controls are being run …";
  drawScale(data);
  drawTop(find("#lv-after"), data.top.slice(0, 3), data.top_before);
  find("#lv-python").textContent = answer.python ?? "";
  find("#lv-cli").textContent = answer.cli ?? "";
  find("#lv-cli-row").hidden = !answer.cli;
}

function controlSentence(data, gesture) {
  if (!data.controls.length) return "There is no other place of this kind to compare with.";
  const largest = Math.max(...data.controls.map((c) => Math.abs(c.change)));
  const kind = gesture.do === "steer" ? "A random direction as long" : gesture.do === "feature" ? "The same to a random other active feature" : "The same at a random other place";
  const verdict = Math.abs(data.change) > 2 * largest ? "more than chance" : "no more than twice a random control: read nothing into it";
  return `${kind} changes it by ${data.controls.map((c) => `${num(c.change, true)} (${c.place})`).join(", ")}: ${verdict}.`;
}

// Changes on one line: the gesture's as a diamond, the controls' as circles, zero as a tick.
function drawScale(data) {
  const svg = find("#lv-scale"), all = [data.change, ...(data.controls ?? []).map((c) => c.change)];
  const most = Math.max(1e-9, ...all.map(Math.abs)) * 1.15, x = (value) => 150 + (140 * value) / most;
  const ns = "http://www.w3.org/2000/svg";
  const shape = (tag, attributes) => {
    const made = document.createElementNS(ns, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const label = (at, y, text, anchor = "middle") => Object.assign(shape("text", { x: at, y, "text-anchor": anchor }), { textContent: text });
  svg.replaceChildren(shape("line", { x1: 5, x2: 295, y1: 26, y2: 26, class: "axis" }), shape("line", { x1: 150, x2: 150, y1: 18, y2: 34, class: "axis" }),
    label(150, 50, "no change"),
    ...(data.controls ?? []).map((c) => shape("circle", { cx: x(c.change), cy: 26, r: 5, class: "control" })),
    shape("path", { d: `M${x(data.change)} 17l8 9-8 9-8-9z`, class: data.change < 0 ? "effect negative" : "effect" }),
    label(Math.min(270, Math.max(30, x(data.change))), 12, num(data.change, true)));
  svg.setAttribute("aria-label", `change ${num(data.change, true)}; controls ${(data.controls ?? []).map((c) => num(c.change, true)).join(", ")}`);
}

function drawHistory() {
  const list = find("#lv-history"), steps = screen.look.history;
  const say = (step) => ({ ablate: `ablate ${step.place} (${step.kind})`, patch: `patch ${step.place}`, scale: `scale ${step.place} × ${step.factor}`,
    steer: `steer after layer ${step.layer}, strength ${step.strength}`, feature: `feature ${step.place} × ${step.factor}`, row: `pair ${step.row + 1}`, edit: "own prompts", restore: `restore ${step.place || "all"}`,
    keep: `keep ${step.n_edges || "all"} edges`, toggle: `toggle ${(step.parts ?? []).join(", ")}` })[step.do] ?? step.do;
  const result = (step) => (step.change !== undefined ? num(step.change, true) : step.faithfulness !== undefined ? `faithfulness ${num(step.faithfulness)}`
    : step.metric !== undefined ? num(step.metric) : "");
  list.replaceChildren(...steps.map((step) => el("li", {}, say(step), " ", el("b", { text: result(step) }))));
  find("#lv-nothing").hidden = steps.length > 0;
  find("#lv-script").textContent = screen.look.python;
}

function busy() {
  const open = line.open.size > 0;
  find("#lv-cancel").hidden = !open;
  find("#lv-work").hidden = !open;
  if (!open) { find("#lv-work").removeAttribute("value"); find("#lv-status").textContent = ""; }
}

function working(message) {
  const { done, total, words } = message.data;
  const bar = find("#lv-work");
  if (total > 1) { bar.max = total; bar.value = done; } else bar.removeAttribute("value");
  find("#lv-status").textContent = `${words}${total > 1 ? ` ${done}/${total}` : ""}`;
}

const announce = (text) => { find("#lv-live").textContent = text; };

function fail(error) {
  const box = find("#lv-error");
  box.textContent = error.message;
  box.hidden = false;
  announce(error.message);
}
