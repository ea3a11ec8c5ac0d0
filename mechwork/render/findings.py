"""The results of a report, sorted by what they are, and the facts that several sections need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..ablation.heads import HeadStudy
from ..circuits.graph.circuit import Circuit
from ..circuits.scoring.attention_edges import AttentionEdges
from ..circuits.scoring.positions import PositionScores
from ..circuits.scoring.scores import EdgeScores
from ..circuits.scoring.stability import Stability
from ..circuits.testing.completeness import Completeness, Minimality
from ..circuits.testing.curves import CircuitEvaluation, FaithfulnessCurve
from ..errors import InputError
from ..patching.result import Effect, Effects
from ..provenance import Provenance
from ..runs.attention import AttentionPatterns
from ..runs.components import ComponentStudy
from ..tasks.task import Task
from .page.cards import Card, Fact, Pattern, attention_cards, component_cards
from .page.page import Fragment
from .page.text import percent, signed, words
from .panels.agreement import method_name
from .panels.heads import head_facts

REPORTED = (
    Effects, Effect, EdgeScores, Circuit, FaithfulnessCurve, CircuitEvaluation, AttentionPatterns, HeadStudy,
    ComponentStudy,
    Stability, Completeness, Minimality, PositionScores, AttentionEdges,
)  # fmt: skip

_Build = TypeVar("_Build", bound=Callable[[Any], Fragment])
Tell = Callable[[Any, Task, Sequence[str]], Mapping[str, Sequence[Card]]]
"""(result, task, nodes) -> what the result says about some of those nodes; ``a4.h1@END`` is a node at a span or token.
"""
EXTENSIONS: dict[type, tuple[str, Callable[[Any], Fragment], Tell | None]] = {}
"""Results of other modules -> (section of the report, what draws them there, what they say about nodes); see `reports`.
"""


def reports(result: type, *, section: str, tells: Tell | None = None) -> Callable[[_Build], _Build]:
    """Decorator: register a function ``result -> Fragment`` that draws a result class in that section of every report.

    `tells` gives cards for the side panel of the graph and for the component cards.

    >>> @reports(LensReading, section="localisation")
    ... def lens_fragment(reading: LensReading) -> Fragment: ...
    """

    def register(build: _Build) -> _Build:
        EXTENSIONS[result] = (section, build, tells)
        return build

    return register


def extension_of(result: object) -> tuple[str, Callable[[Any], Fragment], Tell | None]:
    """What was registered for the class of `result`, or for one that it derives from."""
    return next(EXTENSIONS[cls] for cls in type(result).__mro__ if cls in EXTENSIONS)


@dataclass(frozen=True, eq=False)
class Findings:
    """A task and everything that was found on it."""

    task: Task
    measured: tuple[Effects, ...]
    estimated: tuple[Effects, ...]
    scores: tuple[EdgeScores, ...]
    circuits: tuple[Circuit, ...]
    curves: tuple[FaithfulnessCurve, ...]
    evaluations: tuple[CircuitEvaluation, ...]
    patterns: tuple[AttentionPatterns, ...]
    studies: tuple[HeadStudy, ...]
    components: tuple[ComponentStudy, ...] = ()
    stabilities: tuple[Stability, ...] = ()
    completeness: tuple[Completeness, ...] = ()
    minimality: tuple[Minimality, ...] = ()
    positions: tuple[PositionScores, ...] = ()
    movements: tuple[AttentionEdges, ...] = ()
    others: tuple[object, ...] = ()

    @property
    def provenances(self) -> list[tuple[str, Provenance]]:
        """(what, where it came from) of every result, in the order of the report."""
        named: list[tuple[str, Any]] = [("measured effects", e) for e in self.measured]
        named += [(f"estimated effects ({method_name(e)})", e) for e in self.estimated]
        named += [(f"edge scores ({e.rules})", e) for e in self.scores]
        named += [("circuit", e) for e in self.circuits] + [("evaluation of the circuit", e) for e in self.evaluations]
        named += [("faithfulness curve", e) for e in self.curves]
        named += [("attention patterns", e) for e in self.patterns] + [("head study", e) for e in self.studies]
        named += [("component study", e) for e in self.components]
        named += [("completeness", e) for e in self.completeness] + [("minimality", e) for e in self.minimality]
        named += [("edge scores by position", e) for e in self.positions]
        named += [("movements between positions", e) for e in self.movements]
        more: list[Any] = [result for result in self.others if hasattr(result, "provenance")]
        named += [(words(str(result.provenance.get("method", "result"))), result) for result in more]
        return [(what, result.provenance) for what, result in named]

    @property
    def model(self) -> dict[str, Any]:
        """What provenance says about the model; empty when nothing is known."""
        known = [provenance.get("model") for _, provenance in self.provenances]
        return next((model for model in known if isinstance(model, dict)), {})

    @property
    def model_name(self) -> str:
        return str(self.model.get("name", "")) or "the model"

    def pairs_word(self, provenance: Provenance) -> str:
        """``"test pair"``, ``"train pair"`` or ``"pair"``: on which pairs of the task a result was computed."""
        fact = provenance.get("task")
        sha = fact.get("sha256") if isinstance(fact, dict) else None
        if self.task.splits and sha is not None:
            for split in ("test", "train"):
                if split in self.task.splits and sha == getattr(self.task, split).pairs.fingerprint():
                    return f"{split} pair"
        return "pair"

    @property
    def circuit(self) -> Circuit | None:
        """The main circuit, its roles filled in from the head study where it has none."""
        found = self.circuits[0] if self.circuits else (self.evaluations[0].circuit if self.evaluations else None)
        return None if found is None else self.with_roles(found)

    def with_roles(self, circuit: Circuit) -> Circuit:
        """`circuit` with the roles that the head studies found."""
        roles = {row.head: row.role for study in self.studies for row in study.rows if row.role}
        return replace(circuit, roles={**roles, **circuit.roles})

    def evaluation_of(self, circuit: Circuit) -> CircuitEvaluation | None:
        """The evaluation of that circuit, if there is one."""
        return next((evaluation for evaluation in self.evaluations if self.is_of(evaluation, circuit)), None)

    @staticmethod
    def is_of(evaluation: CircuitEvaluation, circuit: Circuit) -> bool:
        """Whether an evaluation is of that circuit."""
        same_space = evaluation.circuit.space == circuit.space
        return same_space and bool((evaluation.circuit.mask == circuit.mask).all())

    def scores_of(self, circuit: Circuit) -> EdgeScores | None:
        """The scores that the circuit was selected by, if they are here."""
        for scores in self.scores:
            if (
                scores.space == circuit.space
                and circuit.scores is not None
                and bool((scores.values == circuit.scores).all())
            ):
                return scores
        return None

    def curve_of(self, circuit: Circuit) -> FaithfulnessCurve | None:
        """The curve of the scores that the circuit was selected by, if both are here and the circuit was selected by
        size.
        """
        scores = self.scores_of(circuit)
        matching = [c for c in self.curves if c.ablation == "corrupt"] or list(self.curves)
        return matching[0] if matching and scores is not None and circuit.n_requested is not None else None

    def node_facts(self) -> dict[str, list[Card]]:
        """What was measured or estimated about each node, for the side panel of the graph and the component cards."""
        facts: dict[str, list[Card]] = {}
        for study in self.studies:
            for head, known in head_facts(study).items():
                facts.setdefault(head, []).extend(known)
        for effects in (*self.measured, *self.estimated):
            for kind, effect in effects.items():
                if kind == "z" and effect.axes == ("layer", "head"):
                    _add_effect(facts, effect, "h")
                if kind == "mlp_out" and effect.axes == ("layer",):
                    _add_effect(facts, effect, "")
        for found in self.minimality:
            for node, share in zip(found.nodes, found.scores, strict=True):
                said = f"{percent(share)} of the gap between model and empty circuit"
                facts.setdefault(node, []).append(Fact("Removing it from the circuit changes the metric by", said))
        for study in self.components:
            for node, known in component_cards(study).items():
                facts.setdefault(node, []).extend(known)
        for patterns in self.patterns:
            for head, known in attention_cards(patterns).items():
                facts.setdefault(head, []).extend(known)
        self._tell(facts, self.nodes)
        return facts

    @property
    def nodes(self) -> list[str]:
        """Nodes that facts are gathered for: the circuits', or those of the whole graph where only edges are scored."""
        found = [node for circuit in (*self.circuits, self.circuit) if circuit is not None for node in circuit.nodes]
        if not found:
            found = [node for scores in self.scores for node in (*scores.space.writers, "logits")]
        return list(dict.fromkeys(found))

    def facts_at(self, labels: Iterable[str], facts: Mapping[str, Sequence[Card]]) -> dict[str, list[Card]]:
        """What is known about each ``node@label``, with the facts and patterns among `facts`, which are by node."""
        space = next((scores.space for scores in self.positions), None)
        nodes = [] if space is None else [*space.writers, "logits"]
        places = {f"{node}@{label}": node for node in nodes for label in labels}
        found: dict[str, list[Card]] = {}
        self._tell(found, list(places))
        for place, node in places.items():
            found.setdefault(place, []).extend(card for card in facts.get(node, ()) if isinstance(card, Fact | Pattern))
        return found

    def _tell(self, facts: dict[str, list[Card]], nodes: Sequence[str]) -> None:
        for result in self.others:
            tell = extension_of(result)[2]
            for node, known in (tell(result, self.task, nodes) if tell is not None else {}).items():
                facts.setdefault(node, []).extend(known)


