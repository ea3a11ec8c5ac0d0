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
bootstrap over windows. Means are over all positions of all windows, so that what is found does not depend on how many
windows run at a time. Cost: V forwards of two tokens for the weights; 3 forwards per batch, and 2 per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError, check_whole
from ..execute.memory import MemoryBudget
from ..execute.progress import Progress
from ..interventions import Add, Chosen, Write, intervene
from ..models.anatomy import check_ready, device_of, dtype_of, final_norm, read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, hash_tensors
from ..result import Result, table_rows
from ..runs.attention import parse_head
from ..runs.record import Run, record_run
from ..runs.room import DEFAULT_BUDGET, prompts_that_fit
from ..runs.writes import head_writes
from ..sites import Site
from ..statistics import bootstrap_weights, kl_nats, percentile_interval
from ..tasks.pairs import PromptPairs
from .suppression_weights import kv_head, logit_directions, weigh_suppressors

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_SOURCES = 8
KINDS = ("z", "v", "pattern", "resid_pre")


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
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> TextSuppression:
    """The share of each head's effect on text that copy suppression explains (see the module).

    `tokens` are windows of running text without padding; `heads` default to the `n_heads` of strongest evidence in the
    weights. Raises `InputError` for windows that are no token ids, fewer than two, or shorter than two tokens, norms
    after attention, a soft cap on logits, or a `memory_budget` that does not hold one window.

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
    size = _windows_that_fit(model, tokens, memory_budget)
    weighed = {row.head: row for row in weigh_suppressors(model, seed=seed)}
    names = list(heads) if heads else list(weighed)[:n_heads]
    batches = [tokens[first : first + size] for first in range(0, len(tokens), size)]
    means = _means(model, batches, names, n_sources)
    parts: list[Tensor] = []
    for i, windows in enumerate(batches):
        parts.append(_divergences(model, windows, means, n_sources))
        if progress is not None:
            progress(min((i + 1) * size, len(tokens)), len(tokens), "replacing heads on text")
    sums = torch.cat(parts, dim=2)
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


def _windows_that_fit(model: TransformerBridge, tokens: Int[Tensor, "batch pos"], budget: MemoryBudget) -> int:
    """Windows per pass: the runs, what is recorded at one layer, and predictions of all distinct tokens."""
    width = tokens.shape[1]
    predictions = 4 * dtype_of(model).itemsize * width * len(tokens.unique())
    sites = [Site(kind, layer) for kind in KINDS for layer in range(read_anatomy(model).n_layers)]
    return prompts_that_fit(model, _pairs(model, tokens), budget, sites=sites, n_tail=width, extra=predictions)


@dataclass(frozen=True, eq=False)
class _Means:
    """Of one head, over all positions of the text: what it writes, what copy suppression writes, and the scaled stream
    before it, whose readout is every token's base rate.
    """

    layer: int
    head: int
    write: Float[Tensor, " d_model"]
    stream: Float[Tensor, " d_model"]
    kept: Float[Tensor, " d_model"] | None = None


def _record(
    model: TransformerBridge, windows: Int[Tensor, "batch pos"], layers: Sequence[int], n_tail: int = 1
) -> tuple[PromptPairs, Run]:
    pairs = _pairs(model, windows)
    return pairs, record_run(model, pairs, [Site(kind, layer) for kind in KINDS for layer in layers], n_tail=n_tail)


def _means(
    model: TransformerBridge, batches: Sequence[Int[Tensor, "_ pos"]], names: Sequence[str], n_sources: int
) -> list[_Means]:
    """Two passes over the text: base rates and writes, then copy suppression alone, which needs the base rates."""
    places = [parse_head(read_anatomy(model), name) for name in names]
    layers = sorted({layer for layer, _ in places})
    n = sum(windows.numel() for windows in batches)
    totals: list[Tensor | int] = [0] * len(names)
    streams: list[Tensor | int] = [0] * len(layers)
    for windows in batches:
        _, run = _record(model, windows, layers)
        for at, layer in enumerate(layers):
            streams[at] = streams[at] + _scaled(model, run.layers["resid_pre"][at]).double().sum((0, 1))
            for i in (i for i, place in enumerate(places) if place[0] == layer):
                write = head_writes(model, layer, run.layers["z"][at])[places[i][1]]
                totals[i] = totals[i] + write.double().sum((0, 1))
    found = [
        _Means(layer, head, torch.as_tensor(total) / n, torch.as_tensor(streams[layers.index(layer)]) / n)
        for (layer, head), total in zip(places, totals, strict=True)
    ]
    kept: list[Tensor | int] = [0] * len(names)
    for windows in batches:
        pairs, run = _record(model, windows, layers)
        for i, one in enumerate(found):
            part = {kind: run.layers[kind][layers.index(one.layer)] for kind in KINDS}
            alone = suppression_alone(model, pairs.clean_tokens, part, one.layer, one.head, n_sources, one.stream)
            kept[i] = kept[i] + alone.double().sum((0, 1))
    return [replace(one, kept=torch.as_tensor(total) / n) for one, total in zip(found, kept, strict=True)]


def _scaled(model: TransformerBridge, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """The stream over the scale that the final norm would give it: linear readouts of it are logits."""
    norm = final_norm(model)
    return stream if norm is None else stream / norm.scale(stream)


def _divergences(
    model: TransformerBridge, windows: Int[Tensor, "batch pos"], means: Sequence[_Means], n_sources: int
) -> Float[Tensor, "head 2 batch"]:
    """Mean KL over each window's positions: with copy suppression alone, and with the head's mean."""
    layers = sorted({one.layer for one in means})
    pairs, run = _record(model, windows, layers, n_tail=windows.shape[1])
    reference = run.logits.log_softmax(dim=-1)
    everywhere = torch.ones_like(pairs.clean_tokens, dtype=torch.bool)
    found = torch.zeros(len(means), 2, len(windows), dtype=torch.float64)
    for i, one in enumerate(means):
        part = {kind: run.layers[kind][layers.index(one.layer)] for kind in KINDS}
        write = head_writes(model, one.layer, part["z"])[one.head]
        kept = suppression_alone(model, pairs.clean_tokens, part, one.layer, one.head, n_sources, one.stream)
        assert one.kept is not None
        for column, replaced in enumerate((kept + (one.write - one.kept).to(kept), one.write.to(write))):
            change = Write(Site("attn_out", one.layer), Chosen(Add(replaced - write), everywhere))
            with torch.no_grad(), intervene(model, [change]):
                logits = model(pairs.clean_tokens)
            found[i, column] = kl_nats(reference, logits.log_softmax(dim=-1)).double().mean(dim=1).cpu()
    return found


def suppression_alone(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], part: dict[str, Tensor], layer: int, head: int,
    n_sources: int, mean_stream: Float[Tensor, " d_model"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:  # fmt: skip
    """What a head would write if all it did were to lower, at every query, the predicted tokens that it attends to.

    `mean_stream`: the mean scaled stream, whose readout is the base rate (default: that of these positions).
    """
    attn = model.blocks[layer].attn
    ids, place = tokens.unique(return_inverse=True)
    raw = logit_directions(model, ids)
    towards = raw / raw.norm(dim=1, keepdim=True).clamp(min=1e-12)
    scaled = _scaled(model, part["resid_pre"])
    base = scaled.mean(dim=(0, 1)) if mean_stream is None else mean_stream.to(scaled)
    above = (scaled - base) @ raw.T.to(scaled)
    v = part["v"][:, :, kv_head(model, head)]
    sources = v @ attn.W_O[head].detach()
    own = towards[place].to(sources)
    along = (sources * own).sum(dim=-1).clamp(max=0)
    allowed = torch.stack([top_sources(a, p, n_sources) for a, p in zip(above, place, strict=True)])
    attention = part["pattern"][:, head] * allowed
    return torch.einsum("bqk,bk,bkd->bqd", attention, along, own)
