"""How coefficients come back to every reader: from q, k, v and the MLP input, through the weights and the norm.

For a head the coefficient at its q input is W_Q^T g / scale, minus the part along the normalised stream when the norm's
scale is not held constant; gain and centring are folded into W_Q once per layer. Where a linear rule is bound to
queries, keys or values, the rule's own pull-back takes the place of W_Q^T, head by head. Laid out ``[reader, batch,
pos, d_model]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ...models.anatomy import Norm, block_norm, mlp_norm_name
from ...relevance.linear import Linear, LinearRule
from ...relevance.rules import GradientRule, LNRule, Rule, norm_pull_back
from ...sites import Site, block_module
from ..graph.space import EdgeSpace
from .points import Point

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Coefficients = Float[Tensor, "reader batch pos d_model"]

_FOLDED = (type(None), GradientRule, LNRule)
"""Rules of a norm whose pull-back is folded into the weights here; others go through `norm_pull_back`."""


def reader_kinds(space: EdgeSpace) -> tuple[str | Site, ...]:
    """Sites whose coefficients become the readers'."""
    inside = ("q", "k", "v") if space.attn_only else ("q", "k", "v", "mlp_in")
    return (*inside, Site("resid_post", space.n_layers - 1))


def fill_coefficients(
    model: TransformerBridge,
    space: EdgeSpace,
    point: Point,
    layer: int,
    out: Float[Tensor, "reader batch chunk d_model"],
    positions: slice = slice(None),
) -> None:
    """Writes the coefficients at the residual stream as each reader of a layer reads it into `out`; q, k and v in one
    product.
    """
    attn, first = model.blocks[layer].attn, layer * space.readers_per_layer
    weights = {kind: getattr(attn, f"W_{kind.upper()}").detach() for kind in "qkv"}
    stream = point.run.layers["resid_pre"][layer][:, positions].detach().to(weights["q"].device)
    rule, norm = point.binding.rule(block_module(layer, "ln1"), "norm"), block_norm(model, layer, "ln1")
    gs = {kind: point.coefficients[kind][layer][:, positions].to(stream.device) for kind in "qkv"}
    linear = {kind: point.binding.rule(block_module(layer, "attn", kind), "linear") for kind in "qkv"}
    plain = [kind for kind in "qkv" if not isinstance(linear[kind], LinearRule)]
    for kind, own in linear.items():
        if not isinstance(own, LinearRule):
            continue
        bias = getattr(attn, f"b_{kind.upper()}")
        pulled = _through_linear_rule(own, gs[kind], weights[kind], bias, rule, norm, stream)
        out[_within(space.attention_readers(layer, kind), first)] = pulled
    if len(plain) == 3:
        last = space.attention_readers(layer, "v").stop - first
        together = torch.cat([gs[kind] for kind in "qkv"], dim=2), torch.cat([weights[kind] for kind in "qkv"])
        _through_attention(*together, rule, norm, stream, out[:last])
    else:
        for kind in plain:
            rows = out[_within(space.attention_readers(layer, kind), first)]
            _through_attention(gs[kind], weights[kind], rule, norm, stream, rows)
    if space.attn_only:
        return
    name = mlp_norm_name(model, layer)
    rule, norm = point.binding.rule(block_module(layer, name), "norm"), block_norm(model, layer, name)
    middle = stream if space.parallel else point.run.layers["resid_mid"][layer][:, positions].detach()
    pulled = point.coefficients["mlp_in"][layer][:, positions]
    if norm is not None:
        pulled = norm_pull_back(rule, norm, middle, pulled.unsqueeze(2)).squeeze(2)
    out[space.mlp_reader(layer) - first] = pulled


def fill_logits(point: Point, out: Float[Tensor, "batch chunk d_model"], positions: slice = slice(None)) -> None:
    """Writes the coefficients at the unembedding's input into `out`."""
    out.copy_(point.coefficients["resid_post"][-1][:, positions])


def _within(columns: slice, first: int) -> slice:
    return slice(columns.start - first, columns.stop - first)


def _through_attention(
    g: Float[Tensor, "batch pos head d_head"],
    weight: Float[Tensor, "head d_model d_head"],
    rule: Rule | None,
    norm: Norm | None,
    stream: Float[Tensor, "batch pos d_model"],
    out: Coefficients,
) -> None:
    if norm is None:
        _multiply(_head_first(g), weight.transpose(1, 2), out)
    elif not isinstance(rule, _FOLDED):
        pulled = torch.bmm(_head_first(g), weight.transpose(1, 2)).view(out.shape)
        pulled = norm_pull_back(
            rule, norm, stream, rearrange(pulled, "head batch pos d_model -> batch pos head d_model")
        )
        out.copy_(rearrange(pulled, "batch pos head d_model -> head batch pos d_model"))
    else:
        scale = norm.scale(stream)
        folded = norm.centre(norm.gain * weight.transpose(1, 2))  # head d_head d_model
        _multiply(_head_first(g / scale.unsqueeze(-1)).to(folded), folded, out)
        if not isinstance(rule, LNRule):
            x_hat = norm.centre(stream) / scale
            pulled = out.to(x_hat)
            along = torch.einsum("hbpd,bpd->hbp", pulled, x_hat) / x_hat.shape[-1]
            out.copy_(pulled.addcmul_(along.unsqueeze(-1), x_hat, value=-1))


def _multiply(
    a: Float[Tensor, "head token d_head"], b: Float[Tensor, "head d_head d_model"], out: Coefficients
) -> None:
    if out.is_contiguous() and a.dtype == b.dtype == out.dtype and b.device == out.device:
        torch.bmm(a, b, out=out.view(len(a), -1, out.shape[-1]))
    else:
        out.copy_(torch.bmm(a, b).view(out.shape))


def _through_linear_rule(
    linear: LinearRule,
    g: Float[Tensor, "batch pos head d_head"],
    weight: Float[Tensor, "head d_model d_head"],
    bias: Float[Tensor, "head d_head"] | None,
    rule: Rule | None,
    norm: Norm | None,
    stream: Float[Tensor, "batch pos d_model"],
) -> Coefficients:
    """Rules of linear modules share out each output apart, so a head's part is the surrogate of its own columns."""
    read = (stream if norm is None else norm(stream)).detach().to(weight.dtype)
    pulled = []
    for head in range(g.shape[2]):
        columns = Linear(weight[head], None if bias is None else bias[head].detach())
        with torch.enable_grad():
            x = read.clone().requires_grad_(True)
            out = linear.surrogate(columns, x, columns(x))
        pulled.append(torch.autograd.grad(out, x, g[:, :, head].to(out))[0])
    together = torch.stack(pulled, dim=2)
    together = together if norm is None else norm_pull_back(rule, norm, stream, together)
    return rearrange(together, "batch pos head d_model -> head batch pos d_model").contiguous()


def _head_first(g: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "head token d_head"]:
    return rearrange(g, "batch pos head d_head -> head (batch pos) d_head")
