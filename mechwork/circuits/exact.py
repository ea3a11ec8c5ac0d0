"""Exact effects of edges: one edge at a time takes the other run's value, everything else runs live.

    denoise: s(u -> v) = m(corrupt run, v sees u's clean write) - m(corrupt);   noise: m(clean) - m(clean run, v sees u's corrupt write)

Path patching of single edges (Wang et al. 2022; Goldowsky-Dill et al. 2023). Many edges are stacked in one pass, which begins
at the reader's layer. Cost: half a forward per edge on average, so 16,000 forwards per batch for GPT-2's 32,491 edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.anatomy import block_norm
from ..runs.record import Baseline, Run, run_to_metric
from ..runs.restart import restart_at
from ..sites import Site, hook_name
from ..tasks.task import Task
from .methods import Method
from .points import Passes
from .rows import Rows
from .space import EdgeSpace
from .writers import WRITER_KINDS, Writes, write_differences

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
        kinds = [*WRITER_KINDS, *(() if self.space.parallel else ("resid_mid",)), "resid_post"]
        host, donor = passes.plain(list(dict.fromkeys(kinds))), passes.plain(WRITER_KINDS, donor=True)
        differences = write_differences(self.model, self.space, donor, host)
        at_host = passes.measure(host)
        values = at_host.new_zeros(len(task), self.space.n_writers, self.space.n_readers)
        mask = self.space.mask if self.mask is None else self.space.mask & self.mask
        for column in range(self.space.n_readers):
            rows = mask[:, column].nonzero().flatten()
            for chunk in rows.split(max(1, TOKENS_PER_PASS // passes.pairs.clean_tokens.numel())):
                metric = self._measure(passes, host, differences, chunk, column)
                change = metric - at_host[None, :]
                values[:, chunk, column] = (change if self.method.direction == "denoise" else -change).T
        metrics = at_host.cpu(), passes.measure(donor, donor=True).cpu()
        return Rows(values, Baseline(*(metrics[::-1] if self.method.direction == "denoise" else metrics)))

    def _measure(self, passes: Passes, host: Run, differences: Writes, rows: Tensor, column: int) -> Tensor:
        """The metric ``[writer, batch]`` of runs in which the reader `column` sees the donor's write of one writer each."""
        layer, kind, index = _place(self.space, column)
        n = len(rows)

        def seen(stream: Tensor) -> Tensor:
            return (stream.unflatten(0, (n, -1)) + differences[rows].to(stream)).flatten(0, 1)

        hooks = list(_reader_hooks(self.model, self.space, layer, kind, index, seen))
        stream = host.layers["resid_pre"][layer].repeat(n, 1, 1)
        tokens = passes.pairs.clean_tokens.repeat(n, 1)
        with restart_at(self.model, layer, stream), self.model.hooks(fwd_hooks=hooks):
            logits = run_to_metric(self.model, passes.task, passes.pairs, tokens)
        return torch.stack([passes.task.measure(part, passes.pairs) for part in logits.split(len(passes.pairs))])


def _place(space: EdgeSpace, column: int) -> tuple[int, str, int]:
    """Layer, kind (q, k, v, mlp, logits) and head of a reader."""
    if column == space.logits_reader:
        return space.n_layers - 1, "logits", 0
    layer = column // space.readers_per_layer
    for kind in "qkv":
        columns = space.attention_readers(layer, kind)
        if columns.start <= column < columns.stop:
            return layer, kind, column - columns.start
    return layer, "mlp", 0


def _reader_hooks(
    model: TransformerBridge, space: EdgeSpace, layer: int, kind: str, head: int, seen: Any
) -> Iterator[tuple[str, Any]]:
    """Hooks after which one reader sees `seen(stream)`."""
    stream: list[Tensor] = []

    def keep(activation: Tensor, hook: Any) -> None:
        stream[:] = [activation]

    def put_stream(activation: Tensor, hook: Any) -> Tensor:
        return seen(activation)

    if kind == "logits":
        yield hook_name(Site("resid_post", layer)), put_stream
        return
    if kind == "mlp":
        norm = block_norm(model, layer, "ln2")
        yield hook_name(Site("resid_pre" if space.parallel else "resid_mid", layer)), keep

        def put_mlp(activation: Tensor, hook: Any) -> Tensor:
            x = seen(stream[0])
            return (x if norm is None else norm(x)).to(activation.dtype)

        yield hook_name(Site("mlp_in", layer)), put_mlp
        return
    attn, norm = model.blocks[layer].attn, block_norm(model, layer, "ln1")
    weight, bias = getattr(attn, f"W_{kind.upper()}")[head].detach(), getattr(attn, f"b_{kind.upper()}")
    yield hook_name(Site("resid_pre", layer)), keep

    def put_head(activation: Tensor, hook: Any) -> Tensor:
        x = seen(stream[0])
        x = (x if norm is None else norm(x)).to(weight.dtype) @ weight
        new = activation.clone()
        new[:, :, head] = x if bias is None else x + bias[head].detach()
        return new

    yield hook_name(Site(kind, layer)), put_head
