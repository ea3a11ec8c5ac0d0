// From clicks and keys to requests, and from answers to the screen.
async function act(gesture, key = gesture.do) {
  find("#lv-error").hidden = true;
  screen.gesture = gesture;
  try {
    const found = await ask({ key, gesture }, (message) => {
      if (message.what !== "progress") working(message);
      else if (message.data.nodes) drawCircuit(message.data);
      else { screen.answer = { gesture, data: message.data }; drawAnswer(); }
    });
    if (!found) return null;
    const { answer, look } = found;
    screen.look = look;
    if (["ablate", "patch", "scale", "steer", "feature"].includes(gesture.do)) screen.answer = answer;
    else if (["row", "edit", "restore"].includes(gesture.do)) { screen.answer = null; find("#lv-view").hidden = true; }
    if (gesture.do === "row" || gesture.do === "edit") { screen.at = ""; colour(); }
    drawAll();
    if (answer.data.change !== undefined && matchMedia("(max-width: 760px)").matches) find("#lv-answer").scrollIntoView({ block: "center" });
    if (answer.data.change !== undefined) announce(`${find("#lv-says").textContent} ${find("#lv-control").textContent}`);
    return answer;
  } catch (error) { fail(error); return null; }
}

async function request(message) {
  find("#lv-error").hidden = true;
  try {
    const found = await ask(message, working);
    if (found?.look) { screen.look = found.look; screen.answer = null; drawAll(); }
    return found;
  } catch (error) { fail(error); return null; }
}

const comparing = () => find("#lv-difference").getAttribute("aria-pressed") === "true";

// A view of the state reached; while A → B is pressed, of both pinned states and their difference.
async function look(gesture, draw, key = gesture.do) {
  if (comparing()) {
    const found = await request({ ask: "difference", view: gesture, key });
    if (found) drawMoved(found.difference);
    return;
  }
  const answer = await act(gesture, key);
  if (answer) draw(answer.data);
}

function paint(data) {
  screen.values = data.values;
  screen.valuesWhat = data.what;
  drawGrid();
}

const colour = () => look({ do: "attribution" }, paint, "colour");

const ACTIONS = {
  ablate: () => isFeature() ? act({ do: "feature", place: place(), factor: 0 }, place()) : act({ do: "ablate", place: place(), kind: screen.component.startsWith("resid") ? "zero" : find("#lv-kind").value }, place()),
  patch: () => act({ do: "patch", place: place() }, place()),
  scale: () => isFeature() ? act({ do: "feature", place: place(), factor: Number(find("#lv-factor").value) }, "scale") : act({ do: "scale", place: place(), factor: Number(find("#lv-factor").value) }, "scale"),
  steer: () => act({ do: "steer", layer: layerOf(screen.component), strength: Number(find("#lv-strength").value) }, "steer"),
  restore: () => {
    const here = screen.look.state.changes.map((change) => change.place).find((name) => name === place() || name.split("@")[0] === screen.component);
    return act({ do: "restore", place: here ?? "" });
  },
  attention: () => look({ do: "attention", head: screen.component }, drawAttention),
  lens: () => look({ do: "lens", column: column() }, drawLens),
};

function run(name) {
  if (!line.port || !screen.look || (name !== "restore" && name !== "lens" && !screen.component)) return;
  if (isFeature() && (name === "patch" || name === "steer")) return;
  ACTIONS[name]();
}

function choose(component) {
  screen.component = component;
  screen.answer = null;
  drawGrid();
  drawPanel();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || button.disabled) return;
  const { place: component, at, action, node, feature, restores } = button.dataset;
  if (component) { choose(component); button.focus(); }
  else if (at !== undefined) { screen.at = at === screen.at ? "" : at; screen.answer = null; drawPrompt(); drawPanel(); }
  else if (action) run(action);
  else if (node) toggle(button, node.split(" "));
  else if (feature) choose(feature);
  else if (restores) act({ do: "restore", place: restores });
});

