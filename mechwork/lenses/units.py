"""Text as units: one per batch of rows, whose states at some places are recorded by whoever has the model.

Training is serial; what it trains on is not: the states of the next steps are recorded ahead by the workers. They are
large, so they are not kept in a ledger, and at most one batch more than there are workers is on its way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..execute import ModelRef, Unit, Work
from ..execute.drive import run_units
from ..execute.executors import current_execution
from ..execute.unit import Run, Tensors
from ..models.anatomy import device_of
from ..sites import Site
from .states import record_states
from .text import Row, forward_batches

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "text.states"
FORWARD_TOKENS = 4096
"""Cells of one forward pass."""

States = list[list[Tensor]]
"""Per forward batch: every site's states at the positions that count, ``[n, ...]``."""


def states_ahead(
    model: TransformerBridge, batches: Iterable[tuple[list[Row], int]], sites: Sequence[Site], *, skip: int = 0
) -> Iterator[tuple[list[Row], int, States]]:
    """Batches of rows with the cursor after each (see `TextStream.batches`), and their states, in order.

    `skip`: first positions of every row that do not count. Cost: 1 forward per row as far as the last site.
    """
    settings = {"sites": [[site.kind, site.layer, site.head] for site in sites], "skip": skip}
    work = Work(OPERATION, ModelRef.of(model), settings)
    taken: deque[tuple[list[Row], int]] = deque()

    def units() -> Iterator[Unit]:
        for rows, cursor in batches:
            taken.append((rows, cursor))
            yield work.unit(slice(0, len(rows)), rows)

    run, device = build(model, work), device_of(model)
    most = current_execution().executor.n_workers + 1
    for _, found in run_units(work, units(), run, keep=False, most=most):
        n = len(found) // len(sites)
        states = [[found[f"{b}.{p}"].to(device) for p in range(len(sites))] for b in range(n)]
        yield *taken.popleft(), states


def rows_states(model: TransformerBridge, rows: Sequence[Row], sites: Sequence[Site], skip: int = 0) -> States:
    """The states of some rows, recorded here."""
    found = []
    for batch in forward_batches([row for row in rows if len(row) > skip], FORWARD_TOKENS):
        mask = batch.mask.clone()
        mask[:, :skip] = False
        states = record_states(model, batch.tokens, sites)
        heads = [x if site.head is None else x[:, :, site.head] for x, site in zip(states, sites, strict=True)]
        found.append([x[mask.to(x.device)] for x in heads])
    return found


def build(model: TransformerBridge, work: Work) -> Run:
    """What records the states in a process that has the model alone."""
    sites, skip = [Site(*site) for site in work.settings["sites"]], work.settings["skip"]

    def run(unit: Unit) -> Tensors:
        states = rows_states(model, unit.says, sites, skip)
        return {f"{b}.{p}": x for b, batch in enumerate(states) for p, x in enumerate(batch)}

    return run
