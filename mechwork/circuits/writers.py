"""What every writer adds to the residual stream, and how coefficients come back to every reader.

Writers come from the cached `z` (times W_O), `mlp_out` and the stream entering block 0; readers from the coefficients at
q, k, v and the MLP input, pulled back through the weights and the norm. No split-QKV flags, no hook per head.

Post-norm models (Gemma-2, OLMo-2) normalise the *sum* of the heads before it is added. A head's write is then its share of
that sum at the scale of its own run, so that head writes always add up to `attn_out` exactly. Heads of a layer are thereby
coupled: one that leads nowhere still moves the scale of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UnsupportedModelError
from ..models.anatomy import ModelAnatomy, block_norm, mlp_norm_name
from ..patching.attribution import Point
from ..relevance.rules import norm_pull_back
from ..runs.record import Run
from ..sites import MLP_KINDS, block_module
from .space import EdgeSpace

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WRITER_KINDS = ("resid_pre", "z", "mlp_out")
"""Site kinds from which writers are made (without MLPs: see `writer_kinds`)."""

READER_KINDS = ("q", "k", "v", "mlp_in", "resid_post")
"""Site kinds whose coefficients become the readers' (without MLPs: see `reader_kinds`)."""


def writer_kinds(space: EdgeSpace) -> tuple[str, ...]:
    """The writer kinds that a model of this graph has."""
    return tuple(kind for kind in WRITER_KINDS if not (space.attn_only and kind in MLP_KINDS))


def reader_kinds(space: EdgeSpace) -> tuple[str, ...]:
    """The reader kinds that a model of this graph has."""
    return tuple(kind for kind in READER_KINDS if not (space.attn_only and kind in MLP_KINDS))


def stream_kinds(space: EdgeSpace) -> tuple[str, ...]:
    """The kinds at which readers read the stream."""
    return ("resid_pre",) if space.parallel or space.attn_only else ("resid_pre", "resid_mid")


def check_edges(model: TransformerBridge, anatomy: ModelAnatomy) -> None:
    """Raises `UnsupportedModelError` for models whose attention output is not a sum over heads."""
    if anatomy.norm_place != "pre" and any(block.attn.b_O is not None for block in model.blocks):
        raise UnsupportedModelError(
            f"edges need head writes that add up; {anatomy.architecture} adds an output bias under a post-norm"
        )


def head_writes(
    model: TransformerBridge, layer: int, z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "batch head pos d_model"]:
    """What each head of a layer adds to the residual stream."""
    writes = torch.einsum("bphe,hed->bhpd", z, model.blocks[layer].attn.W_O.detach())
    norm = block_norm(model, layer, "ln1_post")
    return writes if norm is None else norm.linear(writes, norm.scale(writes.sum(dim=1, keepdim=True)))


def record_writers(model: TransformerBridge, space: EdgeSpace, run: Run) -> Float[Tensor, "batch writer pos d_model"]:
    """The writes of all writers in a recorded run."""
    stream = run.layers["resid_pre"][0]
    n_batch, n_pos, d_model = stream.shape
    writes = stream.new_empty(n_batch, space.n_writers, n_pos, d_model)
    writes[:, 0] = stream
    for layer in range(space.n_layers):
        writes[:, space.head_writers(layer)] = head_writes(model, layer, run.layers["z"][layer])
    for layer in space.mlps:
        writes[:, space.mlp_writer(layer)] = run.layers["mlp_out"][layer]
    return writes


def reader_coefficients(
    model: TransformerBridge, space: EdgeSpace, point: Point
) -> Iterator[tuple[slice, int, Float[Tensor, "batch reader pos d_model"]]]:
    """Coefficients at the residual stream as each reader reads it: (columns, writers seen, coefficients), layer by layer."""
    for layer in range(space.n_layers):
        attn = model.blocks[layer].attn
        stream = point.run.layers["resid_pre"][layer].detach()
        for kind, weight in (("q", attn.W_Q), ("k", attn.W_K), ("v", attn.W_V)):
            pulled = torch.einsum("bphe,hde->bphd", point.coefficients[kind][layer], weight.detach())
            pulled = _through_norm(model, point, layer, "ln1", stream, pulled)
            yield space.attention_readers(layer, kind), space.n_seen_by_attention(layer), pulled.transpose(1, 2)
        if space.attn_only:
            continue
        middle = stream if space.parallel else point.run.layers["resid_mid"][layer].detach()
        pulled = _through_norm(
            model, point, layer, mlp_norm_name(model, layer), middle, point.coefficients["mlp_in"][layer].unsqueeze(2)
        )
        column = space.mlp_reader(layer)
        yield slice(column, column + 1), space.n_seen_by_mlp(layer), pulled.transpose(1, 2)
    yield (
        slice(space.logits_reader, space.n_readers),
        space.n_writers,
        point.coefficients["resid_post"][-1].unsqueeze(1),
    )


def _through_norm(
    model: TransformerBridge,
    point: Point,
    layer: int,
    name: str,
    x: Float[Tensor, "batch pos d_model"],
    v: Float[Tensor, "batch pos reader d_model"],
) -> Float[Tensor, "batch pos reader d_model"]:
    norm = block_norm(model, layer, name)
    return v if norm is None else norm_pull_back(point.binding.rule(block_module(layer, name), "norm"), norm, x, v)
