// Relevance of tokens: the prompt, coloured by circuitsvis. The table below it says the same in numbers.

let papers = 0;
document.querySelectorAll("[data-mw-tokens]").forEach((root) => mechwork.withData(root, ({ tokens, values, extent }) => {
  const paper = root.querySelector(".mw-paper");
  paper.id = `mw-tokens-${papers++}`;
  const show = () => CircuitsVis.render(paper.id, CircuitsVis.ColoredTokens, { tokens, values, minValue: -extent, maxValue: extent, negativeColor: "#D55E00", positiveColor: "#0072B2" });
  mechwork.vendor("circuitsvis").then(show, () => mechwork.excuse(paper));
}));
