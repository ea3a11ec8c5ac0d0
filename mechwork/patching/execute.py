"""Run a sweep's chunks: a block of pairs is recorded, its cells are cut into chunks, and each chunk can be run by
itself.

Two ways to run a chunk:

- *stepping* (`Tricks.suffix`): all cells of the chunk change nothing before column `start`. Beginning with the lowest
  block that one of them enters, one block after the other runs on the columns ``start ..`` of all patched runs that
  have entered so far; then the metrics are read. Floating-point work per cell at layer l of L and position p of T: (L -
  l) / L x (T - p) / T of the blocks, and of the last block's MLP only the column that is read.
- *restarting*: whole forwards of the model from the patched block on, with a hook. The same operations on the same
  numbers as a forward from layer 0, so the metrics are those bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UnsupportedModelError
from ..interventions import Where, Write, intervene
from ..models.anatomy import ModelAnatomy, device_of
from ..models.borrow import hooked
from ..names import EXPERT_OUT
from ..runs.frame import take_columns
from ..runs.restart import restart_at
from ..runs.room import RECORDED_AS, Sizes, d_mlp_of, sizes_of
from ..sites import SITE_KINDS, Site, hook_name
from ..tasks.metrics import Metric
from ..tasks.task import Task
from .changes import effective_mask, entrance, entries_of, expert_change, square_entries, stream_rows
from .memory import tail_of
from .readout import MetricReadout, build_readout
from .sides import SQUARE, Given, Share, Sides, record_sides
from .sweep import LEAST_TOKENS, SHARES, Cell, Sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Chunk:
    """Cells run together on one block of pairs: before column `start` they change nothing, and nothing is read."""

    start: int
    cells: tuple[Cell, ...]

    def to_json(self) -> list[Any]:
        """The column, and the cells as (grid, index)."""
        return [self.start, [[cell.grid, cell.index] for cell in self.cells]]


@dataclass(frozen=True, eq=False)
class Done:
    """Metrics of some cells on one block of pairs."""

    rows: slice
    cells: tuple[Cell, ...]
    values: Float[Tensor, "metric batch cell"]


@dataclass(frozen=True, eq=False)
class Baselines:
    """Every metric of the unpatched runs of one block of pairs."""

    rows: slice
    host: Float[Tensor, "metric batch"]
    donor: Float[Tensor, "metric batch"]


GivenRows = Callable[[slice], Given]
"""For the rows of a task, what is put in instead of a donor's activations."""


def can_step(model: TransformerBridge, task: Task, direction: str = "noise") -> bool:
    """Whether the model can be stepped through and its logits read off, tried on the first pair. Cost: 2 forwards of
    it.
    """
    try:
        sides = record_sides(model, task[:1], [], direction, stepping=True, n_tail=None)
        read = build_readout(model, sides.anatomy, task, [], sides.pairs, sides.host.logits, sparing=False)
        assert sides.frame is not None
        with torch.no_grad():
            read.check(sides.frame.resid_pre[-1])
    except UnsupportedModelError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class Block:
    """One block of pairs, recorded: its baselines, the cells that provably change nothing, and the chunks of all
    others.
    """

    sweep: Sweep
    base: Baselines
    same: tuple[Cell, ...]
    chunks: tuple[Chunk, ...]
    sides: Sides
    masks: Mapping[str, Bool[Tensor, "place batch pos"]]
    read: MetricReadout

    @property
    def unchanged(self) -> Done:
        """The metrics of the cells that change nothing."""
        same = self.base.host[:, :, None].expand(-1, -1, len(self.same))
        return Done(self.base.rows, self.same, same)

    def run(self, chunk: Chunk) -> Float[Tensor, "metric batch cell"]:
        """The chunk's metrics."""
        run = _step_through if self.sweep.tricks.suffix else _restart
        with torch.no_grad():
            return run(self.sides, self.sweep, chunk, self.masks, self.read)


