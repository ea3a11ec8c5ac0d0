"""Edges between positions through attention (Haklay et al. 2025, PEAP), one unit per micro-batch of pairs.

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

from ...execute import ModelRef, Unit, Work
from ...execute.drive import run_units
from ...execute.memory import cut
from ...execute.task import pack_task, unpack_task, why_not_sent
from ...execute.unit import Run as RunUnit
from ...execute.unit import Tensors
from ...models.anatomy import device_of
from ...models.borrow import borrows, hooked
from ...names import head_name
from ...patching.queries_keys import check_open
from ...patching.result import Direction
from ...provenance import Provenance
from ...relevance import Composite, Rule
from ...result import Result, Table
from ...runs.record import Baseline, Run
from ...runs.restart import StopForward, restart_at
from ...sites import Site, hook_name
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from ..graph.writers import edge_space
from .methods import Method, find_method
from .points import Passes
from .positions import position_provenance
from .score import join_baselines
from .units import pack_baseline, pack_method, unpack_method

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("q", "k", "v")
OPERATION = "edges.attention"


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
    cells = cells.cpu().contiguous()
    facts, tensors = pack_task(task)
    data = {"task": tensors, "cells": {"cells": cells}}
    settings = {"task": facts, **pack_method(method)}
    work = Work(OPERATION, ModelRef.of(model), settings, data, why_not_sent([task.metric]))
    units = (work.unit(rows) for rows in cut(len(task), task.pairs.whole(batch_size)))
    found = [values for _, values in run_units(work, units, _runner(model, task, method, cells))]
    ends = [Baseline(values["clean"], values["corrupt"]) for values in found]
    scores = task.pairs.per_question(torch.cat([values["values"] for values in found]))
    provenance = position_provenance("attention edges between positions", method, model, task, positions)
    return AttentionEdges(
        scores, task.position_labels(names), method.direction, method.rules.name,
        task.metric.name, join_baselines(ends).by(task.pairs.per_question), provenance,
    )  # fmt: skip


def build(model: TransformerBridge, work: Work) -> RunUnit:
    """What runs the batches in a process that has the work's data and the model alone."""
    task = unpack_task(work.settings["task"], work.data["task"])
    return _runner(model, task, unpack_method(work.settings), work.data["cells"]["cells"])


def _runner(model: TransformerBridge, task: Task, method: Method, cells: Bool[Tensor, "cell batch pos"]) -> RunUnit:
    def run(unit: Unit) -> Tensors:
        piece = task[slice(*unit.rows)]
        width = piece.pairs.clean_tokens.shape[1]
        here = cells[:, slice(*unit.rows), :width].to(device_of(model))
        values, ends = _attention_batch(model, piece, method, here)
        return {"values": values.cpu(), **pack_baseline(ends)}

    return run


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
