// A tour of three minutes for a class: eight steps, each points at a part of the screen, and does one thing if asked to.
const STEPS = [
  ["#lv-clean", "1 of 8. Read the prompt. The model has to name somebody; the other prompt is as long and has another answer. Tokens that differ are marked.", null],
  ["#lv-top", "2 of 8. What does it say next? The big number is how far the right answer leads the wrong one. Everything that follows asks what makes this number.", null],
  ["#lv-cells", "3 of 8. The boxes are the model’s parts, the last layer on top. Blue ones push towards the right answer by themselves (direct shares). Which one would you take out?", () => colour()],
  ["#lv-answer", "4 of 8. Take the strongest part out. Compare with the circles: the same done at random other places. An effect no larger than they are says nothing.", () => { choose(strongest()); return ACTIONS.ablate(); }],
  ["#lv-answer", "5 of 8. Put back what we did, and give that part what it has in the other prompt. If the answer moves, the part carries what differs.", async () => { await act({ do: "restore", place: "" }); choose(strongest()); return ACTIONS.patch(); }],
  ["#lv-view", "6 of 8. Where does the model know it? The lens reads the stream after every layer at the last token: see where the right name first appears.", async () => { await act({ do: "restore", place: "" }); screen.at = ""; return ACTIONS.lens(); }],
  ["#lv-circuit-says", "7 of 8. Score all edges, then keep the strongest: does that small circuit alone still answer? Faithfulness 1 is the whole model, random circuits stand beside it.",
    async () => { const found = await act({ do: "score", method: "relp" }); if (found) { limit(found.data.n_edges); await keep({ do: "keep", n_edges: Number(find("#lv-edges").value) }); } }],
  ["#lv-script", "8 of 8. Everything that you did is a line of Python with the same numbers. Save page keeps it all as one file. Now ask a question of your own: edit the prompts.", () => { find("#lv-script").closest("details").open = true; }],
];
const tour = { at: -1 };

// The box of largest direct share.
function strongest() {
  const all = Object.entries(screen.values ?? { "a0.h0": 1 });
  return all.reduce((best, one) => (one[1] > best[1] ? one : best))[0];
}

function guide(at) {
  document.querySelector(".lv-pointed")?.classList.remove("lv-pointed");
  tour.at = at;
  const on = at >= 0 && at < STEPS.length;
  find("#lv-guide").hidden = !on;
  find("#lv-tour").setAttribute("aria-expanded", on);
  if (!on) { find("#lv-tour").focus(); return; }
  const [selector, says, does] = STEPS[at];
  find("#lv-guide-says").textContent = says;
  find("#lv-guide-do").hidden = !does;
  find("#lv-guide-do").disabled = !line.port;
  find("#lv-guide-back").disabled = at === 0;
  find("#lv-guide-next").textContent = at === STEPS.length - 1 ? "Done" : "Next";
  point(selector);
  announce(says);
}

function point(selector) {
  const there = find(selector).closest(".lv-card");
  document.querySelector(".lv-pointed")?.classList.remove("lv-pointed");
  there.classList.add("lv-pointed");
  there.scrollIntoView({ block: "nearest" });
}

find("#lv-tour").addEventListener("click", () => guide(tour.at >= 0 ? -1 : 0));
find("#lv-guide-end").addEventListener("click", () => guide(-1));
find("#lv-guide-back").addEventListener("click", () => guide(tour.at - 1));
find("#lv-guide-next").addEventListener("click", () => guide(tour.at + 1 < STEPS.length ? tour.at + 1 : -1));
find("#lv-guide-do").addEventListener("click", async () => { const step = STEPS[tour.at]; await step[2](); point(step[0]); });
