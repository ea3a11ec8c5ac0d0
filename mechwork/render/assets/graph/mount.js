// Mounting: joins model, state, drawing, view and controls for every graph on the page.

function mountGraph(root, id, payload) {
  const whole = decode(payload), fresh = initialState(whole), saved = readHash(id);
  const store = createStore(saved ? { ...fresh, ...adoptState(fresh, saved) } : fresh);
  let level = levelOf(payload, store.get().shown), first = atLevel(whole, level);
  let graph = first, seen = null, focus = null, hovered = -1, find = createEdgeFinder(first), queued = 0;

  const stage = htmlElement("div", { class: "mw-stage" });
  const canvas = htmlElement("canvas", { class: "mw-canvas", width: 1, height: 1, "aria-hidden": "true" });
  const svg = svgElement("svg", { class: "mw-svg", role: "group", "aria-label": `${payload.title}: circuit graph, arrow keys move between nodes` });
  const tip = htmlElement("div", { class: "mw-tip", hidden: true }), said = htmlElement("div", { class: "mw-said", role: "status" });
  const backdrop = svgElement("svg", { class: "mw-svg", "aria-hidden": "true" });
  stage.append(backdrop, canvas, svg, tip, said);

  const drawing = createDrawing(svg, backdrop, id), underlay = createUnderlay(canvas, stage);
  const view = createView(stage, (at) => {
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
    const wanted = levelOf(payload, state.shown), relaid = wanted !== level;
    if (relaid) first = atLevel(whole, (level = wanted));
    const own = isArranged(state) && before && (before.shown !== state.shown || before.pins !== state.pins), rearranged = before && (before.collapse !== state.collapse || before.only !== state.only);
    if (!before || relaid || own || rearranged || before.groups !== state.groups || before.moved !== state.moved || before.roles !== state.roles) {
      graph = deriveGraph(first, state);
      find = createEdgeFinder(graph);
      drawing.build(graph);
      drawing.place(view.view, true);
    }
    seen = visibility(graph, state, seen);
    focus = focusOf(graph, state, seen);
    if (before && before.shown !== state.shown) drawing.moving();
    const brought = placeExtras(graph, seen, focus), extras = brought.filter(([i, x]) => graph.x[i] !== x);
    for (const [i, x] of extras) drawing.moveNode(i, x, graph.y[i]);
    if (extras.length) find = createEdgeFinder(graph);
    drawing.update(state, seen, focus);
    drawing.nameBands(bandNames(graph, brought));
    underlay.set(graph, seen, state);
    underlay.soon(view.view, focus !== null);
    app.controls.update(state, seen);
    panel.update(state, seen, focus);
    keyboard.restore(held);
    if (rearranged) app.actions.fit();
    else if ((relaid || own) && !view.touched()) actionsFit();
  }
  const actionsFit = () => requestAnimationFrame(() => view.touched() || app.actions.fit());

  let pending = null;
  store.subscribe((state, before) => {
    pending ??= before;
    writeHash(id, state, fresh);
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
    const group = groupsOf(first, store.get()).find(({ members }) => members.includes(name));
    const here = group ? group.name : name, alike = graph.label.indexOf(here); // with places: the first of that component
    app.actions.focus(here !== null && graph.index.has(here) ? here : alike >= 0 ? graph.names[alike] : null);
  };

  attachPointer(stage, view, {
    click: (i, shift, x, y, touch) => {
      if (i < 0 && touch) i = nearestNode(x, y, 24);
      if (i < 0) {
        const e = find(...view.toWorld(x, y), candidates(), 9 / view.view.k);
        if (e >= 0) {
          app.tooltip.edge(e, x, y);
          app.actions.say(tellEdge(app)(e).join(", "));
          return;
        }
      }
      const name = i >= 0 ? graph.names[i] : null;
      if (shift && name) app.actions.pathTo(name);
      else app.actions.focus(name === store.get().focus ? null : name);
      if (i >= 0) keyboard.stand(i);
    },
    hover: (i, x, y) => {
      if (i !== hovered && !store.get().focus) drawing.hover((hovered = i), (e) => seen.edgeOn[e]);
      app.tooltip.at(i, x, y, (wx, wy) => find(wx, wy, candidates(), 7 / view.view.k));
    },
    drag: (i, dx, dy) => drawing.moveNode(i, graph.x[i] + dx, graph.y[i] + dy),
    drop: (i) => store.set({ moved: { ...store.get().moved, [graph.names[i]]: [graph.x[i], graph.y[i]] } }),
  });
  // The node whose outline is nearest to a point on the screen, for fingers, which are wider than a small node.
  function nearestNode(px, py, reach) {
    const [x, y] = view.toWorld(px, py);
    let best = -1, least = reach / view.view.k;
    for (let i = 0; i < graph.n; i++) {
      const away = Math.max(Math.abs(graph.x[i] - x) - graph.width[i] / 2, Math.abs(graph.y[i] - y) - graph.height[i] / 2);
      if (drawing.isShown(i) && away < least) [best, least] = [i, away];
    }
    return best;
  }
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
  mechwork.graphs.sort((a, b) => (a.root.compareDocumentPosition(b.root) & Node.DOCUMENT_POSITION_FOLLOWING ? -1 : 1)); // a packed one mounts late
  return app;
}

document.querySelectorAll("[data-mw-graph]").forEach((root, k) => mechwork.withData(root, (payload) => mountGraph(root, `mw-graph-${k}`, payload)));