document.addEventListener("keydown", (event) => {
  const writing = event.target.closest("input, textarea, select");
  if (writing) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z") { event.preventDefault(); request({ ask: event.shiftKey ? "redo" : "undo" }); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const name = { a: "ablate", p: "patch", s: "steer", r: "restore", l: "lens" }[event.key.toLowerCase()];
  if (name) { event.preventDefault(); run(name); return; }
  const cell = event.target.closest(".lv-cell");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!cell || !step) return;
  event.preventDefault();
  const rows = [...document.querySelectorAll("#lv-cells tbody tr")].map((row) => [...row.querySelectorAll(".lv-cell")]);
  const i = rows.findIndex((row) => row.includes(cell)), j = rows[i].indexOf(cell);
  const next = rows[i + step[0]]?.[j + step[1]];
  if (next) { choose(next.dataset.place); next.focus(); }
});

// Parts of the circuit: one at a click, or several chosen first and taken out (or put back) together.
function toggle(button, parts) {
  if (find("#lv-several").getAttribute("aria-pressed") !== "true") { ask_circuit(parts); return; }
  for (const part of parts) if (!screen.chosen.delete(part)) screen.chosen.add(part);
  button.classList.toggle("chosen", parts.every((part) => screen.chosen.has(part)));
  find("#lv-together").disabled = !screen.chosen.size;
}

function ask_circuit(parts) {
  screen.chosen.clear();
  find("#lv-together").disabled = true;
  return keep({ do: "toggle", parts });
}

const keep = (gesture) => act(gesture, "circuit").then((answer) => {
  if (!answer) return;
  drawCircuit(answer.data);
  find("#lv-circuit-python").textContent = answer.python + (answer.cli ? `\n# ${answer.cli}` : "");
  announce(find("#lv-circuit-says").textContent);
});

