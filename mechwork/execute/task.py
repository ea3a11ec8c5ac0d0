"""A task as pure data: what its metrics read, as tensors and JSON values. Texts for people are left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..tasks.continuations import TENSORS, Continuations
from ..tasks.metrics import METRICS, Metric
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .unit import Tensors

PLAIN = ("clean_tokens", "corrupt_tokens", "lengths", "corrupt_lengths", "correct", "incorrect", "reference_logprobs")
SPANS = ("spans", "corrupt_spans")


def pack_task(task: Task) -> tuple[dict[str, Any], Tensors]:
    """JSON values and tensors from which `unpack_task` makes a task that measures the same."""
    pairs = task.pairs
    tensors: Tensors = {name: getattr(pairs, name) for name in PLAIN if getattr(pairs, name) is not None}
    for side in SPANS:
        tensors |= {f"{side}.{name}": mask for name, mask in getattr(pairs, side).items()}
    names: dict[str, Any] = {"alone": True} if pairs.alone else {}
    names |= {side: list(getattr(pairs, side)) for side in SPANS}
    if pairs.continuations is not None:
        tensors |= {f"continuations.{name}": getattr(pairs.continuations, name) for name in TENSORS}
        names["n_per_question"] = pairs.n_per_question
    return {"name": task.name, "metric": task.metric.name, "templates": list(pairs.templates), **names}, tensors


def unpack_task(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Task:
    """The task that `pack_task` packed, without its texts."""
    plain: dict[str, Any] = {name: tensors[name] for name in PLAIN if name in tensors}
    spans: dict[str, Any] = {side: {name: tensors[f"{side}.{name}"] for name in facts[side]} for side in SPANS}
    plain["alone"] = facts.get("alone", False)
    if "n_per_question" in facts:
        tables = {name: tensors[f"continuations.{name}"] for name in TENSORS}
        plain["continuations"] = Continuations(**tables, n_pairs=facts["n_per_question"])
    return Task(
        facts["name"], PromptPairs(**plain, **spans, templates=tuple(facts["templates"])), METRICS[facts["metric"]]
    )


def why_not_sent(metrics: Sequence[Metric]) -> str | None:
    """Why tasks with these metrics cannot be sent to other processes; None: they can."""
    own = [metric.name for metric in metrics if METRICS.get(metric.name) is not metric]
    if not own:
        return None
    return f"the metric {own[0]!r} is a function of this process; use one of {', '.join(METRICS)}, or forked workers"
