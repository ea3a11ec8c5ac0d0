"""Divergence and separation along a list of checkpoints: folders, GGUF files, hub names, a bundled model's own.

    divergence:  every checkpoint against the one before it, the first or the last; two models in memory at a time
    separation:  accuracy of a direction fitted anew in every checkpoint (on prompts that it was not fitted on), and
                 cosine of its unit vector with that of the checkpoint before and of the last; one model at a time

A cosine compares vectors of two models: it means something where both are points of one training, which share a basis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..directions import Examples
from ..directions.examples import record_examples
from ..directions.fit import FITS, fit_axis, separate
from ..errors import InputError, UnknownNameError
from ..execute.progress import Progress
from ..models.identity import identify_model
from ..models.load import load_model
from ..models.sources import Checkpoints, find_checkpoints
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from ..tasks.task import Task
from .divergence import Divergence, find_divergence

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Sources = str | Path | Sequence[str | Path]

AGAINST = ("previous", "first", "last")


@dataclass(frozen=True, eq=False)
class DivergenceOverTraining(Result):
    """`found[i]` compares the checkpoint after `steps[i]` (B) with its reference (A, see `against`)."""

    model: str
    against: str
    steps: tuple[int, ...]
    found: tuple[Divergence, ...]
    provenance: Provenance

    def _table(self) -> Table:
        """One row per checkpoint, layer and kind: what `Divergence` has, beside `step` and `reference`."""
        return [
            {"step": step, "reference": one.names[0], **row}
            for step, one in zip(self.steps, self.found, strict=True)
            for row in one.to_dataframe().to_dict("records")
        ]

    def __str__(self) -> str:
        lines = [f"{self.model}: every checkpoint against the {self.against}"]
        for step, one in zip(self.steps, self.found, strict=True):
            largest = max(row.distance for row in one.rows)
            where = (
                "nowhere over the null" if one.first_layer is None else f"over the null from layer {one.first_layer}"
            )
            lines.append(f"{step:>8}  KL of outputs {one.output_kl:8.4f}  largest distance {largest:.4f}  {where}")
        return "\n".join(lines)

    __repr__ = __str__


@dataclass(frozen=True)
class SeparationRow:
    """One checkpoint and site; cosines are NaN where there is no checkpoint to compare with."""

    step: int
    site: Site
    accuracy: float
    control: float
    cosine_previous: float
    cosine_last: float


@dataclass(frozen=True, eq=False)
class SeparationOverTraining(Result):
    """How well each checkpoint separates the examples, and how far its direction has turned."""

    model: str
    how: str
    rows: tuple[SeparationRow, ...]
    provenance: Provenance

    def __str__(self) -> str:
        lines = [f"{self.model}: separation by {self.how}"]
        lines.append(f"{'step':>8}  {'site':<14}{'accuracy':>10}{'control':>9}{'cos before':>12}{'cos last':>10}")
        lines += [
            f"{r.step:>8}  {r.site!s:<14}{r.accuracy:10.3f}{r.control:9.3f}{r.cosine_previous:12.3f}"
            f"{r.cosine_last:10.3f}"
            for r in self.rows
        ]
        return "\n".join(lines)

    __repr__ = __str__


def divergence_over_training(
    name: Sources,
    make_task: Callable[[TransformerBridge], Task],
    steps: Sequence[int] | None = None,
    *,
    against: str = "previous",
    kinds: Sequence[str] | None = None,
    n_null: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> DivergenceOverTraining:
    """`find_divergence` of every checkpoint from its reference: the ``"previous"`` one, the ``"first"`` or the
    ``"last"``, on the prompts that `make_task` builds for the reference.

    `name` is a bundled model (its checkpoints, or those after `steps`), or a list of folders, GGUF files or hub names
    from first to last, with `steps` as labels (default: their places in the list).

    Raises `InputError` for fewer than two checkpoints or sources of different architecture, before the first is loaded,
    and `UnknownNameError` for another `against`. Cost: per checkpoint that of `find_divergence`.

    >>> print(divergence_over_training("attn-only-2l", lambda model: mw.tasks.induction(model, n=8), [0, 500]))
    """
    if against not in AGAINST:
        raise UnknownNameError("reference of a checkpoint", against, AGAINST)
    chosen = at_least_two(name, steps)
    n = len(chosen.sources)
    order = [i for i in range(n) if i != (n - 1 if against == "last" else 0)]
    reference_at = n - 1 if against == "last" else 0
    reference = load_model(chosen.sources[reference_at])
    found = []
    for done, i in enumerate(order, start=1):
        model = load_model(chosen.sources[i])
        names = chosen.sources[reference_at], chosen.sources[i]
        task = make_task(reference)
        found.append(find_divergence(reference, model, task, kinds=kinds, n_null=n_null, names=names, seed=seed))
        if against == "previous":
            reference, reference_at = model, i
        del model
        if progress is not None:
            progress(done, len(order), "following checkpoints")
    facts = build_provenance(
        method="divergence over training", model=chosen.label, against=against, steps=list(chosen.steps),
        checkpoints=[one.provenance for one in found],
    )  # fmt: skip
    return DivergenceOverTraining(chosen.label, against, tuple(chosen.steps[i] for i in order), tuple(found), facts)


def separation_over_training(
    name: Sources,
    make_examples: Callable[[TransformerBridge], Examples],
    sites: Sequence[Site],
    steps: Sequence[int] | None = None,
    *,
    how: str = "mean_difference",
    n_controls: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> SeparationOverTraining:
    """A direction fitted anew at each of `sites` in every checkpoint: how well it separates held-out prompts, and how
    it turns from checkpoint to checkpoint.

    `name` and `steps` are as in `divergence_over_training`; `how` as in `fit_direction`.

    Raises `InputError` for fewer than two checkpoints, sources of different architecture or no sites, before the first
    is loaded, and `UnknownNameError` for an unknown fit. Cost: per checkpoint, 1 forward of all prompts.

    >>> separation_over_training(
    ...     "attn-only-2l",
    ...     lambda m: Examples.of_task(mw.tasks.pronoun(m, n=16)),
    ...     [Site("resid_post", 1)],
    ...     steps=[0, 500],
    ... )
    """
    if how not in FITS:
        raise UnknownNameError("way to fit a direction", how, FITS)
    if not sites:
        raise InputError("sites is a list of places, e.g. [Site('resid_post', 3)]; got none")
    chosen = at_least_two(name, steps)
    axes, accuracies, identities = [], [], []
    for done, source in enumerate(chosen.sources, start=1):
        model = load_model(source)
        examples = make_examples(model)
        vectors = record_examples(model, examples, sites)
        pairs = list(zip(vectors, sites, strict=True))
        axes.append([fit_axis(x, examples, how, site)[0] for x, site in pairs])
        accuracies.append([separate(x, examples, site, how, n_controls, seed) for x, site in pairs])
        identities.append(identify_model(model))
        del model
        if progress is not None:
            progress(done, len(chosen.sources), "following checkpoints")
    rows = [
        SeparationRow(
            step,
            site,
            accuracies[i][j].accuracy,
            accuracies[i][j].control,
            float(axes[i][j] @ axes[i - 1][j]) if i else float("nan"),
            float(axes[i][j] @ axes[-1][j]),
        )
        for i, step in enumerate(chosen.steps)
        for j, site in enumerate(sites)
    ]
    facts = build_provenance(
        method="separation over training", model=chosen.label, how=how, seed=seed, steps=list(chosen.steps),
        checkpoints=identities,
    )  # fmt: skip
    return SeparationOverTraining(chosen.label, how, tuple(rows), facts)


def at_least_two(name: Sources, steps: Sequence[int] | None) -> Checkpoints:
    """The checkpoints; raises `InputError` for fewer than two."""
    chosen = find_checkpoints(name, steps)
    if len(chosen.sources) < 2:
        raise InputError(f"a course of training has at least two checkpoints; got {', '.join(chosen.sources)}")
    return chosen
