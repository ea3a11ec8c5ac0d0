// The keyboard: everything the mouse can do. The graph is one stop in the tab order; arrows move between its nodes.

const KEYS = [
  ["Tab", "reach the graph, then its panel"],
  ["← → ↑ ↓", "move to the nearest node in that direction"],
  ["Enter or Space", "focus the node: direct edges, ancestors, descendants"],
  ["Shift+Enter", "paths from the focused node to this one"],
  ["Esc", "clear the paths, then the focus"],
  ["[ and ]", "fewer, more edges"],
  ["+ − 0", "zoom in, zoom out, fit"],
  ["Alt+arrows", "move the node"],
  ["P", "pin the node"],
  ["O", "only the pinned nodes, on a canvas of their own; again: all"],
  ["/", "search"],
  ["F", "full screen"],
  ["Ctrl+Z, Ctrl+Shift+Z", "undo, redo"],
  ["?", "this help"],
];

function attachKeyboard(app, stage) {
  const { store, actions } = app;
  let current = -1, marked = null; // the node that has the keyboard, and the element that is in the tab order

  function stand(i, { focus = true } = {}) {
    const graph = app.graph(), button = (i >= 0 && app.drawing.button(i)) || null;
    current = i;
    if (button !== marked) {
      // Only what changes: writing the tab order of the focused element makes the browser work out every style at once.
      marked?.setAttribute("tabindex", "-1");
      button?.setAttribute("tabindex", "0");
      marked = button;
    }
    if (!button || !focus) return;
    app.view.reveal(graph.x[i], graph.y[i]);
    button.focus({ preventScroll: true });
  }

  // After every change one visible node must be in the tab order: the one that has the keyboard, else the focus.
  function restore(held) {
    const graph = app.graph(), { focus } = store.get();
    const wanted = focus === null ? -1 : graph.index.get(focus) ?? -1;
    const usable = (i) => i >= 0 && i < graph.n && app.drawing.isShown(i);
    const next = [...(held ? [current, wanted] : [wanted, current]), ...graph.names.keys()].find(usable) ?? -1;
    stand(next, { focus: held && !holds() });
  }

  function holds() {
    return stage.contains(document.activeElement) && document.activeElement.closest(".mw-node") !== null;
  }

  function step(dx, dy) {
    const graph = app.graph();
    const shown = [...graph.names.keys()].filter((i) => i !== current && app.drawing.isShown(i));
    let best = -1, least = Infinity;
    for (const i of shown) {
      const along = (graph.x[i] - graph.x[current]) * dx + (graph.y[i] - graph.y[current]) * dy;
      const across = Math.abs((graph.x[i] - graph.x[current]) * dy) + Math.abs((graph.y[i] - graph.y[current]) * dx);
      const cost = along + (dx ? 4 : 1.2) * across;
      if (along > 1 && cost < least) {
        least = cost;
        best = i;
      }
    }
    if (best >= 0) stand(best);
  }

  function nudge(dx, dy) {
    const graph = app.graph(), name = graph.names[current];
    store.set({ moved: { ...store.get().moved, [name]: [graph.x[current] + 12 * dx, graph.y[current] + 12 * dy] } }, `move ${name}`);
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  stage.addEventListener("focusin", (event) => {
    const box = event.target.closest(".mw-node");
    if (!box) return;
    stand(Number(box.dataset.node), { focus: false }); // a click gives focus too: only one node stays in the tab order
    app.tooltip.node(current);
  });
  stage.addEventListener("focusout", () => app.tooltip.hide());

  stage.addEventListener("keydown", (event) => {
    if (!event.target.closest(".mw-node")) return;
    const name = app.graph().names[current], arrow = ARROWS[event.key];
    if (arrow && event.altKey) nudge(...arrow);
    else if (arrow) step(...arrow);
    else if ((event.key === "Enter" || event.key === " ") && event.shiftKey) actions.pathTo(name);
    else if (event.key === "Enter" || event.key === " ") actions.focus(store.get().focus === name ? null : name);
    else if (event.key === "p" || event.key === "P") actions.pin(name);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  // Keys work on a fresh page, and after a dialog has left the keyboard with nobody: the graph used last answers.
  app.root.addEventListener("pointerdown", () => (mechwork.active = app));
  app.root.addEventListener("focusin", () => (mechwork.active = app));
  const alone = document.body.classList.contains("mw-standalone");
  const mine = (event) => app.root.contains(event.target) || (event.target === document.body && (mechwork.active ?? (alone ? mechwork.graphs[0] : graphInView())) === app);

  document.addEventListener("keydown", (event) => {
    if (app.help.open || event.defaultPrevented || !mine(event)) return;
    if (event.target === document.body && ARROWS[event.key] && !event.altKey && !event.ctrlKey && (alone || mechwork.active === app)) {
      event.preventDefault();
      return stand(app.drawing.isShown(current) ? current : app.graph().names.findIndex((_, i) => app.drawing.isShown(i)));
    }
    const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), textarea, select");
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "z" && !typing) event.shiftKey ? store.redo() : store.undo();
    else if (control || event.altKey) return;
    else if (event.key === "Escape") actions.back();
    else if (typing) return;
    else if (event.key === "[" || event.key === "]") actions.moreEdges(event.key === "]");
    else if (event.key === "+" || event.key === "=") actions.zoomIn();
    else if (event.key === "-" || event.key === "−") actions.zoomOut();
    else if (event.key === "0") actions.fit();
    else if (event.key === "o" || event.key === "O") actions.onlyPinned();
    else if (event.key === "/") app.controls.search.focus();
    else if (event.key === "f" || event.key === "F") actions.fullScreen();
    else if (event.key === "?") actions.help();
    else return;
    event.preventDefault();
  });
  return { stand, restore, holds };
}

// In a longer page: the graph over the middle of the window.
function graphInView() {
  const middle = window.innerHeight / 2;
  return mechwork.graphs.find(({ root }) => {
    const box = root.getBoundingClientRect();
    return box.height > 0 && box.top < middle && box.bottom > middle;
  });
}

function createHelp() {
  const rows = KEYS.map(([keys, what]) => htmlElement("tr", {}, htmlElement("th", { scope: "row" }, keys), htmlElement("td", {}, what)));
  const dialog = htmlElement("dialog", { class: "mw-help", "aria-label": "Keys and help" });
  dialog.append(
    heading(1, "Keys"),
    htmlElement("table", {}, htmlElement("tbody", {}, ...rows)),
    htmlElement("p", {}, "Mouse: drag the background to pan, the wheel to zoom, a node to move it; click to focus; Shift-click a second node for the paths between them."),
    htmlElement("button", { type: "button", class: "mw-button", onclick: () => dialog.close() }, "Close"),
  );
  return dialog;
}
