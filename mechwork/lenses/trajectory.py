"""Trajectories: how a prediction forms from place to place, and how two of them differ.

    one = trajectory(read_lens(model, prompts, lens, target=" Mary"))          # rank, probability, entropy, KL at each
    prompt's last position print(compare_trajectories(one, trajectory(read_lens(other, prompts, other_lens, target="
    Mary"), label="other")))

Two models of different depth are compared at equal shares of their depth (linear interpolation between places), two
prompts or lenses of one model place by place, since their places coincide. Differences are second minus first, per
prompt, with bootstrap intervals over prompts where there are two or more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..result import Result, Table
from ..statistics import bootstrap_interval
from .table import LensTable

MEASURES = ("rank", "probability", "entropy", "kl")
UNITS = {"rank": "tokens before the target", "probability": "", "entropy": "bits", "kl": "bits to the model's output"}


@dataclass(frozen=True, eq=False)
class Trajectory(Result):
    """One position per prompt, ``values[measure][place, prompt]``; `depth` is the prediction depth (an index into
    places).
    """

    label: str
    places: tuple[str, ...]
    values: dict[str, Float[Tensor, "place prompt"]]
    tops: tuple[tuple[str, ...], ...]
    depth: Int[Tensor, " prompt"]

    @property
    def share(self) -> Float[Tensor, " place"]:
        """How deep each place is: 0 the first, 1 the model's output."""
        return torch.linspace(0, 1, len(self.places), dtype=torch.float64)

    def mean(self, measure: str) -> Float[Tensor, " place"]:
        """Mean over prompts; of ranks the mean of log2(rank + 1), taken back, since ranks span the vocabulary."""
        if measure not in MEASURES:
            raise UnknownNameError("measure", measure, MEASURES)
        values = self.values[measure].double()
        return (values + 1).log2().mean(dim=1).exp2() - 1 if measure == "rank" else values.mean(dim=1)

    def _table(self) -> Table:
        """One row per place and prompt."""
        n = len(self.depth)
        return {
                "place": [place for place in self.places for _ in range(n)], "prompt": [*range(n)] * len(self.places),
                "top": [text for row in self.tops for text in row],
                **{name: values.flatten().tolist() for name, values in self.values.items()},
            }  # fmt: skip

    def __str__(self) -> str:
        lines = [
            (
                f"{self.label}: mean over {len(self.depth)} prompts; median prediction depth "
                f"{self.places[int(self.depth.median())]}"
            )
        ]
        lines.append(f"{'place':<14}{'rank':>10}{'probability':>13}{'entropy':>10}{'KL':>10}")
        columns = [self.mean(name).tolist() for name in MEASURES]
        lines += [
            f"{place:<14}{r:10.1f}{p:13.4f}{h:10.3f}{kl:10.3f}"
            for place, r, p, h, kl in zip(self.places, *columns, strict=True)
        ]
        return "\n".join(lines)


def trajectory(table: LensTable, pos: int | None = None, label: str = "") -> Trajectory:
    """The trajectory of every prompt of a table at position `pos` (default: each prompt's last).

    Raises `InputError` for a position that some prompt does not have.
    """
    lengths = table.mask.sum(dim=1)
    if pos is not None and not 0 <= pos < int(lengths.min()):
        raise InputError(f"positions common to all prompts are 0 to {int(lengths.min()) - 1}; got {pos}")
    at = lengths - 1 if pos is None else torch.full_like(lengths, pos)
    rows = torch.arange(len(at))
    values = {name: getattr(table, name)[:, rows, at].double() for name in MEASURES}
    tops = tuple(tuple(table.texts[i] for i in place.tolist()) for place in table.top_token[:, rows, at])
    return Trajectory(label or table.lens, table.places, values, tops, table.prediction_depth[rows, at])


@dataclass(frozen=True, eq=False)
class TrajectoryComparison(Result):
    """Two trajectories at common depths; ``difference[measure][depth, prompt]`` is second minus first (ranks as
    log2(rank + 1)).
    """

    first: Trajectory
    second: Trajectory
    share: Float[Tensor, " depth"]
    difference: dict[str, Float[Tensor, "depth prompt"]]

    def interval(self, measure: str, level: float = 0.95) -> Float[Tensor, "2 depth"]:
        """Bootstrap interval over prompts of the mean difference; raises `InputError` for a single prompt."""
        if measure not in MEASURES:
            raise UnknownNameError("measure", measure, MEASURES)
        return bootstrap_interval(self.difference[measure].T.contiguous(), level)

    def _table(self) -> Table:
        """One row per depth: the mean difference of every measure."""
        return {"depth": self.share.tolist(), **{name: d.mean(dim=1).tolist() for name, d in self.difference.items()}}

    def __str__(self) -> str:
        lines = [
            (
                f"{self.second.label} minus {self.first.label}, mean over {len(self.first.depth)} prompts (rank as "
                "log2(rank + 1))"
            )
        ]
        lines.append(f"{'depth':<8}" + "".join(f"{name:>14}" for name in MEASURES))
        means = [self.difference[name].mean(dim=1).tolist() for name in MEASURES]
        rows = (
            f"{depth:<8.2f}" + "".join(f"{value:+14.4f}" for value in row)
            for depth, *row in zip(self.share.tolist(), *means, strict=True)
        )
        return "\n".join([*lines, *rows])


def compare_trajectories(first: Trajectory, second: Trajectory) -> TrajectoryComparison:
    """How the second prediction forms compared with the first; raises `InputError` unless they have equally many
    prompts.
    """
    if len(first.depth) != len(second.depth):
        raise InputError(
            f"trajectories are compared prompt by prompt; got {len(first.depth)} and {len(second.depth)} prompts"
        )
    share = first.share if len(first.places) >= len(second.places) else second.share

    def values(one: Trajectory, name: str) -> Tensor:
        raw = one.values[name]
        return _resample((raw + 1).log2() if name == "rank" else raw, share)

    return TrajectoryComparison(
        first, second, share, {name: values(second, name) - values(first, name) for name in MEASURES}
    )


def _resample(values: Float[Tensor, "place prompt"], share: Float[Tensor, " depth"]) -> Float[Tensor, "depth prompt"]:
    """Linear interpolation at shares of the depth."""
    at = share * (len(values) - 1)
    low = at.floor().long().clamp(max=max(len(values) - 2, 0))
    high = (low + 1).clamp(max=len(values) - 1)
    part = (at - low)[:, None]
    return values[low] * (1 - part) + values[high] * part
