"""Which experts a behaviour uses: rates on two sets of prompts, and what switching those experts off or on does.

    rate of an expert  = share of the real tokens of a set that are routed to it
    contrast           = rate on the clean prompts - rate on the corrupt ones, per pair, with a sign-flip p-value
                         (corrected over all experts by Holm)
    effect             = m(experts switched) - m(plain), m = mean metric of the clean prompts

"Switched off" sends an expert's tokens to the next ones, "on" sends every token to it (see `Routing`). Experts are
taken by the size of their contrast: those that the clean prompts use more are switched off (``suppress``), or on
(``promote``). Beside each stands the same with experts drawn by lot, as many in each layer, that are none of them:
without that control, any disturbance of a router looks like a finding. Sources: SteerMoE (Fayyaz et al. 2025), MoTE.
Only routers that take a softmax of their logits and its top k are read and changed; others are refused, by the same
check as `Routing`. Cost: 2 forwards for the rates, 1 + 1 + `n_random` per change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError, check_whole
from ..interventions import Routing, intervene
from ..interventions.routing import read_router
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, metric_of
from ..shapes import PositionMask, Tokens
from ..statistics import holm, sign_flip_p
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CHANGES = ("suppress", "promote")


@dataclass(frozen=True, eq=False)
class RouterRun(Readable):
    """One run's routers: `logits` and `chosen` are ``[layer, batch, pos, expert]``."""

    logits: Float[Tensor, "layer batch pos expert"]
    chosen: Bool[Tensor, "layer batch pos expert"]

    def rates(self, mask: PositionMask) -> Float[Tensor, "layer batch expert"]:
        """The share of each prompt's real tokens that go to each expert."""
        where = mask.to(self.chosen.device)[None, :, :, None]
        return (self.chosen & where).double().sum(dim=2) / where.double().sum(dim=2)


@borrows
def record_routers(model: TransformerBridge, tokens: Tokens) -> RouterRun:
    """The routers' logits and choices for some prompts. Cost: 1 forward.

    Raises `InputError` for a model without experts, `UnsupportedModelError` for a router that is not read exactly.
    """
    anatomy = check_ready(model)
    if anatomy.n_experts is None:
        raise InputError(f"{anatomy.architecture} has no experts, so nothing is routed")
    logits: list[Tensor] = []
    chosen: list[Tensor] = []

    def keep(found: Tensor, index: Tensor) -> None:
        shape = (*tokens.shape, found.shape[-1])
        logits.append(found.detach().cpu().view(shape))
        chosen.append(torch.zeros_like(found, dtype=torch.bool).scatter_(-1, index, value=True).cpu().view(shape))

    with _watching(model, keep), torch.no_grad():
        model(tokens.to(device_of(model)), logits_to_keep=1)
    return RouterRun(torch.stack(logits), torch.stack(chosen))


