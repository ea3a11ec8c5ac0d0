"""Run an ablation on a task: what the metric, the accuracy and the model's output lose.

effect = m(model) - m(model, ablated);   positive = what was ablated raises the metric
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InputError
from ..execute.memory import MemoryBudget
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, run_to_metric
from ..runs.room import DEFAULT_BUDGET, prompts_that_fit
from ..shapes import PerExample
from ..statistics import bootstrap_interval, kl_nats, sign_flip_p
from ..tasks.metrics import accuracy
from ..tasks.task import Task
from .fitted import Ablation, fit_ablation
from .spec import NEEDS_REFERENCE, AblationSpec

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class AblationResult(Result):
    """The metric per pair with and without the ablation, accuracy both ways, and KL(model ‖ ablated) at the answer in
    nats.
    """

    spec: AblationSpec
    clean_per_example: PerExample
    ablated_per_example: PerExample
    clean_correct: Bool[Tensor, " batch"]
    ablated_correct: Bool[Tensor, " batch"]
    kl_per_example: PerExample
    metric_name: str
    provenance: Provenance
    notes: tuple[str, ...] = ()

    @property
    def per_example(self) -> PerExample:
        """m(model) - m(ablated) per pair."""
        return self.clean_per_example - self.ablated_per_example

    @property
    def effect(self) -> float:
        """Mean of `per_example`; positive: what was ablated raises the metric."""
        return float(self.per_example.mean())

    @property
    def accuracy_drop(self) -> float:
        """Accuracy of the model less that of the ablated one."""
        return float(self.clean_correct.float().mean() - self.ablated_correct.float().mean())

    @property
    def kl(self) -> float:
        """Mean KL(model ‖ ablated) at the answer, in nats."""
        return float(self.kl_per_example.mean())

    def interval(self, level: float = 0.95, *, n: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of the effect over pairs."""
        low, high = bootstrap_interval(self.per_example[:, None], level, n, seed)[:, 0].tolist()
        return low, high

    def p_value(self, *, n: int = 2000, seed: int = 0) -> float:
        """Two-sided sign-flip p-value of the effect."""
        return float(sign_flip_p(self.per_example[:, None], n, seed))

    def _table(self) -> Table:
        """One row per pair."""
        return {
            "clean": self.clean_per_example.tolist(),
            "ablated": self.ablated_per_example.tolist(),
            "clean_correct": self.clean_correct.tolist(),
            "ablated_correct": self.ablated_correct.tolist(),
            "kl": self.kl_per_example.tolist(),
        }

    def __str__(self) -> str:
        n = len(self.per_example)
        spread = f" [{', '.join(f'{end:.3f}' for end in self.interval())}]" if n > 1 else ""
        lines = [
            f"{self.spec}, {n} pairs",
            (
                f"  {self.metric_name}: {float(self.clean_per_example.mean()):.3f} -> "
                f"{float(self.ablated_per_example.mean()):.3f}, effect {self.effect:+.3f}{spread}"
            ),
            (
                f"  accuracy: {float(self.clean_correct.float().mean()):.3f} -> "
                f"{float(self.ablated_correct.float().mean()):.3f}   KL: {self.kl:.4f} nats"
            ),
        ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@borrows
def ablate(
    model: TransformerBridge,
    task: Task,
    ablation: AblationSpec | Ablation | Sequence[str],
    *,
    reference: Task | None = None,
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
) -> AblationResult:
    """The effect of an ablation on the clean prompts of a task.

    Targets alone (``["a1.h3"]``) are ablated by their mean. A spec is fitted first, to `reference` (default: the task
    itself; the result's provenance says which). Cost: 2 forwards per batch of pairs that fits `memory_budget`, and the
    fitting. Raises what `fit_ablation` and `Ablation.bind` raise.

    >>> print(ablate(model, task, AblationSpec(["a1.h3"], "mean")))
    """
    check_task(model, task)
    if not isinstance(ablation, AblationSpec | Ablation):
        ablation = AblationSpec([ablation] if isinstance(ablation, str) else ablation)
    _check_columns(ablation if isinstance(ablation, AblationSpec) else ablation.spec, task)
    size, per_question = prompts_that_fit(model, task.pairs, memory_budget), task.pairs.per_question
    fitted = ensure_fitted(model, task, ablation, reference, memory_budget)
    parts: list[tuple[Tensor, ...]] = []
    routed: dict[tuple[int, int], int] = {}
    for first in range(0, len(task), size):
        pairs = task.pairs[first : first + size].to(device_of(model))
        with torch.no_grad():
            plain = run_to_metric(model, task, pairs)
            with fitted.applied(model, pairs, first_row=first) as bound:
                changed = run_to_metric(model, task, pairs)
        for place, n in bound.experts.routed.items():
            routed[place] = routed.get(place, 0) + n
        reference_log, found = (pairs.read(logits).log_softmax(dim=-1) for logits in (plain, changed))
        kl = kl_nats(reference_log, found).mean(dim=1)
        measured = (task.measure(plain, pairs), task.measure(changed, pairs))
        parts.append(tuple(t.cpu() for t in (*measured, accuracy(plain, pairs), accuracy(changed, pairs), kl)))
    columns = [per_question(torch.cat(column)) for column in zip(*parts, strict=True)]
    facts = build_provenance(
        method="ablation", ablation=fitted.provenance(), model=identify_model(model), task=task.provenance()
    )
    notes = tuple(_routing(layer, expert, n) for (layer, expert), n in routed.items())
    return AblationResult(fitted.spec, *columns, metric_name=task.metric.name, provenance=facts, notes=notes)


def _check_columns(spec: AblationSpec, task: Task) -> None:
    """Raises `InputError` for columns beyond every prompt, which would change nothing and read as an effect of 0."""
    longest = int(task.pairs.lengths.max())
    if beyond := [p for p in spec.positions or () if isinstance(p, int) and p >= longest]:
        raise InputError(f"prompts of {task.name!r} have positions 0 to {longest - 1}; got {beyond}")


def ensure_fitted(
    model: TransformerBridge, task: Task, ablation: AblationSpec | Ablation, reference: Task | None,
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
) -> Ablation:  # fmt: skip
    """The ablation itself, or the spec fitted to `reference` (default: the task)."""
    if isinstance(ablation, Ablation):
        if reference is not None:
            raise InputError("this ablation has its reference already; pass its spec to fit it to another one")
        ablation.check_model(model)
        return ablation
    source = (reference or task) if ablation.kind in NEEDS_REFERENCE else None
    return fit_ablation(model, ablation, source, memory_budget=memory_budget)


def _routing(layer: int, expert: int, n: int) -> str:
    if n == 0:
        return f"m{layer}.e{expert}: no token of these prompts is routed to this expert, so ablating it changed nothing"
    return f"m{layer}.e{expert}: {n} tokens were routed to it"
