"""Edge scores as units: one per micro-batch of pairs; by cells of positions where the work has some.

What an estimator learns from the whole task (means, under ``ablation="mean"``) every process computes for itself, from
the same prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...execute import ModelRef, Unit, Work
from ...execute.drive import run_units
from ...execute.memory import cut
from ...execute.task import pack_task, unpack_task, why_not_sent
from ...execute.unit import Run, Tensors
from ...models.anatomy import device_of
from ...relevance import Composite
from ...runs.record import Baseline
from ...tasks.task import Task
from ..graph.space import EdgeSpace
from ..graph.writers import edge_space, splits_of
from .estimate import ESTIMATORS, Cells, Coefficients, WriterTotals
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
    cells: Cells | None = None,
    *,
    nodes: bool = False,
    remade: bool = False,
) -> Iterator[tuple[Unit, Rows]]:
    """Scores and baselines of all pairs, `n_pairs` at a time; means are over the prompts of `source` (default: the
    task's), scores by `cells` of positions where some are given. `nodes`: summed over readers where that is cheaper,
    ``[batch, writer, 1]``; `remade`: see `runs.remake`.
    """
    facts, tensors = pack_task(task)
    settings = {
        "task": facts,
        **pack_method(method),
        **space.splits,
        "n_positions": n_positions,
        "seed": seed,
        "nodes": nodes,
        "remade": remade,
    }
    data = {"task": tensors}
    if source is not None:
        settings["source"], data["source"] = pack_task(source)
    if cells is not None:
        data["cells"] = {"cells": cells}
    work = Work(OPERATION, ModelRef.of(model), settings, data, why_not_sent([task.metric]))
    run = _runner(model, task, space, method, n_positions, seed, source, cells, nodes=nodes, remade=remade)
    for unit, values in run_units(work, (work.unit(rows) for rows in cut(len(task), n_pairs)), run):
        yield unit, Rows(values["values"], Baseline(values["clean"], values["corrupt"]))


def build(model: TransformerBridge, work: Work) -> Run:
    """What runs the batches in a process that has the work's data and the model alone."""
    settings = work.settings
    task = unpack_task(settings["task"], work.data["task"])
    method = unpack_method(settings)
    cells = work.data["cells"]["cells"] if "cells" in work.data else None
    space = edge_space(model, task, **splits_of(settings), aligned=None)
    source = unpack_task(settings["source"], work.data["source"]) if "source" in settings else None
    n_positions, seed = settings["n_positions"], settings["seed"]
    how = {name: settings[name] for name in ("nodes", "remade")}
    return _runner(model, task, space, method, n_positions, seed, source, cells, **how)


def pack_method(method: Method) -> dict[str, Any]:
    """A method as JSON values, from which `unpack_method` makes it."""
    return {"method": {name: getattr(method, name) for name in SETTINGS}, "rules": method.rules.to_json()}


def unpack_method(settings: Mapping[str, Any]) -> Method:
    """What `pack_method` packed."""
    return Method(Composite.from_json(settings["rules"]), **settings["method"])


def pack_baseline(ends: Baseline) -> Tensors:
    """The metric at both ends, as part of a unit's result."""
    return {"clean": ends.clean_per_example, "corrupt": ends.corrupt_per_example}


def _runner(
    model: TransformerBridge, task: Task, space: EdgeSpace, method: Method, n_positions: int, seed: int,
    source: Task | None, cells: Cells | None, *, nodes: bool, remade: bool,
) -> Run:  # fmt: skip
    estimator = ESTIMATORS[method.estimator]
    if nodes and estimator is Coefficients and method.path != "activations" and not method.rules.grad_drop:
        estimator = WriterTotals
    estimate = estimator(model, source or task, space, method, n_positions, seed)
    if isinstance(estimate, Coefficients):
        estimate.remade = remade

    def run(unit: Unit) -> Tensors:
        piece = task[slice(*unit.rows)]
        if cells is None:
            rows = estimate(piece)
        else:
            assert isinstance(estimate, Coefficients)
            width = piece.pairs.clean_tokens.shape[1]
            rows = estimate.by_cell(piece, cells[:, slice(*unit.rows), :width].to(device_of(model)))
        return {"values": rows.values, **pack_baseline(rows.baseline)}

    return run
