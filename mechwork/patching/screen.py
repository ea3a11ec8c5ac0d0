"""Screen, then verify: score every cell by an estimate, measure the promising ones and a random control exactly.

1. All cells are scored by attribution (2 forwards and a backward).
2. The share `verify_top` with the largest absolute estimates is measured; so is a random share `verify_random` of the
   rest.
3. The control says what the screen may have missed: if k of n random unmeasured cells exceed a threshold, then with 95
   % confidence at most the share q of all unmeasured cells does, where q solves P(Binomial(n, q) <= k) = 0.05 (Clopper
   & Pearson 1934; the sample is without replacement, for which this bound is on the safe side).

Every number reported as measured is exact; nothing unmeasured is ever presented as an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, comb
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..provenance import Provenance
from ..relevance import Composite
from ..result import Result, Table
from .attribution import attribute
from .result import Agreement, Effects, agreement_of

if TYPE_CHECKING:
    from .exact import Job

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Missed:
    """What the control says about the unmeasured cells: `n_above` of `n_control` exceed `threshold` in absolute effect.

    `at_most`: the share of unmeasured cells that exceed it, with 95 % confidence; `n_unmeasured` cells were not
    measured.
    """

    threshold: float
    n_above: int
    n_control: int
    n_unmeasured: int
    at_most: float

    def __str__(self) -> str:
        return (
            f"{self.n_above} of {self.n_control} random control cells exceed {self.threshold:.4g}; with 95 % "
            "confidence at most "
            f"{self.at_most:.1%} of the {self.n_unmeasured} unmeasured cells do (about "
            f"{self.at_most * self.n_unmeasured:.0f})"
        )


@dataclass(frozen=True, eq=False)
class ScreenedEffects(Result):
    """Estimates of all cells, and exact effects of the top ones and of a random control (NaN elsewhere in `measured`).

    `top` and `control` are masks per kind of site, shaped like its values.
    """

    estimate: Effects
    measured: Effects
    top: dict[str, Bool[Tensor, "..."]]
    control: dict[str, Bool[Tensor, "..."]]

    def __post_init__(self) -> None:
        for masks in (self.top, self.control):
            shapes = {kind: tuple(mask.shape) for kind, mask in masks.items()}
            if shapes != {kind: tuple(effect.values.shape) for kind, effect in self.measured.items()}:
                raise InputError(f"masks are shaped like the measured effects, kind by kind; got {shapes}")

    @property
    def sites(self) -> tuple[str, ...]:
        return self.measured.sites

    @property
    def provenance(self) -> Provenance:
        return self.measured.provenance

    def agreement(self, of: str = "verified") -> Agreement:
        """How the estimate agrees with the exact effects, over all kinds: of the ``"verified"`` top, or of the
        ``"control"``.

        The control's is the fair one: the top was chosen by the estimate itself.
        """
        masks = {"verified": self.top, "control": self.control}
        if of not in masks:
            raise InputError(f"agreement is of 'verified' or of 'control'; got {of!r}")
        return agreement_of(of, self._pick(self.estimate, masks[of]), self._pick(self.measured, masks[of]))

    def missed(self, threshold: float | None = None) -> Missed:
        """The bound on what the screen missed. `threshold` defaults to the median absolute effect of the
        verified top.
        """
        if threshold is None:
            threshold = float(self._pick(self.measured, self.top).abs().median())
        effects = self._pick(self.measured, self.control).abs()
        above, n = int((effects > threshold).sum()), len(effects)
        rest = sum(int((~self.top[kind] & ~self.control[kind]).sum()) for kind in self.top)
        return Missed(float(threshold), above, n, rest, upper_share(above, n, 1 - CONFIDENCE))

    def strongest(self, n: int = 10) -> list[tuple[str, float, float]]:
        """The `n` verified places of largest measured effect: (place, measured, estimated)."""
        found = []
        for kind, effect in self.measured.items():
            for place, value, flat in effect.ranked(self.top[kind]):
                found.append((place, value, float(self.estimate[kind].values.flatten()[flat])))
        return sorted(found, key=lambda row: -abs(row[1]))[:n]

    def _table(self) -> Table:
        """One row per cell: its estimate, its exact effect (NaN where unmeasured) and its role (top, control, estimated
        only).
        """
        frame = self.estimate.to_dataframe().rename(columns={"effect": "estimate"}).drop(columns="standard_error")
        exact = self.measured.to_dataframe()
        frame["effect"], frame["standard_error"] = exact["effect"], exact["standard_error"]
        roles: list[str] = []
        for kind in self.estimate:
            pairs = zip(self.top[kind].flatten().tolist(), self.control[kind].flatten().tolist(), strict=True)
            roles += [
                "top" if is_top else "control" if is_control else "estimated only" for is_top, is_control in pairs
            ]
        frame["role"] = roles
        return frame

    def __str__(self) -> str:
        n_top, n_control = (sum(int(mask.sum()) for mask in masks.values()) for masks in (self.top, self.control))
        n_all = sum(mask.numel() for mask in self.top.values())
        lines = [f"{n_all} cells estimated; {n_top} top cells and {n_control} random control cells measured exactly"]
        lines += [str(self.agreement("verified")), str(self.agreement("control")), str(self.missed())]
        return "\n".join(lines)

    @staticmethod
    def _pick(effects: Effects, masks: dict[str, Tensor]) -> Float[Tensor, " cell"]:
        return torch.cat([effects[kind].values[mask].flatten() for kind, mask in masks.items()])


def run_screen(
    job: Job,
    sites: Sequence[str],
    rules: str | Composite,
    verify_top: float,
    verify_random: float,
    positions: str | None,
    **run: object,
) -> ScreenedEffects:
    """Screen the cells of `job` and measure the chosen ones. See `mechwork.patch`."""
    estimate = attribute(job.model, job.task, sites, rules=rules, direction=job.direction, positions=positions)
    sizes = [grid.n_cells for grid in job.sweep.grids]
    scores = torch.cat([estimate[kind].values.flatten().abs() for kind in sites])
    order = scores.argsort(descending=True)
    n_top = max(1, ceil(verify_top * len(scores)))
    generator = torch.Generator().manual_seed(0)
    rest = order[n_top:]
    n_control = min(len(rest), max(1, ceil(verify_random * len(scores))))
    drawn = rest[torch.randperm(len(rest), generator=generator)[:n_control]]
    chosen_top, chosen_control = (torch.zeros(len(scores), dtype=torch.bool) for _ in range(2))
    chosen_top[order[:n_top]], chosen_control[drawn] = True, True
    tops, controls = chosen_top.split(sizes), chosen_control.split(sizes)
    only = tuple(tuple((t | c).nonzero().flatten().tolist()) for t, c in zip(tops, controls, strict=True))
    measured = replace(job, sweep=replace(job.sweep, only=only)).run(**run)  # pyright: ignore[reportArgumentType]
    shapes = {grid.kind: grid.shape for grid in job.sweep.grids}
    return ScreenedEffects(
        estimate,
        measured,
        {kind: mask.reshape(shapes[kind]) for kind, mask in zip(shapes, tops, strict=True)},
        {kind: mask.reshape(shapes[kind]) for kind, mask in zip(shapes, controls, strict=True)},
    )


def check_shares(verify_top: float, verify_random: float) -> None:
    """Raises `InputError` for shares that are none."""
    for name, share in (("verify_top", verify_top), ("verify_random", verify_random)):
        if not 0 < share <= 1:
            raise InputError(f"{name} is a share of the cells, above 0 and at most 1, e.g. 0.05; got {share}")


def upper_share(k: int, n: int, alpha: float) -> float:
    """The largest q with P(Binomial(n, q) <= k) >= alpha: an upper confidence bound on a share of which k of n were
    seen.
    """
    if k >= n:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        q = (low + high) / 2
        tail = sum(comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k + 1))
        low, high = (q, high) if tail > alpha else (low, q)
    return high
