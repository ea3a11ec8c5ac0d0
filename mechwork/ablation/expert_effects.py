"""Every expert of a mixture as a place: ablated alone, with what it is used for beside it.

    effect of an expert = m(model) - m(model with the expert's write replaced),  positive = the expert raises the metric

Zero and mean ablation take an expert's share away and leave its tokens where they are; ``"off"`` switches it off in
the router, so that its tokens go to the next experts (`Routing`). An expert that no token is routed to has an effect of
0, and `used` (share of the clean prompts' tokens) says so. Scores of experts are in `score_nodes` and `score_edges`
with ``split_experts=True``. Cost: 2 forwards, and 1 per expert (2 for ``"mean"``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..interventions import Routing, intervene
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import expert_name
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, metric_of
from ..statistics import pearson
from ..tasks.task import Task
from .expert_rates import record_routers
from .run import ablate
from .spec import AblationSpec

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("zero", "mean", "off")


@dataclass(frozen=True, eq=False)
class ExpertEffects(Result, what="effects of experts", strongest="effect"):
    """Measured effects per pair ``[batch, layer, expert]``, and the share of tokens that each expert is used for."""

    per_example: Float[Tensor, "batch layer expert"]
    used: Float[Tensor, "layer expert"]
    kind: str
    baseline: float
    metric_name: str
    provenance: Provenance = field(default_factory=dict)

    @property
    def values(self) -> Float[Tensor, "layer expert"]:
        """Mean effect over pairs."""
        return self.per_example.mean(dim=0)

    @property
    def by_use(self) -> float:
        """Correlation of the effects' size with how much an expert is used: near 1, use says all there is to say."""
        return pearson(self.values.abs().flatten().double(), self.used.flatten().double())

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` experts of largest absolute effect, strongest first."""
        flat, width = self.values.flatten(), self.values.shape[1]
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(expert_name(*divmod(i, width)), float(flat[i])) for i in order]

    def _table(self) -> Table:
        """One row per expert."""
        n_layers, n = self.values.shape
        error = self.per_example.std(dim=0) / len(self.per_example) ** 0.5
        return {
            "expert": [expert_name(layer, e) for layer in range(n_layers) for e in range(n)],
            "effect": self.values.flatten().tolist(), "standard_error": error.flatten().tolist(),
            "used": self.used.flatten().tolist(),
        }  # fmt: skip

    def __str__(self) -> str:
        best = ", ".join(f"{name} {value:+.3f}" for name, value in self.top(5))
        idle = int((self.used == 0).sum())
        said = f"; {idle} are used for no token, so ablating them changed nothing" if idle else ""
        return (
            f"{self.metric_name} {self.baseline:.3f}; experts by {self.kind} ablation: {best}; size of the effect "
            f"follows use with {self.by_use:.2f}{said}"
        )


@borrows
def sweep_experts(
    model: TransformerBridge, task: Task, *, kind: str = "zero", reference: Task | None = None
) -> ExpertEffects:
    """Ablate every expert of every layer alone on the clean prompts of a task.

    Raises `InputError` for a model without experts or with too few to switch one off, `UnknownNameError` for another
    kind.

    >>> print(sweep_experts(model, task, kind="off"))
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of ablation of experts", kind, KINDS)
    anatomy = check_task(model, task)
    if anatomy.n_experts is None:
        raise InputError(f"{anatomy.architecture} has no experts; its MLP is one block. Sweep 'mlps' or 'neurons'")
    plain = metric_of(model, task).cpu()
    used = record_routers(model, task.pairs.clean_tokens).rates(task.pairs.mask).mean(dim=1)
    rows = []
    for layer in range(anatomy.n_layers):
        for expert in range(anatomy.n_experts):
            if kind == "off":
                with torch.no_grad(), intervene(model, [Routing(layer, off=(expert,))]):
                    rows.append(plain - metric_of(model, task).cpu())
            elif float(used[layer, expert]) == 0:  # no mean of nothing, and no effect
                rows.append(torch.zeros_like(plain))
            else:
                found = ablate(model, task, AblationSpec([expert_name(layer, expert)], kind), reference=reference)
                rows.append(found.per_example)
    effects = torch.stack(rows, dim=1).view(len(plain), anatomy.n_layers, anatomy.n_experts)
    facts = build_provenance(
        method="effects of experts", kind=kind, model=identify_model(model), task=task.provenance()
    )
    return ExpertEffects(effects, used, kind, float(plain.mean()), task.metric.name, facts)
