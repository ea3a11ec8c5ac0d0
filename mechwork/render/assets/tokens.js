// Relevance of tokens: the prompt, coloured by circuitsvis. The table below it says the same in numbers.

let papers = 0;
function mountTokens(root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent), paper = root.querySelector(".mw-paper");
  paper.id = `mw-tokens-${papers++}`;
  const start = () => CircuitsVis.render(paper.id, CircuitsVis.ColoredTokens, { tokens: data.tokens, values: data.values, minValue: -data.extent, maxValue: data.extent, negativeColor: "#D55E00", positiveColor: "#0072B2" });
  return { paper, start };
}

{
  const mounted = [...document.querySelectorAll("[data-mw-tokens]")].map(mountTokens);
  mechwork.vendor("circuitsvis").then(() => mounted.forEach(({ start }) => start()), () => mounted.forEach(({ paper }) => mechwork.excuse(paper)));
}
