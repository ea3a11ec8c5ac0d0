"""Axes of a model's states against signals from outside, several at once: brain recordings, ratings, quantities.

With z the states' leading `n_components` principal coordinates, each scaled to spread 1:

| how | axes | source |
|---|---|---|
| ``cca`` | pairs a, b that maximise corr(z a, s b), one after another, ridge on both sides | Hotelling 1936 |
| ``ica`` | the rotation with the least Gaussian coordinates (below) | FastICA, Hyvarinen 1999 |

    w <- E[z g(w z)] - E[g'(w z)] w,    g = tanh, all columns at once, made orthonormal after every step

ICA does not see the signals; each axis is then matched with the signal that it correlates with most on the fitted
prompts. Everything is judged on groups that were not fitted, and beside it stands the same for signals dealt out by
lot: with many components and few prompts, a high correlation on fitted prompts is no finding. Nothing is made binary.
Cost: 1 forward of all prompts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError, UnknownNameError, check_whole
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, hash_tensors
from ..result import Result, Table
from ..sites import Site
from .direction import Direction
from .examples import record_examples
from .labelled import Labelled

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HOW = ("cca", "ica")
ROUNDS, CLOSE = 300, 1e-10


@dataclass(frozen=True, eq=False)
class SignalAxes(Result, what="axes against signals", strongest="held_out"):
    """Per axis: weights on the states ``[axis d]``, the signal that it goes with (for CCA: that with the largest
    weight), correlation on fitted and on held-out prompts, and `control` (mean size, signals by lot).
    """

    how: str
    site: Site
    weights: Float[Tensor, "axis d"]
    centre: Float[Tensor, " d"]
    signals: tuple[str, ...]
    fitted: tuple[float, ...]
    held_out: tuple[float, ...]
    control: tuple[float, ...]
    n_tested: int
    provenance: Provenance = field(default_factory=dict)

    def coordinates(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch axis"]:
        """Where states lie on the axes, in float64."""
        return (x.double() - self.centre) @ self.weights.T

    def direction(self, axis: int = 0) -> Direction:
        """An axis as a direction to write: added once, it moves the axis's coordinate by 1."""
        if not 0 <= axis < len(self.weights):
            raise InputError(f"axes are 0 to {len(self.weights) - 1}; got {axis}")
        w = self.weights[axis]
        at = float(self.centre @ w / w.norm())
        name = f"{self.how} axis {axis}, {self.signals[axis]}"
        return Direction((w / w.norm().pow(2)).float(), self.site, at, name=name, provenance=self.provenance)

    def _table(self) -> Table:
        """One row per axis."""
        return {
            "axis": list(range(len(self.signals))), "signal": self.signals, "fitted": self.fitted,
            "held_out": self.held_out, "control": self.control,
        }  # fmt: skip

    def __str__(self) -> str:
        cells = ", ".join(
            f"{name} {value:+.3f} ({chance:.3f})"
            for name, value, chance in zip(self.signals, self.held_out, self.control, strict=True)
        )
        return (
            f"{len(self.signals)} axes by {self.how} at {self.site}, correlation on {self.n_tested} held-out prompts "
            f"(signals by lot): {cells}"
        )


@borrows
def fit_axes(
    model: TransformerBridge, data: Labelled, signals: Float[Tensor, "batch signal"], site: Site, how: str = "cca", *,
    names: tuple[str, ...] = (), n_components: int = 8, n_axes: int | None = None, ridge: float = 1e-3,
    n_controls: int = 5, seed: int = 0,
) -> SignalAxes:  # fmt: skip
    """Axes fitted on 70 % of the groups of `data` (whose own labels are not used), judged on the others.

    Raises `UnknownNameError` for another `how`, `InputError` for signals that are not one finite row per prompt or do
    not vary, and for counts out of range; `MetricError` for states that are not finite or all alike.

    >>> data = Labelled.of_tokens(prompts, [float(len(p)) for p in prompts])
    >>> print(fit_axes(model, data, signals, Site("resid_post", 3), "ica", n_components=6))
    """
    if how not in HOW:
        raise UnknownNameError("way to find axes", how, HOW)
    s = signals.double()
    if s.ndim != 2 or len(s) != len(data) or not bool(s.isfinite().all()):
        raise InputError(f"signals are finite, one row per prompt [{len(data)}, signal]; got {tuple(signals.shape)}")
    names = names or tuple(f"signal {i}" for i in range(s.shape[1]))
    if len(names) != s.shape[1]:
        raise InputError(f"every signal has a name; got {len(names)} names for {s.shape[1]} signals")
    train, test = data.split_rows(seed=seed)
    if bool((s[train].std(dim=0) == 0).any()):
        raise InputError(
            f"a signal that does not vary says nothing; {names[int(s[train].std(dim=0).argmin())]!r} is constant"
        )
    most = min(len(train) - 1, int(model.cfg.d_model))
    n_axes = (min(s.shape[1], n_components) if how == "cca" else n_components) if n_axes is None else n_axes
    limit = min(s.shape[1], n_components) if how == "cca" else n_components
    if not 1 <= check_whole("n_components", n_components) <= most or not 1 <= check_whole("n_axes", n_axes) <= limit:
        raise InputError(f"components are 1 to {most} and axes 1 to {limit} here; got {n_components} and {n_axes}")
    x = record_examples(model, data, [site])[0].double()
    centre, whiten = whitening(x[train], n_components)
    z = (x - centre) @ whiten
    rotation = find_independent(z[train], seed) if how == "ica" else None
    found = _judge(z, s, train, test, how, rotation, n_axes, ridge)
    generator = torch.Generator().manual_seed(seed)
    lots = []
    for _ in range(n_controls):
        dealt = s[torch.randperm(len(s), generator=generator)]
        lots.append(_judge(z, dealt, train, test, how, rotation, n_axes, ridge)[3].abs())
    control = torch.stack(lots).mean(dim=0) if lots else torch.full((n_axes,), float("nan"))
    facts = build_provenance(
        method=f"axes by {how}", model=identify_model(model), n_components=n_components, ridge=ridge, seed=seed,
        examples=data.sha256(), signals=hash_tensors({"signals": s}),
    )  # fmt: skip
    rows, which, fitted, held = found
    return SignalAxes(
        how, site, rows.T @ whiten.T, centre, tuple(names[i] for i in which), tuple(fitted.tolist()),
        tuple(held.tolist()), tuple(control.tolist()), len(test), facts,
    )  # fmt: skip


