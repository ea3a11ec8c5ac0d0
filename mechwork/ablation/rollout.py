"""Where the context of the last token comes from: attention rollout by position, and what of it the mask alone does.

    rollout of layer l = prod over m <= l of (A_m / 2 + I / 2),     A_m = mean over heads of the pattern of layer m

(Abnar & Zuidema 2020). Its last row says how much each position reaches the last token. Under a causal mask the product
drifts to the first positions by itself, whatever the heads look at, and faster with depth (Wu et al. 2025): `mask` has
the same for attention that is uniform over what a query sees, so that the model's own part is the difference.

    decay = - slope of log(1 - share of the first position) over the layers: how fast the first takes all

Cost: 1 forward of the prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, record_run
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class PositionBias(Result, what="position bias"):
    """Shares ``[layer, bin]`` by relative position (first to last, in bins of equal width); `first` ``[layer]`` is the
    share of the first token alone. Each for the model and for its mask with uniform attention.
    """

    model: Float[Tensor, "layer bin"]
    mask: Float[Tensor, "layer bin"]
    first: Float[Tensor, " layer"]
    first_of_mask: Float[Tensor, " layer"]
    n_prompts: int
    provenance: Provenance = field(default_factory=dict)

    @property
    def decay(self) -> tuple[float, float]:
        """(of the model, of the mask alone), per layer."""
        return _decay(self.first), _decay(self.first_of_mask)

    def _table(self) -> Table:
        """One row per layer and bin."""
        n_layers, n_bins = self.model.shape
        return {
            "layer": [layer for layer in range(n_layers) for _ in range(n_bins)],
            "bin": [i for _ in range(n_layers) for i in range(n_bins)],
            "share": self.model.flatten().tolist(),
            "mask_alone": self.mask.flatten().tolist(),
        }

    def __str__(self) -> str:
        own, mask = self.decay
        last = [", ".join(f"{share:.2f}" for share in part[-1].tolist()) for part in (self.model, self.mask)]
        return (
            f"rollout to the last token after {len(self.first)} layers, {self.n_prompts} prompts, from the first to "
            f"the last positions: {last[0]} (mask alone: {last[1]}); first token {float(self.first[-1]):.3f} (mask "
            f"alone {float(self.first_of_mask[-1]):.3f}); decay {own:.3f} a layer (mask alone {mask:.3f})"
        )


@borrows
def study_position_bias(model: TransformerBridge, task: Task, *, n_bins: int = 4) -> PositionBias:
    """Attention rollout of the clean prompts to their last token. Cost: 1 forward.

    Raises `InputError` for fewer bins than one, a prompt shorter than the bins, or attention that is not causal.

    >>> print(study_position_bias(model, task))
    """
    anatomy = check_task(model, task)
    pairs = task.pairs.to(device_of(model))
    if not anatomy.causal:
        raise InputError(f"the mask of {anatomy.architecture} is not causal; rollout by position needs one that is")
    shortest = int(pairs.lengths.min())
    if n_bins < 1 or n_bins > shortest:
        raise InputError(f"bins are 1 to {shortest}, the tokens of the shortest prompt; got {n_bins}")
    patterns = [p.double() for p in record_run(model, pairs, ["pattern"], n_tail=1).layers["pattern"]]
    parts = []
    for row in range(len(pairs)):
        n = int(pairs.lengths[row])
        own = roll_out(torch.stack([p[row, :, :n, :n].mean(dim=0) for p in patterns]))
        even = torch.ones(n, n, dtype=torch.float64, device=own.device).tril()
        mask = roll_out((even / even.sum(dim=-1, keepdim=True)).expand(len(patterns), n, n))
        bins = torch.arange(n, device=own.device) * n_bins // n
        table = torch.nn.functional.one_hot(bins, n_bins).double()
        parts.append([own @ table, mask @ table, own[:, 0], mask[:, 0]])
    means = [torch.stack(column).mean(dim=0).cpu() for column in zip(*parts, strict=True)]
    facts = build_provenance(method="position bias", model=identify_model(model), task=task.provenance(), n_bins=n_bins)
    return PositionBias(means[0], means[1], means[2], means[3], len(pairs), facts)


def roll_out(patterns: Float[Tensor, "layer pos pos2"]) -> Float[Tensor, "layer pos"]:
    """After every layer, how much each position reaches the last one: the last row of the product from there down."""
    n = patterns.shape[-1]
    mixed = patterns / 2 + torch.eye(n, dtype=patterns.dtype, device=patterns.device) / 2
    product, rows = torch.eye(n, dtype=patterns.dtype, device=patterns.device), []
    for layer in mixed:
        product = layer @ product
        rows.append(product[-1])
    return torch.stack(rows)


def _decay(first: Float[Tensor, " layer"]) -> float:
    """Minus the least-squares slope of log(1 - share) over layers; NaN for one layer."""
    if len(first) < 2:
        return float("nan")
    y = (1 - first.double()).clamp(min=1e-12).log()
    x = torch.arange(len(y), dtype=torch.float64)
    x = x - x.mean()
    return -float((x * (y - y.mean())).sum() / x.pow(2).sum())
