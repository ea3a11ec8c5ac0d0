"""Run the model as a circuit: edges outside it carry the ablated value instead of the live one.

Every reader's input is the live residual stream plus, for each edge that is cut, (ablated write - live write) of its
source. The differences are kept for the writers that have already run, so any number of edges costs one forward pass and
one product per layer. Readers whose edges are all kept are left untouched, so the full circuit is the model to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.anatomy import block_norm, mlp_norm_name
from ..shapes import EdgeMask
from ..sites import Site, hook_name
from .space import EdgeSpace
from .writers import head_writes

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def as_circuit(
    model: TransformerBridge, space: EdgeSpace, mask: EdgeMask, ablated: Float[Tensor, "batch writer pos d_model"]
) -> Iterator[None]:
    """Inside, forwards over `batch` prompts compute the circuit `mask`; `ablated` are the writes that cut edges carry."""
    runner = _Runner(model, space, (space.mask & ~mask).to(ablated), ablated)
    with model.hooks(fwd_hooks=runner.hooks()):
        yield


class _Runner:
    """The live differences of one forward pass, and the hooks that fill and use them."""

    def __init__(
        self,
        model: TransformerBridge,
        space: EdgeSpace,
        cut: Float[Tensor, "writer reader"],
        ablated: Float[Tensor, "batch writer pos d_model"],
    ) -> None:
        self.model, self.space, self.cut, self.ablated = model, space, cut, ablated
        self.difference = torch.zeros_like(ablated)
        self.stream: Tensor = ablated[:, 0]

    def hooks(self) -> list[tuple[str, Any]]:
        hooks: list[tuple[str, Any]] = []
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

    def _read(self, n_seen: int, columns: slice) -> Float[Tensor, "batch pos reader d_model"] | None:
        """The stream as the readers `columns` see it, or None when all their edges are kept."""
        cut = self.cut[:n_seen, columns]
        if not bool(cut.any()):
            return None
        return self.stream.unsqueeze(2) + torch.einsum("bwpd,wr->bprd", self.difference[:, :n_seen], cut)

    def _enter(self, layer: int) -> Any:
        def hook(stream: Tensor, hook: Any) -> None:
            self.stream = stream
            if layer == 0:
                self.difference[:, 0] = self.ablated[:, 0] - stream

        return hook

    def _middle(self, stream: Tensor, hook: Any) -> None:
        self.stream = stream

    def _attention_reader(self, layer: int, kind: str) -> Any:
        attn, norm = self.model.blocks[layer].attn, block_norm(self.model, layer, "ln1")
        weight, bias = getattr(attn, f"W_{kind.upper()}").detach(), getattr(attn, f"b_{kind.upper()}")

        def hook(activation: Tensor, hook: Any) -> Tensor | None:
            x = self._read(self.space.n_seen_by_attention(layer), self.space.attention_readers(layer, kind))
            if x is None:
                return None
            x = (x if norm is None else norm(x)).to(weight.dtype)
            projected = torch.einsum("bphd,hde->bphe", x, weight)
            return projected if bias is None else projected + bias.detach()

        return hook

    def _head_writers(self, layer: int) -> Any:
        def hook(z: Tensor, hook: Any) -> None:
            rows = self.space.head_writers(layer)
            self.difference[:, rows] = self.ablated[:, rows] - head_writes(self.model, layer, z)

        return hook

    def _mlp_reader(self, layer: int) -> Any:
        norm = block_norm(self.model, layer, mlp_norm_name(self.model, layer))
        column = self.space.mlp_reader(layer)

        def hook(activation: Tensor, hook: Any) -> Tensor | None:
            x = self._read(self.space.n_seen_by_mlp(layer), slice(column, column + 1))
            return None if x is None else (x if norm is None else norm(x)).squeeze(2).to(activation.dtype)

        return hook

    def _mlp_writer(self, layer: int) -> Any:
        def hook(written: Tensor, hook: Any) -> None:
            row = self.space.mlp_writer(layer)
            self.difference[:, row] = self.ablated[:, row] - written

        return hook

    def _logits_reader(self, stream: Tensor, hook: Any) -> Tensor | None:
        self.stream = stream
        x = self._read(self.space.n_writers, slice(self.space.logits_reader, self.space.n_readers))
        return None if x is None else x.squeeze(2)
