"""Information flow routes: how much of what a reader sees a write makes up, on the clean run alone.

    s(u -> v) = mean over positions of  max(0, |x_v|_1 - |x_v - write_u|_1) / sum over u' of the same,   x_v = the
    stream at v

Ferrando & Voita 2024, eq. 3, for component edges at equal positions (as in the EAP-IG package; their edges between
positions through attention are `score_attention_edges`' subject). Unsigned, blind to the metric and to the corrupt run;
all readers of one stream get the same score. Cost: 2 forwards (the corrupt one only for the baseline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...runs.record import Baseline
from ...sites import Site
from ...tasks.task import Task
from ..graph.space import EdgeSpace
from ..graph.writers import record_writers, stream_kinds, writer_kinds
from .methods import Method
from .points import Passes
from .rows import Rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(eq=False)
class InformationFlow:
    """Proximity of writes to the streams they are part of."""

    model: TransformerBridge
    task: Task
    space: EdgeSpace
    method: Method
    n_positions: int = 0
    seed: int = 0

    def __call__(self, task: Task) -> Rows:
        space = self.space
        passes = Passes.of(self.model, task, self.method.rules, "noise")
        kinds = dict.fromkeys([*writer_kinds(space), *stream_kinds(space), Site("resid_post", space.n_layers - 1)])
        run = passes.plain(list(kinds))
        writes, mask = record_writers(self.model, space, run), passes.pairs.mask
        values = writes.new_zeros(len(task), space.n_writers, space.n_readers)

        def share(stream: Tensor, n_seen: int) -> Tensor:
            """Shares ``[batch, writer, 1]``."""
            whole = stream.abs().sum(dim=-1)
            near = torch.stack([(whole - (stream - write).abs().sum(dim=-1)).clamp(min=0) for write in writes[:n_seen]])
            near = near / near.sum(dim=0, keepdim=True).clamp(min=torch.finfo(near.dtype).tiny)
            return ((near * mask).sum(dim=-1) / mask.sum(dim=-1)).T.unsqueeze(2)

        for layer in range(space.n_layers):
            stream, n_seen = run.layers["resid_pre"][layer], space.n_seen_by_attention(layer)
            first = space.attention_readers(layer, "q").start
            last = space.attention_readers(layer, "v").stop
            values[:, :n_seen, first:last] = share(stream, n_seen)
            if space.attn_only:
                continue
            n_seen, column = space.n_seen_by_mlp(layer), space.mlp_reader(layer)
            middle = stream if space.parallel else run.layers["resid_mid"][layer]
            values[:, :n_seen, column : column + 1] = share(middle, n_seen)
        logits = slice(space.logits_reader, space.n_readers)
        values[:, :, logits] = share(run.layers["resid_post"][-1], space.n_writers)
        clean, corrupt = passes.measure(run), passes.measure(passes.plain((), donor=True), donor=True)
        return Rows(values, Baseline(clean.cpu(), corrupt.cpu()))
