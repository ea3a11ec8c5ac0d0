// Mounting: joins model, state, drawing, view and controls for every graph on the page.

function mountGraph(root, id) {
  const payload = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const first = decode(payload), store = createStore(initialState(first));
  let graph = first, seen = null, focus = null, find = createEdgeFinder(first), queued = 0;

  const stage = htmlElement("div", { class: "mw-stage" });
  const canvas = htmlElement("canvas", { class: "mw-canvas", width: 1, height: 1, "aria-hidden": "true" });
  const svg = svgElement("svg", { class: "mw-svg", role: "group", "aria-label": `${payload.title}: circuit graph, arrow keys move between nodes` });
  const tip = htmlElement("div", { class: "mw-tip", hidden: true }), said = htmlElement("div", { class: "mw-said", role: "status" });
  const backdrop = svgElement("svg", { class: "mw-svg", "aria-hidden": "true" });
  stage.append(backdrop, canvas, svg, tip, said);

  const drawing = createDrawing(svg, backdrop), underlay = createUnderlay(canvas, stage);
  const view = createView(stage, (at) => {
    drawing.moving();
    drawing.place(at);
    underlay.follow(at, focus !== null);
    tip.hidden = true;
  });
  const app = { id, root, payload, store, drawing, view, stage, graph: () => graph, base: () => first, seen: () => seen, focus: () => focus };
  app.actions = createActions(app, said);
  app.tooltip = createTooltip(app, tip);
  app.controls = createControls(app);
  const panel = createPanel(app), help = createHelp();
  app.help = help;
  root.replaceChildren(...app.controls.elements, htmlElement("div", { class: "mw-main" }, stage, panel.element), help);
  const keyboard = attachKeyboard(app, stage);

  function refresh(before) {
    const state = store.get(), held = keyboard.holds();
    if (!before || before.groups !== state.groups || before.moved !== state.moved || before.roles !== state.roles) {
      graph = deriveGraph(first, state);
      find = createEdgeFinder(graph);
      drawing.build(graph);
      drawing.place(view.view);
    }
    seen = visibility(graph, state);
    focus = focusOf(graph, state, seen);
    if (before && before.shown !== state.shown) drawing.moving();
    drawing.update(state, seen, focus);
    underlay.set(graph, seen, state.shown);
    underlay.soon(view.view, focus !== null);
    app.controls.update(state, seen);
    panel.update(state, seen, focus);
    keyboard.restore(held);
  }

  let pending = null;
  store.subscribe((state, before) => {
    pending ??= before;
    cancelAnimationFrame(queued);
    queued = requestAnimationFrame(() => flush());
    if (before.focus !== state.focus) mechwork.select(graph.payload.places.length && graph.index.has(state.focus) ? graph.label[graph.index.get(state.focus)] : state.focus, app);
  });
  function flush() {
    if (!pending) return;
    const before = pending;
    pending = null;
    refresh(before);
  }
  app.flush = flush;
  // A node that another view selects may stand inside a supernode here, or not be part of this circuit.
  app.select = (name) => {
    const group = store.get().groups.find(({ members }) => members.includes(name));
    const here = group ? group.name : name, alike = graph.label.indexOf(here); // with places: the first of that component
    app.actions.focus(here !== null && graph.index.has(here) ? here : alike >= 0 ? graph.names[alike] : null);
  };

  attachPointer(stage, view, {
    click: (i, shift) => {
      const name = i >= 0 ? graph.names[i] : null;
      if (shift && name) app.actions.pathTo(name);
      else app.actions.focus(name === store.get().focus ? null : name);
      if (i >= 0) keyboard.stand(i);
    },
    hover: (i, x, y) => app.tooltip.at(i, x, y, (wx, wy) => find(wx, wy, candidates(), 7 / view.view.k)),
    drag: (i, dx, dy) => drawing.moveNode(i, graph.x[i] + dx, graph.y[i] + dy),
    drop: (i) => store.set({ moved: { ...store.get().moved, [graph.names[i]]: [graph.x[i], graph.y[i]] } }),
  });
  // Edges that a pointer can mean: of the focus if there is one, else the drawn ones.
  function candidates() {
    if (focus) return drawing.lit().filter((e) => e < graph.m);
    const list = [];
    for (let e = 0; e < Math.min(graph.m, CAP); e++) if (seen.edgeOn[e]) list.push(e);
    return list;
  }

  refresh(null);
  app.actions.fit();
  new ResizeObserver(() => {
    view.measure();
    if (view.touched()) underlay.paint(view.view, focus !== null);
    else app.actions.fit();
  }).observe(stage);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => underlay.paint(view.view, focus !== null));
  mechwork.register(app);
  mechwork.graphs.push(app);
  return app;
}

document.querySelectorAll("[data-mw-graph]").forEach((root, k) => mountGraph(root, `mw-graph-${k}`));
