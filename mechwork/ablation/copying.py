"""Copying: how a head's write from a source token ranks that token among the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ..models.anatomy import final_norm, read_anatomy

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def source_logits(
    model: TransformerBridge, layer: int, head: int, v: Float[Tensor, "batch pos kv_head d_head"]
) -> Float[Tensor, "batch pos d_vocab"]:
    """What the head writes from each source, v W_O, through the final norm's linear part and the unembedding, up to
    scale.
    """
    anatomy = read_anatomy(model)
    write = v[:, :, head // anatomy.group_size] @ model.blocks[layer].attn.W_O[head].detach()
    norm = final_norm(model)
    linear = write if norm is None else norm.linear(write, torch.ones_like(write[..., :1])).to(write.dtype)
    return linear @ model.W_U.detach()


def own_percentiles(
    model: TransformerBridge,
    layer: int,
    head: int,
    v: Float[Tensor, "batch pos kv_head d_head"],
    tokens: Int[Tensor, "batch pos"],
    n_null: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch pos"], Float[Tensor, "draw batch pos"]]:
    """Percentile (0 to 1, ties shared) of each source's own token in the head's write from there, and of random tokens
    of the prompts.
    """
    logits = source_logits(model, layer, head, v).cpu()
    others = tokens.flatten()[torch.randint(tokens.numel(), (n_null, *tokens.shape), generator=generator)]
    ordered = logits.sort(dim=-1).values.contiguous()
    wanted = rearrange(torch.cat([tokens[None], others]), "draw batch pos -> batch pos draw")
    values = logits.gather(-1, wanted).contiguous()
    below = torch.searchsorted(ordered, values).double()
    equal = torch.searchsorted(ordered, values, right=True).double() - below
    percentiles = (below + (equal - 1) / 2) / (logits.shape[-1] - 1)
    percentiles = rearrange(percentiles, "batch pos draw -> draw batch pos")
    return percentiles[0], percentiles[1:]
