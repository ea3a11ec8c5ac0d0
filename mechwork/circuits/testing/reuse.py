"""Do two tasks use the same circuit? Overlap beside chance, and every task run by every task's circuit (Merullo et al.
2024).

Overlap alone says little: two circuits may share nodes that do nothing for the other task. So each circuit also has to
run the held-out pairs of every task, beside random circuits of its size. A task's own circuit is the measure of what is
possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import InputError
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...result import Result, Table
from ...tasks.task import Task
from ..graph.circuit import Circuit
from ..graph.compare import CircuitComparison, compare_circuits
from ..scoring.score import score_edges
from .curves import CircuitEvaluation
from .evaluate import evaluate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class CircuitReuse(Result):
    """Circuits of several tasks in one model. `evaluations`: (task, task whose circuit runs it) -> how it does on
    held-out pairs.
    """

    comparison: CircuitComparison
    evaluations: dict[tuple[str, str], CircuitEvaluation]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.comparison.circuits)

    @property
    def circuits(self) -> dict[str, Circuit]:
        return self.comparison.circuits

    def _table(self) -> Table:
        """One row per task and circuit: faithfulness with its interval, accuracy, the mean of random circuits."""
        return [
            {
                "task": task, "circuit_of": owner, "n_edges": e.circuit.n_edges, "faithfulness": e.faithfulness,
                "low": e.interval()[0], "high": e.interval()[1], "accuracy": e.accuracy,
                "random": sum(e.random) / len(e.random),
            }
            for (task, owner), e in self.evaluations.items()
        ]  # fmt: skip

    def __str__(self) -> str:
        width = max(16, *(len(name) + 2 for name in self.tasks))
        head = "".join(f"{name:>{width}}" for name in self.tasks)
        lines = [str(self.comparison), "", f"{'faithfulness of: circuit of':<30}{head}{'random':>{width}}"]
        for task in self.tasks:
            found = [self.evaluations[task, owner] for owner in self.tasks]
            cells = "".join(f"{e.faithfulness:>{width}.3f}" for e in found)
            chance = [value for e in found for value in e.random]
            lines.append(f"{task:<30}{cells}{sum(chance) / len(chance):>{width}.3f}")
        return "\n".join(lines)

    __repr__ = __str__


@borrows
def study_reuse(
    model: TransformerBridge,
    tasks: Sequence[Task],
    *,
    n_edges: int = 100,
    preset: str | None = None,
    ablation: str = "corrupt",
    n_random: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> CircuitReuse:
    """Find a circuit of `n_edges` edges per task on its training pairs; compare them, and run every task by each of
    them.

    Cost: `score_edges` per task, and per pair of tasks a forward for the circuit and one for each random one, on
    held-out pairs.

    Raises:
        InputError: fewer than two tasks, two of one name, or a task without held-out pairs; and what `score_edges`
            raises.

    >>> study_reuse(model, [ioi, colored_objects, greater_than], n_edges=100)
    """
    names = [task.name for task in tasks]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(f"reuse is asked of at least two tasks with names of their own; got {names}")
    if missing := [task.name for task in tasks if not task.splits]:
        raise InputError(f"circuits are tested on held-out pairs; without train and test pairs: {', '.join(missing)}")
    if n_random < 1:
        raise InputError("random circuits are the measure of chance: n_random is at least 1")
    total = len(tasks) * (len(tasks) + 1)
    circuits: dict[str, Circuit] = {}
    for i, task in enumerate(tasks):
        circuits[task.name] = score_edges(model, task.train, preset=preset, seed=seed).circuit(n_edges=n_edges)
        if progress is not None:
            progress(i + 1, total, f"finding the circuit of {task.name}")
    evaluations: dict[tuple[str, str], CircuitEvaluation] = {}
    for task in tasks:
        for owner, circuit in circuits.items():
            evaluations[task.name, owner] = evaluate(
                model, task.test, circuit, ablation=ablation, n_random=n_random, seed=seed
            )
            if progress is not None:
                progress(len(tasks) + len(evaluations), total, f"{task.name} by the circuit of {owner}")
    return CircuitReuse(compare_circuits(circuits), evaluations)
