"""Tables of what circuits are found from and tested by: scores of nodes, neurons and positions; stability,
completeness, minimality, comparisons, leaderboards.
"""

from __future__ import annotations

from ...circuits import (
    AttentionEdges,
    CircuitComparison,
    CircuitReuse,
    Completeness,
    Leaderboard,
    Minimality,
    NeuronScores,
    NodeScores,
    PositionScores,
    Stability,
    Verification,
)
from ...display import draws
from ..page.figure import figures_page
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import count, escape, fixed, number, plural, shorten, signed, words

N_ROWS = 40
"""Rows of tables of the strongest."""


def _page(title: str, *parts: str) -> str:
    return figures_page(title, [Fragment(part) for part in parts])


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _scored(names: list[str], values: list[float], heading: str) -> list[Column]:
    return [Column(heading, names), Column("score", [signed(v) for v in values], numeric=True, signs=values)]


@draws(NodeScores)
def render_node_scores(scores: NodeScores) -> str:
    """The strongest nodes."""
    frame = scores.to_dataframe().head(N_ROWS)
    columns = _scored(list(frame["node"]), list(frame["score"]), "node")
    columns.append(Column("± SE", [number(v) for v in frame["standard_error"]], numeric=True))
    return _page(
        "Node scores", table(columns, caption=f"Estimated effects on {words(scores.metric_name)} ({scores.method})")
    )


@draws(NeuronScores)
def render_neuron_scores(scores: NeuronScores) -> str:
    """The strongest neurons."""
    top = scores.top(N_ROWS)
    columns = _scored([name for name, _ in top], [v for _, v in top], "neuron")
    caption = (
        f"The {len(top)} strongest of {count(scores.values.numel())} neurons: estimated effects on "
        f"{words(scores.metric_name)}"
    )
    return _page("Neuron scores", table(columns, caption=caption))


def position_table(scores: PositionScores) -> str:
    """The strongest edges by position."""
    top = scores.top(N_ROWS)
    columns = [
        Column("at", [shorten(span, 24) for span, _, _ in top]),
        *_scored([edge for _, edge, _ in top], [v for *_, v in top], "edge"),
    ]
    return table(columns, caption=f"Estimated effects on {words(scores.metric_name)} ({scores.rules})")


@draws(AttentionEdges)
def render_attention_edges(scores: AttentionEdges) -> str:
    """The strongest movements between positions."""
    top = scores.top(N_ROWS)
    columns = [
        Column("from", [shorten(source, 24) for _, source, _, _ in top]),
        Column("to", [shorten(target, 24) for _, _, target, _ in top]),
        *_scored([head for head, *_ in top], [v for *_, v in top], "through"),
    ]
    caption = (
        f"Edges between positions through attention: estimated effects on {words(scores.metric_name)} ({scores.rules})"
    )
    return _page("Attention edges", table(columns, caption=caption))


@draws(Stability)
def render_stability(stability: Stability) -> str:
    """Jaccard indices: their mean and interval, and each where the parts have names."""
    parts = [_paragraph(repr(stability))]
    if stability.labels:
        names = Column(stability.over, list(stability.labels))
        indices = Column("Jaccard index", [fixed(j) for j in stability.jaccards], numeric=True)
        parts.append(table([names, indices], caption="Overlap with the circuit of all pairs"))
    return _page("Stability of a circuit", *parts)


def comparison_table(comparison: CircuitComparison) -> str:
    """Overlap of every two circuits beside what chance gives."""
    return _overlaps(comparison)


@draws(CircuitReuse)
def render_reuse(found: CircuitReuse) -> str:
    """The overlap of the tasks' circuits, and how each runs every task."""
    cells = found.evaluations
    columns = [Column("task", list(found.tasks))]
    for owner in found.tasks:
        values = [cells[task, owner] for task in found.tasks]
        shown = [f"{fixed(e.faithfulness)} [{fixed(e.interval()[0])}, {fixed(e.interval()[1])}]" for e in values]
        columns.append(Column(f"circuit of {owner}", shown, numeric=True))
    chance = [[value for owner in found.tasks for value in cells[task, owner].random] for task in found.tasks]
    columns.append(Column("random circuits", [fixed(sum(row) / len(row)) for row in chance], numeric=True))
    first = next(iter(cells.values()))
    caption = (
        f"Faithfulness on held-out pairs with 95 % interval, {first.ablation} ablation: a row's task run by a "
        "column's circuit"
    )
    return _page("Circuits of several tasks", _overlaps(found.comparison), table(columns, caption=caption))


