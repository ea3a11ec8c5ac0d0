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

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..execute import MemoryBudget, ModelRef, Progress, Unit, Work
from ..execute.drive import run_units
from ..execute.memory import cut
from ..execute.task import pack_task, why_not_sent
from ..models.anatomy import device_of, dtype_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..runs.record import Baseline, check_task
from ..runs.room import d_mlp_of, sizes_of
from ..tasks.task import Task
from .memory import fit, tail_of
from .nodes import Group, as_groups
from .path_units import KINDS, OPERATION, PathBlocks, chunks, parse_groups, reached_paths
from .result import Effect, Effects, check_direction
from .sides import host_pairs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


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
    sources, targets = parse_groups(anatomy, senders, receivers)
    n_tail = tail_of(task.pairs, [task.metric], sparing=True)
    sizes = sizes_of(anatomy, d_mlp_of(model), host_pairs(task.pairs, checked), n_tail, dtype_of(model).itemsize)
    logits = 0 if task.metric.reads_answers else sizes.n_tail
    block, chunk_bytes = fit(sizes, KINDS, len(task), memory_budget, logits, device_of(model).type)
    block = task.pairs.whole(block)
    paths = reached_paths(sources, targets, parallel=anatomy.parallel)
    facts, tensors = pack_task(task)
    settings = {
        "task": facts, "writers": senders, "readers": receivers, "direction": checked, "n_tail": n_tail,
    }  # fmt: skip
    work = Work(OPERATION, ModelRef.of(model), settings, {"task": tensors}, why_not_sent([task.metric]))
    units, done = list[Unit](), 0
    for rows in cut(len(task), block):
        step = max(1, chunk_bytes // ((rows.stop - rows.start) * sizes.run(sizes.n_pos, logits)))
        parts = [[path.index for path in chunk] for chunk in chunks(paths, step)]
        units += [work.unit(rows, part) for part in ([], *parts)]
    ends, metrics = list[Tensor](), list[Tensor]()
    run = PathBlocks(model, task, sources, targets, paths, checked, n_tail).run
    for unit, values in run_units(work, units, run):
        if not unit.says:
            ends.append(values["ends"])
            metrics.append(ends[-1][0, :, None].repeat(1, len(sources) * len(targets)))
            continue
        metrics[-1][:, unit.says] = values["metric"]
        done += len(unit.says)
        if progress is not None:
            progress(done // -(-len(task) // block), len(paths), "patching paths")
    host, given = (task.pairs.per_question(side) for side in torch.cat(ends, dim=1))
    values = torch.cat([metric - host[0, :, None] for metric, host in zip(metrics, ends, strict=True)])
    change = task.pairs.per_question(values).reshape(-1, len(sources), len(targets))
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


def _labels(groups: tuple[Group, ...]) -> tuple[str, ...]:
    return tuple(" + ".join(group) for group in groups)