@torch.no_grad()
def record_block(
    model: TransformerBridge,
    task: Task,
    sweep: Sweep,
    metrics: tuple[Metric, ...],
    places: Mapping[str, Bool[Tensor, "place batch pos"]],
    rows: slice,
    share: Share | None = None,
    given: GivenRows | None = None,
) -> Block:
    """The block of the task's pairs `rows`. Cost: 2 forwards.

    `places[positions]` are the position masks of the host's prompts; `share` is what of the donor is put in, `given`
    (told the rows) what is put in instead.
    """
    task = task if rows == slice(0, len(task)) else task[list(range(len(task)))[rows]]
    n_tail = tail_of(task.pairs, metrics, sparing=sweep.tricks.readout)
    stepping = sweep.tricks.suffix
    sides = record_sides(model, task, sweep.kinds, sweep.direction, stepping=stepping, n_tail=n_tail)
    sides = replace(sides, share=share, given=None if given is None else given(rows))
    read = build_readout(
        model, sides.anatomy, task, metrics, sides.pairs, sides.host.logits, sparing=sweep.tricks.readout
    )
    if stepping:
        assert sides.frame is not None
        read.check(sides.frame.resid_pre[-1])
    donor = replace(read, pairs=sides.pairs.corrupt_as_host(), host_logits=sides.donor.logits)
    base = Baselines(rows, read.measure(sides.host.logits), donor.measure(sides.donor.logits))
    width = sides.pairs.clean_tokens.shape[1]
    masks = {name: mask[:, rows, :width].to(device_of(model)) for name, mask in places.items()}
    item = sides.host.logits.element_size()
    sizes = sizes_of(sides.anatomy, d_mlp_of(model), sides.pairs, n_tail, item)
    changing, same = _sort(sweep, sides, masks, read)
    return Block(sweep, base, tuple(same), tuple(_chunks(sweep, sides, changing, read, sizes)), sides, masks, read)


def _sort(
    sweep: Sweep, sides: Sides, masks: Mapping[str, Tensor], read: MetricReadout
) -> tuple[list[tuple[int, Cell]], list[Cell]]:
    """The cells that change something, each with the column from which it runs (the first one that it changes or that
    is read), and those that provably change nothing.
    """
    changing, same = [], []
    ends = None if read.ends is None else read.ends.to(device_of(sides.model))
    latest = read.pairs.clean_tokens.shape[1] if ends is None else int(ends.min())
    for (number, layer), cells in groupby(sweep.cells, key=lambda cell: (cell.grid, cell.layer)):
        grid, last = sweep.grids[number], layer == sides.anatomy.n_layers - 1
        changed = sides.changed(grid.kind, layer) if sweep.tricks.unchanged else None
        for cell in cells:
            mask = masks[grid.positions][cell.place]
            if changed is not None:
                mask = effective_mask(grid.kind, cell, mask, changed, ends, last=last)
            columns = mask.any(dim=0).nonzero()
            if len(columns):
                changing.append((min(int(columns[0]), latest) if sweep.tricks.suffix else 0, cell))
            elif sweep.tricks.unchanged:
                same.append(cell)
            else:
                changing.append((0, cell))
    return changing, same