def _overlaps(comparison: CircuitComparison) -> str:
    rows = comparison.overlaps
    columns = [
        Column("circuits", [f"{o.first} / {o.second}" for o in rows]),
        Column("edges", [fixed(o.edges) for o in rows], numeric=True, title="Jaccard index of the edges"),
        Column("by chance", [fixed(o.edges_by_chance) for o in rows], numeric=True),
        Column("nodes", [fixed(o.nodes) for o in rows], numeric=True, title="Jaccard index of heads and MLPs"),
        Column("by chance ", [fixed(o.nodes_by_chance) for o in rows], numeric=True),
        Column("shared nodes", [" ".join(o.shared_nodes) for o in rows]),
    ]
    return table(columns, caption="Overlap of circuits of one graph (Jaccard index)")


@draws(Completeness)
def render_completeness(found: Completeness) -> str:
    """What the rest of the graph does, and how differently circuit and model react to knock-outs."""
    return _page("Completeness of a circuit", completeness_table(found))


def completeness_table(found: Completeness) -> str:
    """The same as part of a page."""
    rows = [
        ("faithfulness of the circuit", fixed(found.faithfulness)),
        ("faithfulness of its complement", fixed(found.complement)),
        (
            f"incompleteness, mean of {len(found.random)} random knock-outs",
            fixed(sum(found.random) / len(found.random)),
        ),
        ("incompleteness, worst random knock-out", fixed(max(found.random))),
        (f"incompleteness, learned knock-out of {plural(len(found.knocked_out), 'edge')}", fixed(found.learned)),
    ]
    columns = [Column("quantity", [name for name, _ in rows]), Column("value", [v for _, v in rows], numeric=True)]
    caption = (
        "Measured: completeness. 0 means that circuit and model react alike; shares of the gap between model "
        "and empty circuit"
    )
    return table(columns, caption=caption)


@draws(Minimality)
def render_minimality(found: Minimality) -> str:
    """How much each node matters beside some knock-out."""
    columns = [
        Column("node", list(found.nodes)),
        Column("minimality", [fixed(s) for s in found.scores], numeric=True),
    ]
    caption = "Largest change by removing the node, over knock-outs; shares of the gap between model and empty circuit"
    return _page("Minimality of a circuit", table(columns, caption=caption))


@draws(Leaderboard)
def render_leaderboard(board: Leaderboard) -> str:
    """Methods with intervals, random circuits beside them."""
    rows = board.standings
    columns = [
        Column("method", [*(s.method for s in rows), "random circuits"]),
        Column("CMD", [*(fixed(s.cmd) for s in rows), fixed(board.random_cmd)], numeric=True),
        Column(
            "95 % interval",
            [*(f"[{fixed(s.cmd_interval[0])}, {fixed(s.cmd_interval[1])}]" for s in rows), ""],
            numeric=True,
        ),
        Column("CPR", [*(fixed(s.cpr) for s in rows), fixed(board.random_cpr)], numeric=True),
        Column(
            "95 % interval ",
            [*(f"[{fixed(s.cpr_interval[0])}, {fixed(s.cpr_interval[1])}]" for s in rows), ""],
            numeric=True,
        ),
        Column("CMD, log sizes", [*(fixed(s.cmd_log) for s in rows), ""], numeric=True),
        Column(
            "behind the best",
            [
                *(
                    f"{fixed(s.behind)} [{', '.join(map(fixed, s.behind_interval))}]" if s.behind == s.behind else ""
                    for s in rows
                ),
                "",
            ],
            numeric=True,
        ),
        Column(
            "accuracy", [*(fixed(s.accuracy, 2) if s.accuracy == s.accuracy else "" for s in rows), ""], numeric=True
        ),
        Column("overshoot", [*(fixed(s.overshoot, 2) for s in rows), ""], numeric=True),
        Column("mean KL", [*(fixed(s.kl) if s.kl == s.kl else "" for s in rows), ""], numeric=True),
        Column("CPU-seconds", [*(fixed(s.seconds, 1) for s in rows), ""], numeric=True),
    ]
    caption = (
        f"{board.model_name}, {board.task_name}: circuits found on {plural(board.n_train, 'pair')}, tested on "
        f"{count(board.n_test)} others"
    )
    return _page("Ways to score edges", table(columns, caption=caption))


@draws(Verification)
def render_verification(found: Verification) -> str:
    """Estimated beside measured effects."""
    kinds = ["strongest"] * found.n_top + ["random other"] * (len(found.edges) - found.n_top)
    columns = [
        Column("edge", list(found.edges)),
        Column("chosen as", kinds),
        Column("estimated", [signed(v) for v in found.estimated.tolist()], numeric=True),
        Column("measured", [signed(v) for v in found.measured.tolist()], numeric=True),
    ]
    return _page("Scores verified", _paragraph(repr(found)), table(columns, caption="Edges measured one at a time"))
