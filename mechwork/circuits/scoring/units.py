"""Edge scores as units: one per micro-batch of pairs.

What an estimator learns from the whole task (means, under ``ablation="mean"``) every process computes for itself, from
the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...execute import ModelRef, Unit, Work
from ...execute.drive import run_units
from ...execute.memory import cut
from ...execute.task import pack_task, unpack_task, why_not_sent
from ...execute.unit import Run, Tensors
from ...relevance import Composite
from ...runs.record import Baseline
from ...tasks.task import Task
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space
from .estimate import ESTIMATORS, Coefficients, WriterTotals
from .methods import Method
from .rows import Rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "edges.batch"
SETTINGS = ("ig_steps", "path", "direction", "ablation", "estimator", "name")


def run_batches(
    model: TransformerBridge,
    task: Task,
    space: EdgeSpace,
    method: Method,
    n_pairs: int,
    n_positions: int,
    seed: int,
    source: Task | None = None,
    *,
    nodes: bool = False,
) -> Iterator[tuple[Unit, Rows]]:
    """Scores and baselines of all pairs, `n_pairs` at a time; means are over the prompts of `source` (default: the
    task's). `nodes`: summed over readers where that is cheaper, ``[batch, writer, 1]``.
    """
    facts, tensors = pack_task(task)
    settings = {
        "task": facts,
        "method": {name: getattr(method, name) for name in SETTINGS},
        "rules": method.rules.to_json(),
        "split_input": space.split_input,
        "n_positions": n_positions,
        "seed": seed,
        "nodes": nodes,
    }
    data = {"task": tensors}
    if source is not None:
        settings["source"], data["source"] = pack_task(source)
    work = Work(OPERATION, ModelRef.of(model), settings, data, why_not_sent([task.metric]))
    run = _runner(model, task, space, method, n_positions, seed, source, nodes=nodes)
    for unit, values in run_units(work, (work.unit(rows) for rows in cut(len(task), n_pairs)), run):
        yield unit, Rows(values["values"], Baseline(values["clean"], values["corrupt"]))


def build(model: TransformerBridge, work: Work) -> Run:
    """What runs the batches in a process that has the work's data and the model alone."""
    settings = work.settings
    task = unpack_task(settings["task"], work.data["task"])
    method = Method(Composite.from_json(settings["rules"]), **settings["method"])
    space = edge_space(model, task, split_input=settings["split_input"], aligned=None)
    source = unpack_task(settings["source"], work.data["source"]) if "source" in settings else None
    return _runner(
        model, task, space, method, settings["n_positions"], settings["seed"], source, nodes=settings["nodes"]
    )


def _runner(
    model: TransformerBridge, task: Task, space: EdgeSpace, method: Method, n_positions: int, seed: int,
    source: Task | None, *, nodes: bool,
) -> Run:  # fmt: skip
    estimator = ESTIMATORS[method.estimator]
    if nodes and estimator is Coefficients and method.path != "activations" and not method.rules.grad_drop:
        estimator = WriterTotals
    estimate = estimator(model, source or task, space, method, n_positions, seed)

    def run(unit: Unit) -> Tensors:
        rows = estimate(task[slice(*unit.rows)])
        ends = rows.baseline
        return {"values": rows.values, "clean": ends.clean_per_example, "corrupt": ends.corrupt_per_example}

    return run
