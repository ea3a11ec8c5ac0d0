"""Copy suppression on running text, at every position: which heads do it, and how much of what they do it is.

    study = study_text_suppression(model, tokens)           # windows of text [batch, pos]
    print(study)                                            # share of each head's effect, with an interval

Heads are chosen by their weights (`weigh_suppressors`): OV circuits that lower the token attended to, and QK circuits
that look for the token that is predicted. The share of a head's effect (McDougall et al. 2023, arXiv:2310.04625,
sec. 3.3; 76.9 % there for GPT-2 small's L10H7) is

    1 - KL(model || head replaced by copy suppression alone) / KL(model || head replaced by its mean write)

averaged over all positions, the head replaced at all of them. Copy suppression alone: for each query, of its context's
distinct tokens the `n_sources` that the stream before the head predicts most above their base rate; of their attention
times what is written, the *negative* part along the token's own logit,

    sum over such k of pattern[q, k] min(0, v_k W_O . u) u,     u = L (W_U[:, t] - mean W_U), normalised,

with L the final norm's linear part, so that u is the direction of the stream that raises t's logit over the others';
plus the head's mean write less this sum's mean. Base rate: a token's mean logit over all positions. Interval:
bootstrap over windows. Cost: V forwards of two tokens for the weights; 1 forward per batch, and 2 per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError, check_whole
from ..execute.progress import Progress
from ..interventions import Add, Chosen, Write, intervene
from ..models.anatomy import check_ready, device_of, final_norm, read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, hash_tensors
from ..result import Result, table_rows
from ..runs.attention import parse_head
from ..runs.record import record_run
from ..runs.writes import head_writes
from ..sites import Site
from ..statistics import bootstrap_weights, kl_nats, percentile_interval
from ..tasks.pairs import PromptPairs
from .suppression_weights import kv_head, logit_directions, weigh_suppressors

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_SOURCES = 8
BATCH = 4
"""Windows per pass."""


@dataclass(frozen=True)
class TextSuppressionRow:
    """One head on text: the share of its effect that copy suppression explains, and what its effect is (mean KL)."""

    head: str
    ov_percentile: float
    qk_percentile: float
    share: float
    share_interval: tuple[float, float]
    kl_ablated: float
    kl_explained: float


@dataclass(frozen=True, eq=False)
class TextSuppression(Result):
    """A row per head, strongest evidence of the weights first."""

    rows: tuple[TextSuppressionRow, ...]
    n_positions: int
    n_sources: int
    provenance: Provenance

    def _table(self) -> list[dict[str, object]]:
        """One row per head."""
        return table_rows(self.rows)

    def __str__(self) -> str:
        lines = [
            (
                f"copy suppression on {self.n_positions} positions of text, {self.n_sources} sources a query; by "
                "chance both percentiles are .5"
            ),
            f"{'head':<9}{'OV pct':>8}{'QK pct':>8}{'KL ablated':>12}{'explained':>11}  95 % interval",
        ]
        lines += [
            f"{r.head:<9}{r.ov_percentile:8.2f}{r.qk_percentile:8.2f}{r.kl_ablated:12.4f}{r.share:11.1%}  "
            f"[{r.share_interval[0]:.1%}, {r.share_interval[1]:.1%}]"
            for r in self.rows
        ]
        return "\n".join(lines)


def top_sources(
    above: Float[Tensor, "pos token"], context: Int[Tensor, " pos"], n_sources: int
) -> Bool[Tensor, "query key"]:
    """Which keys of a prompt count for each query: those whose token is among the `n_sources` of its context's distinct
    tokens with the largest `above` (``[query, token]``; `context` says which token stands at each key).
    """
    n = len(context)
    places = torch.arange(n, device=above.device)
    first = torch.full((above.shape[1],), n, device=above.device).scatter_reduce_(0, context, places, "amin")
    values = above.masked_fill(first[None, :] > places[:, None], -torch.inf)
    best = torch.zeros_like(above, dtype=torch.bool)
    best.scatter_(1, values.topk(min(n_sources, values.shape[1]), dim=1).indices, value=True)
    return (best & values.isfinite())[:, context] & (places[None, :] <= places[:, None])


@borrows
def study_text_suppression(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    heads: Sequence[str] | None = None,
    *,
    n_heads: int = 4,
    n_sources: int = N_SOURCES,
    seed: int = 0,
    progress: Progress | None = None,
) -> TextSuppression:
    """The share of each head's effect on text that copy suppression explains (see the module).

    `tokens` are windows of running text without padding; `heads` default to the `n_heads` of strongest evidence in the
    weights. Raises `InputError` for windows that are no token ids, fewer than two, or shorter than two tokens, norms
    after attention, or a soft cap on logits.

    >>> study_text_suppression(model, tokens, ["a4.h1"]).rows[0].share
    """
    anatomy = check_ready(model)
    if anatomy.final_soft_cap is not None or anatomy.norm_place != "pre":
        raise InputError(
            "copy suppression is read off writes that add up to logits: it needs no soft cap and no norm after "
            f"attention; got {anatomy.architecture}"
        )
    if tokens.ndim != 2 or tokens.is_floating_point() or len(tokens) < 2 or tokens.shape[1] < 2:
        raise InputError(
            f"text is at least two windows of at least two token ids, [batch, pos]; got {tokens.dtype} "
            f"{tuple(tokens.shape)}"
        )
    check_whole("n_sources", n_sources, least=1)
    check_whole("n_heads", n_heads, least=1)
    for head in heads or ():
        parse_head(anatomy, head)
    weighed = {row.head: row for row in weigh_suppressors(model, seed=seed)}
    names = list(heads) if heads else list(weighed)[:n_heads]
    sums = torch.zeros(len(names), 2, len(tokens), dtype=torch.float64)
    means = _mean_writes(model, tokens, names)
    done = 0
    for first in range(0, len(tokens), BATCH):
        windows = tokens[first : first + BATCH]
        found = _divergences(model, windows, names, means, n_sources)
        sums[:, :, first : first + len(windows)] = found
        done += len(windows)
        if progress is not None:
            progress(done, len(tokens), "replacing heads on text")
    weights = bootstrap_weights(len(tokens), 1000, seed).double()
    rows = []
    for name, (explained, ablated) in zip(names, sums, strict=True):
        resampled = 1 - (weights @ explained) / (weights @ ablated).clamp(min=1e-12)
        low, high = percentile_interval(resampled[:, None], 0.95)
        share = 1 - float(explained.mean() / ablated.mean()) if float(ablated.mean()) > 1e-12 else float("nan")
        row = weighed[name]
        rows.append(
            TextSuppressionRow(
                name, row.ov_percentile, row.qk_percentile, share, (float(low), float(high)), float(ablated.mean()),
                float(explained.mean()),
            )
        )  # fmt: skip
    facts = build_provenance(
        method="copy suppression on text", model=identify_model(model), n_sources=n_sources, seed=seed,
        text=hash_tensors({"tokens": tokens}),
    )  # fmt: skip
    return TextSuppression(tuple(rows), tokens.numel(), n_sources, facts)


def _pairs(model: TransformerBridge, windows: Int[Tensor, "batch pos"]) -> PromptPairs:
    """Windows as prompts without a corrupt side; answers are not read."""
    zeros = [0] * len(windows)
    return PromptPairs.from_tokens(windows, windows, zeros, [1] * len(windows), alone=True).to(device_of(model))


def _mean_writes(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], names: Sequence[str]
) -> list[Float[Tensor, " d_model"]]:
    """Each head's mean write over all positions."""
    places = [parse_head(read_anatomy(model), name) for name in names]
    sites = [Site("z", layer) for layer in sorted({layer for layer, _ in places})]
    layers = [site.layer for site in sites]
    totals: list[Tensor | int] = [0] * len(names)
    for first in range(0, len(tokens), BATCH):
        run = record_run(model, _pairs(model, tokens[first : first + BATCH]), sites, n_tail=1)
        for i, (layer, head) in enumerate(places):
            totals[i] = totals[i] + head_writes(model, layer, run.layers["z"][layers.index(layer)])[head].sum((0, 1))
    return [torch.as_tensor(total) / tokens.numel() for total in totals]


