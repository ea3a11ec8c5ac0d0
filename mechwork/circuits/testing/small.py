"""Which edge scores find good small circuits: several presets on several tasks, judged on held-out pairs.

Edges are scored on ``task.train``; circuits of a few small shares of the edges are run on ``task.test``. CMD is the
area of |1 - faithfulness| over the shares that were run, log-CMD the same over their logarithm (0 is best); these are
not MIB's areas unless MIB's shares were run. Cost in F, one forward of the train pairs, a backward counted as two.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...patching.kept import Kept
from ...provenance import Provenance, build_provenance, hash_json, stable
from ...result import Result, Table
from ...tasks.task import Task
from ..scoring.methods import find_method
from ..scoring.score import score_edges
from .evaluate import evaluate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Shares of the edges that are run by default: small circuits are what people read."""


@dataclass(frozen=True)
class SmallCircuits:
    """One preset on one task: faithfulness at each share (by absolute score), areas, CPU seconds of scoring."""

    task: str
    preset: str
    faithfulness: tuple[float, ...]
    cmd: float
    cmd_log: float
    n_edges: int
    seconds: float


@dataclass(frozen=True)
class EdgeStudy(Result):
    """One row per task and preset."""

    shares: tuple[float, ...]
    rows: tuple[SmallCircuits, ...]
    provenance: Provenance

    def _table(self) -> Table:
        """One row per task and preset, one column per share; no seconds, which differ from run to run."""
        return [
            {
                "task": row.task,
                "preset": row.preset,
                **{f"{share:g}": value for share, value in zip(self.shares, row.faithfulness, strict=True)},
                "cmd": row.cmd,
                "cmd_log": row.cmd_log,
                "n_edges": row.n_edges,
            }
            for row in self.rows
        ]


@borrows
def study_edges(
    model: TransformerBridge,
    tasks: Sequence[Task],
    presets: Sequence[str],
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> EdgeStudy:
    """Score with every preset and judge small circuits of every task. `checkpoint`: a folder that keeps each row.

    Raises `InputError` for two tasks of one name or none, `UnknownNameError` for an unknown preset, `ArtefactError` for
    a checkpoint of another study. Cost: per task and preset that of `score_edges`, and about 3 F per share.

    >>> study_edges(model, [mw.tasks.ioi(model, n=8)], ["eap", "relp"]).to_dataframe()
    """
    names = [task.name for task in tasks]
    if not tasks or not presets or len(set(names)) < len(names):
        raise InputError(f"tasks of different names and at least one preset are needed; got {names}, {list(presets)}")
    for preset in presets:
        find_method(preset)
    identity, found = identify_model(model), []
    for done, task in enumerate(tasks):
        for number, preset in enumerate(presets):
            if progress is not None:
                progress(done * len(presets) + number, len(tasks) * len(presets), f"edges of {task.name} by {preset}")
            key = hash_json([preset, list(shares), seed, identity, stable(task.provenance())])
            kept = Kept(checkpoint, f"{task.name}, edges by {preset}", key)
            facts = kept.read()
            if facts is None:
                facts = _measure(model, task, preset, tuple(shares), seed)
                kept.write(facts)
            found.append(SmallCircuits(**{**facts, "faithfulness": tuple(facts["faithfulness"])}))
    provenance = build_provenance(
        method="small circuits of edge scores", model=identity, seed=seed, tasks=[task.provenance() for task in tasks]
    )
    return EdgeStudy(tuple(shares), tuple(found), provenance)


def _measure(model: TransformerBridge, task: Task, preset: str, shares: tuple[float, ...], seed: int) -> dict[str, Any]:
    began = time.process_time()
    scores = score_edges(model, task.train, preset=preset, seed=seed)
    seconds = time.process_time() - began
    curve = evaluate(model, task.test, scores, fractions=shares, n_random=0, seed=seed)
    return {
        "task": task.name, "preset": preset, "faithfulness": [float(value) for value in curve.faithfulness],
        "cmd": float(curve.cmd), "cmd_log": float(curve.cmd_log), "n_edges": scores.space.n_edges, "seconds": seconds,
    }  # fmt: skip
