// Attention: a picture per head to choose from, and the chosen head drawn large by circuitsvis. Other views can ask for
// the small picture of a head, and choose one by selecting its node.

const INKS = [0, 114, 178]; // Okabe-Ito blue, as rgb; attention is never negative

function thumbnail(pattern, size) {
  const n = pattern.length, canvas = document.createElement("canvas");
  canvas.width = canvas.height = n;
  canvas.style.width = canvas.style.height = `${size}px`;
  const context = canvas.getContext("2d"), picture = context.createImageData(n, n);
  pattern.forEach((row, q) => row.forEach((value, k) => {
    const at = 4 * (q * n + k), share = Math.sqrt(Math.max(0, Math.min(1, value)));
    for (let c = 0; c < 3; c++) picture.data[at + c] = k > q ? 236 : Math.round(255 + (INKS[c] - 255) * share);
    picture.data[at + 3] = 255;
  }));
  context.putImageData(picture, 0, 0);
  return canvas;
}

let figures = 0;
// One head drawn by circuitsvis into `holder`.
function drawHead(holder, data, i) {
  holder.id = `mw-attention-${figures++}`;
  // circuitsvis draws later, and gives its canvas the role of an image but no name.
  const label = `Attention pattern of head ${data.heads[i]}; the table of the section on heads says where it looks`;
  new MutationObserver(() => holder.querySelectorAll("canvas").forEach((canvas) => canvas.setAttribute("aria-label", label))).observe(holder, { childList: true, subtree: true });
  CircuitsVis.render(holder.id, CircuitsVis.AttentionPattern, { tokens: data.tokens, attention: data.patterns[i], positiveColor: "#0072B2", negativeColor: "#D55E00", minValue: 0, maxValue: 1, showAxisLabels: true, maskUpperTri: false });
}

// The same, over the page; closed with Escape or the button.
function enlarge(name, data, i) {
  const dialog = document.createElement("dialog"), close = document.createElement("button"), holder = document.createElement("div"), title = document.createElement("h3");
  dialog.className = "mw-enlarged";
  dialog.setAttribute("aria-label", `Attention of head ${name}`);
  title.textContent = `Attention of head ${name} on the prompt shown below (rows: queries, columns: keys)`;
  close.type = "button";
  close.className = "mw-button";
  close.textContent = "Close";
  close.addEventListener("click", () => dialog.close());
  holder.className = "mw-paper";
  dialog.append(title, holder, close);
  dialog.addEventListener("close", () => dialog.remove());
  (document.fullscreenElement ?? document.body).append(dialog);
  dialog.showModal();
  mechwork.vendor("circuitsvis").then(() => drawHead(holder, data, i), () => mechwork.excuse(holder));
}

function mountAttention(root, data) {
  const box = root.querySelector(".mw-attention-view"), index = new Map(data.heads.map((name, i) => [name, i]));
  const heads = document.createElement("div"), large = document.createElement("div"), title = document.createElement("h3"), paper = document.createElement("div");
  heads.className = "mw-heads";
  heads.setAttribute("role", "group");
  heads.setAttribute("aria-label", "Choose a head");
  large.className = "mw-large";
  paper.className = "mw-paper";
  large.append(title, paper);
  large.setAttribute("aria-live", "polite");
  const buttons = data.heads.map((name, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "mw-head";
    const picture = thumbnail(data.patterns[i], 82);
    picture.setAttribute("aria-hidden", "true");
    button.append(picture, name);
    button.setAttribute("aria-label", `Attention of head ${name}`);
    button.addEventListener("click", () => {
      show(i);
      mechwork.select(name, view);
    });
    return button;
  });
  heads.append(...buttons);
  box.append(heads, large);

  let shown = -1;
  function show(i) {
    if (i === shown || !window.CircuitsVis) return;
    shown = i;
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", String(k === i)));
    title.textContent = `Head ${data.heads[i]}`;
    // A fresh element each time: circuitsvis keeps its own root in the element it is given.
    const holder = document.createElement("div");
    paper.replaceChildren(holder);
    drawHead(holder, data, i);
  }
  const view = { select: (name) => name !== null && index.has(name) && show(index.get(name)) };
  mechwork.register(view);
  const former = mechwork.enlarge;
  mechwork.enlarge = {
    has: (name) => index.has(name) || Boolean(former?.has(name)),
    show: (name) => (index.has(name) ? enlarge(name, data, index.get(name)) : former.show(name)),
  };
  return { paper, start: () => show(Math.max(0, index.get(mechwork.selection) ?? 0)) };
}

document.querySelectorAll("[data-mw-attention]").forEach((root) => mechwork.withData(root, (data) => {
  const { paper, start } = mountAttention(root, data);
  mechwork.vendor("circuitsvis").then(start, () => mechwork.excuse(paper));
}));
