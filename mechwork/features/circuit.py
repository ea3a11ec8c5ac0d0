"""Run a model as a circuit of features: every other feature and error has the value of an ablated run.

At every place, in the order in which the model computes them, with f and e live (they follow from what was kept
before):

    y' = y + (f' - f) W_dec + (e' - e),     f'_i = f_i where node i is kept, else the ablated f_i; e' alike

Nothing kept: the place has the ablated run's vector. Everything kept: the model itself, to rounding.

| ablation | value of what is not kept |
|---|---|
| ``"corrupt"`` | that of the paired corrupt run |
| ``"mean_by_position"`` | the mean over the source task's clean prompts at the same position |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..interventions import require_examples
from ..models.anatomy import device_of
from ..models.borrow import borrows, hooked
from ..runs.record import run_to_metric
from ..sites import hook_name
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .coder import Coder, as_vectors, working
from .feature_set import FeatureSet
from .record import record_features
from .scores import NodeTable

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ABLATIONS = ("corrupt", "mean_by_position")


@dataclass(frozen=True, eq=False)
class Ablated:
    """What one place has when nothing is kept: features and error, with a batch axis of 1 where they are the same for
    all prompts.
    """

    features: Float[Tensor, "batch pos feature"]
    error: Float[Tensor, "batch pos d"]


@borrows
def record_ablated(
    model: TransformerBridge, features: FeatureSet, pairs: PromptPairs, ablation: str, source: Task
) -> list[Ablated]:
    """The ablated values of every place for some pairs. Cost: 1 forward of the pairs, or of the source's prompts.

    Raises `UnknownNameError` for another ablation; `InputError` for prompts longer than any of the source's, or a
    position with fewer than 8 of them.
    """
    if ablation == "corrupt":
        coded = record_features(model, pairs.corrupt_tokens, list(features))
        return [Ablated(c.features, c.error) for c in coded]
    if ablation != "mean_by_position":
        raise UnknownNameError("ablation of features", ablation, ABLATIONS)
    require_examples(source, by_position=True)
    width = pairs.clean_tokens.shape[1]
    if width > source.pairs.clean_tokens.shape[1]:
        raise InputError(
            f"means by position reach position {source.pairs.clean_tokens.shape[1] - 1} of task {source.name!r}; "
            f"these prompts have {width}. "
            "Take them from longer prompts, or use ablation='corrupt'."
        )
    coded = record_features(model, source.pairs.clean_tokens, list(features))
    mask = source.pairs.mask.to(device_of(model))
    count = mask.sum(dim=0).clamp(min=1)[:, None]
    means = []
    for one in coded:
        f, e = ((x * mask[..., None]).sum(dim=0) / count for x in (one.features, one.error))
        means.append(Ablated(f[None, :width], e[None, :width]))
    return means


@contextmanager
def as_feature_circuit(
    model: TransformerBridge, features: FeatureSet, kept: Bool[Tensor, " node"], ablated: Sequence[Ablated]
) -> Iterator[None]:
    """Inside, the model runs with the nodes `kept` live and all others ablated; on exit it is as before."""
    nodes = NodeTable.of(features)
    if len(kept) != len(nodes):
        raise InputError(f"these features have {len(nodes)} nodes (errors counted); the mask has {len(kept)}")
    hooks: list[tuple[str, Any]] = []
    for coder, span, values in zip(features, nodes.spans, ablated, strict=True):
        mask = kept[span].to(values.features.device)
        read: list[Tensor] = []
        if coder.reads != coder.writes:
            hooks.append((hook_name(coder.reads), _keep(read, coder)))
        hooks.append((hook_name(coder.writes), _mix(coder, mask[:-1], bool(mask[-1]), values, read)))
    with hooked(model, hooks):
        yield


def _keep(read: list[Tensor], coder: Coder) -> Any:
    head = coder.reads.head

    def hook(activation: Tensor, hook: Any) -> None:
        read[:] = [activation if head is None else activation[:, :, head]]

    return hook


def _mix(coder: Coder, kept: Bool[Tensor, " feature"], keeps_error: bool, values: Ablated, read: list[Tensor]) -> Any:  # noqa: FBT001
    head = coder.writes.head

    def hook(activation: Tensor, hook: Any) -> Tensor:
        y = as_vectors(activation if head is None else activation[:, :, head])
        x = as_vectors(read[0]) if read else y
        f = coder.encode(x)
        change = coder.write(torch.where(kept, 0, values.features.to(f) - f))
        if not keeps_error:
            change = change + values.error.to(f) - (working(y) - coder.decode(f, x))
        new = (working(y) + change).to(activation.dtype)
        if head is None:
            return new.reshape(activation.shape)
        whole = activation.clone()
        whole[:, :, head] = new
        return whole

    return hook


@borrows
def measure_feature_circuits(
    model: TransformerBridge,
    task: Task,
    features: FeatureSet,
    masks: Sequence[Bool[Tensor, " node"]],
    *,
    ablation: str = "corrupt",
    source: Task | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "circuit batch"]:
    """The task's metric of every circuit, per pair. Cost per batch: 1 forward, and 1 (with every coder run once) per
    circuit.
    """
    rows = []
    for pairs in task.pairs.batches(batch_size):
        pairs = pairs.to(device_of(model))
        ablated = record_ablated(model, features, pairs, ablation, source or task)
        metrics = []
        for mask in masks:
            with as_feature_circuit(model, features, mask, ablated):
                metrics.append(task.measure(run_to_metric(model, task, pairs, pairs.clean_tokens), pairs).cpu())
        rows.append(torch.stack(metrics))
    return torch.cat(rows, dim=1)
