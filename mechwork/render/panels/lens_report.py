"""What lenses and direct logit attribution add to a report: their part of "Where the answer is made", and cards about
nodes.

A node's cards give what the stream says where the node reads it, and at the next place that the lens can read: behind
an MLP what it has changed, behind a head what all heads of its layer have. They are of the table's first prompt, at its
last token or, for a node at a span, at the span's last token there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...lenses.contributions import LogitAttribution
from ...lenses.table import LensTable
from ...lenses.trajectory import Trajectory, TrajectoryComparison
from ...sites import Site
from ...tasks.task import Task
from ..findings import reports
from ..page.cards import Card, Fact, TokenList
from ..page.figure import figure_fragment
from ..page.page import Fragment
from ..page.table import Column, table
from ..page.text import escape, show_token, signed
from .attention import MAX_TOKENS
from .lens import lens_fragment, trajectory_fragment
from .lens_tables import attribution_figure

N_PROMPTS = 3
"""Prompts whose tables stand in a report."""
N_TOKENS = 5
N_SHARES = 12
SECTION = "localisation"

_NODE = re.compile(r"(?:([am])(\d+)(?:\.\w+)?|input|logits)$")


def lens_cards(table: LensTable, task: Task, nodes: Sequence[str]) -> dict[str, list[Card]]:
    """What the stream says where each node reads it and behind it."""
    cards: dict[str, list[Card]] = {}
    end = int(table.mask[0].sum()) - 1
    for node in nodes:
        component, _, label = node.partition("@")
        pos = _position(table, task, label) if label else end
        if pos is None:
            continue
        where = show_token(table.prompt(0)[pos])
        for what, place in _places(table, component):
            words = table.words(place, 0, pos)[:N_TOKENS]
            said = f"{table.lens[:1].upper()}{table.lens[1:]}, {what}, at “{where}”"
            cards.setdefault(node, []).append(TokenList(said, words, shares=True))
    return cards


def _places(table: LensTable, component: str) -> list[tuple[str, int]]:
    """(in words, index of a place) of what a component reads and of the next place behind it."""
    found = _NODE.fullmatch(component)
    if found is None:
        return []
    if component == "input":
        return [("the stream that enters block 0", 0)]
    if component == "logits":
        return [("the model's own output", len(table.places) - 1)]
    layer, mlp = int(found[2]), found[1] == "m"
    before, middle = str(Site("resid_pre", layer)), str(Site("resid_mid", layer))
    if before not in table.places and layer:
        before = str(Site("resid_post", layer - 1))  # the same stream
    own = middle if mlp and middle in table.places else before
    if own not in table.places[:-1]:
        return []
    index = table.places.index(own)
    reads = [] if mlp and own == before and _has_middle(table) else [("the stream it reads", index)]
    behind = "attention" if str(Site("resid_mid", layer)) == table.places[index + 1] and not mlp else "block"
    return [*reads, (f"the stream behind this {behind}", index + 1)]


def _has_middle(table: LensTable) -> bool:
    """Whether the model's blocks are sequential, so that an MLP reads another stream than the heads before it."""
    model = table.provenance.get("model")
    anatomy = model.get("anatomy") if isinstance(model, dict) else None
    return not (isinstance(anatomy, dict) and anatomy.get("parallel"))


def _position(table: LensTable, task: Task, label: str) -> int | None:
    """The last token of the span `label` in the table's first prompt; None where there is none."""
    pairs, own = task.pairs, table.tokens[0][table.mask[0]]
    n = len(own)
    if label not in pairs.spans or n > pairs.clean_tokens.shape[1]:
        return None
    same = (pairs.clean_tokens[:, :n].cpu() == own).all(dim=1) & (pairs.lengths.cpu() == n)
    for row in same.nonzero().flatten().tolist()[:1]:
        positions = pairs.spans[label][row].nonzero().flatten().tolist()
        return positions[-1] if positions else None
    return None


@reports(LensTable, section=SECTION, tells=lens_cards)
def lens_section(table: LensTable) -> Fragment:
    """The table of the first prompts; of a long prompt its last tokens, where the answer is read."""
    title = f"<h3>What the stream says on the way: {escape(table.lens)}</h3>"
    length = int(table.mask[0].sum())
    if table.tokens.shape[1] <= MAX_TOKENS:
        drawn = lens_fragment(_part(table, slice(N_PROMPTS), slice(None)))
        return replace(drawn, body=title + drawn.body)
    kept = min(length, MAX_TOKENS)
    cut = f"Of prompt 1, the last {kept} of its {length} tokens: column 0 is token {length - kept}."
    drawn = lens_fragment(_part(table, slice(1), slice(length - kept, length)))
    return replace(drawn, body=f'{title}<p class="mw-muted">{cut}</p>{drawn.body}')


def _part(table: LensTable, rows: slice, positions: slice) -> LensTable:
    """Some prompts and positions of a table."""
    by_prompt = {name: getattr(table, name)[rows, positions] for name in ("tokens", "mask", "targets")}
    names = ("top_ids", "top_probabilities", "entropy", "kl", "rank", "surprisal")
    return replace(table, **by_prompt, **{name: getattr(table, name)[:, rows, positions] for name in names})


@reports(Trajectory, section=SECTION)
def trajectory_section(path: Trajectory) -> Fragment:
    """How the prediction forms from place to place."""
    return trajectory_fragment([path])


@reports(TrajectoryComparison, section=SECTION)
def comparison_section(comparison: TrajectoryComparison) -> Fragment:
    """Two trajectories in one figure."""
    return trajectory_fragment([comparison.first, comparison.second])


def share_cards(shares: LogitAttribution, task: Task, nodes: Sequence[str]) -> Mapping[str, Sequence[Card]]:
    """Each node's direct share of the logits."""
    several = len(shares.total) > 1
    low, high = (bound.tolist() for bound in shares.interval()) if several else ([], [])
    cards: dict[str, list[Card]] = {}
    for i, term in enumerate(shares.terms):
        spread = f"95 % interval {signed(low[i])} to {signed(high[i])}" if several else "one prompt"
        cards[term] = [Fact(f"Direct share of the {shares.quantity}", signed(float(shares.values[i])), detail=spread)]
    return {node: cards[node] for node in nodes if node in cards}


@reports(LogitAttribution, section=SECTION, tells=share_cards)
def share_section(shares: LogitAttribution) -> Fragment:
    """The largest direct shares, and the others folded."""
    strongest = "; ".join(f"{term} {signed(value)}" for term, value in shares.top(5))
    figure = figure_fragment(
        attribution_figure(shares, N_SHARES), f"Largest shares of the {shares.quantity}: {strongest}"
    )
    body = f"<h3>What writes the answer directly</h3>{figure.body}"
    if len(shares.terms) > N_SHARES:
        every = shares.top(len(shares.terms))[N_SHARES:]
        columns = [Column("term", [term for term, _ in every])]
        columns.append(Column("mean share", [signed(v) for _, v in every], numeric=True, signs=[v for _, v in every]))
        body += f'<details class="mw-fallback"><summary>The smaller shares</summary>{table(columns)}</details>'
    return replace(figure, body=body)
