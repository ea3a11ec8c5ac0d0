"""The illusion check: does an effect along a direction ride on a causally disconnected part of it?

(Makelov, Lange & Nanda 2023.) At an MLP's neurons h, only what the downstream weight reads matters: h W_out. A
direction v splits into v = v_row + v_null, v_null W_out = 0. Patching along v writes (v . (donor - host)) v: the
*coefficient* may come from the disconnected part, which varies with the input, and the *effect* from the connected
part, which in real runs hardly moves (it is dormant). Then v works when patched although the model does not use it.
Signs of it, all measured here:

patched | an honest direction | an illusion:

- the subspace | effect | effect
- its row part alone (the disconnected part removed) | the same effect | little: it is dormant
- its null part alone | 0, always | 0, always
- everything but the subspace (complement) | the whole less the effect, as far as what follows is linear | the same: it
  cannot tell
- a random subspace, moved as far | little | little

Where the row space has one dimension, every row part is the same direction and cannot tell the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..models.anatomy import block_norm
from ..models.borrow import borrows
from ..provenance import Provenance
from ..result import Result, Table
from ..runs.record import Baseline, check_task
from ..sites import Site
from ..tasks.task import Task
from .result import Effect
from .subspace import Across, Subspace, SubspaceAsFar, SubspaceExchange, check_subspace, measure_share

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SMALL = 0.5
"""A row part that has less than this share of the subspace's effect does not explain it."""


@dataclass(frozen=True, eq=False)
class IllusionCheck(Result):
    """Effects per pair of a subspace, of its parts and of its controls, at one site and all positions.

    `null_share`: the share of the basis' squared length that the downstream weight does not read. `random` has one row
    per random subspace. A part that is empty (length below 1e-6) has effect 0.
    """

    site: Site
    name: str
    rank: int
    null_share: float
    row_rank: int
    subspace: Float[Tensor, " batch"]
    row: Float[Tensor, " batch"]
    null: Float[Tensor, " batch"]
    complement: Float[Tensor, " batch"]
    whole: Float[Tensor, " batch"]
    random: Float[Tensor, "draw batch"]
    baseline: Baseline
    metric_name: str
    provenance: Provenance

    @property
    def illusory(self) -> bool:
        """Whether the subspace has an effect beyond the random ones that its row part does not explain."""
        total, row = float(self.subspace.mean()), float(self.row.mean())
        return self.beyond_random and self.null_share > 1e-6 and row * (1 if total > 0 else -1) < SMALL * abs(total)

    @property
    def beyond_random(self) -> bool:
        """Whether the subspace's mean effect is larger than every random subspace's."""
        return abs(float(self.subspace.mean())) > float(self.random.mean(dim=1).abs().max())

    @property
    def verdict(self) -> str:
        """What the numbers say, in words."""
        total, row, whole = (float(x.mean()) for x in (self.subspace, self.row, self.whole))
        lead = (
            f"Patching {self.name} (rank {self.rank}) at {self.site} changes {self.metric_name} by {total:+.4g}; "
            "patching the whole "
            f"activation by {whole:+.4g}; everything but the subspace by {float(self.complement.mean()):+.4g}."
        )
        if not self.beyond_random:
            largest = float(self.random.mean(dim=1).abs().max())
            return (
                f"{lead} A random subspace moved as far does as much (up to {largest:.4g}): no evidence that these "
                "directions matter."
            )
        if self.null_share <= 1e-6:
            return (
                f"{lead} The downstream weight reads the whole subspace, so no effect can ride on a disconnected "
                "direction here."
            )
        part = f"The downstream weight does not read {self.null_share:.0%} of it."
        if self.illusory:
            return (
                f"{lead} {part} Without that causally disconnected part the effect is {row:+.4g}: the effect rides on "
                "a causally "
                "disconnected direction and a dormant one. It does not show that the model uses this subspace."
            )
        return f"{lead} {part} Without that part the effect is {row:+.4g}, so the connected part carries it."

    def _table(self) -> Table:
        """One row per patched part: mean effect and standard error over pairs."""
        parts = {
            "subspace": self.subspace, "row part": self.row, "null part": self.null, "complement": self.complement,
            "whole activation": self.whole, **{f"random {i}": draw for i, draw in enumerate(self.random)},
        }  # fmt: skip
        n = self.subspace.numel() ** 0.5
        return {
            "patched": list(parts),
            "effect": [float(x.mean()) for x in parts.values()],
            "standard_error": [float(x.std()) / n if x.numel() > 1 else float("nan") for x in parts.values()],
        }

    def __str__(self) -> str:
        return f"{self.verdict}\n{self.to_dataframe().to_string(index=False, float_format='%+.4g'.__mod__)}"


