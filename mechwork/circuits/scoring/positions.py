"""Edge scores resolved by position, and edges between positions through attention (Haklay et al. 2025, PEAP).

`score_positions`: the scores of `score_edges` before they are summed over positions, ``[span, writer, reader]``; their
sum over spans is the position-blind score, in which opposite contributions cancel.

`score_attention_edges`: how a head moves information from a key position i to a query position j,
``[layer, head, kind, query, key]``:

    v: pattern[j, i] (v_i donor - v_i host) . coefficient at z_j            exact split of v's score over queries
    k: coefficient at score[j, i] x (score with the donor's keys - score)   exact split of k's score where scores are
    linear in k
    q: coefficient at score[j, i] x (score with the donor's queries - score)

with donor and host exchanged and the sign turned for direction="noise", so that positive = the clean value raises the
metric. With q/k-norms or soft caps the k and q parts are secants: labelled estimates of another point than the
gradient's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import InputError
from ...execute.progress import Progress
from ...models.anatomy import device_of
from ...models.borrow import borrows, hooked
from ...models.identity import identify_model
from ...names import head_name
from ...patching.queries_keys import check_open
from ...patching.result import Direction
from ...provenance import Provenance, build_provenance
from ...relevance import Composite, Rule
from ...result import Result, Table
from ...runs.record import Baseline, Run
from ...runs.restart import StopForward, restart_at
from ...shapes import EdgeMatrix
from ...sites import Site, hook_name
from ...statistics import percentile_interval
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from ..graph.budget import DEFAULT_BUDGET
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from .estimate import Coefficients
from .methods import Method, find_method
from .points import Passes
from .sample import Stream, Streamed
from .score import N_RESAMPLES, check_correspondence, join_baselines, plan_batches

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("q", "k", "v")


@dataclass(frozen=True, eq=False)
class PositionScores(Result, strongest="score"):
    """Edge scores per span or position: `values` is ``[span, writer, reader]``, mean over pairs; zero where there is no
    edge.
    """

    space: EdgeSpace
    labels: tuple[str, ...]
    streamed: Streamed
    direction: Direction
    rules: str
    metric_name: str
    baseline: Baseline
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, "span writer reader"]:
        return self._unpack(self.streamed.mean)

    def standard_error(self) -> Float[Tensor, "span writer reader"]:
        """Of `values`, over pairs."""
        return self._unpack((self.streamed.variance / self.streamed.n).sqrt())

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of every score over pairs: (low, high), each ``[span, writer, reader]``.

        Raises `InputError` for scores made with ``intervals=False``.
        """
        if not len(self.streamed.resampled):
            raise InputError(
                "these scores were made without intervals; score_positions(..., intervals=True) keeps them"
            )
        low, high = percentile_interval(self.streamed.resampled, level)
        return self._unpack(low), self._unpack(high)

    def summed(self) -> EdgeMatrix:
        """Over all positions: what `score_edges` gives."""
        return self.values.sum(dim=0)

    def cancelled(self) -> EdgeMatrix:
        """Share of each edge's positional contributions that cancels in the sum: 1 - |sum| / sum of |.|, 0
        where none.
        """
        total = self.values.abs().sum(dim=0)
        return torch.where(total > 0, 1 - self.summed().abs() / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)

    def top(self, n: int = 10) -> list[tuple[str, str, float]]:
        """The `n` (span, edge, score) of largest absolute score, strongest first."""
        flat = self.values.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        cells = self.space.n_writers * self.space.n_readers
        return [
            (self.labels[i // cells], self.space.edge_name(*divmod(i % cells, self.space.n_readers)), float(flat[i]))
            for i in order
        ]

    def _table(self) -> Table:
        """One row per span and edge, strongest first."""
        n, mask = len(self.labels), self.space.mask
        ends = {name: column * n for name, column in self.space.ends().items()}
        at = [label for label in self.labels for _ in range(self.space.n_edges)]
        numbers = {"score": self.values[:, mask], "standard_error": self.standard_error()[:, mask]}
        return {"at": at, **ends, **{name: x.flatten().tolist() for name, x in numbers.items()}}

    def _unpack(self, packed: Float[Tensor, " cell"]) -> Float[Tensor, "span writer reader"]:
        full = packed.new_zeros(len(self.labels), self.space.n_writers, self.space.n_readers)
        full[:, self.space.mask] = packed.view(len(self.labels), -1)
        return full


@dataclass(frozen=True, eq=False)
class AttentionEdges(Result):
    """Scores of moving information between positions: ``[batch, layer, head, kind, query, key]``, kinds q, k, v."""

    per_example: Float[Tensor, "batch layer head kind query key"]
    labels: tuple[str, ...]
    direction: Direction
    rules: str
    metric_name: str
    baseline: Baseline
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, "layer head kind query key"]:
        """Mean over pairs."""
        return self.per_example.mean(dim=0)

    def top(self, n: int = 10) -> list[tuple[str, str, str, float]]:
        """The `n` largest as (head and kind, from key span, to query span, score), strongest first."""
        flat, shape = self.values.flatten(), self.values.shape
        rows = []
        for i in flat.abs().argsort(descending=True, stable=True)[:n].tolist():
            layer, head, kind, query, key = (int(x) for x in torch.unravel_index(torch.tensor(i), shape))
            rows.append((head_name(layer, head, KINDS[kind]), self.labels[key], self.labels[query], float(flat[i])))
        return rows

    def _table(self) -> Table:
        """One row per head, kind and pair of spans, strongest first."""
        columns = zip(*self.top(self.values.numel()), strict=True)
        return dict(zip(("reader", "from", "to", "score"), columns, strict=True))


@borrows
def score_positions(
    model: TransformerBridge,
    task: Task,
    *,
    positions: str = "each",
    preset: str | None = None,
    rules: str | Composite | Sequence[str | Rule] | None = None,
    ig_steps: int | None = None,
    path: str | None = None,
    direction: str | None = None,
    ablation: str = "corrupt",
    memory_budget: int | str = DEFAULT_BUDGET,
    intervals: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> PositionScores:
    """Edge scores by token position (``"each"``; spans when prompts differ in length) or by ``"spans"``; otherwise as
    `score_edges`. `intervals` keeps 200 bootstrap means of every score, which are most of the memory and of the file.

    Raises `InputError` for methods without positions (exact, information-flow, random) and for tasks whose prompts
    cannot be aligned; and what `score_edges` raises. Cost: that of `score_edges`; products are formed position by
    position.

    >>> score_positions(model, task.train, positions="spans", rules="gradient").top(5)
    """
    method = find_method(preset, rules=rules, ig_steps=ig_steps, path=path, direction=direction, ablation=ablation)
    if method.estimator != "coefficients":
        raise InputError(f"{method.estimator!r} has no scores by position; use a method of coefficients, e.g. 'eap'")
    space = edge_space(model, task, aligned=None)
    check_correspondence(method, task)
    turned = method.direction == "denoise" and not task.pairs.aligned
    pairs = task.pairs.corrupt_as_host() if turned else task.pairs
    names, cells = pairs.cells(positions)
    plan = plan_batches(model, task, space, method, memory_budget, None, n_cells=len(names))
    n, n_resamples = task.pairs.n_per_question, N_RESAMPLES if intervals else 0
    stream = Stream(len(task) // n, len(names) * space.n_edges, keep=False, n_resamples=n_resamples, seed=seed)
    estimate = Coefficients(model, task, space, method, plan.n_positions, seed)
    ends: list[Baseline] = []
    for start in range(0, len(task), plan.n_pairs):
        piece = task[start : start + plan.n_pairs]
        width = piece.pairs.clean_tokens.shape[1]
        rows = estimate.by_cell(piece, cells[:, start : start + len(piece), :width].to(device_of(model)))
        stream.add(task.pairs.per_question(rows.values[:, :, space.mask.to(rows.values.device)].flatten(1)))
        ends.append(rows.baseline)
        if progress is not None:
            progress(start + len(piece), len(task), "scoring edges by position")
    streamed = stream.streamed()
    assert streamed is not None
    return PositionScores(
        space, task.position_labels(names), streamed, method.direction, method.rules.name, task.metric.name,
        join_baselines(ends).by(task.pairs.per_question),
        _provenance("edge scores by position", method, model, task, positions),
    )  # fmt: skip


def score_attention_edges(
    model: TransformerBridge,
    task: Task,
    *,
    positions: str = "each",
    rules: str | Composite | Sequence[str | Rule] | None = None,
    direction: str | None = None,
    batch_size: int = 16,
) -> AttentionEdges:
    """Edges between positions through every head; see the module for what q, k and v parts are.

    Cost per batch: 1 forward, 1 forward + 1 backward, and about 1 forward in all for the scores under exchanged keys
    and queries of each layer (each stops at its layer). Raises as `score_positions`. Under rules that hold the pattern
    constant the q and k parts are zero.
    """
    method = find_method(rules=rules, direction=direction)
    edge_space(model, task)
    check_open(model, "scoring edges between positions")
    names, cells = task.pairs.cells(positions)
    rows, ends, batch_size = [], [], task.pairs.whole(batch_size)
    for start in range(0, len(task), batch_size):
        piece = task[start : start + batch_size]
        width = piece.pairs.clean_tokens.shape[1]
        here = cells[:, start : start + len(piece), :width].to(device_of(model))
        values, baseline = _attention_batch(model, piece, method, here)
        rows.append(values.cpu())
        ends.append(baseline)
    provenance = _provenance("attention edges between positions", method, model, task, positions)
    return AttentionEdges(
        task.pairs.per_question(torch.cat(rows)), task.position_labels(names), method.direction, method.rules.name,
        task.metric.name, join_baselines(ends).by(task.pairs.per_question), provenance,
    )  # fmt: skip


def _attention_batch(
    model: TransformerBridge, task: Task, method: Method, cells: Bool[Tensor, "cell batch pos"]
) -> tuple[Float[Tensor, "batch layer head kind query key"], Baseline]:
    passes = Passes.of(model, task, method.rules, method.direction)
    donor = passes.plain(("q", "k", "v"), donor=True)
    point = passes.point(("z", "attn_scores"), ("resid_pre", "q", "k", "v", "pattern"))
    host, kept = point.run, cells.to(point.coefficients["z"][0])
    layers = []
    for layer in range(len(model.blocks)):
        parts = [
            _score_part(model, passes, point.coefficients["attn_scores"][layer], host, donor, kind, layer)
            for kind in "qk"
        ]
        change = donor.layers["v"][layer] - host.layers["v"][layer]
        pattern, g = host.layers["pattern"][layer], point.coefficients["z"][layer]
        change = change.repeat_interleave(g.shape[2] // change.shape[2], dim=2)
        parts.append(pattern * torch.einsum("bjhe,bihe->bhji", g, change))
        layers.append(torch.einsum("kbhji,cbj,dbi->bhkcd", torch.stack(parts), kept, kept))
    values = torch.stack(layers, dim=1)
    metrics = point.metric.cpu(), passes.measure(donor, donor=True).cpu()
    denoise = method.direction == "denoise"
    return (values if denoise else -values), Baseline(*(metrics[::-1] if denoise else metrics))


def _score_part(
    model: TransformerBridge, passes: Passes, g: Tensor, host: Run, donor: Run, kind: str, layer: int
) -> Float[Tensor, "batch head query key"]:
    """Coefficients at a layer's attention scores times their change when its queries or keys are the donor's."""
    ends = [
        _scores_with(model, passes.pairs, host.layers["resid_pre"][layer], run.layers[kind][layer], kind, layer)
        for run in (donor, host)
    ]
    change = torch.where(ends[1].isfinite() & ends[0].isfinite(), ends[0] - ends[1], 0.0)
    return g * change.masked_fill(g == 0, 0.0)


def _scores_with(
    model: TransformerBridge, pairs: PromptPairs, stream: Tensor, value: Tensor, kind: str, layer: int
) -> Float[Tensor, "batch head query key"]:
    """A layer's attention scores in the host's run with its queries or keys replaced by `value`."""
    found: list[Tensor] = []

    def put(activation: Tensor, hook: Any) -> Tensor:
        return value

    def keep(activation: Tensor, hook: Any) -> None:
        found.append(activation)
        raise StopForward

    hooks = [(hook_name(Site(kind, layer)), put), (hook_name(Site("attn_scores", layer)), keep)]
    with torch.no_grad(), restart_at(model, layer, stream), hooked(model, hooks), suppress(StopForward):
        model(pairs.clean_tokens)
    return found[0]


def _provenance(what: str, method: Method, model: TransformerBridge, task: Task, positions: str) -> Provenance:
    return build_provenance(
        method=what, **method.to_json(), positions=positions, model=identify_model(model), task=task.provenance()
    )
