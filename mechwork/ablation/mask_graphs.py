"""What an attention mask does by itself: the graph of who sees whom, its centre, and how fast all context drifts there.

A token that sees a set of tokens has an edge to each. The *centre* is what every token reaches in the end and what sees
only itself: the first token under a causal mask and in a sliding window, the whole prefix where a prefix sees itself
both ways. With attention uniform over what is seen, mixed with the stream as in rollout (M = A / 2 + I / 2):

    share outside of the centre after layer l = row of the last token of M^l, summed over tokens outside
    reach     layers until the last token has a path to the centre (a window of w: (n - 1) / (w - 1), rounded up)
    decay     - log of the largest eigenvalue of M among tokens outside: the rate per layer in the long run (causal:
              - log .75 = .288; a prefix of k: - log((1 + 1 / (k + 1)) / 2))

What a model does beyond its mask is the difference of `study_position_bias` from this. Source: Wu et al. 2025
(arXiv:2502.01951), whose centres and rates are of attention without a residual stream. Runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from ..arguments import checked
from ..errors import InputError
from ..provenance import Provenance, build_provenance
from ..result import Result

Mask = Bool[Tensor, "pos pos2"]


@dataclass(frozen=True)
class MaskRow:
    """One mask after one layer: shares of the last token's context; `mean_position` from 0 (first) to 1 (last)."""

    mask: str
    layer: int
    first: float
    outside: float
    mean_position: float


@dataclass(frozen=True)
class MaskCentre:
    """One mask: how many tokens are its centre, layers to reach it, rate of drift in the long run, and the rate between
    the last two layers that were run.
    """

    mask: str
    n_centre: int
    reach: int
    decay: float
    decay_here: float


@dataclass(frozen=True, eq=False)
class MaskStudy(Result, what="graphs of masks"):
    """Rows by mask and layer, and what the graphs say."""

    n: int
    rows: tuple[MaskRow, ...]
    centres: tuple[MaskCentre, ...]
    provenance: Provenance = field(default_factory=dict)

    def centre(self, mask: str) -> MaskCentre:
        """What the graph of one mask says."""
        found = {one.mask: one for one in self.centres}
        if mask not in found:
            raise InputError(f"masks are {', '.join(found)}; got {mask!r}")
        return found[mask]

    def __str__(self) -> str:
        lines = [f"{self.n} tokens, uniform attention"]
        for one in self.centres:
            mine = [row for row in self.rows if row.mask == one.mask]
            lines.append(
                f"{one.mask}: centre of {one.n_centre}, reached after {one.reach} layers; outside after {len(mine)} "
                f"layers {mine[-1].outside:.3f}, mean position {mine[0].mean_position:.2f} to "
                f"{mine[-1].mean_position:.2f}; decay {one.decay_here:.3f} a layer, in the long run {one.decay:.3f}"
            )
        return "\n".join(lines)


@checked
def study_masks(n: int, n_layers: int, masks: Mapping[str, Mask] | None = None) -> MaskStudy:
    """Follow uniform attention under each mask (default: `default_masks`) over `n_layers` layers of `n` tokens.

    Raises `InputError` for fewer than two tokens or layers, a mask of another size, one in which a token does not see
    itself, or one without a centre.

    >>> print(study_masks(16, 6))
    """
    if n < 2 or n_layers < 2:
        raise InputError(f"masks are followed over at least two tokens and two layers; got {n} and {n_layers}")
    masks = default_masks(n) if masks is None else masks
    rows, centres = [], []
    for name, mask in masks.items():
        if mask.shape != (n, n) or not bool(mask.diagonal().all()):
            raise InputError(f"a mask is [{n}, {n}] and every token sees itself; {name!r} is {tuple(mask.shape)}")
        centre = find_centre(mask)
        if not bool(centre.any()):
            raise InputError(f"in mask {name!r} there is no token that all others reach, so that it has no centre")
        mixed = mask.double() / mask.sum(dim=-1, keepdim=True) / 2 + torch.eye(n, dtype=torch.float64) / 2
        product, outside = torch.eye(n, dtype=torch.float64), []
        for layer in range(n_layers):
            product = mixed @ product
            last = product[-1]
            outside.append(float(last[~centre].sum()))
            middle = float(last @ torch.arange(n, dtype=torch.float64)) / (n - 1)
            rows.append(MaskRow(name, layer, float(last[0]), outside[-1], middle))
        inner = mixed[~centre][:, ~centre]
        slowest = float(torch.linalg.eigvals(inner).abs().max()) if len(inner) else 0.0
        decay = -float(torch.tensor(slowest, dtype=torch.float64).log())
        here = float(torch.tensor(outside[-2] / max(outside[-1], 1e-300), dtype=torch.float64).log())
        centres.append(MaskCentre(name, int(centre.sum()), _reach(mask, centre), decay, here))
    facts = build_provenance(method="graphs of masks", n=n, n_layers=n_layers, masks=list(masks))
    return MaskStudy(n, tuple(rows), tuple(centres), facts)


def default_masks(n: int) -> dict[str, Mask]:
    """Causal, a sliding window and a prefix of a quarter of `n` tokens each (at least two)."""
    part, causal = max(2, n // 4), torch.ones(n, n, dtype=torch.bool).tril()
    prefix = causal.clone()
    prefix[:, :part] = True
    return {"causal": causal, f"window of {part}": causal.triu(1 - part), f"prefix of {part}": prefix}


def find_centre(mask: Mask) -> Bool[Tensor, " pos"]:
    """The tokens that every token reaches along edges from who sees to who is seen."""
    reached = mask.clone()
    for _ in range(len(mask)):
        reached = reached | ((reached.double() @ mask.double()) > 0)
    return reached.all(dim=0)


def _reach(mask: Mask, centre: Bool[Tensor, " pos"]) -> int:
    """Layers until the last token has a path to the centre."""
    seen = torch.zeros(len(mask), dtype=torch.bool)
    seen[-1] = True
    layers = 0
    while not bool((seen & centre).any()):
        seen = (seen.double() @ mask.double()) > 0
        layers += 1
    return layers
