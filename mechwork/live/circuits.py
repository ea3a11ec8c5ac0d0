"""The circuit of a session: from scores or from a discovery, with parts taken out, and its faithfulness.

faithfulness = (m(C) - m(empty)) / (m(M) - m(empty)) on the first eight held-out pairs (see `mechwork.evaluate`), beside
random circuits of as many edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..circuits import Circuit, EdgeScores, evaluate, score_edges
from ..errors import InputError
from ..relevance import find_composite
from .desk import Desk, Emit

N_PAIRS = 8
N_RANDOM = 3
SHOWN_EDGES = 60


@dataclass(frozen=True)
class CircuitChoice:
    """A circuit: the strongest `n_edges` of the scores (None: the circuit the session began with), less `without`."""

    n_edges: int | None = None
    without: tuple[str, ...] = ()


class Circuits:
    """The scores and circuits at hand."""

    def __init__(self, desk: Desk, given: Circuit | None = None, scores: EdgeScores | None = None) -> None:
        self.desk, self.given, self.scores = desk, given, scores

    def check_rules(self, rules: str) -> None:
        """Raises `UnknownNameError` for unknown rules, `InputError` for a task without corrupt prompts."""
        find_composite(rules)
        self.desk.task.pairs.require_corrupt()

    def score(self, rules: str, emit: Emit) -> dict[str, Any]:
        """Estimate every edge. Cost: 2 forwards and 1 backward per batch of pairs."""
        self.scores = score_edges(self.desk.model, self.desk.task.train, rules=rules, progress=told(emit))
        top = [{"edge": edge, "score": score} for edge, score in self.scores.top(SHOWN_EDGES)]
        return {"n_edges": self.scores.space.n_edges, "top": top}

    def circuit(self, choice: CircuitChoice | None) -> Circuit:
        """The circuit that is chosen; raises `InputError` where there is none, or a part that it does not have."""
        choice = choice or CircuitChoice()
        if choice.n_edges is not None and self.scores is None:
            raise InputError("a circuit is cut out of scored edges; score them first")
        if choice.n_edges is None and self.given is None:
            raise InputError("this session has no circuit yet; score the edges, then choose how many to keep")
        if choice.n_edges is not None:
            assert self.scores is not None
            circuit = self.scores.circuit(choice.n_edges)
        else:
            assert self.given is not None
            circuit = self.given
        for part in choice.without:
            gone = edges_of(circuit, part)
            circuit = circuit - Circuit.from_edges(circuit.space, gone)
        return circuit

    def evaluate(self, choice: CircuitChoice | None, emit: Emit) -> dict[str, Any]:
        """The chosen circuit's faithfulness. Cost: 2 forwards of eight pairs, and 1 per circuit."""
        circuit = self.circuit(choice)
        pairs = self.desk.task.test[:N_PAIRS]
        found = evaluate(self.desk.model, pairs, circuit, n_random=N_RANDOM, progress=told(emit))
        return {
            "faithfulness": found.faithfulness,
            "random": list(found.random),
            "metric": found.metric,
            "accuracy": found.accuracy,
            "n_edges": circuit.n_edges,
            "n_pairs": len(pairs),
            "nodes": list(circuit.nodes),
            "edges": list(circuit.edges[:SHOWN_EDGES]),
        }


def edges_of(circuit: Circuit, part: str) -> list[str]:
    """The edge called `part`, or all edges of the node called so; raises `InputError` for what the circuit has not."""
    edges = [
        edge for edge in circuit.edges
        if edge == part or part == edge.partition("->")[0] or part == edge.partition("->")[2].partition("<")[0]
    ]  # fmt: skip
    if not edges:
        raise InputError(f"nodes of this circuit are {', '.join(circuit.nodes)}, and its edges; got {part!r:.80}")
    return edges


def say_circuit(choice: CircuitChoice | None) -> str:
    """Python that evaluates it; it uses `mw`, `model`, `task`, and `scores` or `given`."""
    choice = choice or CircuitChoice()
    lines = ["circuit = given" if choice.n_edges is None else f"circuit = scores.circuit({choice.n_edges})"]
    if choice.without:
        lines = ["from mechwork.live.circuits import edges_of", *lines]
    for part in choice.without:
        lines.append(f"circuit = circuit - mw.Circuit.from_edges(circuit.space, edges_of(circuit, {part!r}))")
    lines.append(f"result = mw.evaluate(model, task.test[:{N_PAIRS}], circuit, n_random={N_RANDOM})")
    return "\n".join([*lines, "metric = result.faithfulness"])


def told(emit: Emit) -> Any:
    """A progress callback that tells `emit`."""

    def progress(done: int, total: int, what: str) -> None:
        emit("working", {"done": done, "total": total, "words": what})

    return progress
