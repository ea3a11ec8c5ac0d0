// Actions: what buttons, keys and the pointer do, in one place.

function createActions(app, said) {
  const { store } = app;
  const actions = {
    // `keep`: a step from one node to the next inside the panel keeps the keyboard there.
    focus(name, { keep = false } = {}) {
      store.set({ focus: name, to: null });
      if (name === null) return;
      app.flush();
      const graph = app.graph(), i = graph.index.get(name);
      if (i === undefined) return;
      app.view.reveal(graph.x[i], graph.y[i]);
      if (keep) app.root.querySelector(".mw-panel-body").focus({ preventScroll: true });
    },
    pathTo(name) {
      const from = store.get().focus;
      if (from === null || from === name) actions.focus(name);
      else store.set({ to: name });
    },
    focusFound() {
      app.flush();
      const found = app.seen().searched;
      const i = found ? found.indexOf(true) : -1;
      if (i >= 0) actions.focus(app.graph().names[i]);
      else actions.say("No node has this text in its name or role.");
    },
    back() {
      const { to, focus, query } = store.get();
      if (to !== null) store.set({ to: null });
      else if (focus !== null) store.set({ focus: null });
      else if (query) store.set({ query: "" });
    },
    pin(name) {
      const { pins } = store.get();
      const next = pins.includes(name) ? pins.filter((p) => p !== name) : [...pins, name];
      store.set({ pins: next, ...(next.length ? {} : { only: false }) });
    },
    onlyPinned() {
      const { only, pins } = store.get();
      if (!only && !pins.length) actions.say("Pin nodes first (P, or Pin in the panel); then they can stand alone.");
      else store.set({ only: !only });
    },
    group(name, members) {
      const { groups, pins } = store.get(), taken = new Set([...app.base().names, ...groups.map((g) => g.name)]);
      let unique = name;
      for (let n = 2; taken.has(unique); n++) unique = `${name} ${n}`;
      const rest = groups.map((g) => ({ ...g, members: g.members.filter((m) => !members.includes(m)) })).filter((g) => g.members.length);
      store.set({ groups: [...rest, { name: unique, members }], pins: pins.filter((p) => !members.includes(p)), focus: unique, to: null });
    },
    ungroup(name) {
      store.set({ groups: store.get().groups.filter((g) => g.name !== name), focus: null, to: null });
    },
    moreEdges(more) {
      const m = app.payload.edges.source.length, now = stepOf(store.get().shown, m);
      const next = countOf(Math.max(0, Math.min(STEPS, now + (more ? 20 : -20))), m);
      const wanted = next === store.get().shown ? next + (more ? 1 : -1) : next;
      store.set({ shown: Math.max(1, Math.min(m, wanted)) }, "shown");
    },
    zoomIn: () => app.view.zoom(1.25),
    zoomOut: () => app.view.zoom(0.8),
    fit() {
      app.flush();
      const graph = app.graph(), seen = app.seen();
      const nodes = [...graph.names.keys()].filter((i) => seen.nodeOn[i]);
      const edges = [];
      for (let e = 0; e < Math.min(graph.m, CAP); e++) if (seen.edgeOn[e]) edges.push(e);
      const box = contentBox(graph, edges, nodes);
      const { places } = graph; // all columns, also those without a node
      if (places.length) {
        const left = Math.min(box.x, places[0].left - 56), right = Math.max(box.x + box.width, places.at(-1).right + 20);
        Object.assign(box, { x: left, width: right - left });
      }
      if (places.length) box.height = Math.max(box.height, graph.bottom + 62 - box.y); // with the tokens' texts
      app.view.fit({ x: box.x + 56, y: box.y, width: box.width - 76, height: box.height });
    },
    reset() {
      const state = store.get();
      store.set({ ...initialState(app.base()), notes: state.notes, roles: state.roles });
      app.flush();
      actions.fit();
    },
    fullScreen() {
      if (document.fullscreenElement) document.exitFullscreen();
      else app.root.requestFullscreen?.().catch(() => actions.say("This page may not fill the screen; open the file in a browser tab."));
    },
    help: () => app.help.showModal(),
    say(text) {
      said.textContent = text;
      clearTimeout(actions.timer);
      actions.timer = setTimeout(() => (said.textContent = ""), 6000);
    },
  };
  return actions;
}
