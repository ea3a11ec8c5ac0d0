"""How much a found circuit depends on choices: other ablations, resamples, templates and seeds; completeness, minimality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..circuits import (
    Circuit,
    CircuitEvaluation,
    Completeness,
    EdgeScores,
    Minimality,
    Stability,
    compare_selections,
    evaluate,
    measure_completeness,
    measure_minimality,
    score_edges,
)
from ..errors import InputError, MetricError
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OTHER_ABLATIONS = ("zero", "mean", "resample")
OTHER_SEEDS = 2
N_TESTED = 32
"""Pairs on which completeness and minimality are measured: many circuits are run on them."""


@dataclass(frozen=True, eq=False)
class Robustness:
    """What was found; a part that the data do not allow is missing."""

    evaluations: tuple[CircuitEvaluation, ...]
    stabilities: tuple[Stability, ...]
    completeness: Completeness | None
    minimality: Minimality | None

    @property
    def results(self) -> tuple[object, ...]:
        """All of it, for a report."""
        last = (self.completeness, self.minimality)
        return (*self.evaluations, *self.stabilities, *(found for found in last if found is not None))


def measure_robustness(
    model: TransformerBridge,
    task: Task,
    scores: EdgeScores,
    circuit: Circuit,
    *,
    seed: int,
    again: Callable[[int], Task] | None,
) -> Robustness:
    """Cost: about 60 forwards of the test pairs, 2 more scorings of as many pairs as the first."""
    train, test = task.train, task.test
    few = test[: min(N_TESTED, len(test))]
    return Robustness(
        evaluations=tuple(_under(model, test, circuit, train, seed)),
        stabilities=tuple(_stabilities(model, scores, circuit, seed, again)),
        completeness=measure_completeness(model, few, circuit, n_knockouts=4, n_steps=6, seed=seed)
        if circuit.n_edges
        else None,
        minimality=measure_minimality(model, few, circuit, n_knockouts=0, seed=seed) if circuit.n_edges else None,
    )


def _under(model: TransformerBridge, test: Task, circuit: Circuit, source: Task, seed: int) -> list[CircuitEvaluation]:
    found = []
    for ablation in OTHER_ABLATIONS:
        try:
            found.append(evaluate(model, test, circuit, ablation=ablation, source=source, n_random=1, seed=seed))
        except (InputError, MetricError):
            # Too few prompts for this ablation, or its empty circuit does as well as the model: nothing to say.
            continue
    return found


def _stabilities(
    model: TransformerBridge, scores: EdgeScores, circuit: Circuit, seed: int, again: Callable[[int], Task] | None
) -> list[Stability]:
    n = circuit.n_requested or circuit.n_edges
    found = [scores.stability(n, seed=seed)] if scores.n_pairs > 1 else []
    if len(set(scores.templates)) > 1:
        found.append(scores.stability(n, over="templates"))
    if again is not None:
        others = [
            score_edges(model, again(seed + k).train, rules=scores.rules, ig_steps=scores.ig_steps).circuit(n)
            for k in range(1, OTHER_SEEDS + 1)
        ]
        found.append(replace(compare_selections([circuit, *others]), over="seeds"))
    return found
