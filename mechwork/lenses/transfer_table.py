"""The table of `vector_transfer`: rows, lens deltas, and what explains success on another template (see there)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..provenance import Provenance
from ..result import Result, Table, table_rows
from ..sites import Site
from ..statistics import pearson

N_LOTS = 200


@dataclass(frozen=True)
class TransferRow:
    """The vector of `task`, template `fitted_on`, added to the corrupt prompts of `target`, template `applied_to`.

    `cosine` with the vector of `applied_to`, `norm` of the vector; `random` and `random_turned`: the most that random
    vectors as long do; `n`: pairs tested.
    """

    task: str
    fitted_on: str
    target: str
    applied_to: str
    cosine: float
    norm: float
    success: float
    turned: float
    random: float
    random_turned: float
    n: int

    @property
    def kind(self) -> str:
        """``own template``, ``other template`` or ``other task``."""
        if self.task != self.target:
            return "other task"
        return "own template" if self.fitted_on == self.applied_to else "other template"


@dataclass(frozen=True)
class LensDelta:
    """log2(1 + rank) of the right answer at one place, mean over templates' test pairs: of the corrupt prompts as they
    are, with their own template's vector, another template's, a random one as long, and of the clean prompts.
    """

    task: str
    lens: str
    site: Site
    plain: float
    own: float
    other: float
    random: float
    clean: float


@dataclass(frozen=True)
class Explained:
    """What explains success on another template, over `n` ordered pairs of templates (see the module)."""

    n: int
    r_cosine: float
    r_norm: float
    norm: float
    cosine_beyond_norm: float
    by_lot_beyond_norm: float
    task: float
    cosine_beyond_task: float
    by_lot_beyond_task: float

    def __str__(self) -> str:
        return (
            f"success on another template, {self.n} pairs: correlation with the cosine {self.r_cosine:.2f}, with log "
            f"norm {self.r_norm:.2f}\nR^2 of the norm {self.norm:.3f}, the cosine adds {self.cosine_beyond_norm:.3f} "
            f"(by lot {self.by_lot_beyond_norm:.3f}); R^2 of the task {self.task:.3f}, the cosine adds "
            f"{self.cosine_beyond_task:.3f} (by lot {self.by_lot_beyond_task:.3f})"
        )


@dataclass(frozen=True, eq=False)
class VectorTransfer(Result, what="transfer of function vectors"):
    """A row per vector and template that it was tried on; `sites`: where each task's vectors are added."""

    rows: tuple[TransferRow, ...]
    deltas: tuple[LensDelta, ...]
    sites: dict[str, Site]
    strength: float
    provenance: Provenance

    def of(self, task: str, kind: str) -> tuple[TransferRow, ...]:
        """The rows of a task's vectors on its ``own template``, an ``other template`` or an ``other task``."""
        return tuple(row for row in self.rows if row.task == task and row.kind == kind)

    def explained(self, seed: int = 0) -> Explained:
        """Regressions over the ordered pairs of templates; raises `InputError` for fewer than six of them."""
        rows = [row for row in self.rows if row.kind == "other template"]
        if len(rows) < 6:
            raise InputError(f"regressions need six pairs of templates or more; got {len(rows)}")
        y, cosine, norm = (
            torch.tensor([getattr(row, name) for row in rows]).double() for name in ("success", "cosine", "norm")
        )
        tasks = list(dict.fromkeys(row.task for row in rows))
        which = torch.tensor([[row.task == task for task in tasks[1:]] for row in rows]).double()
        which = which.reshape(len(rows), -1)
        length = norm.log()[:, None]
        generator = torch.Generator().manual_seed(seed)
        lots = [cosine[torch.randperm(len(rows), generator=generator)] for _ in range(N_LOTS)]

        def gains(base: Tensor) -> tuple[float, float, float]:
            """(R^2 of the base, what the cosine adds, what cosines by lot add on average)."""
            alone, more = r_squared(y, base), [r_squared(y, torch.cat([base, c[:, None]], 1)) for c in (cosine, *lots)]
            return alone, more[0] - alone, sum(more[1:]) / N_LOTS - alone

        return Explained(len(rows), pearson(cosine, y), pearson(norm.log(), y), *gains(length), *gains(which))

    def _table(self) -> Table:
        """One row per vector and template that it was tried on."""
        return table_rows(self.rows, "kind")

    def __str__(self) -> str:
        heads = ("own template", "other template", "other task")
        said = f"vectors added {self.strength:g} times at the last token; success (turned) on pairs not fitted"
        columns = "".join(f"{name:>32}" for name in heads)
        lines = [
            f"{said}, and the most of random vectors as long",
            f"{'task':<18}{'place':<15}{columns}{'cosine':>16}{'norm':>16}",
        ]
        for task, site in self.sites.items():
            cells = "".join(f"{_cell(self.of(task, kind)):>32}" for kind in heads)
            same = self.of(task, "other template")
            cosines, norms = [row.cosine for row in same], [row.norm for row in self.of(task, "own template")]
            lines.append(f"{task[:17]:<18}{site!s:<15}{cells}{_span(cosines):>16}{_span(norms):>16}")
        if sum(row.kind == "other template" for row in self.rows) >= 6:
            lines.append(str(self.explained()))
        if self.deltas:
            lines.append(
                f"{'log2(1 + rank) of the answer':<34}{'layers':<10}{'plain':>8}{'own':>8}{'other':>8}{'random':>8}"
                f"{'clean':>8}"
            )
        for task, lens in dict.fromkeys((row.task, row.lens) for row in self.deltas):
            found = [row for row in self.deltas if (row.task, row.lens) == (task, lens)]
            for name, part in (("between", found[:-1]), ("last", found[-1:])):
                if part:
                    means = [
                        sum(getattr(row, key) for row in part) / len(part)
                        for key in ("plain", "own", "other", "random", "clean")
                    ]
                    cells = "".join(f"{value:8.2f}" for value in means)
                    lines.append(f"{f'{task[:17]}, {lens}':<34}{name:<10}{cells}")
        return "\n".join(lines)


def _cell(rows: Sequence[TransferRow]) -> str:
    if not rows:
        return "-"
    means = [
        sum(getattr(row, key) for row in rows) / len(rows) for key in ("success", "turned", "random", "random_turned")
    ]
    return f"{means[0]:.2f} ({means[1]:.2f}); {means[2]:.2f} ({means[3]:.2f})"


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}" if values else "-"


def r_squared(y: Float[Tensor, " n"], columns: Float[Tensor, "n k"]) -> float:
    """Share of y's variance that a constant and these columns explain, by least squares; NaN for a constant y."""
    x = torch.cat([torch.ones(len(y), 1, dtype=torch.float64), columns.double()], dim=1)
    fitted = x @ torch.linalg.lstsq(x, y.double()[:, None], driver="gelsd").solution
    whole = float((y - y.mean()).pow(2).sum())
    return 1 - float((y - fitted[:, 0]).pow(2).sum()) / whole if whole > 0 else float("nan")
