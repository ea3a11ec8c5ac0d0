"""Path patching: the effect of a writer on the metric through chosen readers alone, by the direct path.

    1. freeze the host run;  Delta = what the writers write in the donor run - what they write in the host run
    2. each reader r reads its host input plus Delta (and nothing else new):  q, k, v = W norm(x_host + Delta),
       mlp = MLP(norm(mid_host + Delta)),  logits: the final stream itself + Delta
    3. the host runs again with those readers' values set; everything after them reacts

(Wang et al. 2022, appendix B; Goldowsky-Dill et al. 2023). With several readers each is set to the value from step 2,
so no reader hears of another's change through a longer path. Norms are computed afresh at the changed input. In models
with a norm after attention a head's write is its share of the normed sum, ``gain * z_h W_O / scale``, each run with its
own scale, so that the writes of a run add up. Sign as everywhere: positive = the clean value raises the metric.
Cost: 2 forwards, and per pair of writer and reader the blocks from the reader on; readers before a writer cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..execute import MemoryBudget, Progress
from ..models.anatomy import block_norm, device_of, dtype_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..runs.frame import take_columns
from ..runs.record import Baseline, check_task
from ..sites import Site, hook_name
from ..tasks.task import Task
from .memory import d_mlp_of, fit, sizes_of, tail_of
from .nodes import Group, Reader, Writer, as_groups, parse_reader, parse_writer
from .readout import MetricReadout, build_readout
from .result import Effect, Effects, check_direction
from .sides import Sides, host_pairs, record_sides

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("q", "k", "v")


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


@borrows
def patch_paths(
    model: TransformerBridge,
    task: Task,
    writers: Sequence[str | Sequence[str]],
    readers: Sequence[str | Sequence[str]],
    *,
    direction: str = "denoise",
    memory_budget: MemoryBudget | None = None,
    progress: Progress | None = None,
) -> Effects:
    """The effect of every writer (or group) through every reader (or group) alone, at all positions.

    Nodes are named as in circuits: writers ``"input"``, ``"a5.h1"``, ``"m3"``; readers ``"a7.h9<q>"`` (``<k>`` and
    ``<v>`` count key/value heads), ``"m8"``, ``"logits"``. A group is a list of names patched together.

    Returns effects of kind ``"path"`` with the axes writer and reader, per pair and averaged; 0 where no direct path
    exists.

    Raises `InputError` for unknown nodes, pairs of different length, or a budget too small for one path, before any
    forward; `UnsupportedModelError` for a model whose blocks cannot be run one by one.

    >>> paths = patch_paths(model, task, ["a2.h1", ("a0.h0", "a0.h3")], ["a4.h2<q>", "m5", "logits"])
    >>> paths["path"].values.shape
    torch.Size([2, 3])
    """
    checked = check_direction(direction)
    anatomy = check_task(model, task)
    senders, receivers = as_groups(writers, "writers"), as_groups(readers, "readers")
    sources = [[parse_writer(anatomy, name) for name in group] for group in senders]
    targets = [tuple(parse_reader(anatomy, name) for name in group) for group in receivers]
    kinds = ["z", "mlp_out", "resid_pre"]
    n_tail = tail_of(task.pairs, [task.metric], sparing=True)
    sizes = sizes_of(anatomy, d_mlp_of(model), host_pairs(task.pairs, checked), n_tail, dtype_of(model).itemsize)
    logits = 0 if task.metric.reads_answers else sizes.n_tail
    block, chunk_bytes = fit(sizes, kinds, len(task), memory_budget, logits, device_of(model).type)
    block = task.pairs.whole(block)
    values, base = [], []
    with torch.no_grad():
        for first in range(0, len(task), block):
            part = task[first : first + block] if block < len(task) else task
            sides = record_sides(model, part, kinds, checked, stepping=True, n_tail=n_tail)
            read = build_readout(model, anatomy, part, [task.metric], sides.pairs, sides.host.logits, sparing=True)
            donor = build_readout(
                model, anatomy, part, [task.metric], sides.pairs.corrupt_as_host(), sides.donor.logits, sparing=True
            )
            host_metric, donor_metric = read.measure(sides.host.logits)[0], donor.measure(sides.donor.logits)[0]
            changes = _changes(sides, sources, read)
            paths = [
                Path(index, index // len(targets), reached)
                for index in range(len(sources) * len(targets))
                if (
                    reached := _reached(
                        sources[index // len(targets)], targets[index % len(targets)], parallel=anatomy.parallel
                    )
                )
            ]
            metric = host_metric[:, None].repeat(1, len(sources) * len(targets))
            step = max(1, chunk_bytes // (len(part) * sizes.run(sizes.n_pos, logits)))
            for done, chunk in _chunks(paths, step):
                metric[:, [path.index for path in chunk]] = _run(sides, chunk, changes, read)
                if progress is not None:
                    progress(done, len(paths), "patching paths")
            values.append((metric - host_metric[:, None]).cpu())
            base.append((host_metric.cpu(), donor_metric.cpu()))
    host, given = (task.pairs.per_question(torch.cat(side)) for side in zip(*base, strict=True))
    change = task.pairs.per_question(torch.cat(values)).reshape(-1, len(sources), len(targets))
    effect = Effect(
        kind="path",
        per_example=change if checked == "denoise" else -change,
        axes=("writer", "reader"),
        labels={"writer": _labels(senders), "reader": _labels(receivers)},
        baseline=Baseline(given, host) if checked == "denoise" else Baseline(host, given),
        direction=checked,
        estimated=False,
        metric_name=task.metric.name,
        provenance=build_provenance(
            method="path patching", direction=checked, model=identify_model(model), task=task.provenance()
        ),
    )
    return Effects({"path": effect})


def _reached(writers: list[Writer], readers: tuple[Reader, ...], *, parallel: bool) -> tuple[Reader, ...]:
    return tuple(r for r in readers if any(writer.precedes(r, parallel=parallel) for writer in writers))


def _labels(groups: tuple[Group, ...]) -> tuple[str, ...]:
    return tuple(" + ".join(group) for group in groups)


def _chunks(paths: list[Path], step: int) -> Iterator[tuple[int, list[Path]]]:
    """Paths that leave their host at one layer, together; with how many are done after each chunk."""
    done = 0
    for _, group in groupby(sorted(paths, key=lambda path: path.first), key=lambda path: path.first):
        items = list(group)
        for first in range(0, len(items), step):
            chunk = items[first : first + step]
            done += len(chunk)
            yield done, chunk


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
    for kind in KINDS:
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
