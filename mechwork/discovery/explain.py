"""The usual first look at one prompt: what the model answers, and what makes that answer, without a corrupt prompt.

| part | what it says |
|---|---|
| `answers` | the most probable next tokens |
| `direct` | every head's, MLP's and bias's share of logit(answer) - logit(rival), on raw weights |
| `lens` | what the stream says at every layer and position (logit lens) |
| `relevance` | each prompt token's share of that difference |
| `ablated` | measured: the difference without each head and MLP |
| `attention` | where the heads of largest effect look |
| `edges` | estimated: the difference without each edge |

Positive = raises the answer. `ablated` and `edges` compare the run with zero, or with means over other prompts. Cost:
about 5 forwards and 2 backwards, and the blocks from each head's and MLP's own on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..ablation import sweep_ablations
from ..circuits import EdgeScores, score_edges
from ..errors import InputError, UnsupportedModelError, check_whole
from ..execute.progress import Progress
from ..lenses import LensTable, LogitAttribution, attribute_logits, read_lens
from ..models.anatomy import device_of
from ..models.borrow import borrows, run_tail
from ..names import head_name
from ..patching import Effects
from ..provenance import Provenance, build_provenance
from ..relevance import TokenRelevance, attribute_tokens
from ..result import Result, Table, table_rows
from ..runs import AttentionPatterns, record_attention
from ..tasks.build import from_prompt
from ..tasks.task import Task
from .stored_task import StoredTask

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ABLATIONS = ("zero", "mean")


@dataclass(frozen=True)
class TopToken:
    """A next token, its probability and its logit."""

    token: str
    probability: float
    logit: float


@dataclass(frozen=True, eq=False)
class TopTokens(Result):
    """The most probable next tokens, first first."""

    rows: tuple[TopToken, ...]
    provenance: Provenance

    def _table(self) -> Table:
        """One row per token."""
        return table_rows(self.rows)


@dataclass(frozen=True, eq=False)
class Explanation(Result):
    """The first look at one prompt; see `mechwork.discovery.explain` for its parts. `edges` is None where a model has
    none or they were not asked for. ``show()`` draws everything on one page.
    """

    prompt: str
    answer: str
    rival: str
    ablation: str
    answers: TopTokens
    direct: LogitAttribution
    lens: LensTable
    relevance: TokenRelevance
    ablated: Effects
    attention: AttentionPatterns
    edges: EdgeScores | None
    stored: StoredTask
    provenance: Provenance

    @property
    def task(self) -> Task:
        """The prompt as a task."""
        return self.stored.task()

    def _table(self) -> Table:
        """One row per component: its direct share, and what its ablation takes."""
        taken = dict(self.effects())
        return [
            {"node": term, "direct": float(share), "effect": taken.get(term)}
            for term, share in zip(self.direct.terms, self.direct.values.tolist(), strict=True)
        ]

    def effects(self) -> list[tuple[str, float]]:
        """(node, what its ablation takes from logit(answer) - logit(rival)), largest first."""
        return _by_node(self.ablated)

    def __repr__(self) -> str:
        top = ", ".join(f"{row.token!r} {row.probability:.1%}" for row in self.answers.rows[:5])
        lines = [
            f"{self.prompt[-60:]!r} -> {top}",
            f"logit {self.answer!r} - logit {self.rival!r}: {float(self.direct.total[0]):+.3f}",
            f"direct     {_said(self.direct.top(5))}",
            f"{self.ablation}-ablated {_said(self.effects()[:5])}",
            f"tokens     {_said(_tokens(self.relevance)[:5])}",
        ]
        if self.edges is not None:
            lines.append(f"edges      {_said(self.edges.top(5))}")
        return "\n".join(lines)

    @property
    def results(self) -> tuple[Result, ...]:
        """What a page of it shows."""
        parts = (self.answers, self.direct, self.lens, self.relevance, self.ablated, self.attention, self.edges)
        return tuple(part for part in parts if part is not None)


def _by_node(ablated: Effects) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    if "z" in ablated.by_kind:
        values = ablated["z"].values
        rows = values.reshape(values.shape[0], -1).tolist()
        found += [(head_name(i, j), value) for i, row in enumerate(rows) for j, value in enumerate(row)]
    if "mlp_out" in ablated.by_kind:
        found += [(f"m{i}", value) for i, value in enumerate(ablated["mlp_out"].values.flatten().tolist())]
    return sorted(found, key=lambda one: -abs(one[1]))


def _said(rows: list[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:+.3f}" for name, value in rows)


def _tokens(relevance: TokenRelevance) -> list[tuple[str, float]]:
    rows = zip(relevance.tokens, relevance.values.tolist(), strict=True)
    return sorted(((repr(token), value) for token, value in rows), key=lambda one: -abs(one[1]))


@borrows
def explain(
    model: TransformerBridge,
    prompt: str,
    answer: str | None = None,
    rival: str | None = None,
    *,
    chat: bool = False,
    ablation: str = "zero",
    reference: Task | None = None,
    edges: bool = True,
    n_heads: int = 6,
    n_top: int = 10,
    progress: Progress | None = None,
) -> Explanation:
    """The usual first look at one prompt. `answer` and `rival` are single tokens (default: the most probable, and the
    most probable other one); with `chat` the prompt is a user's turn.

    ``ablation="mean"`` takes means over the prompts of `reference` (at least 8); edges are then scored on the prompt
    against the same means. `n_heads`: whose attention is kept, by measured effect.

    Raises `InputError` for an empty or too long prompt, an answer of several tokens, or a mean without reference.

    >>> look = mw.explain(model, "When Mary and John went to the store, John gave a drink to")
    >>> look.show()
    """
    if ablation not in ABLATIONS:
        raise InputError(f"one prompt is ablated by {' or '.join(ABLATIONS)}; got {ablation!r}")
    if (ablation == "mean") != (reference is not None):
        raise InputError("means are over other prompts: ablation='mean' goes with reference=, a task of at least 8")
    if check_whole("n_heads", n_heads) < 1 or check_whole("n_top", n_top) < 1:
        raise InputError(f"n_heads and n_top count from 1; got {n_heads} and {n_top}")
    task = from_prompt(model, prompt, answer, rival, chat=chat)
    ids = task.pairs.prompt(0)
    right, wrong = int(task.pairs.correct[0, 0]), int(task.pairs.incorrect[0, 0])
    facts = build_provenance(method="first look", prompt=prompt, ablation=ablation, task=task.provenance())
    ablated = sweep_ablations(model, task, _sorts(model), kind=ablation, reference=reference, progress=progress)
    heads = [name for name, _ in _by_node(ablated) if ".h" in name][:n_heads]
    return Explanation(
        prompt=task.prompt(0),
        answer=task.answer_texts[0][0],
        rival=task.answer_texts[0][1],
        ablation=ablation,
        answers=_top(model, ids, n_top, facts),
        direct=attribute_logits(model, task),
        lens=read_lens(model, task),
        relevance=attribute_tokens(model, ids, (right, wrong)),
        ablated=ablated,
        attention=record_attention(model, task, heads),
        edges=_edges(model, task, ablation, reference) if edges else None,
        stored=StoredTask.of(task),
        provenance=facts,
    )


def _sorts(model: TransformerBridge) -> tuple[str, ...]:
    return ("heads",) if getattr(model.cfg, "attn_only", False) else ("heads", "mlps")


def _edges(model: TransformerBridge, task: Task, ablation: str, reference: Task | None) -> EdgeScores | None:
    try:
        return score_edges(model, task, rules="gradient", ablation=ablation, source=reference)
    except UnsupportedModelError:
        return None


def _top(model: TransformerBridge, ids: list[int], n: int, provenance: Provenance) -> TopTokens:
    with torch.no_grad():
        logits = run_tail(model, torch.tensor([ids], device=device_of(model)), 1)[0, -1].float().cpu()
    probabilities = logits.softmax(dim=-1)
    order = logits.topk(min(n, len(logits))).indices.tolist()
    rows = (TopToken(str(model.tokenizer.decode([i])), float(probabilities[i]), float(logits[i])) for i in order)
    return TopTokens(tuple(rows), provenance)
