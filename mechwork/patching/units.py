"""A sweep as units: one per chunk of cells and block of pairs, run on whatever records the block.

The driver records every block to know its chunks (cells whose values are equal in both runs need not run); a worker
records the block of the unit that it is at, and keeps the last one. Boundaries come from the plan and the recorded
values alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Bool
from torch import Tensor

from ..execute.task import unpack_task
from ..execute.unit import Run, Tensors, Unit, Work
from ..tasks.metrics import METRICS, Metric
from ..tasks.task import Task
from .execute import Block, Chunk, GivenRows, record_block
from .sides import Share
from .sweep import Cell, Sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "patch.block"


@dataclass(eq=False)
class Blocks:
    """The blocks of a sweep as they are needed; the last one is kept."""

    model: TransformerBridge
    task: Task
    sweep: Sweep
    metrics: tuple[Metric, ...]
    places: Mapping[str, Bool[Tensor, "place batch pos"]]
    share: Share | None = None
    given: GivenRows | None = None
    _last: Block | None = field(default=None, init=False)
    _cells: dict[tuple[int, int], Cell] = field(default_factory=dict, init=False)

    def at(self, rows: slice) -> Block:
        """The block of these pairs. Cost: 2 forwards, unless it is the last one that was asked for."""
        if self._last is None or self._last.base.rows != rows:
            self._last = None  # before the next is recorded: memory holds one block
            self._last = record_block(
                self.model, self.task, self.sweep, self.metrics, self.places, rows, self.share, self.given
            )
        return self._last

    def run(self, unit: Unit) -> Tensors:
        """The metrics of a unit's cells."""
        start, places = unit.says
        self._cells = self._cells or {(cell.grid, cell.index): cell for cell in self.sweep.cells}
        chunk = Chunk(start, tuple(self._cells[grid, index] for grid, index in places))
        return {"metric": self.at(slice(*unit.rows)).run(chunk)}


def build(model: TransformerBridge, work: Work, given: GivenRows | None = None, share: Share | None = None) -> Run:
    """What runs a sweep's units in a process that has the work's data and the model alone."""
    task = unpack_task(work.settings["task"], work.data["task"])
    metrics = tuple(METRICS[name] for name in work.settings["sweep"]["metrics"])
    sweep = Sweep.from_json(work.settings["sweep"])
    return Blocks(model, task, sweep, metrics, work.data["places"], share, given).run