def _chunks(
    sweep: Sweep, sides: Sides, changing: list[tuple[int, Cell]], read: MetricReadout, sizes: Sizes
) -> Iterator[Chunk]:
    """Cells with the same first column, lowest entrance first; restarted ones of one kind and layer only."""
    n_layers, least = sides.anatomy.n_layers, LEAST_TOKENS.get(device_of(sides.model).type, LEAST_TOKENS["cuda"])

    def order(item: tuple[int, Cell]) -> tuple[int, ...]:
        start, cell = item
        if not sweep.tricks.suffix:
            return (start, cell.grid, cell.layer)
        return (start, entrance(sweep.grids[cell.grid].kind, cell.layer), cell.grid, cell.layer)

    def work(item: tuple[int, Cell]) -> int:
        """Blocks times columns that a stepped cell runs."""
        start, cell = item
        return (n_layers + 1 - entrance(sweep.grids[cell.grid].kind, cell.layer)) * (columns - start)

    ordered = sorted(changing, key=order)
    columns = read.pairs.clean_tokens.shape[1]
    most = sum(map(work, ordered)) / SHARES
    together = (lambda item: item[0]) if sweep.tricks.suffix else order
    for _, group in groupby(ordered, key=together):
        items = list(group)
        start = items[0][0]
        logits = 0 if read.narrow else columns if read.ends is None else read.ends.shape[1]
        per_cell = len(read.pairs) * sizes.run(columns - start, logits)
        step = max(1, sweep.chunk_bytes // per_cell)
        fewest = -(-least // (len(read.pairs) * (columns - start)))
        while items:
            taken = accumulate(map(work, items[:step]))
            n = step if not sweep.tricks.suffix else max(fewest, sum(done <= most for done in taken))
            yield Chunk(start, tuple(cell for _, cell in items[: min(n, step)]))
            items = items[min(n, step) :]


def _step_through(
    sides: Sides, sweep: Sweep, chunk: Chunk, masks: Mapping[str, Tensor], read: MetricReadout
) -> Float[Tensor, "metric batch cell"]:
    """The chunk's metrics by stepping; its cells are sorted by entrance."""
    frame = sides.frame
    assert frame is not None
    ends = None if read.ends is None else read.ends.to(device_of(sides.model))
    groups = {
        (entrance(sweep.grids[number].kind, layer), number, layer): list(cells)
        for (number, layer), cells in groupby(chunk.cells, key=lambda cell: (cell.grid, cell.layer))
    }
    stream: Tensor | None = None
    for at in range(min(level for level, _, _ in groups), frame.n_layers + 1):
        entering = [] if stream is None else [_advance(frame, at - 1, stream, chunk.start, ends)]
        for (level, number, layer), cells in groups.items():
            if level != at:
                continue
            grid = sweep.grids[number]
            where = torch.stack([masks[grid.positions][cell.place] for cell in cells])
            rows = stream_rows(sides, grid.kind, layer, cells, where, chunk.start, ends)
            if at == frame.n_layers and ends is not None:
                rows = take_columns(rows, ends.repeat(len(cells), 1) - chunk.start)
            entering.append(rows)
        home = entering[-1].device  # rows that leave their host here lie where the block they enter does
        stream = torch.cat([rows.to(home) for rows in entering]) if len(entering) > 1 else entering[0]
    assert stream is not None
    return read.measure_stream(stream, chunk.start)


def _advance(frame: Any, layer: int, stream: Tensor, start: int, ends: Tensor | None) -> Tensor:
    if ends is None or layer < frame.n_layers - 1:
        return frame.step(layer, stream, start)
    return frame.step(layer, stream, start, ends.repeat(len(stream) // len(ends), 1) - start)


def _restart(
    sides: Sides, sweep: Sweep, chunk: Chunk, masks: Mapping[str, Tensor], read: MetricReadout
) -> Float[Tensor, "metric batch cell"]:
    """The chunk's metrics by whole forwards from the patched block on; its cells share kind and layer."""
    first, n, pairs = chunk.cells[0], len(chunk.cells), sides.pairs
    grid, layer, model = sweep.grids[first.grid], first.layer, sides.model
    kind = "mlp_out" if grid.kind == EXPERT_OUT else RECORDED_AS.get(grid.kind, grid.kind)
    where = torch.stack([masks[grid.positions][cell.place] for cell in chunk.cells])
    if grid.kind == EXPERT_OUT:
        value = (sides.own(kind, layer) + expert_change(sides, layer, chunk.cells, where)).flatten(0, 1)
    else:
        value = sides.value(kind, layer)
        value = value.repeat(n, *[1] * (value.ndim - 1))
    put = Where(_activation_mask(kind, chunk.cells, where, value), value)
    site = Site(kind, layer) if SITE_KINDS[kind].per_layer else Site(kind)
    tokens = pairs.clean_tokens.repeat(n, 1)
    with ExitStack() as stack:
        if SITE_KINDS[kind].per_layer:
            stack.enter_context(restart_at(model, layer, sides.host.layers["resid_pre"][layer].repeat(n, 1, 1)))
        stack.enter_context(intervene(model, [Write(site, put)]))
        if read.narrow:
            final = _final_stream(model, sides.anatomy, tokens)
            assert read.ends is not None
            ends = read.ends.to(final.device).repeat(n, 1)
            return read.measure_stream(take_columns(final, ends), 0)
        logits = model(tokens) if read.ends is None else model(tokens, logits_to_keep=read.pairs.n_tail)
    return torch.stack([read.measure(one) for one in logits.split(len(pairs))], dim=-1)


def _activation_mask(kind: str, cells: tuple[Cell, ...], where: Tensor, value: Tensor) -> Tensor:
    """Which entries of an activation (rows cells x pairs) the cells patch."""
    if kind in SQUARE:
        return square_entries(cells, where, value.shape[1])
    if SITE_KINDS[kind].per_head:
        return entries_of(cells, where, value.shape[2]).flatten(0, 1)[..., None]
    if kind == "mlp_post":
        return entries_of(cells, where, value.shape[2]).flatten(0, 1)
    return where.flatten(0, 1)[..., None]


def _final_stream(
    model: TransformerBridge, anatomy: ModelAnatomy, tokens: Tensor
) -> Float[Tensor, "batch pos d_model"]:
    """The final residual stream of a forward that stops there, unembedding nothing."""
    from transformer_lens.model_bridge.exceptions import StopAtLayerException

    def stop(activation: Tensor, hook: Any) -> None:
        raise StopAtLayerException(activation)

    with hooked(model, [(hook_name(Site("resid_post", anatomy.n_layers - 1)), stop)]):
        return model(tokens)
