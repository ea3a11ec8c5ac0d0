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

async function unpack(element) {
  const packed = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

// What stands in the place of a figure whose script this browser cannot unpack.
mechwork.excuse = (root) => root.append("This figure needs a browser of 2023 or later. Its numbers are in the tables of this page and in the files beside it.");
