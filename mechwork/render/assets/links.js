// Linked views: every drawing on a page registers here, and a selection in one is told to the others.
// A selection is a node's name ("a3.h1") or null.
const mechwork = {
  views: [],
  graphs: [],
  selection: null,
  thumbnail: null, // set by the attention view: (name) => canvas element or null

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
