// Linked views: every drawing on a page registers here, and a selection in one is told to the others.
// A selection is a node's name ("a3.h1") or null.
const mechwork = {
  views: [],
  graphs: [],
  selection: null,
  enlarge: null, // set by the attention view: { has(name), show(name) }

  loading: {},

  // A third-party script that the page carries packed; resolves once it has run.
  vendor(name) {
    this.loading[name] ??= unpack(document.querySelector(`script[data-vendor="${name}"]`));
    return this.loading[name];
  },

  register(view) {
    this.views.push(view);
  },

  select(name, origin) {
    if (name === this.selection) return;
    this.selection = name;
    for (const view of this.views) if (view !== origin && view.select) view.select(name);
  },
};
window.mechwork = mechwork;

const bytesOf = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const unzip = (packed) => new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
const inflate = async (element) => unzip(bytesOf(element.textContent));

async function unpack(element) {
  const { key } = element.dataset, text = await unzip((held[key] ??= await borrow(key)));
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
}

// In a notebook one output holds the packed script and the frames beside it ask for it (sharing.py). Whatever they are sent, the page's policy runs no other script.
const held = {}, awaited = {}, PATIENCE = 6000;
const neighbours = function* () {
  for (let i = 0; parent !== window && i < parent.length; i++) if (parent[i] !== window) yield parent[i];
};
const tell = (frame, mechwork, key, packed = null) => frame.postMessage({ mechwork, key, packed }, "*");

for (const element of document.querySelectorAll("script[data-key]")) {
  const { key } = element.dataset;
  if (!element.textContent) continue;
  held[key] = bytesOf(element.textContent);
  for (const frame of neighbours()) tell(frame, "has", key);
}

window.addEventListener("message", ({ data, source }) => {
  const { mechwork: said, key, packed } = data ?? {};
  if (said === "wants" && held[key]) tell(source, "lends", key, held[key]);
  if (said === "has" && awaited[key] && !held[key]) tell(source, "wants", key);
  if (said === "lends" && awaited[key] && packed instanceof Uint8Array) awaited[key](packed);
});

// A neighbour may be drawn later than this frame, or never.
function borrow(key) {
  const missing = document.createElement("p");
  missing.setAttribute("role", "status");
  missing.className = "mw-missing";
  missing.textContent = "The script that draws this stood in the output of another cell, which is gone or not yet shown. Run this cell once more.";
  const late = setTimeout(() => document.body.prepend(missing), PATIENCE);
  return new Promise((done) => {
    awaited[key] = done;
    for (const frame of neighbours()) tell(frame, "wants", key);
  }).finally(() => {
    clearTimeout(late);
    missing.remove();
  });
}

// Calls `draw` with the data that stand in a drawing's element: at once, or once they are unpacked where they are large.
mechwork.withData = (root, draw) => {
  const element = root.querySelector("script[type='application/json'], script[data-packed]");
  if (!("packed" in element.dataset)) draw(JSON.parse(element.textContent));
  else inflate(element).then((text) => draw(JSON.parse(text)), () => mechwork.excuse(root));
};

// What stands in the place of a figure whose script this browser cannot unpack.
mechwork.excuse = (root) => root.append("This figure needs a browser of 2023 or later. Its numbers are in the tables of this page and in the files beside it.");
