"""Affine maps of every dimension at many places, fitted together: LinEAS (Rodriguez et al. 2025), end to end with a
distributional loss.

    x_l -> m_l + w_l (x_l - m_l) + r_l b_l                     one weight w and one shift b per dimension of every place
    l loss = mean_l sum_d W2^2(moved negatives, positives)_d / r_ld^2,   all maps at work in every forward
    + penalty (sum |w - 1| + |b|)  + group_penalty sum_l sqrt(d_l) |(w_l - 1, b_l)|

W2^2 in one dimension is the mean squared difference of sorted samples (of quantiles, for sets of unequal size). m and r
are mean and spread of both classes at the place, so that the same step size fits all dimensions; the paper's maps are
these with other names for the numbers. The penalties are applied by their proximal maps (soft threshold, then group
shrinkage), so that what is not needed is
exactly the identity: dimensions by `penalty`, whole places by `group_penalty`. `transport_write` fits one place at a
time instead, and so does not know what the maps before it have done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError
from ..interventions import Blend, Stretch, Write
from ..models.anatomy import device_of
from ..models.borrow import borrows, hooked, run_tail
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..shapes import PositionMask, Tokens
from ..sites import Site, hook_name
from .examples import Examples, record_examples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MOMENTUM = 0.9


@dataclass(frozen=True, eq=False)
class JointTransport(Result):
    """One map per site, and the loss at every step. `writes(strength)` blends all of them in."""

    sites: tuple[Site, ...]
    maps: tuple[Stretch, ...]
    losses: tuple[float, ...]
    provenance: Provenance = field(default_factory=dict)

    def writes(self, strength: float = 1.0) -> list[Write]:
        """At strength 0 nothing, at 1 the maps as fitted; places whose map is the identity are left out."""
        return [
            Write(site, Blend(stretch, strength))
            for site, stretch in zip(self.sites, self.maps, strict=True)
            if changed_dimensions(stretch)
        ]

    @property
    def active(self) -> dict[Site, int]:
        """How many dimensions of each place are changed at all."""
        return {site: changed_dimensions(stretch) for site, stretch in zip(self.sites, self.maps, strict=True)}

    def _table(self) -> Table:
        """One row per site: dimensions that its map changes, and the largest changes."""
        return {
            "site": [*map(str, self.sites)],
            "changed": [changed_dimensions(one) for one in self.maps],
            "largest_stretch": [float((one.scale - 1).abs().max()) for one in self.maps],
            "largest_shift": [float(one.shift.abs().max()) for one in self.maps],
        }

    def __str__(self) -> str:
        used = ", ".join(f"{site}: {n}" for site, n in self.active.items())
        return f"joint transport, loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}; dimensions changed: {used}"


def changed_dimensions(stretch: Stretch) -> int:
    """Dimensions that a map does not leave alone."""
    return int(((stretch.scale != 1) | (stretch.shift != 0)).sum())


@borrows
def fit_joint_transport(
    model: TransformerBridge,
    examples: Examples,
    sites: Sequence[Site],
    *,
    penalty: float = 0.0,
    group_penalty: float = 0.0,
    steps: int = 100,
    learning_rate: float = 0.003,
) -> JointTransport:
    """Maps that take the negative class's activations to the positive class's at all `sites` at once. Nothing is drawn
    by lot.

    Cost: 1 forward of all prompts, then `steps` forwards and backwards of the negative ones. Maps work at all
    positions; activations are compared at the examples' positions.

    Raises `InputError` for no sites or one named twice, fewer than two prompts of a class, or settings out of range;
    `MetricError` when the loss stops being finite.

    >>> transport = fit_joint_transport(
    ...     model, examples, [Site("resid_post", layer) for layer in range(4)], group_penalty=1e-3
    ... )
    >>> with intervene(model, transport.writes()):
    ...     model(tokens)
    """
    if not sites or len(set(sites)) < len(sites) or steps < 1 or min(penalty, group_penalty, learning_rate) < 0:
        raise InputError(
            "a joint transport takes one site or more, each once, a step or more, and penalties of at least 0"
        )
    if min(int(examples.labels.sum()), int((~examples.labels).sum())) < 2:
        raise InputError("a distribution needs at least two prompts of each class")
    device = device_of(model)
    known = [x.to(device) for x in record_examples(model, examples, sites)]
    labels = examples.labels.to(device)
    mean = [x.mean(dim=0) for x in known]
    spread = [_spread(x) for x in known]
    targets = [x[labels] for x in known]
    weights = [torch.ones_like(m, requires_grad=True) for m in mean]
    shifts = [torch.zeros_like(m, requires_grad=True) for m in mean]
    speed = [torch.zeros_like(m) for m in (*mean, *mean)]
    sources = examples.tokens[~examples.labels].to(device), examples.where[~examples.labels].to(device)
    losses: list[float] = []
    for _ in range(steps):
        with torch.enable_grad():
            moved = _run(model, *sources, sites, _stretches(mean, spread, weights, shifts))
            loss = joint_loss(moved, targets, spread)
            gradients = torch.autograd.grad(loss, [*weights, *shifts])
        if not bool(loss.isfinite()):
            raise MetricError(
                f"the loss is {float(loss.detach())} after {len(losses)} steps; use a smaller learning_rate"
            )
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for parameter, gradient, velocity in zip((*weights, *shifts), gradients, speed, strict=True):
                velocity.mul_(MOMENTUM).add_(gradient)
                parameter.sub_(learning_rate * velocity)
            for w, b in zip(weights, shifts, strict=True):
                _shrink(w, b, learning_rate * penalty, learning_rate * group_penalty)
    fitted = tuple(
        Stretch(stretch.scale.detach(), stretch.shift.detach()) for stretch in _stretches(mean, spread, weights, shifts)
    )
    provenance = build_provenance(
        method="joint transport", model=identify_model(model),
        examples={"name": examples.name, "sha256": examples.sha256()},
        penalty=penalty, group_penalty=group_penalty, steps=steps, learning_rate=learning_rate,
    )  # fmt: skip
    return JointTransport(tuple(sites), fitted, tuple(losses), provenance)


def joint_loss(
    moved: Sequence[Float[Tensor, "n d"]],
    targets: Sequence[Float[Tensor, "m d"]],
    spread: Sequence[Float[Tensor, " d"]],
) -> Float[Tensor, ""]:
    """Mean over places of the sum over dimensions of W2^2, each dimension in units of its spread."""
    parts = [(wasserstein(x, y) / r.pow(2)).sum() for x, y, r in zip(moved, targets, spread, strict=True)]
    return torch.stack(parts).mean()


def wasserstein(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
    """Squared 2-Wasserstein distance of each column's samples: mean squared difference of sorted values, of quantiles
    for unequal sizes.
    """
    x, y = x.sort(dim=0).values, y.sort(dim=0).values
    if len(x) != len(y):
        n = max(len(x), len(y))
        x, y = (_quantiles(part, n) for part in (x, y))
    return (x - y).pow(2).mean(dim=0)


def _quantiles(ordered: Float[Tensor, "n d"], n: int) -> Float[Tensor, "m d"]:
    """`n` evenly spaced quantiles (at the middles of n equal parts) of sorted samples, between neighbours linearly."""
    at = ((torch.arange(n, dtype=ordered.dtype, device=ordered.device) + 0.5) / n * len(ordered) - 0.5).clamp(
        0, len(ordered) - 1
    )
    low = at.floor().long().clamp(max=max(0, len(ordered) - 2))
    share = (at - low)[:, None]
    return ordered[low] * (1 - share) + ordered[(low + 1).clamp(max=len(ordered) - 1)] * share


def _spread(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    spread = x.std(dim=0)
    return spread.clamp(min=1e-3 * float(spread.max()))


def _stretches(mean: list[Tensor], spread: list[Tensor], weights: list[Tensor], shifts: list[Tensor]) -> list[Stretch]:
    """The maps as x * scale + shift; exactly the identity where weight and shift are untouched."""
    return [Stretch(w, (1 - w) * m + r * b) for m, r, w, b in zip(mean, spread, weights, shifts, strict=True)]


def _shrink(w: Tensor, b: Tensor, each: float, group: float) -> None:
    """The proximal maps of both penalties, in place."""
    for part, rest in ((w, 1.0), (b, 0.0)):
        off = part - rest
        part.copy_(rest + off.sign() * (off.abs() - each).clamp(min=0))
    size = torch.cat([w - 1, b]).norm()
    left = max(0.0, 1 - group * len(w) ** 0.5 / max(float(size), 1e-30))
    w.copy_(1 + left * (w - 1))
    b.mul_(left)


def _run(
    model: TransformerBridge, tokens: Tokens, where: PositionMask, sites: Sequence[Site], maps: Sequence[Stretch]
) -> list[Float[Tensor, "batch d"]]:
    """What the places hold at the positions `where` while all maps are at work, in the autograd graph."""
    found: dict[Site, Tensor] = {}

    def put(site: Site, stretch: Stretch) -> Any:
        write = Write(site, stretch)

        def hook(activation: Tensor, hook: Any) -> Tensor:
            new = write.apply(activation)
            x = new if site.head is None else new[:, :, site.head]
            shares = where.to(x) / where.sum(dim=1, keepdim=True).to(x)
            found[site] = torch.einsum("bp,bpd->bd", shares, x)
            return new

        return hook

    hooks = [(hook_name(site), put(site, stretch)) for site, stretch in zip(sites, maps, strict=True)]
    with hooked(model, hooks):
        run_tail(model, tokens, 1)
    return [found[site] for site in sites]