find("#lv-several").addEventListener("click", (event) => {
  const on = event.currentTarget.getAttribute("aria-pressed") !== "true";
  event.currentTarget.setAttribute("aria-pressed", on);
  if (!on) { screen.chosen.clear(); find("#lv-together").disabled = true; document.querySelectorAll(".lv-node.chosen").forEach((chip) => chip.classList.remove("chosen")); }
});
find("#lv-together").addEventListener("click", () => ask_circuit([...screen.chosen]));
const chooseWritten = () => {
  const [component, at] = find("#lv-text").value.trim().split("@");
  if (!component) return;
  screen.at = at ?? "";
  drawPrompt();
  choose(component);
};
find("#lv-choose").addEventListener("click", chooseWritten);
find("#lv-write").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.matches("input")) chooseWritten(); });
find("#lv-active").addEventListener("click", () => look({ do: "features", site: find("#lv-site").value, column: column() }, drawFeatures));
find("#lv-all").addEventListener("click", () => { screen.at = ""; screen.answer = null; drawPrompt(); drawPanel(); });
find("#lv-undo").addEventListener("click", () => request({ ask: "undo" }));
find("#lv-redo").addEventListener("click", () => request({ ask: "redo" }));
for (const name of "AB") find(`#lv-pin${name}`).addEventListener("click", () => request({ ask: "pin", name }));
find("#lv-difference").addEventListener("click", async () => {
  const on = !comparing();
  find("#lv-difference").setAttribute("aria-pressed", on);
  if (!on) { find("#lv-view").hidden = true; colour(); return; }
  const found = await request({ ask: "difference" });
  if (!found) { find("#lv-difference").setAttribute("aria-pressed", "false"); return; }
  drawDifference(found.difference);
  colour();
});
find("#lv-cancel").addEventListener("click", cancelAll);
find("#lv-next").addEventListener("click", () => act({ do: "row", row: (screen.look.state.row + 1) % screen.look.n_rows }));
find("#lv-edit").addEventListener("click", () => {
  const form = find("#lv-form"), look = screen.look;
  form.hidden = !form.hidden;
  find("#lv-edit").setAttribute("aria-expanded", !form.hidden);
  if (form.hidden) return;
  [find("#lv-c1").value, find("#lv-c2").value] = [look.clean_text, look.corrupt_text];
  [find("#lv-a1").value, find("#lv-a2").value] = look.answers;
  find("#lv-c1").focus();
});
// No form: the frame's sandbox lets none be sent, and its submit event never comes.
const onEnter = (selector, does) => find(selector).addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.matches("input")) does(); });
const askThese = async () => {
  const [clean, corrupt, correct, incorrect] = ["#lv-c1", "#lv-c2", "#lv-a1", "#lv-a2"].map((id) => find(id).value);
  if (await act({ do: "edit", clean, corrupt, correct, incorrect })) { find("#lv-form").hidden = true; find("#lv-edit").focus(); }
};
find("#lv-ask").addEventListener("click", askThese);
onEnter("#lv-form", askThese);
find("#lv-direct").addEventListener("click", () => colour());
find("#lv-sweep").addEventListener("click", () => act({ do: "sweep" }, "colour").then((answer) => answer && paint(answer.data)));
find("#lv-score").addEventListener("click", () => act({ do: "score", method: find("#lv-method").value }).then((answer) => { if (answer) { drawCircuit(answer.data); limit(answer.data.n_edges); } }));
find("#lv-edges").addEventListener("input", (event) => {
  find("#lv-edges-n").textContent = event.target.value;
  keep({ do: "keep", n_edges: Number(event.target.value) });
});
for (const button of document.querySelectorAll("[data-copies]")) button.addEventListener("click", async () => {
  const source = find(button.dataset.copies);
  try { await navigator.clipboard.writeText(source.textContent); announce("copied"); } catch {
    getSelection().selectAllChildren(source); // no right to write: it is selected instead
    announce("selected; press Ctrl+C");
  }
});
find("#lv-freeze").addEventListener("click", async () => {
  const found = await request({ ask: "freeze" });
  if (!found) return;
  const link = el("a", { href: URL.createObjectURL(new Blob([found.page], { type: "text/html" })), download: "mechwork-live.html" });
  link.click();
});

function limit(n) {
  const slider = find("#lv-edges");
  slider.max = Math.min(n, 400);
  slider.disabled = false;
}

async function connected() {
  screen.lost = false;
  for (const button of document.querySelectorAll("[data-live]")) button.disabled = false;
  find("#lv-offline").hidden = true;
  const found = await request({ ask: "look" });
  if (!found) return;
  if (found.look.has_circuit) keep({ do: "keep", n_edges: 0 });
  colour();
}

function gone() {
  screen.lost = true;
  drop();
  fail(new Error("The model has gone: its program ended or the connection broke. What you see stays; start it again to go on."));
}

const SILENCE = "No answer yet: the notebook runs a cell, or its kernel has gone. The question waits; Cancel takes it back.";
const silent = () => fail(new Error(SILENCE));
const hush = () => { if (find("#lv-error").textContent === SILENCE) find("#lv-error").hidden = true; };

// A page that was frozen holds its record; without a port it shows that, and nothing can be asked.
const kept = find("script[data-name='mechwork-live']");
const record = kept ? JSON.parse(kept.textContent) : null;
if (record?.look) {
  screen.look = record.look;
  screen.values = record.values ?? null;
  screen.valuesWhat = record.values_what ?? "";
  drawAll();
  const list = find("#lv-history");
  [...list.children].forEach((item, i) => {
    const answer = record.answers[i];
    if (answer?.data?.before === undefined) return;
    const show = el("button", { type: "button", text: "show" });
    show.addEventListener("click", () => { screen.answer = answer; screen.component = answer.data.place.split("@")[0]; drawGrid(); drawAnswer(); });
    item.append(" ", show);
  });
}

if (window.parent !== window) window.parent.postMessage("mechwork-live-here", "*"); // ready for a port
