"""What the stages do: each takes the work so far and gives named results, which depend on nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ablation import study_heads
from ..circuits import (
    Circuit,
    EdgeScores,
    compare_selections,
    evaluate,
    measure_completeness,
    measure_minimality,
    score_attention_edges,
    score_edges,
    score_positions,
)  # fmt: skip
from ..circuits.testing.evaluate import EvaluationSettings
from ..errors import InputError, MetricError, NotFoundError
from ..execute.progress import Progress
from ..lenses import LOGIT_LENS, attribute_logits, load_lens, read_lens
from ..models.anatomy import read_anatomy
from ..patching import attribute, patch
from ..result import Result
from ..runs import record_attention, study_components
from ..tasks.task import Task
from .check import check_data
from .settings import Settings
from .shape import SITES, Shape
from .size import by_hand, find_size

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_HEADS = 24
"""Heads that are studied in a short plan, and whose attention is shown: those of largest estimated effect first."""
N_COMPONENTS = 80
"""Components that get a card at most, those with the strongest edges first."""
SCREENED = 96
"""Components at most whose minimality is measured."""
N_READ = 16
"""Prompts on which lenses are read."""
N_TOP = 5
"""Tokens per cell of a lens table."""
OTHER_ABLATIONS = ("zero", "mean", "resample")
OTHER_SEEDS = 2

Found = dict[str, Result]


@dataclass(frozen=True, eq=False)
class StageWork:
    """What a stage may use: the model, the task (as the plan cut it), the settings, earlier results."""

    model: TransformerBridge
    task: Task
    settings: Settings
    results: Mapping[str, Any] = field(default_factory=dict)
    again: Callable[[int], Task] | None = None
    progress: Progress | None = None
    units: Path | None = None
    """A folder for the finished pieces of a stage that is not finished."""

    @property
    def sites(self) -> list[str]:
        anatomy = read_anatomy(self.model)
        return [kind for kind in SITES if anatomy.has_site(kind)]

    @property
    def positions(self) -> str | None:
        pairs = self.task.train.pairs
        return None if pairs.one_length or pairs.spans else "all"

    @property
    def few(self) -> Task:
        """The test pairs on which many circuits are run."""
        shape = Shape.of(self.model, self.task, self.settings, again=False)
        return self.task.test[: max(1, shape.n_tested())]


def add(named: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """Both; with the circuit, once there are scores and a size (it is not kept by itself)."""
    found = {**named, **results}
    if "sizing" in results and "scores" in found:
        found["circuit"] = found["scores"].circuit(found["sizing"].n_edges)
    return found


def check(work: StageWork) -> Found:
    """Answers, gap, alignment, duplicates, of the pairs that find the circuit and of those that test it."""
    splits = work.task.splits
    task = work.task[[row for row, split in enumerate(splits) if split != "size"]] if "size" in splits else work.task
    return {"check": check_data(work.model, task, min_accuracy=work.settings.min_accuracy)}


def score(work: StageWork) -> Found:
    """Every edge, on the train pairs."""
    s = work.settings
    found = score_edges(
        work.model, work.task.train, rules=s.rules, ig_steps=s.ig_steps, memory_budget=s.memory, progress=work.progress
    )
    return {"scores": found}


def estimate(work: StageWork) -> Found:
    """Effects by site, from gradients or rules."""
    s = work.settings
    found = attribute(
        work.model, work.task.train, work.sites, rules=s.rules, ig_steps=s.ig_steps, positions=work.positions
    )
    return {"estimated": found}


def choose_size(work: StageWork) -> Found:
    """The size, by hand or by the target; the circuit follows from it and the scores."""
    scores, s = work.results["scores"], work.settings
    given = s.given_size(scores.space)
    if given is not None:
        sizing = by_hand(scores, *given)
    else:
        running = EvaluationSettings(seed=s.seed, memory_budget=s.memory)
        sizing = find_size(work.model, work.task, scores, s.target, running, work.progress)
    return {"sizing": sizing}


def test(work: StageWork) -> Found:
    """The circuit on the test pairs."""
    return {"evaluation": _evaluate(work, work.results["circuit"])}


def short_curve(fractions: Sequence[float]) -> Callable[[StageWork], Found]:
    """The curve over a few sizes, one random circuit each."""

    def run(work: StageWork) -> Found:
        scores: EdgeScores = work.results["scores"]
        sizes = [f for f in fractions if f * scores.space.n_edges >= 1]
        return {"curve": _evaluate(work, scores, fractions=sizes, n_random=1, random_every=1)}

    return run


def full_curve(work: StageWork) -> Found:
    """All of MIB's sizes, three random circuits each."""
    return {"curve": _evaluate(work, work.results["scores"])}


def _evaluate(work: StageWork, subject: Circuit | EdgeScores, **more: Any) -> Any:
    s = work.settings
    return evaluate(
        work.model, work.task.test, subject, seed=s.seed, memory_budget=s.memory, progress=work.progress, **more
    )


def screen(top: float, control: float) -> Callable[[StageWork], Found]:
    """Measure the cells that an estimate finds promising, and a random control."""

    def run(work: StageWork) -> Found:
        found = patch(
            work.model, work.task.train, work.sites, screen="relp", verify_top=top, verify_random=control,
            positions=work.positions, memory_budget=work.settings.memory, checkpoint=work.units, progress=work.progress,
        )  # fmt: skip
        return {"screened": found}

    return run


def measure(work: StageWork) -> Found:
    """Every cell exactly."""
    found = patch(
        work.model, work.task.train, work.sites, positions=work.positions, memory_budget=work.settings.memory,
        checkpoint=work.units, progress=work.progress,
    )  # fmt: skip
    return {"measured": found}