def _divergences(
    model: TransformerBridge, windows: Int[Tensor, "batch pos"], names: Sequence[str], means: Sequence[Tensor],
    n_sources: int,
) -> Float[Tensor, "head 2 batch"]:  # fmt: skip
    """Mean KL over each window's positions: with copy suppression alone, and with the head's mean."""
    pairs = _pairs(model, windows)
    width = windows.shape[1]
    places = [parse_head(read_anatomy(model), name) for name in names]
    layers = sorted({layer for layer, _ in places})
    sites = [Site(kind, layer) for kind in ("z", "v", "pattern", "resid_pre") for layer in layers]
    run = record_run(model, pairs, sites, n_tail=width)
    reference = run.logits.log_softmax(dim=-1)
    everywhere = torch.ones_like(pairs.clean_tokens, dtype=torch.bool)
    found = torch.zeros(len(names), 2, len(windows), dtype=torch.float64)
    for i, ((layer, head), mean) in enumerate(zip(places, means, strict=True)):
        at = layers.index(layer)
        part = {kind: run.layers[kind][at] for kind in ("z", "v", "pattern", "resid_pre")}
        write = head_writes(model, layer, part["z"])[head]
        kept = suppression_alone(model, pairs.clean_tokens, part, layer, head, n_sources)
        for column, replaced in enumerate((mean + kept - kept.mean(dim=(0, 1)), mean)):
            change = Write(Site("attn_out", layer), Chosen(Add(replaced - write), everywhere))
            with torch.no_grad(), intervene(model, [change]):
                logits = model(pairs.clean_tokens)
            found[i, column] = kl_nats(reference, logits.log_softmax(dim=-1)).double().mean(dim=1).cpu()
    return found


def suppression_alone(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], part: dict[str, Tensor], layer: int, head: int,
    n_sources: int,
) -> Float[Tensor, "batch pos d_model"]:  # fmt: skip
    """What a head would write if all it did were to lower, at every query, the predicted tokens that it attends to."""
    attn = model.blocks[layer].attn
    ids, place = tokens.unique(return_inverse=True)
    raw = logit_directions(model, ids)
    towards = raw / raw.norm(dim=1, keepdim=True).clamp(min=1e-12)
    stream, norm = part["resid_pre"], final_norm(model)
    scale = torch.ones_like(stream[..., :1]) if norm is None else norm.scale(stream)
    logits = stream @ raw.T.to(stream) / scale
    above = logits - logits.mean(dim=(0, 1))
    v = part["v"][:, :, kv_head(model, head)]
    sources = v @ attn.W_O[head].detach()
    own = towards[place].to(sources)
    along = (sources * own).sum(dim=-1).clamp(max=0)
    allowed = torch.stack([top_sources(a, p, n_sources) for a, p in zip(above, place, strict=True)])
    attention = part["pattern"][:, head] * allowed
    return torch.einsum("bqk,bk,bkd->bqd", attention, along, own)
