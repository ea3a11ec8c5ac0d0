"""Path patching as units: one per chunk of paths that leave their host at one layer, and one per block of pairs for the
metric of its two runs. Whoever runs a unit records its block, and keeps the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..execute.task import unpack_task
from ..execute.unit import Run, Tensors, Unit, Work
from ..models.anatomy import ModelAnatomy, block_norm
from ..runs.frame import take_columns
from ..runs.record import check_task
from ..sites import Site, hook_name
from ..tasks.task import Task
from .nodes import Reader, Writer, parse_reader, parse_writer
from .readout import MetricReadout, build_readout
from .sides import Sides, record_sides

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "paths.block"
KINDS = ("z", "mlp_out", "resid_pre")
"""What is recorded of both runs."""
SIDES = ("q", "k", "v")

Writers = list[list[Writer]]
Readers = list[tuple[Reader, ...]]


@dataclass(frozen=True)
class Path:
    """One patched run: `change` numbers the group of writers, `index` its place in the flattened result."""

    index: int
    change: int
    readers: tuple[Reader, ...]

    @property
    def first(self) -> int:
        """The first layer at which the run leaves its host."""
        return min(reader.layer for reader in self.readers)


def parse_groups(
    anatomy: ModelAnatomy, writers: Sequence[Sequence[str]], readers: Sequence[Sequence[str]]
) -> tuple[Writers, Readers]:
    """Groups of writers and of readers by name; raises `InputError` for nodes that the model does not have."""
    sources = [[parse_writer(anatomy, name) for name in group] for group in writers]
    return sources, [tuple(parse_reader(anatomy, name) for name in group) for group in readers]


def reached_paths(sources: Writers, targets: Readers, *, parallel: bool) -> list[Path]:
    """A path for every pair of groups between which there is one."""
    return [
        Path(index, index // len(targets), reached)
        for index in range(len(sources) * len(targets))
        if (reached := _reached(sources[index // len(targets)], targets[index % len(targets)], parallel=parallel))
    ]


def _reached(writers: list[Writer], readers: tuple[Reader, ...], *, parallel: bool) -> tuple[Reader, ...]:
    return tuple(r for r in readers if any(writer.precedes(r, parallel=parallel) for writer in writers))


@dataclass(eq=False)
class PathBlocks:
    """The blocks of pairs as they are needed; the last one is kept."""

    model: TransformerBridge
    task: Task
    sources: Writers
    targets: Readers
    paths: Sequence[Path]
    direction: str
    n_tail: int | None
    _last: tuple[slice, MetricReadout, Changes, Float[Tensor, "side batch"]] | None = field(default=None, init=False)

    def run(self, unit: Unit) -> Tensors:
        """The metric ``[batch, path]`` of a unit's paths; of the host and the donor for a unit without any."""
        rows, chosen = slice(*unit.rows), set(unit.says)
        with torch.no_grad():
            if self._last is None or self._last[0] != rows:
                self._last = None  # before the next is recorded: memory holds one block
                self._last = (rows, *self._record(rows))
            _, read, changes, ends = self._last
            if not chosen:
                return {"ends": ends}
            by_index = {path.index: path for path in self.paths if path.index in chosen}
            return {"metric": _run(changes.sides, [by_index[i] for i in unit.says], changes, read).cpu()}

    def _record(self, rows: slice) -> tuple[MetricReadout, Changes, Float[Tensor, "side batch"]]:
        anatomy = check_task(self.model, self.task)
        part = self.task[rows] if rows.stop - rows.start < len(self.task) else self.task
        sides = record_sides(self.model, part, KINDS, self.direction, stepping=True, n_tail=self.n_tail)
        read, donor = (
            build_readout(self.model, anatomy, part, [part.metric], pairs, run.logits, sparing=True)
            for pairs, run in ((sides.pairs, sides.host), (sides.pairs.corrupt_as_host(), sides.donor))
        )
        ends = torch.stack([read.measure(sides.host.logits)[0].cpu(), donor.measure(sides.donor.logits)[0].cpu()])
        return read, _changes(sides, self.sources, read), ends


def build(model: TransformerBridge, work: Work) -> Run:
    """What runs the units in a process that has the work's data and the model alone."""
    says, task = work.settings, unpack_task(work.settings["task"], work.data["task"])
    anatomy = check_task(model, task)
    sources, targets = parse_groups(anatomy, says["writers"], says["readers"])
    paths = reached_paths(sources, targets, parallel=anatomy.parallel)
    return PathBlocks(model, task, sources, targets, paths, says["direction"], says["n_tail"]).run


def chunks(paths: list[Path], step: int) -> Iterator[list[Path]]:
    """Paths that leave their host at one layer, together."""
    for _, group in groupby(sorted(paths, key=lambda path: path.first), key=lambda path: path.first):
        items = list(group)
        for first in range(0, len(items), step):
            yield items[first : first + step]


