"""Which single neurons tell several classes apart, beside labels by lot.

    eta^2        sum_k n_k (mean_k - mean)^2 / sum_i (x_i - mean)^2 of one unit's values on fitted prompts: the share of
                 its variance that lies between the classes
    separating   units whose eta^2 is above the largest of any unit with labels by lot (all sites, all lots)
    stands out   the class whose mean is furthest from the mean of all others; above it or below
    accuracy     of the unit with the largest eta^2: balanced accuracy on held-out prompts, each called by the nearest
                 class mean; by lot: the same of the best unit for labels by lot. Chance is 1 / number of classes

Units are the numbers at a site: neurons at ``mlp_post``, dimensions elsewhere. Prompts of a group are never split
between fitting and testing. Cost: 1 forward of all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, MetricError, check_whole
from ..models.anatomy import check_ready
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table, table_rows
from ..sites import Site
from .examples import record_examples
from .graph_manifold import class_means
from .labelled import Labelled

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class SeparabilityRow:
    """One site: `best` is the unit with the largest `eta2`; `separating` units of `n_units`, and `by_lot` of them with
    labels by lot (mean over lots, each against the others' largest); `accuracy`, `control` of the best unit.
    """

    site: Site
    n_units: int
    best: int
    eta2: float
    control_eta2: float
    separating: int
    by_lot: float
    accuracy: float
    control: float


@dataclass(frozen=True, eq=False)
class SeparabilityStudy(Result, what="separability of neurons"):
    """Rows by site; `eta2` ``[site unit]`` with labels as they are; `outstanding` ``[site unit]``: the number of the
    class that stands out, from 1, negative where it lies lower than the others.
    """

    rows: tuple[SeparabilityRow, ...]
    classes: tuple[str, ...]
    eta2: Float[Tensor, "site unit"]
    outstanding: Int[Tensor, "site unit"]
    limit: float
    n_tested: int
    provenance: Provenance = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many separating units, over all sites, each class stands out at."""
        found = self.outstanding[self.eta2 > self.limit].abs()
        return {name: int((found == k + 1).sum()) for k, name in enumerate(self.classes)}

    def top(self, n: int = 10) -> list[tuple[Site, int, float, str]]:
        """(site, unit, eta^2, class that stands out) of the units with the largest eta^2 of all."""
        order = self.eta2.flatten().argsort(descending=True)[:n].tolist()
        width = self.eta2.shape[1]
        return [
            (
                self.rows[i // width].site, i % width, float(self.eta2.flatten()[i]),
                self.classes[abs(int(self.outstanding.flatten()[i])) - 1],
            )
            for i in order
        ]  # fmt: skip

    def _table(self) -> Table:
        """One row per site."""
        return table_rows(self.rows)

    def __str__(self) -> str:
        named = ", ".join(f"{name} {count}" for name, count in self.counts().items())
        total = sum(row.separating for row in self.rows)
        head = (
            f"{total} of {sum(row.n_units for row in self.rows)} units separate {', '.join(self.classes)} (eta^2 above "
            f"{self.limit:.2f}, the largest by lot; by lot {sum(row.by_lot for row in self.rows):.1f}); the class that "
            f"stands out: {named}. Accuracy on {self.n_tested} held-out prompts, chance {1 / len(self.classes):.2f}"
        )
        return f"{head}\n{self.to_dataframe().to_string(index=False, float_format='%.3f'.__mod__)}"


@borrows
def study_separability(
    model: TransformerBridge, data: Labelled, sites: Sequence[Site] | None = None, *, n_controls: int = 5, seed: int = 0
) -> SeparabilityStudy:
    """Every unit at some sites of one width (default: the neurons of all layers, ``mlp_post``). Cost: 1 forward.

    Raises:
        InputError: labels that are numbers, no sites, a model without MLPs (default sites), fewer than two lots, a
            class without prompts in the fitted or the held-out part.
        MetricError: activations that are not finite.

    >>> found = study_separability(model, Labelled.of_tokens(prompts, ["she", "he", "neither", ...]))
    >>> found.counts()
    """
    if not data.classes:
        raise InputError("these labels are numbers, not classes; fit_ridge predicts numbers")
    if sites is None:
        sites = [Site("mlp_post", layer) for layer in range(check_ready(model).n_layers)]
    if not sites or check_whole("n_controls", n_controls) < 2:
        raise InputError(f"one site or more, and two lots or more; got {len(sites)} sites, n_controls={n_controls}")
    x = record_examples(model, data, sites).double()
    if not bool(x.isfinite().all()):
        raise MetricError("activations are not finite; nothing can be told apart")
    fitted, tested = data.split_rows(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    lots = [data.shuffled(generator).targets for _ in range(n_controls)]
    labels = [data.targets, *lots]
    found = torch.stack([between_share(x[:, fitted], one[fitted], data.classes) for one in labels])
    most = found[1:].amax(dim=(1, 2))
    limit = float(most.max())
    others = [float(torch.cat([most[:i], most[i + 1 :]]).max()) for i in range(n_controls)]
    rows = []
    for i, site in enumerate(sites):
        best = found[:, i].argmax(dim=-1).tolist()
        right = [
            nearest_mean_accuracy(x[i, :, unit], one, fitted, tested, data.classes)
            for unit, one in zip(best, labels, strict=True)
        ]
        by_lot = sum(int((found[1 + j, i] > others[j]).sum()) for j in range(n_controls)) / n_controls
        rows.append(
            SeparabilityRow(
                site, x.shape[-1], best[0], float(found[0, i].max()), float(found[1:, i].amax(dim=-1).mean()),
                int((found[0, i] > limit).sum()), by_lot, right[0], sum(right[1:]) / n_controls,
            )
        )  # fmt: skip
    facts = build_provenance(
        method="separability of neurons", model=identify_model(model), seed=seed, n_controls=n_controls,
        examples={"name": data.name, "sha256": data.sha256()},
    )  # fmt: skip
    outstanding = outstanding_class(x[:, fitted], data.targets[fitted], len(data.classes))
    return SeparabilityStudy(tuple(rows), data.classes, found[0], outstanding, limit, len(tested), facts)


def between_share(
    x: Float[Tensor, "site n unit"], targets: Tensor, classes: Sequence[str]
) -> Float[Tensor, "site unit"]:
    """eta^2 of every unit; 0 where it does not vary."""
    whole = x.mean(dim=1, keepdim=True)
    total = (x - whole).pow(2).sum(dim=1)
    between = torch.zeros_like(total)
    for k in range(len(classes)):
        rows = x[:, targets == k]
        if not rows.shape[1]:
            raise InputError(
                f"every class needs prompts among those fitted; {classes[k]!r} has none. Give more prompts"
            )
        between += rows.shape[1] * (rows.mean(dim=1) - whole[:, 0]).pow(2)
    return torch.where(total > 0, between / total.clamp(min=1e-300), torch.zeros_like(total))


def nearest_mean_accuracy(
    x: Float[Tensor, " n"], targets: Tensor, fitted: Tensor, tested: Tensor, classes: Sequence[str]
) -> float:
    """Balanced accuracy on the tested rows of calling each by the nearest class mean of the fitted ones."""
    means = class_means(x[fitted, None], targets[fitted], classes)[:, 0]
    said = (x[tested, None] - means).abs().argmin(dim=1)
    present = targets[tested].unique().tolist()
    return sum(float((said[targets[tested] == k] == k).double().mean()) for k in present) / len(present)


def outstanding_class(x: Float[Tensor, "site n unit"], targets: Tensor, n_classes: int) -> Int[Tensor, "site unit"]:
    """Per unit the number, from 1, of the class whose mean is furthest from the mean of the rest; negative below it."""
    away = torch.stack([x[:, targets == k].mean(dim=1) - x[:, targets != k].mean(dim=1) for k in range(n_classes)])
    which = away.abs().argmax(dim=0)
    below = away.gather(0, which[None])[0] < 0
    return torch.where(below, -1, 1) * (which + 1)
