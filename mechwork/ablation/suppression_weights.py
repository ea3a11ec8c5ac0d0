"""What a head's weights say about copy suppression: OV circuits that lower the token attended to, QK circuits that look
for the token that is predicted. See `suppression` for both pieces of evidence.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import check_seed, check_whole
from ..models.anatomy import block_norm, check_ready, device_of, final_norm, read_anatomy
from ..models.borrow import borrows, hooked
from ..models.pulse import beat
from ..runs.restart import StopForward
from ..sites import Site, hook_name
from .targets import all_heads

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_TOKENS = 256
CHUNK = 256


@dataclass(frozen=True)
class WeighedHead:
    """What the weights say: of tokens attended to the percentile of their own logit in what is written (0 = lowered
    most), of predicted tokens the percentile of the attention to themselves (1 = attended most); chance is .5.
    """

    head: str
    ov_percentile: float
    qk_percentile: float

    @property
    def evidence(self) -> float:
        """(1 - OV + QK) / 2: 1 for a head built to suppress, .5 by chance."""
        return (1 - self.ov_percentile + self.qk_percentile) / 2


@borrows
def weigh_suppressors(model: TransformerBridge, *, n_tokens: int = N_TOKENS, seed: int = 0) -> tuple[WeighedHead, ...]:
    """Every head's OV and QK evidence among `n_tokens` random tokens, strongest first. See `suppression` for both.

    Cost: `n_tokens` forwards of two tokens, and two products of that size per head.
    """
    anatomy = check_ready(model)
    generator = torch.Generator().manual_seed(check_seed(seed))
    sample = torch.randperm(anatomy.d_vocab, generator=generator)[: check_whole("n_tokens", n_tokens, least=2)]
    sample = sample.sort().values.to(device_of(model))
    effective, towards = effective_embeddings(model, sample), logit_directions(model, sample)
    rows = []
    for i, name in enumerate(all_heads(anatomy)):
        beat()
        layer, head = divmod(i, anatomy.n_heads)
        e, attn = effective[min(layer, 1)], model.blocks[layer].attn
        with torch.no_grad():
            write = normed_input(model, layer, e) @ attn.W_V[kv_head(model, head)] @ attn.W_O[head]
            logits = write @ towards.T.to(write)
            own = logits.diagonal()[:, None]
            under = (logits < own).sum(dim=1).double() + ((logits == own).sum(dim=1).double() - 1) / 2
        _, qk = qk_evidence(model, layer, head, e, sample)
        rows.append(WeighedHead(name, float((under / (len(sample) - 1)).mean()), qk))
    return tuple(sorted(rows, key=lambda row: -row.evidence))


def logit_directions(model: TransformerBridge, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """For each token the direction of the final stream that its logit, less the vocabulary's mean, grows along."""
    W_U, norm = model.W_U.detach(), final_norm(model)
    columns = W_U[:, tokens.to(W_U.device)] - W_U.mean(dim=1, keepdim=True)
    if norm is None:
        return columns.T
    identity = torch.eye(len(W_U), dtype=W_U.dtype, device=W_U.device)
    return (norm.linear(identity, torch.ones_like(identity[:, :1])).to(W_U) @ columns).T


def effective_embeddings(
    model: TransformerBridge, tokens: Int[Tensor, " token"]
) -> list[Float[Tensor, "token d_model"]]:
    """The stream entering block 0 and leaving it, on prompts of one token (after BOS, where there is one)."""
    bos = getattr(model.tokenizer, "bos_token_id", None) if model.tokenizer is not None else None
    prompts = tokens[:, None] if bos is None else torch.stack([torch.full_like(tokens, bos), tokens], dim=1)
    parts: list[tuple[Tensor, Tensor]] = []
    for chunk in prompts.split(CHUNK):
        kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: object, kept: dict[str, Tensor] = kept) -> None:
            kept[str(getattr(hook, "name", len(kept)))] = activation[:, -1]
            if len(kept) == 2:
                raise StopForward

        before, after = hook_name(Site("resid_pre", 0)), hook_name(Site("resid_post", 0))
        with torch.no_grad(), hooked(model, [(before, keep), (after, keep)]), suppress(StopForward):
            model(chunk, logits_to_keep=1)
        first, second = kept.values()
        parts.append((first, second))
    return [torch.cat(side) for side in zip(*parts, strict=True)]


def normed_input(
    model: TransformerBridge, layer: int, x: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """What a layer's attention reads of a stream."""
    norm = block_norm(model, layer, "ln1")
    return x if norm is None else norm(x).to(x.dtype)


def kv_head(model: TransformerBridge, head: int) -> int:
    """The key and value head that a head uses."""
    anatomy = read_anatomy(model)
    return head // anatomy.group_size


def ov_evidence(
    model: TransformerBridge,
    layer: int,
    head: int,
    e: Float[Tensor, "token d_model"],
    tokens: Int[Tensor, " token"],
    n_lowest: int,
) -> tuple[float, float]:
    """(share of tokens that are among the `n_lowest` of their own row, mean percentile of the own logit)."""
    attn = model.blocks[layer].attn
    norm = final_norm(model)
    lowest, below = 0, 0.0
    for rows, own in zip(e.split(CHUNK), tokens.to(e.device).split(CHUNK), strict=True):
        beat()
        write = normed_input(model, layer, rows) @ attn.W_V[kv_head(model, head)] @ attn.W_O[head]
        logits = (
            write if norm is None else norm.linear(write, torch.ones_like(write[:, :1])).to(write.dtype)
        ) @ model.W_U
        mine = logits.gather(1, own[:, None])
        under = (logits < mine).sum(dim=1).double() + ((logits == mine).sum(dim=1).double() - 1) / 2
        lowest += int((under < n_lowest).sum())
        below += float((under / (logits.shape[1] - 1)).sum())
    return lowest / len(tokens), below / len(tokens)


def qk_evidence(
    model: TransformerBridge, layer: int, head: int, e: Float[Tensor, "token d_model"], tokens: Int[Tensor, " token"]
) -> tuple[float, float]:
    """(share of tokens attended most by their own unembedding, mean percentile of the own score)."""
    attn = model.blocks[layer].attn
    unembed = model.W_U.T[tokens.to(e.device)]
    unembed = unembed * (e.norm(dim=-1).mean() / unembed.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    kv = kv_head(model, head)
    q = normed_input(model, layer, unembed) @ attn.W_Q[head] + (0 if attn.b_Q is None else attn.b_Q[head])
    k = normed_input(model, layer, e) @ attn.W_K[kv] + (0 if attn.b_K is None else attn.b_K[kv])
    scores = q @ k.T
    own = scores.diagonal()[:, None]
    under = (scores < own).sum(dim=1).double() + ((scores == own).sum(dim=1).double() - 1) / 2
    return float((under >= len(tokens) - 1).double().mean()), float((under / max(1, len(tokens) - 1)).mean())