def collect(task: Task, results: Sequence[object], *, empty: bool = False) -> Findings:
    """Sorts results by class; `empty` allows none.

    Raises:
        InputError: no results, something that a report cannot show, or results of different models.
    """
    if not isinstance(task, Task):
        raise InputError(f"a report is about a task: report(path, task, *results); got {type(task).__name__}")
    if not results and not empty:
        raise InputError("a report needs at least one result, such as effects, scores, a circuit or a curve; got none")
    results = [Effects({r.kind: r}) if isinstance(r, Effect) else r for r in results]
    known = (*REPORTED, *EXTENSIONS)
    for result in results:
        if not isinstance(result, known):
            raise InputError(f"a report shows {', '.join(c.__name__ for c in known)}; got {type(result).__name__}")
    _check_one_model([r for r in results if isinstance(r, REPORTED)])
    effects = [r for r in results if isinstance(r, Effects) and len(r)]
    return Findings(
        task=task,
        measured=tuple(r for r in effects if not _is_estimated(r)),
        estimated=tuple(r for r in effects if _is_estimated(r)),
        scores=tuple(r for r in results if isinstance(r, EdgeScores)),
        circuits=tuple(r for r in results if isinstance(r, Circuit)),
        curves=tuple(r for r in results if isinstance(r, FaithfulnessCurve)),
        evaluations=tuple(r for r in results if isinstance(r, CircuitEvaluation)),
        patterns=tuple(r for r in results if isinstance(r, AttentionPatterns)),
        studies=tuple(r for r in results if isinstance(r, HeadStudy)),
        components=tuple(r for r in results if isinstance(r, ComponentStudy)),
        stabilities=tuple(r for r in results if isinstance(r, Stability)),
        completeness=tuple(r for r in results if isinstance(r, Completeness)),
        minimality=tuple(r for r in results if isinstance(r, Minimality)),
        positions=tuple(r for r in results if isinstance(r, PositionScores)),
        movements=tuple(r for r in results if isinstance(r, AttentionEdges)),
        others=tuple(r for r in results if not isinstance(r, REPORTED)),
    )


