"""The circuit of a session: from scores or from a discovery, with parts taken out, its faithfulness, and what it says.

faithfulness = (m(C) - m(empty)) / (m(M) - m(empty)) on the first eight held-out pairs (see `mechwork.evaluate`), beside
random circuits of as many edges; on the pair that is looked at, the circuit's metric and next tokens. Cut edges carry
the other prompt's writes. The unchanged runs of the eight pairs are kept, so that the next circuit costs one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..circuits import Circuit, EdgeScores, EdgeSpace, score_edges
from ..circuits.graph.select import select_random
from ..circuits.graph.writers import edge_space
from ..circuits.scoring.methods import find_method
from ..circuits.testing.curves import faithfulness
from ..circuits.testing.evaluate import EvaluationSettings, measure_circuits
from ..circuits.testing.units import SharedRuns
from ..errors import InputError
from ..models.identity import identify_model
from ..runs.record import run_to_metric
from .desk import Desk, Emit, PairChoice

N_PAIRS = 8
N_RANDOM = 3
SHOWN_EDGES = 60


@dataclass(frozen=True)
class CircuitChoice:
    """A circuit: the strongest `n_edges` of the scores (None: the circuit the session began with), less `without`."""

    n_edges: int | None = None
    without: tuple[str, ...] = ()


class Circuits:
    """The scores and circuits at hand; raises `InputError` for those of another model or graph."""

    def __init__(self, desk: Desk, given: Circuit | None = None, scores: EdgeScores | None = None) -> None:
        for what, one in (("circuit", given), ("scores", scores)):
            if one is None:
                continue
            space = edge_space(desk.model, desk.task, **one.space.splits, aligned=None)
            if one.space != space:
                raise InputError(f"the {what} belongs to another graph, {one.space}; this model's is {space}")
        if scores is not None:
            scores.require_model(identify_model(desk.model)["weights_sha256"])
        self.desk, self.given, self.scores = desk, given, scores
        self.method = ""
        self._space: EdgeSpace | None = None
        self.forget()

    def forget(self) -> None:
        """Drop what is kept of the model: its weights may have changed."""
        self._shared = SharedRuns()
        self._base: tuple[Any, Any] | None = None

    def check_method(self, method: str) -> None:
        """Raises `UnknownNameError` for an unknown way to score, `InputError` for a task without corrupt prompts."""
        find_method(method)
        self.desk.task.pairs.require_corrupt()

    def score(self, method: str, emit: Emit) -> dict[str, Any]:
        """Estimate every edge. Cost: see `mw.score_edges`."""
        self.scores = score_edges(self.desk.model, self.desk.task.train, preset=method, progress=told(emit))
        self.method = method
        top = [{"edge": edge, "score": score} for edge, score in self.scores.top(SHOWN_EDGES)]
        return {"n_edges": self.scores.space.n_edges, "method": method, "top": top}

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
        gone = {edge for part in choice.without for edge in edges_of(circuit, part)}
        return circuit - Circuit.from_edges(circuit.space, gone) if gone else circuit

    def evaluate(self, choice: CircuitChoice | None, pair: PairChoice, emit: Emit) -> dict[str, Any]:
        """The chosen circuit's faithfulness and answer, then random circuits beside it.

        Cost: 3 forwards of the eight pairs the first time, then 1 per circuit; 2.5 of the pair that is looked at.
        """
        circuit = self.circuit(choice)
        if self._space != circuit.space:
            self.forget()
            self._space = circuit.space
        if self._base is None:
            masks = [circuit.space.mask, torch.zeros_like(circuit.mask)]
            whole, empty = self._measure(circuit, masks, emit)[0]
            self._base = whole, empty
        whole, empty = self._base
        metric, correct = self._measure(circuit, [circuit.mask], emit)
        answer: dict[str, Any] = {
            "faithfulness": faithfulness(metric[0], empty, whole),
            "random": None,
            "metric": float(metric[0].mean()),
            "accuracy": float(correct[0].mean()),
            "n_edges": circuit.n_edges,
            "n_pairs": metric.shape[1],
            "nodes": list(circuit.nodes),
            "edges": list(circuit.edges[:SHOWN_EDGES]),
            "groups": {name: list(nodes) for name, nodes in circuit.supernodes.items()},
        }
        emit("progress", answer)
        answer["pair"] = self._say(circuit, pair)
        n = N_RANDOM if circuit.n_edges else 0
        randoms = [select_random(circuit.space, circuit.n_edges, seed) for seed in range(n)]
        found = self._measure(circuit, randoms, emit)[0] if randoms else []
        return {**answer, "random": [faithfulness(row, empty, whole) for row in found]}

    def _measure(self, circuit: Circuit, masks: list[Any], emit: Emit) -> tuple[Any, Any]:
        pairs = self.desk.task.test[:N_PAIRS]
        settings = EvaluationSettings(progress=told(emit))
        found = measure_circuits(self.desk.model, pairs, circuit.space, masks, settings, self._shared)
        return found.metric, found.correct

    def _say(self, circuit: Circuit, choice: PairChoice) -> dict[str, Any] | None:
        """What the circuit says about one pair; None where its prompts are of another length than the graph knows."""
        pair = self.desk.pair(choice)
        if pair.pairs.alone or pair.pairs.aligned != self.desk.task.pairs.aligned:
            return None
        with torch.no_grad(), circuit.run(self.desk.model, pair, ablation="corrupt") as model:
            logits = run_to_metric(model, pair, pair.pairs)
            now = pair.pairs.read(logits)[0, 0].double().softmax(dim=0).topk(5)
            metric = float(pair.measure(logits, pair.pairs).mean())
        words = zip(now.indices.tolist(), now.values.tolist(), strict=True)
        return {"metric": metric, "top": [{"word": self.desk.word(i), "p": p} for i, p in words]}


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
        lines.append(f"gone = {{edge for part in {choice.without!r} for edge in edges_of(circuit, part)}}")
        lines.append("circuit = circuit - mw.Circuit.from_edges(circuit.space, gone)")
    lines.append(f"result = mw.evaluate(model, task.test[:{N_PAIRS}], circuit, n_random={N_RANDOM})")
    return "\n".join([*lines, "metric = result.faithfulness"])


def say_score(method: str) -> str:
    """Python that scores the edges."""
    return f"scores = mw.score_edges(model, task.train, preset={method!r})"


def told(emit: Emit) -> Any:
    """A progress callback that tells `emit`."""

    def progress(done: int, total: int, what: str) -> None:
        emit("working", {"done": done, "total": total, "words": what})

    return progress
