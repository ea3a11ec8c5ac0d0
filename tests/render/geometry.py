"""What a drawn graph looks like, measured in the browser: names that lie on one another or stick out of their nodes,
edges that run over a node that is not one of their ends. In pixels of the screen, from what is drawn and not from what
was laid out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MEASURE = """(root) => {
  const shown = (node) => node.checkVisibility({ opacityProperty: false });
  const at = (node, part) => node.querySelector(part).getBoundingClientRect();
  const nodes = [...root.querySelectorAll('.mw-nodes .mw-node')].filter(shown).map((node) => {
    const name = node.querySelector('.mw-label');
    return { id: Number(node.dataset.node), said: name.textContent, box: at(node, '.mw-shape'),
      text: shown(name) ? at(node, '.mw-label') : null };
  });
  const graph = mechwork.graphs.find((one) => one.root === root).graph();
  const over = (a, b, room) =>
    a.left + room < b.right && b.left + room < a.right && a.top + room < b.bottom && b.top + room < a.bottom;
  const overlaps = [], through = [], outside = [], nameless = [];
  nodes.forEach((a, i) => {
    if (!a.text) return nameless.push(a.said);
    if (a.text.left < a.box.left - 0.5 || a.text.right > a.box.right + 0.5)
      outside.push([a.said, a.text.width, a.box.width]);
    nodes.forEach((b, j) => i < j && b.text && over(a.text, b.text, 0) && overlaps.push([a.said, b.said]));
    nodes.forEach((b, j) => i !== j && over(a.text, b.box, 0.5) && overlaps.push([a.said, `the node ${b.said}`]));
  });
  const paths = [...root.querySelectorAll('.mw-edges path, .mw-ghosts path')].filter(shown);
  for (const path of paths) {
    const ends = path.dataset.ends.split(' ').map(Number), length = path.getTotalLength(), to = path.getScreenCTM();
    const half = Number(path.getAttribute('stroke-width') ?? 1) * to.a / 2, hit = new Set();
    for (let s = 0; s <= length; s += 3) {
      const { x, y } = path.getPointAtLength(s).matrixTransform(to);
      const point = { left: x - half, right: x + half, top: y - half, bottom: y + half };
      for (const node of nodes) if (!ends.includes(node.id) && over(point, node.box, 0)) hit.add(node.said);
    }
    for (const said of hit) through.push([ends.map((i) => graph.names[i]).join(' -> '), said]);
  }
  const least = Math.min(99, ...nodes.filter((node) => node.text).map((node) => node.text.height));
  return { nodes: nodes.length, edges: paths.length, overlaps, through, outside, nameless, least };
}"""


@dataclass(frozen=True)
class Drawn:
    """How many nodes and edges are drawn, which names lie on something or stick out, which edges run over a foreign
    node, which nodes have no name; height of the smallest name in pixels.
    """

    nodes: int
    edges: int
    overlaps: list[Any]
    through: list[Any]
    outside: list[Any]
    nameless: list[str]
    least: float


def measure(page: Any, k: int = 0) -> Drawn:
    """The k-th graph of a page as it is drawn now."""
    return Drawn(**page.locator("[data-mw-graph]").nth(k).evaluate(MEASURE))
