"""Copy suppression: heads that attend to a token which is already predicted, and lower it (McDougall et al. 2023,
arXiv:2310.04625).

Three pieces of evidence per head, each by itself no proof:

    OV  of tokens attended to, how often the token itself is among the `n_lowest` whose logits the head lowers most,
        U gain (e_t W_V W_O), and its mean percentile over the vocabulary (0 = always the lowest, 0.5 = chance)
    QK  of queries that are a token's unembedding (the token is predicted), how often the head attends most to that
    token
        among a sample of tokens, and its mean percentile (1 = always the most attended, 0.5 = chance)
    share explained  replace the head's write at the last token by what copy suppression alone would do: for the
        source tokens that the stream before the head predicts most above their base rate, the attention times the
        *negative* part of the source's write along that token's unembedding; everything else its mean. (Base rate: the
        token's mean logit over all positions of the prompts. By the logit alone "." and " the" come first, at which no
        head looks.)
            share = 1 - KL(model ‖ that) / KL(model ‖ head mean-ablated at the last token)

Effective embeddings e_t are the stream that leaves block 0 on the prompt ``BOS t`` (for layer 0: that enters it);
positions do not enter QK (rotary angles are left out, as for query and key at one place). Cost: V forwards of two
tokens in batches, 2 + 2 per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, some_or_all
from ..interventions import Add, Chosen, Write, intervene
from ..models.anatomy import device_of, final_norm
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..runs.attention import parse_head
from ..runs.record import Run, check_task, record_run
from ..runs.writes import answer_directions, at_ends, final_scale, head_writes, through_final_norm
from ..sites import Site
from ..statistics import holm, kl_nats, sign_flip_p
from ..tasks.pairs import END, PromptPairs
from ..tasks.task import Task
from .record import position_mask
from .suppression_weights import (
    effective_embeddings,
    kv_head,
    logit_directions,
    ov_evidence,
    qk_evidence,
    weigh_suppressors,
)
from .targets import all_heads

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_TOKENS = 512
N_LOWEST = 10
N_SOURCES = 8
"""Suppressed tokens of a prompt. With 3, `.` and the like can fill them all."""


@dataclass(frozen=True)
class SuppressionRow:
    """Evidence for one head (see the module); `direct_effect` is its mean direct effect on the logit difference, `p`
    its sign-flip p-value.
    """

    head: str
    direct_effect: float
    p: float
    ov_among_lowest: float
    ov_percentile: float
    qk_first: float
    qk_percentile: float
    share_explained: float
    kl_ablated: float


@dataclass(frozen=True, eq=False)
class CopySuppression(Result):
    """A row per head, most negative direct effect first. Chance: `chance_lowest` for OV among the lowest,
    `chance_first` for QK first.
    """

    rows: tuple[SuppressionRow, ...]
    chance_lowest: float
    chance_first: float
    provenance: Provenance

    @property
    def negative(self) -> tuple[str, ...]:
        """Heads whose direct effect is significantly negative (corrected p below 0.05)."""
        return tuple(row.head for row in self.rows if row.direct_effect < 0 and row.p < 0.05)

    def __str__(self) -> str:
        lines = [
            (
                f"copy suppression; chance: OV lowest {self.chance_lowest:.3f}, percentiles 0.5, QK first "
                f"{self.chance_first:.3f}"
            ),
            (
                f"{'head':<8}{'direct':>8}{'p':>7}{'OV lowest':>11}{'OV pct':>8}{'QK first':>10}{'QK pct':>8}"
                f"{'KL ablated':>12}{'explained':>11}"
            ),
        ]
        lines += [
            f"{r.head:<8}{r.direct_effect:8.2f}{r.p:7.3f}{r.ov_among_lowest:11.2f}{r.ov_percentile:8.2f}"
            f"{r.qk_first:10.2f}"
            f"{r.qk_percentile:8.2f}{r.kl_ablated:12.4f}{r.share_explained:11.2f}"
            for r in self.rows
        ]
        return "\n".join(lines)


@borrows
def study_copy_suppression(
    model: TransformerBridge,
    task: Task,
    heads: Sequence[str] | None = None,
    *,
    n_heads: int = 4,
    tokens: Int[Tensor, " token"] | None = None,
    n_lowest: int = N_LOWEST,
    n_sources: int = N_SOURCES,
    seed: int = 0,
) -> CopySuppression:
    """Evidence for copy suppression in `heads` (default: the `n_heads` of most negative direct effect on the task, and
    the `n_heads` whose weights look most like it).

    `tokens`: the sample of the vocabulary that OV and QK are tested on (default: 512 random ones). `n_sources`: how
    many of each prompt's distinct tokens count as suppressed: those predicted most above their base rate before the
    head.

    Raises `InputError` for a metric that is not linear in uncapped logits, or norms after attention.
    """
    anatomy = check_task(model, task)
    if not task.metric.linear or anatomy.final_soft_cap is not None or anatomy.norm_place != "pre":
        raise InputError(
            "copy suppression is read off writes that add up to logits: it needs logit_difference, no soft cap and no "
            "norm after attention; "
            f"got {task.metric.name}, {anatomy.architecture}"
        )
    if heads is not None:
        heads = some_or_all("heads", heads, all_heads(anatomy))
    for head in heads or ():
        parse_head(anatomy, head)
    pairs = task.pairs.to(device_of(model))
    kinds = ["z", "v", "pattern", "resid_pre", "resid_post"]
    run = record_run(model, pairs, kinds, n_tail=pairs.n_tail)
    direct = _direct_effects(model, run, pairs)
    p = holm(sign_flip_p(direct.T.cpu()))
    names = all_heads(anatomy)
    order = direct.mean(dim=1).argsort().tolist()
    weighed = [] if heads else [names.index(row.head) for row in weigh_suppressors(model, seed=seed)[:n_heads]]
    chosen = [names.index(head) for head in heads or ()] or list(dict.fromkeys([*order[:n_heads], *weighed]))
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(anatomy.d_vocab, generator=generator)[:N_TOKENS].sort().values if tokens is None else tokens
    effective = effective_embeddings(model, sample.to(device_of(model)))
    rows = []
    for i in sorted(chosen, key=lambda i: float(direct[i].mean())):
        layer, head = divmod(i, anatomy.n_heads)
        e = effective[min(layer, 1)]
        lowest, ov = ov_evidence(model, layer, head, e, sample, n_lowest)
        first, qk = qk_evidence(model, layer, head, e, sample)
        explained, kl = _explained(model, run, pairs, layer, head, n_sources)
        rows.append(
            SuppressionRow(names[i], float(direct[i].mean()), float(p[i]), lowest, ov, first, qk, explained, kl)
        )
    facts = build_provenance(
        method="copy suppression",
        model=identify_model(model),
        task=task.provenance(),
        n_tokens=len(sample),
        n_sources=n_sources,
        seed=seed,
    )
    return CopySuppression(tuple(rows), n_lowest / anatomy.d_vocab, 1 / len(sample), facts)


def _direct_effects(model: TransformerBridge, run: Run, pairs: PromptPairs) -> Float[Tensor, "head batch"]:
    """(write - its mean over prompts) at the last token, through the final norm at its live scale."""
    readout = answer_directions(model, pairs)
    scale = final_scale(model, at_ends(run.layers["resid_post"][-1], pairs))
    found = []
    for layer, z in enumerate(run.layers["z"]):
        writes = head_writes(model, layer, at_ends(z, pairs)[:, None])[:, :, 0]
        found.append(through_final_norm(model, writes - writes.mean(dim=1, keepdim=True), readout) / scale)
    return torch.cat(found)


def _above_base_rate(
    model: TransformerBridge, pairs: PromptPairs, stream: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch d_vocab"]:
    """How much more each of the prompts' tokens is predicted at the last token than on average over all positions.

    Logits less their mean over the vocabulary; -inf for tokens that no prompt has.
    """
    norm, W_U = final_norm(model), model.W_U.detach()
    mask = pairs.mask.to(stream.device)
    ids = pairs.clean_tokens[pairs.mask].unique().to(stream.device)
    normed = stream if norm is None else norm(stream).to(stream.dtype)
    logits = normed @ (W_U[:, ids] - W_U.mean(dim=1, keepdim=True))
    base = logits[mask].mean(dim=0)
    above = logits.new_full((len(pairs), W_U.shape[1]), -torch.inf)
    above[:, ids] = at_ends(logits, pairs) - base
    return above


def _explained(
    model: TransformerBridge, run: Run, pairs: PromptPairs, layer: int, head: int, n_sources: int
) -> tuple[float, float]:
    """(share of the KL of mean-ablating the head at the last token that copy suppression alone restores, that KL)."""
    attn = model.blocks[layer].attn
    writes = head_writes(model, layer, at_ends(run.layers["z"][layer], pairs)[:, None])[head, :, 0]
    mean = writes.mean(dim=0)
    sources = torch.einsum("bkd,de->bke", run.layers["v"][layer][:, :, kv_head(model, head)], attn.W_O[head].detach())
    attention = at_ends(run.layers["pattern"][layer][:, head], pairs)
    ids = pairs.clean_tokens.unique()
    towards = logit_directions(model, ids)
    above = _above_base_rate(model, pairs, run.layers["resid_pre"][layer])
    kept = torch.zeros_like(writes)
    for row, length in enumerate(pairs.lengths.tolist()):
        tokens = pairs.clean_tokens[row, :length]
        distinct = tokens.unique()
        best = distinct[above[row, distinct].argsort(descending=True)[:n_sources]]
        for token in best.tolist():
            direction = towards[int((ids == token).nonzero())]
            direction = direction / direction.norm().clamp(min=1e-12)
            here = (tokens == token).nonzero().flatten()
            along = (attention[row, here] * (sources[row, here] @ direction)).sum()
            kept[row] += along.clamp(max=0) * direction
    end = position_mask(END, pairs, pairs.clean_tokens.shape[1]).to(writes.device)
    reference = pairs.final(run.logits).log_softmax(dim=-1)

    def divergence(change: Float[Tensor, "batch d_model"]) -> float:
        write = Write(Site("attn_out", layer), Chosen(Add(change[:, None]), end))
        with torch.no_grad(), intervene(model, [write]):
            found = pairs.final(model(pairs.clean_tokens, logits_to_keep=pairs.n_tail)).log_softmax(dim=-1)
        return float(kl_nats(reference, found).mean())

    ablated = divergence(mean - writes)
    restored = divergence(mean + kept - kept.mean(dim=0) - writes)
    return (1 - restored / ablated if ablated > 1e-12 else float("nan")), ablated