def _check_one_model(results: Sequence[object]) -> None:
    """Refuses results of different models: side by side in one report nobody could tell them apart."""
    known: dict[str, str] = {}
    for result in results:
        model = getattr(result, "provenance", {}).get("model")
        if isinstance(model, dict) and model.get("weights_sha256"):
            known.setdefault(str(model["weights_sha256"]), str(model.get("name", "a model without a name")))
    if len(known) > 1:
        raise InputError(
            f"a report is about one model; these results are of {' and of '.join(known.values())} "
            f"(weights {', '.join(sha[:12] for sha in known)}). Write a report for each, and compare their circuits "
            "with mechwork.circuits.compare_circuits or `mechwork compare`."
        )


def _is_estimated(effects: Effects) -> bool:
    return any(effect.estimated for effect in effects.values())


def _add_effect(facts: dict[str, list[Card]], effect: Effect, part: str) -> None:
    certainty = "estimated" if effect.estimated else "measured"
    label = f"{'Denoising' if effect.direction == 'denoise' else 'Noising'} effect on {words(effect.metric_name)}"
    pairs = len(effect.per_example) > 1
    low, high = (bound.flatten().tolist() for bound in effect.interval()) if pairs else ([], [])
    for index, value in enumerate(effect.values.flatten().tolist()):
        if value != value:  # a screen did not measure it
            continue
        if part:
            layer, head = divmod(index, effect.values.shape[1])
            name = f"a{effect.labels['layer'][layer]}.{part}{effect.labels['head'][head]}"
        else:
            name = f"m{effect.labels['layer'][index]}"
        spread = f"95 % interval {signed(low[index])} to {signed(high[index])}" if pairs else "one pair"
        facts.setdefault(name, []).append(Fact(label, signed(value), certainty, spread))
