"""From a model and a task to everything the report shows: one pipeline, nothing printed, nothing written.

Effects are measured and estimated, and edges are scored, on ``task.train``; the circuit and its heads are tested on
``task.test``, whose words and templates are others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..ablation import HeadStudy, study_heads
from ..circuits import (
    AttentionEdges,
    Circuit,
    CircuitEvaluation,
    EdgeScores,
    EdgeSpace,
    FaithfulnessCurve,
    PositionScores,
    evaluate,
    score_attention_edges,
    score_edges,
    score_positions,
)
from ..circuits.graph.writers import require_aligned
from ..cli.console import Console
from ..errors import InputError, NotFoundError
from ..lenses import (
    LOGIT_LENS,
    LensTable,
    LogitAttribution,
    Trajectory,
    TrajectoryComparison,
    attribute_logits,
    compare_trajectories,
    load_lens,
    read_lens,
    trajectory,
)
from ..models.anatomy import ModelAnatomy, check_ready
from ..patching import Effects, attribute, patch
from ..patching.result import AgreementTable
from ..runs import AttentionPatterns, ComponentStudy, record_attention, study_components
from ..tasks.task import Task
from .robustness import Robustness, measure_robustness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformer_lens.model_bridge import TransformerBridge

SITES = ("resid_pre", "attn_out", "mlp_out", "z")
"""Where effects are measured: the stream and what is written to it by position, heads at all positions."""

N_ATTENTION = 24
"""Of how many heads at most, those of largest effect in the circuit first, the report shows attention."""


N_READ = 16
"""On how many prompts lenses are read."""

N_TOP = 5
"""Tokens per cell of a lens table."""


@dataclass(frozen=True)
class Settings:
    """What to compute. The circuit's size is `n_edges`, or else `fraction` of the graph's edges."""

    rules: str = "gradient"
    ig_steps: int = 5
    n_edges: int | None = None
    fraction: float = 0.1
    seed: int = 0
    robustness: bool = True

    def size(self, space: EdgeSpace) -> int:
        """The number of edges to keep; raises `InputError` when the graph has fewer."""
        if self.n_edges is None:
            return max(1, int(self.fraction * space.n_edges))
        if self.n_edges > space.n_edges:
            raise InputError(f"this model's graph has {space.n_edges} edges; got --n-edges {self.n_edges}")
        return self.n_edges


@dataclass(frozen=True, eq=False)
class Discovery:
    """Everything that was found, as result objects."""

    task: Task
    model_name: str
    settings: Settings
    measured: Effects
    estimated: Effects
    agreement: AgreementTable
    scores: EdgeScores
    circuit: Circuit
    curve: FaithfulnessCurve
    evaluation: CircuitEvaluation
    study: HeadStudy
    attention: AttentionPatterns
    components: ComponentStudy
    positions: tuple[PositionScores | AttentionEdges, ...]
    tables: tuple[LensTable, ...]
    direct: LogitAttribution
    robustness: Robustness | None

    @property
    def held_out(self) -> bool:
        """Whether the circuit was tested on other pairs than it was found on."""
        return bool(self.task.splits)

    @property
    def results(self) -> tuple[object, ...]:
        """Everything, for a report."""
        found = (self.measured, self.estimated, self.scores, self.circuit, self.curve, self.evaluation)
        robustness = self.robustness.results if self.robustness else ()
        seen = (self.study, self.attention, self.components, *self.positions)
        return (*found, *robustness, *seen, self.direct, *self.tables, self.paths)

    @property
    def paths(self) -> Trajectory | TrajectoryComparison:
        """How the answer forms from place to place: through the logit lens, beside the tuned lens where there is one."""
        first, *others = (trajectory(table) for table in self.tables)
        return compare_trajectories(first, others[0]) if others else first


def discover(
    model: TransformerBridge,
    model_name: str,
    task: Task,
    settings: Settings,
    console: Console,
    again: Callable[[int], Task] | None = None,
) -> Discovery:
    """Run the pipeline; `again` makes the task with another seed. Raises `InputError` for what cannot be done, before the first long step."""
    anatomy = check_ready(model)
    n_edges = settings.size(EdgeSpace.of(anatomy))
    require_aligned(task)
    train, test = task.train, task.test
    sites = [kind for kind in SITES if anatomy.has_site(kind)]
    positions = None if train.pairs.one_length or train.pairs.spans else "all"
    with console.step("measuring effects") as progress:
        measured = patch(model, train, sites=sites, positions=positions, progress=progress)
    with console.step("estimating effects"):
        estimated = attribute(
            model, train, sites=sites, rules=settings.rules, ig_steps=settings.ig_steps, positions=positions
        )
    with console.step("scoring edges") as progress:
        scores = score_edges(model, train, rules=settings.rules, ig_steps=settings.ig_steps, progress=progress)
    with console.step("scoring edges by position"):
        by_position = tuple(_by_position(model, train, settings))
    with console.step("studying heads") as progress:
        study = study_heads(model, test, progress=progress)
    circuit = scores.circuit(n_edges=n_edges)
    with console.step("looking at components"):
        ranked = sorted(study.rows, key=lambda row: row.head not in circuit.nodes)  # those of the circuit first
        attention = record_attention(model, test, heads=[row.head for row in ranked[:N_ATTENTION]])
        components = study_components(model, test, circuit.nodes)
    with console.step("reading the stream"):
        tables = _read(model, anatomy, test[: min(N_READ, len(test))])
        direct = attribute_logits(model, test)
    roles = {row.head: row.role for row in study.rows if row.role and row.head in circuit.nodes}
    circuit = replace(circuit, roles=roles)
    with console.step("testing the circuit") as progress:
        evaluation = evaluate(model, test, circuit, seed=settings.seed, progress=progress)
    with console.step("testing all sizes") as progress:
        curve = evaluate(model, test, scores, seed=settings.seed, progress=progress)
    robustness = None
    if settings.robustness:
        with console.step("testing robustness"):
            robustness = measure_robustness(model, task, scores, circuit, seed=settings.seed, again=again)
    return Discovery(
        task=task,
        model_name=model_name,
        settings=settings,
        measured=measured,
        estimated=estimated,
        agreement=estimated.agreement(measured),
        scores=scores,
        circuit=circuit,
        curve=curve,
        evaluation=evaluation,
        study=study,
        attention=attention,
        components=components,
        positions=by_position,
        tables=tables,
        direct=direct,
        robustness=robustness,
    )


def _read(model: TransformerBridge, anatomy: ModelAnatomy, few: Task) -> tuple[LensTable, ...]:
    """What the logit lens says of every place, and the model's tuned lens where one is shipped."""
    kinds = [kind for kind in ("resid_pre", "resid_mid") if anatomy.has_site(kind)]
    tables = (read_lens(model, few, LOGIT_LENS, kinds=kinds, top_k=N_TOP),)
    try:
        lens = load_lens(model)
    except NotFoundError:
        return tables
    return (*tables, read_lens(model, few, lens, top_k=N_TOP))


def _by_position(
    model: TransformerBridge, train: Task, settings: Settings
) -> Iterator[PositionScores | AttentionEdges]:
    """Scores by span and what heads move between spans, where the task has spans and attention is open."""
    if not train.pairs.spans:
        return
    try:
        yield score_positions(model, train, positions="spans", rules=settings.rules, ig_steps=settings.ig_steps)
        yield score_attention_edges(model, train, positions="spans", rules=settings.rules)
    except InputError:  # a model or a task without them; the rest of the report stands without
        return
