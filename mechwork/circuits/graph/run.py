"""Run the model as a circuit: edges outside it carry the ablated value instead of the live one.

Every reader's input is the live residual stream plus, for each edge that is cut, (ablated write - live write) of its
source. The differences are kept for the writers that have already run, so any number of edges costs one forward pass
and one product per layer for all of its readers. Where few edges of a layer are kept, its readers are built the other
way round, as the wholly ablated stream less (ablated - live) of what is kept: the same sum, over fewer writers. Readers
whose edges are all kept are left untouched, so the full circuit is the model to the bit; readers of components that
write to nothing in the circuit are left alone too, since nobody sees the outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import InputError
from ...models.anatomy import block_norm, heads_share_scale, mlp_norm_name
from ...models.borrow import hooked
from ...models.pulse import beat
from ...sites import Site, hook_name
from .space import EdgeSpace
from .writers import expert_writes, head_writes, input_writes

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

AblatedWrites = Float[Tensor, "writer #batch #pos d_model"]
"""What cut edges carry, per writer; a length of 1 stands for every prompt or every position."""


@dataclass(frozen=True, eq=False)
class Resume:
    """A forward that begins at block `layer`: `difference` is (ablated - live) of the writers before it."""

    layer: int
    difference: Float[Tensor, "writer batch pos d_model"]


@contextmanager
def as_circuit(
    model: TransformerBridge,
    space: EdgeSpace,
    mask: Bool[Tensor, "*copy writer reader"] | Float[Tensor, "writer reader"],
    ablated: AblatedWrites,
    *,
    grad: bool = False,
    resume: Resume | None = None,
    cells: Bool[Tensor, "span batch pos"] | None = None,
) -> Iterator[None]:
    """Inside, forwards compute the circuit `mask`; `ablated` are the writes that cut edges carry.

    A `mask` of numbers keeps each edge by that share. A mask per copy runs several circuits at once, over prompts
    stacked copy after copy (and `ablated` likewise, or shared by having one prompt or being a task's, repeated). With
    `grad`, gradients flow to `mask` and `ablated`. `resume` is for forwards that begin at a later block. With `cells`,
    which partition the prompts' positions, a mask per cell says which edges are kept there.
    """
    soft = mask.is_floating_point()
    cut = space.mask.to(ablated) * (1 - mask.to(ablated)) if soft else (space.mask & ~mask).to(ablated)
    runner = _Runner(model, space, cut, ablated, grad=grad, resume=resume, cells=cells)
    with hooked(model, runner.hooks()):
        yield


@dataclass(frozen=True, eq=False)
class ReaderRows:
    """From which `rows` (None: all) a layer's readers are built: the edges that are `kept`, or those that are cut."""

    rows: Int[Tensor, " row"] | None
    kept: bool


GATHERED = 3
"""What a writer costs that is gathered from among others, in units of one that is read where it lies."""


class _Runner:
    """The live differences of one forward pass, and the hooks that fill and use them."""

    def __init__(
        self,
        model: TransformerBridge,
        space: EdgeSpace,
        cut: Float[Tensor, "*copy writer reader"],
        ablated: AblatedWrites,
        *,
        grad: bool,
        resume: Resume | None,
        cells: Bool[Tensor, "span batch pos"] | None,
    ) -> None:
        self.cells = cells
        self.model, self.space, self.cut, self.ablated, self.grad = model, space, cut, ablated, grad
        self.resume = resume
        self.blocks: list[Tensor] = []
        self.difference: Tensor | None = None
        columns = torch.arange(space.n_readers) if grad else _columns_to_compute(model, space, cut)
        self.columns = [
            columns[(columns >= i * space.readers_per_layer) & (columns < (i + 1) * space.readers_per_layer)]
            for i in range(space.n_layers)
        ]
        self.reads_logits = bool((columns == space.logits_reader).any())
        self.plans = [self._plan(layer) for layer in range(space.n_layers)]
        self.stream: Tensor = ablated[0]
        self.embed: Tensor | None = None
        self.read: Tensor = ablated[0]
        self.mlp_in: Tensor = ablated[0]
        self.whole: Tensor = ablated[0]
        self.projected: dict[str, Tensor] = {}

    def _plan(self, layer: int) -> ReaderRows:
        """Which writers a layer's readers are built from."""
        n_seen, columns = self.space.n_seen_by_attention(layer), self.columns[layer]
        everything = ReaderRows(None, kept=False)
        if self.grad or self.cut.ndim == 3 or not len(columns):
            return everything
        part = self.cut[:n_seen, columns].cpu()
        kept, cut = (rows.any(dim=1).nonzero().flatten() for rows in (part != 1, part != 0))
        rows = min(kept, cut, key=len)
        # Fewer rows are gathered first: read, written and read again.
        return ReaderRows(rows, kept=rows is kept) if GATHERED * len(rows) < n_seen else everything

    def hooks(self) -> list[tuple[str, Any]]:
        hooks: list[tuple[str, Any]] = [(hook_name(Site("embed")), self._embedded)] if self.space.split_input else []
        for layer in range(self.space.n_layers):
            hooks.append((hook_name(Site("resid_pre", layer)), self._enter(layer)))
            hooks += [(hook_name(Site(kind, layer)), self._attention_reader(layer, kind)) for kind in "qkv"]
            hooks.append((hook_name(Site("z", layer)), self._head_writers(layer)))
            if self.space.attn_only:
                continue
            if not self.space.parallel:
                hooks.append((hook_name(Site("resid_mid", layer)), self._middle))
            hooks.append((hook_name(Site("mlp_in", layer)), self._mlp_reader(layer)))
            hooks.append((hook_name(Site("mlp_out", layer)), self._mlp_writer(layer)))
        hooks.append((hook_name(Site("resid_post", self.space.n_layers - 1)), self._logits_reader))
        return hooks

    # ---- differences ---------------------------------------------------------------------------------------------

    def _write(self, rows: slice, live: Tensor) -> None:
        """Keep ablated - live of the writers `rows`; `live` is ``[writer, batch, pos, d_model]``."""
        ablated = self.ablated[rows]
        if ablated.shape[1] not in (1, live.shape[1]) or ablated.shape[2] not in (1, live.shape[2]):
            raise InputError(
                f"cut edges carry the writes of {ablated.shape[1]} prompts of {ablated.shape[2]} tokens; this forward "
                "has "
                f"{live.shape[1]} of {live.shape[2]}. For other prompts, and to generate, run the circuit with "
                "ablation='mean'."
            )
        if self.grad:
            self.blocks.append(ablated - live.to(ablated.device))
            return
        if rows.start == 0:
            self._start(live)
        assert self.difference is not None
        home = self.difference.device
        torch.sub(ablated.to(home), live.to(home), out=self.difference[rows])
        self.whole += self.difference[rows].sum(dim=0)

    def _start(self, like: Tensor) -> None:
        """Room for the differences; `whole` is their sum over the writers so far."""
        self.difference = like.new_empty(self.space.n_writers, *like.shape[1:])
        self.whole = like.new_zeros(like.shape[1:])

    def _change(
        self, rows: slice, columns: Int[Tensor, " wanted"], plan: ReaderRows
    ) -> Float[Tensor, "wanted batch pos d_model"]:
        """Sum over writers of cut x (ablated - live), for each of the readers `columns`."""
        if self.grad:
            starts = [0, *accumulate(len(block) for block in self.blocks)]
            seen = [block for row, block in zip(starts, self.blocks, strict=False) if rows.start <= row < rows.stop]
            total: Any = _CutSum.apply(self.cut[rows, columns], *seen)
            beat()
            return total.to(self.stream.device)
        assert self.difference is not None
        seen = self.difference[rows]
        return self._sum(seen, self.cut[..., rows, columns].to(seen), plan).to(self.stream.device)

    def _sum(
        self,
        seen: Float[Tensor, "writer batch pos d_model"],
        cut: Float[Tensor, "*copy writer wanted"],
        plan: ReaderRows,
    ) -> Float[Tensor, "wanted batch pos d_model"]:
        """Sum over writers of cut x their differences, where these lie."""
        n = cut.shape[-1]
        if self.cells is not None:
            found = seen.new_zeros(n, *seen.shape[1:])
            for here, part in zip(self.cells.to(seen.device), cut, strict=True):
                found += (part.T @ (seen * here[None, :, :, None]).flatten(1)).view_as(found)
            return found
        if cut.ndim == 3:
            copies = rearrange(seen, "writer (copy row) pos d_model -> copy writer (row pos d_model)", copy=len(cut))
            parts = torch.matmul(cut.mT, copies)
            return rearrange(parts, "copy wanted numbers -> wanted (copy numbers)").view(n, *seen.shape[1:])
        if plan.rows is None:
            return (cut.T @ seen.flatten(1)).view(n, *seen.shape[1:])
        index = plan.rows.to(seen.device)
        cut = 1 - cut[index] if plan.kept else cut[index]
        found = (cut.T @ seen[index].flatten(1)).view(n, *seen.shape[1:])
        return torch.sub(self.whole, found, out=found) if plan.kept else found

    # ---- hooks ---------------------------------------------------------------------------------------------------

    def _enter(self, layer: int) -> Any:
        def hook(stream: Tensor, hook: Any) -> None:
            self.stream = stream
            if self.resume is not None and layer == self.resume.layer:
                before = self.resume.difference
                self._start(stream.unsqueeze(0))
                assert self.difference is not None
                copies = self.difference[: len(before)].unflatten(1, (-1, before.shape[1]))
                for copy in copies.unbind(dim=1):
                    copy.copy_(before)
                    beat()
                self.whole += before.sum(dim=0).repeat(copies.shape[1], 1, 1)
            elif layer == 0:
                self.blocks = []
                self._write(slice(0, self.space.n_inputs), input_writes(self.space, stream, self.embed))
            if len(self.columns[layer]):
                self._read(layer)
            beat()

        return hook

    def _read(self, layer: int) -> None:
        """What every wanted reader of the layer sees of the writers before it; the heads' q, k and v follow from it at
        once.
        """
        columns, first = self.columns[layer], layer * self.space.readers_per_layer
        self.read = self._change(slice(0, self.space.n_seen_by_attention(layer)), columns, self.plans[layer])
        heads = columns - first
        heads = heads[columns < self.space.attention_readers(layer, "v").stop]
        if not len(heads):
            return
        attn, norm = self.model.blocks[layer].attn, block_norm(self.model, layer, "ln1")
        x = self.stream + self.read[: len(heads)] if self.grad else self.read[: len(heads)].add_(self.stream)
        weights = torch.cat([getattr(attn, f"W_{kind}").detach() for kind in "QKV"])
        weights = weights if len(heads) == len(weights) else weights[heads.to(weights.device)]
        x = (x if norm is None else norm(x)).to(weights)
        projected = torch.bmm(rearrange(x, "head batch pos d_model -> head (batch pos) d_model"), weights)
        projected = rearrange(projected, "head (batch pos) d_head -> batch pos head d_head", pos=x.shape[2])
        row = 0
        for kind in "qkv":
            n = len(self._heads(layer, kind))
            self.projected[kind] = projected[:, :, row : row + n]
            row += n

    def _heads(self, layer: int, kind: str) -> Int[Tensor, " head"]:
        """The wanted readers of a kind."""
        columns, span = self.columns[layer], self.space.attention_readers(layer, kind)
        return columns[(columns >= span.start) & (columns < span.stop)] - span.start

    def _embedded(self, embed: Tensor, hook: Any) -> None:
        self.embed = embed

    def _middle(self, stream: Tensor, hook: Any) -> None:
        self.stream = stream

    def _attention_reader(self, layer: int, kind: str) -> Any:
        bias, heads = getattr(self.model.blocks[layer].attn, f"b_{kind.upper()}"), self._heads(layer, kind)

        def hook(activation: Tensor, hook: Any) -> Tensor | None:
            if not len(heads):
                return None
            projected, here = self.projected[kind], heads.to(activation.device)
            projected = projected if bias is None else projected + bias.detach()[here]
            if len(heads) == activation.shape[2]:
                return projected
            return activation.index_copy(2, here, projected.to(activation.dtype))

        return hook

    def _head_writers(self, layer: int) -> Any:
        def hook(z: Tensor, hook: Any) -> None:
            self._write(self.space.head_writers(layer), head_writes(self.model, layer, z))

        return hook

    def _mlp_reader(self, layer: int) -> Any:
        norm = block_norm(self.model, layer, mlp_norm_name(self.model, layer))
        column = self.space.mlp_reader(layer)
        wanted = self.columns[layer][self.columns[layer] == column]

        def hook(activation: Tensor, hook: Any) -> Tensor | None:
            self.mlp_in = activation
            if not len(wanted):
                return None
            change = self.read[-1].to(self.stream.device)
            if not self.space.parallel:
                change = change + self._change(self.space.head_writers(layer), wanted, ReaderRows(None, kept=False))[0]
            x = self.stream + change
            self.mlp_in = (x if norm is None else norm(x)).to(activation)
            return self.mlp_in

        return hook

    def _mlp_writer(self, layer: int) -> Any:
        def hook(written: Tensor, hook: Any) -> None:
            parts = expert_writes(self.model, layer, self.mlp_in) if self.space.n_experts else written.unsqueeze(0)
            self._write(self.space.mlp_writers(layer), parts)

        return hook

    def _logits_reader(self, stream: Tensor, hook: Any) -> Tensor | None:
        self.stream = stream
        if not self.reads_logits:
            return None
        wanted = torch.tensor([self.space.logits_reader])
        change = self._change(slice(0, self.space.n_writers), wanted, ReaderRows(None, kept=False))[0]
        return (stream + change).to(stream.dtype)


class _CutSum(torch.autograd.Function):
    """Sum over writers of cut x their differences, for gradients, in place: a sum of new tensors leaves holes between
    those that are kept, which the allocator cannot fill again (18 GB where 1.5 are kept).
    """

    @staticmethod
    def forward(ctx: Any, cut: Tensor, *differences: Tensor) -> Tensor:
        ctx.save_for_backward(cut, *differences)
        total = differences[0].new_zeros(cut.shape[1], *differences[0].shape[1:])
        for rows, part in zip(cut.split([len(part) for part in differences]), differences, strict=True):
            total.flatten(1).addmm_(rows.T, part.flatten(1))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        cut, *differences = ctx.saved_tensors
        gradient = gradients[0].flatten(1)
        to_cut = torch.cat([part.flatten(1) @ gradient.T for part in differences])
        sizes = [len(part) for part in differences]
        parts = [(rows @ gradient).view_as(part) for rows, part in zip(cut.split(sizes), differences, strict=True)]
        return to_cut, *parts


def _columns_to_compute(
    model: TransformerBridge, space: EdgeSpace, cut: Float[Tensor, "*copy writer reader"]
) -> Int[Tensor, " wanted"]:
    """Readers that see a cut edge and whose component writes along some kept edge.

    Where the heads of a layer share a norm's scale, all of them count when one does.
    """
    copies = cut.cpu().reshape(-1, *cut.shape[-2:])
    speaks = (space.mask & (copies != 1)).any(dim=0).any(dim=1)
    for layer in range(space.n_layers):
        if heads_share_scale(model, layer):
            rows = space.head_writers(layer)
            speaks[rows] = bool(speaks[rows].any())
    heard = (space.feeds & speaks[:, None]).any(dim=0)
    heard[space.logits_reader] = True
    return ((copies != 0).any(dim=0).any(dim=0) & heard).nonzero().flatten()