def strongest_heads(work: StageWork) -> list[str]:
    """The circuit's heads, those of largest estimated effect first."""
    heads = [node for node in work.results["circuit"].nodes if ".h" in node]
    estimated = work.results.get("estimated")
    if estimated is None or "z" not in estimated:
        return heads
    values = estimated["z"].values.abs()
    while values.ndim > 2:  # [layer, pos, head]
        values = values.sum(dim=1)
    place = {
        f"a{layer}.h{head}": float(values[layer, head])
        for layer in range(values.shape[0])
        for head in range(values.shape[1])
    }
    return sorted(heads, key=lambda head: -place.get(head, 0.0))


def study_some(work: StageWork) -> Found:
    """The circuit's strongest heads."""
    heads = strongest_heads(work)[:N_HEADS]
    if not heads:
        return {}
    return {"study": study_heads(work.model, work.task.test, heads, progress=work.progress)}


def study_all(work: StageWork) -> Found:
    """Every head."""
    return {"study": study_heads(work.model, work.task.test, progress=work.progress)}


def look(work: StageWork) -> Found:
    """Attention of the studied heads, cards of the circuit's components."""
    circuit, test_pairs = work.results["circuit"], work.task.test
    study = work.results.get("study")
    rows = [] if study is None else study.rows
    heads = [row.head for row in sorted(rows, key=lambda row: row.head not in circuit.nodes)][:N_HEADS]
    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    if len(nodes) > N_COMPONENTS:
        weight = dict.fromkeys(nodes, 0.0)
        for edge in circuit.edges:
            value = abs(float(circuit.scores[circuit.space.edge_index(edge)]))
            for node in edge.replace("<", "->").split("->")[:2]:
                if node in weight:
                    weight[node] += value
        kept = set(sorted(nodes, key=lambda node: -weight[node])[:N_COMPONENTS])
        nodes = [node for node in nodes if node in kept]
    found: Found = {}
    if heads:
        found["attention"] = record_attention(work.model, test_pairs, heads=heads)
    if nodes:
        found["components"] = study_components(work.model, test_pairs, nodes)
    return found


def read(work: StageWork) -> Found:
    """What lenses say of every place, and what is written to the answer directly."""
    model, few = work.model, work.task.test[: min(N_READ, len(work.task.test))]
    anatomy = read_anatomy(model)
    kinds = [kind for kind in ("resid_pre", "resid_mid") if anatomy.has_site(kind)]
    found: Found = {"lens": read_lens(model, few, LOGIT_LENS, kinds=kinds, top_k=N_TOP)}
    with contextlib.suppress(NotFoundError):
        found["lens-tuned"] = read_lens(model, few, load_lens(model), top_k=N_TOP)
    if work.task.pairs.continuations is None:  # of whole answers no one difference of logits is the metric
        found["direct"] = attribute_logits(model, work.task.test)
    return found


def by_position(work: StageWork) -> Found:
    """Scores by span and what heads move between spans, where the task has spans and attention is open."""
    s, train, found = work.settings, work.task.train, Found()
    with contextlib.suppress(InputError):  # a model or a task without them; the rest stands without
        found["positions"] = score_positions(
            work.model, train, positions="spans", rules=s.rules, ig_steps=s.ig_steps, intervals=False
        )
        found["movements"] = score_attention_edges(work.model, train, positions="spans", rules=s.rules)
    return found


def under_others(work: StageWork) -> Found:
    """The circuit where cut edges carry something else."""
    found: Found = {}
    for ablation in OTHER_ABLATIONS:
        try:
            found[f"under-{ablation}"] = _evaluate(
                work, work.results["circuit"], ablation=ablation, source=work.task.train, n_random=1
            )
        except (InputError, MetricError):
            # Too few prompts for this ablation, or its empty circuit does as well as the model: nothing to say.
            continue
    return found


def stability(work: StageWork) -> Found:
    """The circuit that other pairs, templates and seeds would give."""
    scores, circuit, s = work.results["scores"], work.results["circuit"], work.settings
    n = circuit.n_requested or circuit.n_edges
    found: Found = {}
    if scores.n_pairs > 1:
        found["stability-pairs"] = scores.stability(n, seed=s.seed)
    if len(set(scores.templates)) > 1:
        found["stability-templates"] = scores.stability(n, over="templates")
    if work.again is not None:
        others = []
        for k in range(1, OTHER_SEEDS + 1):
            train = work.again(s.seed + k).train[: len(work.task.train)]
            again = score_edges(
                work.model, train, rules=s.rules, ig_steps=s.ig_steps, memory_budget=s.memory, progress=work.progress
            )
            others.append(again.circuit(n))
        found["stability-seeds"] = replace(compare_selections([circuit, *others]), over="seeds")
    return found


def completeness(work: StageWork) -> Found:
    """What is left of the behaviour without the circuit."""
    circuit = work.results["circuit"]
    if not circuit.n_edges:
        return {}
    s = work.settings
    found = measure_completeness(
        work.model, work.few, circuit, n_knockouts=4, n_steps=6, seed=s.seed, memory_budget=s.memory
    )
    return {"completeness": found}


def minimality(work: StageWork) -> Found:
    """What each component adds."""
    circuit = work.results["circuit"]
    if not circuit.n_edges:
        return {}
    s = work.settings
    found = measure_minimality(
        work.model, work.few, circuit, n_knockouts=0, seed=s.seed, memory_budget=s.memory,
        screen=SCREENED if circuit.scores is not None else None,
    )  # fmt: skip
    return {"minimality": found}
