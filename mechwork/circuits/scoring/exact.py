"""Exact effects of edges as scores: one edge at a time takes the other run's value, everything else runs live.

The estimator behind the preset ``exact``: see `exact_edges` for the definition. Cost: half a forward per edge on
average, so 16,000 forwards per batch for GPT-2's 32,491 edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...runs.record import Baseline
from ...tasks.task import Task
from ..graph.space import EdgeSpace
from ..graph.writers import stream_kinds, write_differences, writer_kinds
from .exact_edges import EdgeSweep
from .methods import Method
from .points import Passes
from .rows import Rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOKENS_PER_PASS = 8192


@dataclass(eq=False)
class ExactEffects:
    """Measures every edge of the space, or those of `mask`."""

    model: TransformerBridge
    task: Task
    space: EdgeSpace
    method: Method
    n_positions: int = 0
    seed: int = 0
    mask: Tensor | None = None

    def __call__(self, task: Task) -> Rows:
        passes = Passes.of(self.model, task, self.method.rules, self.method.direction)
        kinds = dict.fromkeys([*writer_kinds(self.space), *stream_kinds(self.space), "resid_post"])
        host, donor = passes.plain(list(kinds)), passes.plain(writer_kinds(self.space), donor=True)
        differences = write_differences(self.model, self.space, donor, host)
        sweep = EdgeSweep(self.model, task, passes.pairs, self.space, host, differences)
        at_host = passes.measure(host)
        values = at_host.new_zeros(len(task), self.space.n_writers, self.space.n_readers)
        mask = self.space.mask if self.mask is None else self.space.mask & self.mask
        for column in range(self.space.n_readers):
            rows = mask[:, column].nonzero().flatten()
            for chunk in rows.split(max(1, TOKENS_PER_PASS // passes.pairs.clean_tokens.numel())):
                if not len(chunk):
                    continue
                parts = sweep.run(column, chunk.tolist())
                change = torch.stack([task.measure(part, passes.pairs) for part in parts]) - at_host
                values[:, chunk, column] = (change if self.method.direction == "denoise" else -change).T
        metrics = at_host.cpu(), passes.measure(donor, donor=True).cpu()
        return Rows(values, Baseline(*(metrics[::-1] if self.method.direction == "denoise" else metrics)))
