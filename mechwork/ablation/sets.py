"""Run many sets of targets under one ablation: stacked copies of the prompts, each with its own set, restarted at the
first block that any of them touches. The base of cumulative, pairwise, knock-in and impairment studies.

Cost per set: one forward from its first touched block on; the unembedding at the last columns alone where the metric
reads no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..execute.memory import MemoryBudget
from ..execute.progress import Progress
from ..interventions import Positional, Replacement, Write, intervene, replace_at
from ..models.anatomy import device_of, dtype_of, read_anatomy
from ..models.borrow import borrows
from ..patching.sweep import CHUNK_BYTES
from ..result import Result, Table
from ..runs.record import check_task, read_columns, record_run, run_to_metric
from ..runs.restart import restart_at
from ..runs.room import DEFAULT_BUDGET, d_mlp_of, prompts_that_fit, sizes_of
from ..shapes import PerExample
from ..sites import Site
from ..tasks.metrics import accuracy
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .bind import Bound, bind
from .fitted import Ablation
from .targets import check_disjoint, parse_target

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TargetSet = tuple[str, ...]
PARTS = ("head", "attn", "mlp", "neurons", "layer")
"""Kinds of target that sets are made of."""


@dataclass(frozen=True, eq=False)
class SetMetrics(Result, strongest="effect"):
    """Metric and correctness per set and pair, and those of the whole model."""

    sets: tuple[TargetSet, ...]
    metric: Float[Tensor, "set batch"]
    correct: Bool[Tensor, "set batch"]
    clean: PerExample
    clean_correct: Bool[Tensor, " batch"]

    @property
    def effects(self) -> Float[Tensor, "set batch"]:
        """m(model) - m(ablated): positive = the set raises the metric."""
        return self.clean - self.metric

    def _table(self) -> Table:
        """One row per set: means over pairs."""
        return {
            "set": [", ".join(one) for one in self.sets],
            "metric": self.metric.mean(dim=1).tolist(),
            "effect": self.effects.mean(dim=1).tolist(),
            "accuracy_drop": self.accuracy_drops.tolist(),
        }

    @property
    def accuracy_drops(self) -> Float[Tensor, " set"]:
        """Accuracy of the model less that with the set ablated."""
        return self.clean_correct.float().mean() - self.correct.float().mean(dim=1)


@borrows
def run_sets(
    model: TransformerBridge,
    task: Task,
    ablation: Ablation,
    sets: Sequence[Sequence[str]],
    *,
    what: str = "ablating sets",
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> SetMetrics:
    """The task's metric with each set of targets ablated (an empty set: the model itself).

    Targets are heads, attention, MLPs, neurons and layers among those that the ablation was fitted to. Raises
    `InputError` for others and for overlapping targets of a set, before any forward.
    """
    check_task(model, task)
    ablation.check_model(model)
    chosen = tuple(tuple(dict.fromkeys(one)) for one in sets)
    known = {f"{site}.{t.layer}" for t in ablation.spec.parsed if t.kind in PARTS for site, _ in t.parts}
    for one in chosen:
        targets = [parse_target(text) for text in one]
        check_disjoint(targets)
        for target in targets:
            if target.kind not in PARTS or not all(f"{site}.{target.layer}" in known for site, _ in target.parts):
                raise InputError(
                    f"sets are made of heads, MLPs, attention, neurons and layers of the fitted ablation; got {target}"
                )
    metric, correct = [], []
    clean: list[Tensor] = []
    right: list[Tensor] = []
    layers = range(read_anatomy(model).n_layers)
    streams = [Site("resid_pre", layer) for layer in layers]
    size = prompts_that_fit(model, task.pairs, memory_budget, sites=streams)
    per_question = task.pairs.per_question
    n_batches = -(-len(task) // size)
    with torch.no_grad():
        for i, first in enumerate(range(0, len(task), size)):
            pairs = task.pairs[first : first + size].to(device_of(model))
            run = record_run(model, pairs, ["resid_pre"], n_tail=read_columns(task, pairs))
            clean.append(task.measure(run.logits, pairs).cpu())
            right.append(accuracy(run.logits, pairs).cpu())
            bound = bind(model, ablation.spec, ablation.tables, pairs, first)
            rows = torch.empty(len(chosen), len(pairs), dtype=clean[-1].dtype)
            good = torch.empty(len(chosen), len(pairs), dtype=torch.bool)
            done = 0
            empty = [n for n, one in enumerate(chosen) if not one]
            rows[empty], good[empty] = clean[-1], right[-1]
            for layer, numbers in _chunks(model, chosen, pairs):
                rows[numbers], good[numbers] = _run(
                    model, task, pairs, bound, [chosen[n] for n in numbers], layer, run.layers["resid_pre"]
                )
                done += len(numbers)
                if progress is not None:
                    progress(i * len(chosen) + done, n_batches * len(chosen), what)
            metric.append(rows)
            correct.append(good)
    return SetMetrics(
        chosen, per_question(torch.cat(metric, dim=1).T).T, per_question(torch.cat(correct, dim=1).T).T,
        per_question(torch.cat(clean)), per_question(torch.cat(right)),
    )  # fmt: skip


def _chunks(model: TransformerBridge, sets: Sequence[TargetSet], pairs: PromptPairs) -> Iterator[tuple[int, list[int]]]:
    """(first touched block, numbers of sets run together), sorted by that block; sets without targets are left out."""
    first = [min((parse_target(text).layer for text in one), default=-1) for one in sets]
    sizes = sizes_of(read_anatomy(model), d_mlp_of(model), pairs, pairs.n_tail, dtype_of(model).itemsize)
    per_copy = len(pairs) * sizes.run(sizes.n_pos, sizes.n_tail)
    step = max(1, CHUNK_BYTES.get(device_of(model).type, CHUNK_BYTES["cuda"]) // per_copy)
    order = sorted((n for n in range(len(sets)) if sets[n]), key=lambda n: first[n])
    for start in range(0, len(order), step):
        numbers = order[start : start + step]
        yield first[numbers[0]], numbers


def _run(
    model: TransformerBridge,
    task: Task,
    pairs: PromptPairs,
    bound: Bound,
    sets: Sequence[TargetSet],
    layer: int,
    stream: Sequence[Tensor],
) -> tuple[Float[Tensor, "set batch"], Bool[Tensor, "set batch"]]:
    """Metric and correctness of stacked copies, one set each."""
    n = len(sets)
    places: dict[tuple[str, int], dict[int, list[int] | None]] = {}
    for copy, one in enumerate(sets):
        for text in one:
            target = parse_target(text)
            for site, entries in target.parts:
                at = places.setdefault((site, target.layer), {})
                if entries is None:
                    at[copy] = None
                else:
                    known = at.setdefault(copy, [])
                    assert known is not None
                    known.extend(entries)
    writes = [
        Write(Site(site, at), Stacked(bound.values[f"{site}.{at}"], copies, len(pairs), bound.where))
        for (site, at), copies in places.items()
    ]
    with ExitStack() as stack:
        stack.enter_context(restart_at(model, layer, stream[layer].repeat(n, 1, 1)))
        stack.enter_context(intervene(model, writes))
        logits = run_to_metric(model, task, pairs, pairs.clean_tokens.repeat(n, 1))
    parts = logits.split(len(pairs))
    metric = torch.stack([task.measure(part, pairs) for part in parts])
    return metric.cpu(), torch.stack([accuracy(part, pairs) for part in parts]).cpu()


@dataclass(frozen=True, eq=False)
class Stacked:
    """`inner` in some copies of the prompts, stacked copy after copy: at all entries of a copy (None) or at some of
    axis 2.
    """

    inner: Replacement | Positional
    copies: Mapping[int, list[int] | None]
    n_rows: int
    where: Bool[Tensor, "batch pos"] | None = None

    def place(self, activation: Float[Tensor, "row pos ..."], start: int) -> Float[Tensor, "row pos ..."]:
        new = activation.clone()
        for copy, entries in self.copies.items():
            rows = slice(copy * self.n_rows, (copy + 1) * self.n_rows)
            value = replace_at(self.inner, activation[rows], start)
            if self.where is not None:
                mask = self.where[:, : value.shape[1]].to(value.device)
                mask = torch.nn.functional.pad(mask, (0, value.shape[1] - mask.shape[1]))
                value = torch.where(mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), value, activation[rows])
            if entries is None:
                new[rows] = value
            else:
                new[rows, :, entries] = value[:, :, entries]
        return new