@dataclass(frozen=True, eq=False)
class Changes:
    """What each group of writers writes in the donor run less what it writes in the host run, writer by writer."""

    sides: Sides
    groups: list[list[tuple[Writer, Float[Tensor, "batch pos d_model"]]]]
    ends: Tensor | None

    def at(self, group: int, reader: Reader) -> Float[Tensor, "batch pos d_model"]:
        """Delta in the stream that `reader` reads."""
        parallel = self.sides.anatomy.parallel
        return torch.stack([d for w, d in self.groups[group] if w.precedes(reader, parallel=parallel)]).sum(dim=0)

    @property
    def start(self) -> int:
        """The first column at which anything changes (0 when nothing does), or which is read."""
        columns = [(delta != 0).any(dim=-1).any(dim=0) for group in self.groups for _, delta in group]
        touched = torch.stack(columns).any(dim=0).nonzero()
        first = int(touched[0]) if len(touched) else 0
        return first if self.ends is None else min(first, int(self.ends.min()))


def _changes(sides: Sides, groups: list[list[Writer]], read: MetricReadout) -> Changes:
    found = []
    for group in groups:
        members = []
        for writer in group:
            if writer.layer < 0:
                new, old = sides.value("resid_pre", 0), sides.own("resid_pre", 0)
            elif writer.head is None:
                new, old = sides.value("mlp_out", writer.layer), sides.own("mlp_out", writer.layer)
            else:
                new = _head_write(sides, writer.layer, writer.head, sides.value("z", writer.layer))
                old = _head_write(sides, writer.layer, writer.head, sides.own("z", writer.layer))
            members.append((writer, new - old))
        found.append(members)
    return Changes(sides, found, read.ends)


def _head_write(
    sides: Sides, layer: int, head: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch pos d_model"]:
    """What one head adds to the stream; with a norm after attention, its share at the scale of the whole sum."""
    attn: Any = sides.model.blocks[layer].attn
    write = z[:, :, head] @ attn.W_O[head]
    norm = block_norm(sides.model, layer, "ln1_post")
    if norm is None:
        return write
    return norm.linear(write, norm.scale(attn.o.original_component(z.flatten(2)))).to(write.dtype)


def _run(sides: Sides, chunk: list[Path], changes: Changes, read: MetricReadout) -> Float[Tensor, "batch path"]:
    """The metric of some paths that leave their host at one layer."""
    frame, n, start = sides.frame, len(chunk), changes.start
    assert frame is not None
    x = frame.resid_pre[chunk[0].first][:, start:].repeat(n, 1, 1)
    for layer in range(chunk[0].first, frame.n_layers):
        here = [(row, path, r) for row, path in enumerate(chunk) for r in path.readers if r.layer == layer]
        mid = x + frame.attend(layer, x, start, _set_heads(sides, layer, here, changes))
        mlp_out = frame.feed(layer, x if frame.anatomy.parallel else mid)
        for row, path, reader in here:
            if reader.kind == "mlp":
                seen = _mlp_reads(sides, layer) + changes.at(path.change, reader)
                mlp_out[_rows(row, read)] = frame.feed(layer, seen[:, start:])
        x = mid + mlp_out
    for row, path in enumerate(chunk):
        for reader in path.readers:
            if reader.kind == "logits":
                x[_rows(row, read)] += changes.at(path.change, reader)[:, start:]
    if read.ends is not None:
        x = take_columns(x, read.ends.to(x.device).repeat(n, 1) - start)
    return read.measure_stream(x, start)[0]


def _rows(row: int, read: MetricReadout) -> slice:
    return slice(row * len(read.pairs), (row + 1) * len(read.pairs))


def _mlp_reads(sides: Sides, layer: int) -> Float[Tensor, "batch pos d_model"]:
    """The host's stream at the MLP's branch."""
    assert sides.frame is not None
    pre = sides.frame.resid_pre[layer]
    return pre if sides.anatomy.parallel else pre + sides.host.layers["attn_out"][layer]


def _set_heads(
    sides: Sides, layer: int, here: list[tuple[int, Path, Reader]], changes: Changes
) -> list[tuple[str, Any]]:
    """Hooks that set queries, keys and values of the readers of `layer` to what they are at host input plus Delta."""
    frame, batch, start = sides.frame, len(sides.pairs), changes.start
    assert frame is not None
    attn: Any = sides.model.blocks[layer].attn
    inputs: dict[int, Tensor] = {}
    hooks = []
    for kind in SIDES:
        readers = [(row, path, reader) for row, path, reader in here if reader.kind == kind]
        if not readers:
            continue
        values = []
        for row, path, reader in readers:
            if path.change not in inputs:
                seen = frame.resid_pre[layer] + changes.at(path.change, reader)
                inputs[path.change] = frame.norm(layer, "ln1", seen[:, start:])
            flat = getattr(attn, kind).original_component(inputs[path.change])
            values.append((row, reader.head, flat.unflatten(-1, (-1, sides.anatomy.d_head))[:, :, reader.head]))

        def put(activation: Tensor, hook: Any, values: list[tuple[int, int, Tensor]] = values) -> Tensor:
            new = activation.clone()
            for row, head, value in values:
                new[row * batch : (row + 1) * batch, :, head] = value
            return new

        hooks.append((hook_name(Site(kind, layer)), put))
    return hooks
