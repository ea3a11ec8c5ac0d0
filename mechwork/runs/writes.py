"""What each head adds to the residual stream, and what a write is worth to the logits through the final norm.

Post-norm models (Gemma-2, OLMo-2) normalise the *sum* of the heads before it is added. A head's write is then its share
of that sum at the scale of its own run, so that head writes always add up to `attn_out` (less its bias).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..models.anatomy import block_norm, final_norm
from ..tasks.continuations import require_one_token
from ..tasks.pairs import ABSENT, PromptPairs

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def head_writes(
    model: TransformerBridge, layer: int, z: Float[Tensor, "batch pos head d_head"], *, out: Tensor | None = None
) -> Float[Tensor, "head batch pos d_model"]:
    """What each head of a layer adds to the residual stream, written into `out` when given."""
    weight = model.blocks[layer].attn.W_O.detach()
    n_batch, n_pos, n_heads, _ = z.shape
    here = out is not None and out.device == weight.device
    target = out.view(n_heads, n_batch * n_pos, -1) if out is not None and here else None
    writes = torch.bmm(rearrange(z, "batch pos head d_head -> head (batch pos) d_head").to(weight), weight, out=target)
    writes = writes.view(n_heads, n_batch, n_pos, -1)
    norm = block_norm(model, layer, "ln1_post")
    if norm is None:
        return writes if out is None or here else out.copy_(writes)
    normed = norm.linear(writes, norm.scale(writes.sum(dim=0, keepdim=True)))
    return normed if out is None else out.copy_(normed)


def answer_directions(model: TransformerBridge, pairs: PromptPairs) -> Float[Tensor, "batch d_model"]:
    """Mean unembedding of the correct answers less that of the incorrect ones: what the logit difference reads of the
    normed stream.
    """
    require_one_token(pairs.continuations, "what is written to an answer directly")
    W_U = model.W_U.detach()
    return _mean_columns(W_U, pairs.correct) - _mean_columns(W_U, pairs.incorrect)


def through_final_norm(
    model: TransformerBridge, writes: Float[Tensor, "*write d_model"], readout: Float[Tensor, "*#write d_model"]
) -> Float[Tensor, "*write"]:
    """What writes are worth to `readout` through the final norm's linear part at scale 1: divide by the norm's live
    scale.
    """
    norm = final_norm(model)
    shares = writes if norm is None else norm.linear(writes, torch.ones_like(writes[..., :1]))
    return (shares * readout.to(shares)).sum(dim=-1)


def final_scale(model: TransformerBridge, stream: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
    """The final norm's scale at a stream; 1 without a norm."""
    norm = final_norm(model)
    return torch.ones_like(stream[..., 0]) if norm is None else norm.scale(stream)[..., 0]


def at_ends(x: Float[Tensor, "batch pos *rest"], pairs: PromptPairs) -> Float[Tensor, "batch *rest"]:
    """The activation at the last token of each clean prompt."""
    ends = pairs.lengths.to(x.device) - 1
    return x[torch.arange(len(x), device=x.device), ends]


def _mean_columns(
    W_U: Float[Tensor, "d_model d_vocab"], answers: Int[Tensor, "batch n"]
) -> Float[Tensor, "batch d_model"]:
    present = (answers != ABSENT).to(W_U)
    columns = W_U.T[answers.clamp(min=0).to(W_U.device)]
    return (columns * present[..., None]).sum(dim=1) / present.sum(dim=1, keepdim=True)