@contextmanager
def _watching(model: TransformerBridge, keep: Any) -> Iterator[None]:
    handles = [read_router(model, layer, keep) for layer in range(check_ready(model).n_layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class ExpertChange:
    """What switching some experts does to the mean metric, and the same for as many by lot (all draws)."""

    change: str
    experts: tuple[str, ...]
    effect: float
    by_lot: tuple[float, ...]

    @property
    def share_beaten(self) -> float:
        """The share of draws by lot whose effect is smaller in size."""
        return sum(abs(lot) < abs(self.effect) for lot in self.by_lot) / max(len(self.by_lot), 1)


@dataclass(frozen=True, eq=False)
class ExpertContrast(Result, what="contrast of experts", strongest="contrast"):
    """Rates ``[layer, expert]`` on the clean and on the corrupt prompts, p-values, and what changes do."""

    clean: Float[Tensor, "layer expert"]
    corrupt: Float[Tensor, "layer expert"]
    p_values: Float[Tensor, "layer expert"]
    changes: tuple[ExpertChange, ...]
    baseline: float
    metric_name: str
    provenance: Provenance = field(default_factory=dict)

    @property
    def contrast(self) -> Float[Tensor, "layer expert"]:
        """The rate on clean prompts beyond that on corrupt ones."""
        return self.clean - self.corrupt

    def _table(self) -> Table:
        """One row per expert."""
        n_layers, n = self.clean.shape
        return {
            "expert": [f"m{layer}.e{e}" for layer in range(n_layers) for e in range(n)],
            "clean": self.clean.flatten().tolist(),
            "corrupt": self.corrupt.flatten().tolist(),
            "contrast": self.contrast.flatten().tolist(),
            "p": self.p_values.flatten().tolist(),
        }

    def __str__(self) -> str:
        lines = [self.to_dataframe().head(8).to_string(index=False, float_format="%.3f".__mod__)]
        for change in self.changes:
            largest = max((abs(lot) for lot in change.by_lot), default=float("nan"))
            lines.append(
                f"{change.change} {', '.join(change.experts)}: {self.metric_name} {change.effect:+.3f}; "
                f"as many by lot up to {largest:.3f} in size"
            )
        return "\n".join(lines)


@borrows
def contrast_experts(
    model: TransformerBridge, task: Task, *, n: int = 2, changes: Sequence[str] = CHANGES, n_random: int = 5,
    seed: int = 0,
) -> ExpertContrast:  # fmt: skip
    """Rates of all experts on both sides of a task's pairs, and the effect of switching the `n` of largest contrast.

    Raises `InputError` for a model without experts, fewer experts than `n` whose rate differs, or more of a layer than
    can be switched; `UnsupportedModelError` for a router that is not a softmax and a top k.

        print(contrast_experts(model, task, n=2))
    """
    anatomy = check_task(model, task)
    if anatomy.n_experts is None:
        raise InputError(f"{anatomy.architecture} has no experts; its MLP is one block. Ablate MLPs or neurons")
    task.pairs.require_corrupt()
    if check_whole("n", n) < 1 or check_whole("n_random", n_random) < 0:
        raise InputError(f"n counts experts and is at least 1, n_random is at least 0; got {n} and {n_random}")
    if strange := [change for change in changes if change not in CHANGES]:
        raise InputError(f"experts are changed by {' or '.join(CHANGES)}; got {strange[0]!r}")
    host = task.pairs.corrupt_as_host()
    clean = record_routers(model, task.pairs.clean_tokens).rates(task.pairs.mask)
    corrupt = record_routers(model, host.clean_tokens).rates(host.mask)
    difference = (clean - corrupt).transpose(0, 1)  # batch layer expert
    p_values = holm(sign_flip_p(difference, seed=seed))
    mean = difference.mean(dim=0)
    best = [int(i) for i in mean.flatten().argsort(descending=True)[:n]]
    chosen = [divmod(i, anatomy.n_experts) for i in best]
    if float(mean.flatten()[best[-1]]) <= 0:
        raise InputError(
            f"fewer than {n} experts are used more by the clean prompts than by the corrupt ones; ask for fewer"
        )
    plain = float(metric_of(model, task).mean())
    generator = torch.Generator().manual_seed(seed)
    found = []
    for change in changes:
        lots = [_by_lot(chosen, anatomy.n_experts, generator) for _ in range(n_random)]
        effects = [_switched(model, task, experts, change) - plain for experts in (chosen, *lots)]
        names = tuple(f"m{layer}.e{expert}" for layer, expert in chosen)
        found.append(ExpertChange(change, names, effects[0], tuple(effects[1:])))
    provenance = build_provenance(
        method="contrast of experts", n=n, seed=seed, model=identify_model(model), task=task.provenance()
    )
    return ExpertContrast(
        clean.mean(dim=1), corrupt.mean(dim=1), p_values, tuple(found), plain, task.metric.name, provenance
    )


Experts = Sequence[tuple[int, int]]


def _by_lot(chosen: Experts, n_experts: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """As many others of each layer; where a layer has too few others, all of them."""
    drawn = []
    for layer in dict.fromkeys(layer for layer, _ in chosen):
        mine = {expert for at, expert in chosen if at == layer}
        others = [e for e in range(n_experts) if e not in mine]
        order = torch.randperm(len(others), generator=generator)[: len(mine)]
        drawn += [(layer, others[int(i)]) for i in order]
    return drawn


def _switched(model: TransformerBridge, task: Task, experts: Experts, change: str) -> float:
    by_layer: dict[int, tuple[int, ...]] = {}
    for layer, expert in experts:
        by_layer[layer] = (*by_layer.get(layer, ()), expert)
    writes = [
        Routing(layer, off=some) if change == "suppress" else Routing(layer, on=some)
        for layer, some in by_layer.items()
    ]
    with intervene(model, writes):
        return float(metric_of(model, task).mean())
