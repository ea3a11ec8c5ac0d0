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

async function inflate(element) {
  const packed = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function unpack(element) {
  const script = document.createElement("script");
  script.textContent = await inflate(element);
  document.head.append(script);
}

// Calls `draw` with the data that stand in a drawing's element: at once, or once they are unpacked where they are large.
mechwork.withData = (root, draw) => {
  const element = root.querySelector("script[type='application/json'], script[data-packed]");
  if (!("packed" in element.dataset)) draw(JSON.parse(element.textContent));
  else inflate(element).then((text) => draw(JSON.parse(text)), () => mechwork.excuse(root));
};

// What stands in the place of a figure whose script this browser cannot unpack.
mechwork.excuse = (root) => root.append("This figure needs a browser of 2023 or later. Its numbers are in the tables of this page and in the files beside it.");
