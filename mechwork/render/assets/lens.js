// The lens table: places down, positions across, each cell its most probable token; hover or focus shows the top-k with probabilities.
// Columns are positions, so equal tokens stay apart. The page holds the table as plain HTML; this colours it and answers the pointer.

const LENS_DARK = 0.72;
const LENS_MEASURES = { probability: "probability of the target", top: "probability of the top token", entropy: "entropy, bits", kl: "KL to the model's output, bits" };

// White to blue by share of the range; dark text on light cells and light on dark.
function lensColour(share) {
  const t = Math.max(0, Math.min(1, share)), mix = (a, b) => Math.round(a + (b - a) * t);
  return { background: `rgb(${mix(255, 5)},${mix(255, 72)},${mix(255, 128)})`, color: t > LENS_DARK * 0.7 ? "#ffffff" : "#1b1f24" };
}

function mountLens(root, data) {
  const choices = root.querySelector("[data-lens-measure]"), rows = root.querySelector("[data-lens-row]"), key = root.querySelector("[data-lens-range]");
  const tables = [...root.querySelectorAll("[data-lens-table]")];
  const tip = document.createElement("div");
  tip.className = "mw-lens-tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);

  // Which cell is which: rows from the last place down, columns from the answer backwards.
  for (const table of tables) {
    const prompt = data.prompts[Number(table.dataset.lensTable)];
    [...table.tBodies[0].rows].forEach((row, k) => {
      const place = data.places.length - 1 - k;
      [...row.querySelectorAll("td")].forEach((cell, i) => {
        const pos = prompt.tokens.length - 1 - i, [text, probability] = prompt.words[place][pos][0];
        Object.assign(cell.dataset, { place, pos });
        cell.tabIndex = k === 0 && i === 0 ? 0 : -1;
        cell.setAttribute("aria-label", `${text}, probability ${probability.toFixed(2)}`);
      });
    });
  }

  function paint() {
    const name = choices.value, values = data.prompts.flatMap((prompt) => prompt[name].flat());
    const high = name === "probability" || name === "top" ? 1 : Math.max(...values, 1e-9);
    key.textContent = `${LENS_MEASURES[name]}: 0 to ${high.toFixed(name === "probability" || name === "top" ? 0 : 2)}`;
    for (const table of tables) {
      const prompt = data.prompts[Number(table.dataset.lensTable)];
      for (const cell of table.querySelectorAll("td")) Object.assign(cell.style, lensColour(prompt[name][cell.dataset.place][cell.dataset.pos] / high));
    }
  }

  function show(cell) {
    const prompt = data.prompts[Number(cell.closest("table").dataset.lensTable)], place = cell.dataset.place, pos = cell.dataset.pos;
    const number = (name) => prompt[name][place][pos];
    const head = document.createElement("div");
    head.textContent = `${data.places[place]}, position ${pos} (${prompt.tokens[pos]})`;
    const facts = document.createElement("div");
    facts.className = "mw-muted";
    facts.textContent = `target ${prompt.targets[pos]}: rank ${number("rank")}, probability ${number("probability").toPrecision(3)}; entropy ${number("entropy").toFixed(2)} bits, KL ${number("kl").toFixed(2)} bits`;
    const list = document.createElement("table");
    prompt.words[place][pos].forEach(([text, probability]) => {
      const row = list.insertRow();
      row.insertCell().textContent = text;
      row.insertCell().textContent = probability.toFixed(3);
      const bar = document.createElement("span");
      bar.className = "mw-lens-bar";
      bar.style.width = `${Math.max(1, 110 * probability)}px`;
      row.insertCell().append(bar);
    });
    tip.replaceChildren(head, facts, list);
    tip.hidden = false;
    const box = cell.getBoundingClientRect(), own = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${box.bottom + own.height + 8 > innerHeight ? Math.max(4, box.top - own.height - 6) : box.bottom + 6}px`;
  }

  const cellOf = (event) => event.target.closest?.("td[data-place]");
  for (const table of tables) {
    table.addEventListener("pointerover", (event) => cellOf(event) && show(cellOf(event)));
    table.addEventListener("pointerleave", () => (tip.hidden = true));
    table.addEventListener("focusin", (event) => cellOf(event) && show(cellOf(event)));
    table.addEventListener("focusout", () => (tip.hidden = true));
    table.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, 1], ArrowRight: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key], cell = cellOf(event);
      if (event.key === "Escape") tip.hidden = true;
      if (!step || !cell) return;
      const next = table.querySelector(`td[data-place='${Number(cell.dataset.place) + step[0]}'][data-pos='${Number(cell.dataset.pos) + step[1]}']`);
      if (!next) return;
      event.preventDefault();
      cell.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  choices.addEventListener("change", paint);
  rows?.addEventListener("change", () => tables.forEach((table) => (table.parentElement.hidden = table.dataset.lensTable !== rows.value)));
  root.querySelector("[data-lens-controls]").hidden = false;
  paint();
}

document.querySelectorAll("[data-mw-lens]").forEach((root) => mechwork.withData(root, (data) => mountLens(root, data)));
