"""The results of a report, sorted by what they are, and the facts that several sections need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from ..ablation.heads import HeadStudy
from ..circuits.graph.circuit import Circuit
from ..circuits.scoring.positions import PositionScores
from ..circuits.scoring.scores import EdgeScores
from ..circuits.testing.completeness import Minimality
from ..circuits.testing.curves import CircuitEvaluation, FaithfulnessCurve
from ..errors import InputError
from ..patching.result import Effect, Effects
from ..provenance import Provenance
from ..runs.attention import AttentionPatterns
from ..runs.components import ComponentStudy
from ..tasks.task import Task
from .page.cards import Card, Fact, Pattern, attention_cards, component_cards
from .page.text import percent, signed, words
from .panels.heads import head_facts

_Build = TypeVar("_Build", bound=Callable[[Any], Any])
_Kind = TypeVar("_Kind")
Tell = Callable[[Any, Task, Sequence[str]], Mapping[str, Sequence[Card]]]
"""(result, task, nodes) -> what the result says about some of those nodes; ``a4.h1@END`` is a node at a span or token.
"""


class Panel(NamedTuple):
    """How a report shows a class of results: where, by which function, what it says about nodes, what it is called in
    the provenance. `together`: the function is given all findings at once and draws its classes side by side.
    """

    section: str
    build: Callable[[Any], Any]
    tells: Tell | None = None
    called: Callable[[Any], str] | str = ""
    together: bool = False


EXTENSIONS: dict[type, Panel] = {}
"""Every class of results that a report shows; the only list of them, filled by `reports`."""


def reports(
    *results: type, section: str, tells: Tell | None = None, called: Callable[[Any], str] | str = "",
    together: bool = False,
) -> Callable[[_Build], _Build]:  # fmt: skip
    """Decorator: register a function ``result -> Fragment`` that draws a result class in that section of every report.

    `tells` gives cards for the side panel of the graph and for the component cards; `called` names the result in the
    provenance. With ``together=True`` the function is given the `Findings` and returns the fragments of all results of
    its classes, for what only says something side by side.

    >>> @reports(LensReading, section="localisation")
    ... def lens_fragment(reading: LensReading) -> Fragment: ...
    """

    def register(build: _Build) -> _Build:
        for result in results:
            EXTENSIONS[result] = Panel(section, build, tells, called, together)
        return build

    return register


def panel_of(result: object) -> Panel:
    """What was registered for the class of `result`, or for one that it derives from."""
    return next(EXTENSIONS[cls] for cls in type(result).__mro__ if cls in EXTENSIONS)


def panels_together(section: str) -> list[Callable[[Any], Any]]:
    """What draws several results of a section at once, each once."""
    return list(dict.fromkeys(p.build for p in EXTENSIONS.values() if p.together and p.section == section))


@dataclass(frozen=True, eq=False)
class Findings:
    """A task and everything that was found on it."""

    task: Task
    results: tuple[object, ...]

    def of(self, kind: type[_Kind]) -> tuple[_Kind, ...]:
        """The results of a class, in the order in which they were given."""
        return tuple(result for result in self.results if isinstance(result, kind))

    @property
    def measured(self) -> tuple[Effects, ...]:
        return tuple(effects for effects in self.of(Effects) if len(effects) and not is_estimated(effects))

    @property
    def estimated(self) -> tuple[Effects, ...]:
        return tuple(effects for effects in self.of(Effects) if len(effects) and is_estimated(effects))

    @property
    def scores(self) -> tuple[EdgeScores, ...]:
        return self.of(EdgeScores)

    @property
    def circuits(self) -> tuple[Circuit, ...]:
        return self.of(Circuit)

    @property
    def evaluations(self) -> tuple[CircuitEvaluation, ...]:
        return self.of(CircuitEvaluation)

    @property
    def studies(self) -> tuple[HeadStudy, ...]:
        return self.of(HeadStudy)

    @property
    def single(self) -> list[object]:
        """Results that are drawn one by one."""
        return [result for result in self.results if not panel_of(result).together]

    @property
    def provenances(self) -> list[tuple[str, Provenance]]:
        """(what, where it came from) of every result, in the order in which their classes are registered."""
        order = list(EXTENSIONS.values())
        named: list[tuple[str, Provenance]] = []
        for result in sorted(self.results, key=lambda result: order.index(panel_of(result))):
            provenance = getattr(result, "provenance", None)
            if provenance is None or (isinstance(result, Effects) and not len(result)):
                continue
            called = panel_of(result).called or words(str(provenance.get("method", "result")))
            named.append((called if isinstance(called, str) else called(result), provenance))
        return named

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
            parts = {"test": "test", "train": "train", "size": "sizing"}
            for split, part in parts.items():
                if split in self.task.splits and sha == getattr(self.task, part).pairs.fingerprint():
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
        curves = self.of(FaithfulnessCurve)
        matching = [c for c in curves if c.ablation == "corrupt"] or curves
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
        for found in self.of(Minimality):
            for node, share in zip(found.nodes, found.scores, strict=True):
                said = f"{percent(share)} of the gap between model and empty circuit"
                facts.setdefault(node, []).append(Fact("Removing it from the circuit changes the metric by", said))
        for study in self.of(ComponentStudy):
            for node, known in component_cards(study).items():
                facts.setdefault(node, []).extend(known)
        for patterns in self.of(AttentionPatterns):
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
        space = next((scores.space for scores in self.of(PositionScores)), None)
        nodes = [] if space is None else [*space.writers, "logits"]
        places = {f"{node}@{label}": node for node in nodes for label in labels}
        found: dict[str, list[Card]] = {}
        self._tell(found, list(places))
        for place, node in places.items():
            found.setdefault(place, []).extend(card for card in facts.get(node, ()) if isinstance(card, Fact | Pattern))
        return found

    def _tell(self, facts: dict[str, list[Card]], nodes: Sequence[str]) -> None:
        for result in self.results:
            tell = panel_of(result).tells
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
    known = tuple(EXTENSIONS)
    for result in results:
        if not isinstance(result, known):
            raise InputError(f"a report shows {', '.join(c.__name__ for c in known)}; got {type(result).__name__}")
    _check_one_model(results)
    return Findings(task, tuple(Effects({r.kind: r}) if isinstance(r, Effect) else r for r in results))


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


def is_estimated(effects: Effects) -> bool:
    """Whether any of the effects is an estimate."""
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