def whitening(x: Float[Tensor, "n d"], k: int) -> tuple[Float[Tensor, " d"], Float[Tensor, "d k"]]:
    """(centre, map onto the `k` leading principal coordinates, each of spread 1)."""
    centre = x.mean(dim=0)
    found = torch.linalg.svd(x - centre, full_matrices=False)
    if not bool(x.isfinite().all()) or not float(found.S[k - 1]) > 1e-9 * max(float(found.S[0]), 1e-30):
        raise MetricError(f"states are not finite, or vary in fewer than {k} dimensions; ask for fewer components")
    return centre, found.Vh[:k].T / found.S[:k] * len(x) ** 0.5


def find_independent(z: Float[Tensor, "n k"], seed: int = 0) -> Float[Tensor, "k k"]:
    """Orthonormal columns whose coordinates of whitened rows are least Gaussian: FastICA, all columns at once."""
    k = z.shape[1]
    generator = torch.Generator().manual_seed(seed)
    W = _orthonormal(torch.randn(k, k, generator=generator, dtype=z.dtype))
    for _ in range(ROUNDS):
        g = (z @ W).tanh()
        new = _orthonormal(z.T @ g / len(z) - W * (1 - g.pow(2)).mean(dim=0))
        turned = float((1 - (new * W).sum(dim=0).abs()).abs().max())
        W = new
        if turned < CLOSE:
            break
    return W


def canonical(
    z: Float[Tensor, "n k"], s: Float[Tensor, "n signal"], ridge: float
) -> tuple[Float[Tensor, "k m"], Float[Tensor, "signal m"]]:
    """Weights of canonical correlation on both sides, strongest first; columns are centred here, and signals scaled."""
    a, b = z - z.mean(dim=0), s - s.mean(dim=0)
    b = b / b.std(dim=0, unbiased=False)
    roots = []
    for side in (a, b):
        gram = side.T @ side / len(side) + ridge * torch.eye(side.shape[1], dtype=side.dtype)
        values, vectors = torch.linalg.eigh(gram)
        roots.append(vectors / values.sqrt() @ vectors.T)
    u, _, vh = torch.linalg.svd(roots[0] @ (a.T @ b / len(a)) @ roots[1], full_matrices=False)
    return roots[0] @ u, roots[1] @ vh.T


def _orthonormal(W: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns."""
    u, _, vh = torch.linalg.svd(W, full_matrices=False)
    return u @ vh


def _judge(
    z: Tensor, s: Tensor, train: Tensor, test: Tensor, how: str, rotation: Tensor | None, n_axes: int, ridge: float
) -> tuple[Tensor, list[int], Tensor, Tensor]:
    """(columns on z, number of each axis's signal, correlations on fitted and on held-out prompts)."""
    if rotation is None:
        a, b = (side[:, :n_axes] for side in canonical(z[train], s[train], ridge))
        spread = s[train].std(dim=0, unbiased=False)
        values = s / spread @ b
        cells = [
            torch.stack([_correlation(z[rows] @ a[:, i], values[rows, i]) for i in range(n_axes)])
            for rows in (train, test)
        ]
        return a, b.abs().argmax(dim=0).tolist(), cells[0], cells[1]
    coordinates = z @ rotation
    table = torch.stack([
        torch.stack([_correlation(coordinates[train, i], s[train, j]) for j in range(s.shape[1])])
        for i in range(rotation.shape[1])
    ])  # fmt: skip
    best = table.abs().max(dim=1)
    order = best.values.argsort(descending=True)[:n_axes]
    which = best.indices[order].tolist()
    held = [_correlation(coordinates[test, i], s[test, j]) for i, j in zip(order.tolist(), which, strict=True)]
    return rotation[:, order], which, table[order, torch.tensor(which)], torch.stack(held)


def _correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.norm() * b.norm()).clamp(min=1e-30)
