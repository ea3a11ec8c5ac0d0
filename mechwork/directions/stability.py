"""Does a direction stay where it is when the examples change? Cosine, boundary, and accuracy of refitted directions.

| change | what is done | tested on |
|---|---|---|
| ``resample`` | groups drawn with replacement | groups that were not drawn |
| ``relabel`` | a share of the groups has its classes exchanged | groups held out, with their own labels |
| ``paraphrase`` | fitted on the prompts of one template | the prompts of all other templates |

`cosine` is with the direction fitted on everything. `shift` is how far the boundary moved along the full fit's unit
vector u, in units of the distance between its class means: ((the refitted boundary point) . u - b) / (high - low),
where the refitted boundary point lies on the refitted direction's own axis through the examples' mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models.borrow import borrows
from ..result import Result
from ..sites import Site
from ..tasks.task import Task
from .direction import Direction
from .examples import Examples, record_examples
from .fit import FITS, fit_axis, fit_recorded

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RELABELLED = (0.05, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class StabilityRow:
    """One refit. `amount`: the draw's number, the share relabelled, or the template."""

    change: str
    amount: str
    cosine: float
    shift: float
    accuracy: float
    n_fitted: int


@dataclass(frozen=True)
class DirectionStability(Result, what="direction stability"):
    """All refits of one direction."""

    rows: tuple[StabilityRow, ...]
    direction: str
    site: Site

    def of(self, change: str) -> tuple[StabilityRow, ...]:
        """The refits of one kind of change."""
        found = tuple(row for row in self.rows if row.change == change)
        if not found:
            raise UnknownNameError("change", change, sorted({row.change for row in self.rows}))
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.direction} at {self.site}",
            (
                f"{'change':<14}{'refits':>8}{'cosine, mean and least':>26}{'boundary shift, largest':>26}"
                f"{'accuracy, mean':>17}"
            ),
        ]
        labels = dict.fromkeys((row.change, row.amount if row.change == "relabel" else "") for row in self.rows)
        for change, amount in labels:
            rows = [row for row in self.of(change) if not amount or row.amount == amount]
            cosines, n = [row.cosine for row in rows], len(rows)
            shift = max(abs(row.shift) for row in rows)
            right = sum(row.accuracy for row in rows) / n
            lines.append(
                f"{f'{change} {amount}'.strip():<14}{n:>8}{f'{sum(cosines) / n:.3f}, {min(cosines):.3f}':>26}"
                f"{shift:>26.3f}{right:>17.3f}"
            )
        return "\n".join(lines)


@borrows
def study_stability(
    model: TransformerBridge,
    examples: Examples,
    site: Site,
    how: str = "mean_difference",
    *,
    templates: Sequence[str] = (),
    n: int = 20,
    relabelled: Sequence[float] = RELABELLED,
    seed: int = 0,
) -> DirectionStability:
    """Refit under resampling (`n` times), relabelling (`n` times for each share), and template by template where
    `templates` names every prompt's (see `templates_of`). Cost: 1 forward of all prompts.

    Raises `UnknownNameError` for an unknown fit, `InputError` for shares outside (0, 0.5) or templates that are not one
    per prompt.
    """
    if how not in FITS:
        raise UnknownNameError("way to fit a direction", how, FITS)
    if n < 1 or not all(0 < share < 0.5 for share in relabelled):
        raise InputError(f"n is at least 1, and shares are in (0, 0.5); got {n} and {list(relabelled)}")
    if templates and len(templates) != len(examples):
        raise InputError(f"one template per prompt is needed; got {len(templates)} for {len(examples)} prompts")
    x = record_examples(model, examples, [site])[0].double()
    work = _Refit(x, examples, how, site, fit_recorded(x, examples, how, site))
    generator = torch.Generator().manual_seed(seed)
    rows = [work.resampled(str(i), generator) for i in range(n)]
    rows += [work.relabelled(share, generator) for share in relabelled for _ in range(n)]
    rows += [work.paraphrased(template, templates) for template in dict.fromkeys(templates)]
    kept = tuple(row for row in rows if row is not None)
    return DirectionStability(kept, f"{how} of {examples.name}", site)


def templates_of(task: Task) -> list[str]:
    """The template of every prompt of `Examples.of_task`: clean prompts first, then corrupt ones. Raises `InputError`
    for a task without.
    """
    if not task.pairs.templates:
        raise InputError(f"{task.name} does not know its prompts' templates")
    return [*task.pairs.templates] * 2


@dataclass(frozen=True, eq=False)
class _Refit:
    x: Float[Tensor, "batch d"]
    examples: Examples
    how: str
    site: Site
    full: Direction

    def resampled(self, amount: str, generator: torch.Generator) -> StabilityRow | None:
        groups = self.examples.groups.unique()
        drawn = groups[torch.randint(len(groups), (len(groups),), generator=generator)]
        rows = torch.cat([(self.examples.groups == group).nonzero().flatten() for group in drawn])
        rest = (~torch.isin(self.examples.groups, drawn)).nonzero().flatten()
        return self.row("resample", amount, rows, self.examples.labels, rest)

    def relabelled(self, share: float, generator: torch.Generator) -> StabilityRow | None:
        fitted, _ = self.examples.split(seed=int(torch.randint(2**31, (), generator=generator)))
        inside = torch.isin(self.examples.groups, fitted.groups)
        groups = fitted.groups.unique()
        wrong = groups[torch.randperm(len(groups), generator=generator)[: max(1, round(share * len(groups)))]]
        labels = self.examples.labels ^ torch.isin(self.examples.groups, wrong)
        return self.row("relabel", f"{share:.0%}", inside.nonzero().flatten(), labels, (~inside).nonzero().flatten())

    def paraphrased(self, template: str, templates: Sequence[str]) -> StabilityRow | None:
        inside = torch.tensor([name == template for name in templates])
        return self.row(
            "paraphrase", template, inside.nonzero().flatten(), self.examples.labels, (~inside).nonzero().flatten()
        )

    def row(
        self, change: str, amount: str, rows: Int[Tensor, " n"], labels: Tensor, rest: Int[Tensor, " m"]
    ) -> StabilityRow | None:
        """None where a side is left without a class: nothing can be fitted or tested."""
        given, truth = labels[rows], self.examples.labels[rest]
        if any(bool(side.all()) or not bool(side.any()) for side in (given, truth)) or not len(rest):
            return None
        part = replace(self.examples, labels=labels)[rows]
        unit, boundary = fit_axis(self.x[rows], part, self.how, self.site)
        u, middle = self.full.unit.double(), self.x.mean(dim=0)
        point = middle + (boundary - middle @ unit) * unit
        shift = float(point @ u - self.full.boundary) / max(self.full.high - self.full.low, 1e-12)
        right = ((self.x[rest] @ unit > boundary) == truth).double().mean()
        return StabilityRow(change, amount, float(unit @ u), shift, float(right), len(rows))