@borrows
def check_illusion(
    model: TransformerBridge,
    task: Task,
    site: Site,
    subspace: Subspace,
    *,
    direction: str = "denoise",
    n_random: int = 5,
    seed: int = 0,
) -> IllusionCheck:
    """Split `subspace` at an MLP's neurons (``mlp_post``) or a head's ``z`` by the weight that reads it, and measure
    the parts.

    Cost: 2 forwards and one patched run for each of the 5 + `n_random` parts. Raises `InputError` for another kind of
    site (the stream itself is read by many weights), a subspace of another size, or fewer than one random control.
    """
    anatomy = check_task(model, task)
    if site.kind not in ("mlp_post", "z"):
        raise InputError(
            "the check needs a single downstream weight: Site('mlp_post', layer) or Site('z', layer, head); got "
            f"{site}. "
            "The residual stream is read by every later weight."
        )
    check_subspace(model, anatomy, site, subspace)
    if n_random < 1:
        raise InputError(f"n_random counts random subspaces and is at least 1; got {n_random}")
    weight = downstream_weight(model, site)
    row, null, share, row_rank = split_subspace(subspace, weight)

    def effect(put_in: Any) -> Effect:
        return measure_share(model, task, site, put_in, subspace, direction, "all")

    def part(inside: Subspace | None) -> Tensor:
        return (
            torch.zeros_like(found.per_example.flatten())
            if inside is None
            else effect(SubspaceExchange(inside)).per_example.flatten()
        )

    found = effect(SubspaceExchange(subspace))
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(*subspace.basis.shape, generator=generator) for _ in range(n_random)]
    random = [effect(SubspaceAsFar(subspace, Subspace.of(draw.to(subspace.basis), "random"))) for draw in draws]
    everything = Subspace(torch.eye(len(subspace.basis), dtype=subspace.basis.dtype, device=subspace.basis.device))
    return IllusionCheck(
        site=site,
        name=subspace.name,
        rank=subspace.rank,
        null_share=share,
        row_rank=row_rank,
        subspace=found.per_example.flatten(),
        row=part(row),
        null=part(null),
        complement=effect(Across(subspace)).per_example.flatten(),
        whole=effect(SubspaceExchange(everything)).per_example.flatten(),
        random=torch.stack([one.per_example.flatten() for one in random]),
        baseline=found.baseline,
        metric_name=found.metric_name,
        provenance={**found.provenance, "method": "subspace patching, illusion check"},
    )


def downstream_weight(model: TransformerBridge, site: Site) -> Float[Tensor, "d d_model"]:
    """The weight through which alone the vectors at `site` act; with a LayerNorm behind it, its mean is
    removed first.
    """
    block: Any = model.blocks[int(site.layer or 0)]
    weight = block.mlp.W_out if site.kind == "mlp_post" else block.attn.W_O[site.head]
    norm = block_norm(model, int(site.layer or 0), "ln2_post" if site.kind == "mlp_post" else "ln1_post")
    return weight if norm is None else norm.centre(weight)


def split_subspace(
    subspace: Subspace, weight: Float[Tensor, "d d_model"]
) -> tuple[Subspace | None, Subspace | None, float, int]:
    """(row part, null part, null share of the squared length, rank of the weight); a part of no length is None.

    Row part: the subspace projected on the space of directions that ``v @ weight`` reads; null part: on its complement.
    """
    basis = subspace.basis.double()
    left, sizes, _ = torch.linalg.svd(weight.double(), full_matrices=False)
    read = left[:, sizes > sizes.max() * max(weight.shape) * torch.finfo(weight.dtype).eps]
    inside = read @ (read.T @ basis)
    share = float((basis - inside).pow(2).sum() / basis.pow(2).sum())
    parts = [
        _span(x, f"{side} part of {subspace.name}", subspace.basis.dtype)
        for x, side in ((inside, "row"), (basis - inside, "null"))
    ]
    return parts[0], parts[1], share, read.shape[1]


def _span(columns: Float[Tensor, "d rank"], name: str, dtype: torch.dtype) -> Subspace | None:
    left, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    kept = left[:, sizes > 1e-6]
    return Subspace(kept.to(dtype), name) if kept.shape[1] else None
