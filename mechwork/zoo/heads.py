"""The heads of the induction mechanism: who looks at the previous token, who at the token after the last mention.

Scores are mean attention probabilities on held-out lists. *Previous token*: to the token before, from the third token
of a prompt up to the answer's first mention; there the mechanism needs it (a head may look elsewhere later).
*Induction*: from the last token to the token after its first mention, which is the answer (prefix matching: Olsson et
al. 2022, arXiv:2209.11895). For the best head of each kind the task's logit difference is measured again with that
head's output replaced by its mean over all positions and examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..names import head_name
from ..tasks.sampling.lexicon import Split
from .architecture import attention_projections
from .measure import draw_examples, encode, measure_task


@dataclass(frozen=True)
class ScoredHead:
    """One head (``a1.h0``), its score, the highest score of any other head, and the logit difference without it."""

    name: str
    score: float
    next_score: float
    ablated: float


@dataclass(frozen=True)
class InductionHeads:
    """The best head of each kind; `intact` is the logit difference of the whole model."""

    intact: float
    previous_token: ScoredHead
    induction: ScoredHead


@dataclass(frozen=True)
class HeadScores:
    """Mean attention probabilities, as the module says, and every head's mean output before the projection."""

    previous_token: Float[Tensor, "layer head"]
    induction: Float[Tensor, "layer head"]
    mean_z: Float[Tensor, "layer head d_head"]


@torch.no_grad()
def score_heads(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split = "test", n: int = 200, seed: int = 0
) -> HeadScores:
    """Score every head. Cost: one forward pass over `n` examples; the model needs eager attention."""
    examples = draw_examples("induction", split, n, seed)
    tokens, last = encode(tokenizer, [e.clean.text for e in examples])
    rows, positions = torch.arange(len(last)), torch.arange(tokens.shape[1])
    earlier = (tokens == tokens[rows, last][:, None]) & (positions < last[:, None])
    answer = earlier.int().argmax(-1) + 1
    said_first = (positions >= 2) & (positions <= answer[:, None])
    outputs: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, inputs: outputs.append(inputs[0]))
        for module in attention_projections(model)
    ]
    training = model.training
    model.eval()
    try:
        found = model.base_model(tokens, attention_mask=torch.ones_like(tokens), output_attentions=True).attentions
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    patterns = torch.stack(found).float()
    z = torch.stack([output[positions <= last[:, None]].mean(0) for output in outputs])
    back = patterns.diagonal(offset=-1, dim1=-2, dim2=-1)  # layer batch head; a query each, from the second on
    previous = (back * said_first[:, None, 1:]).sum((1, 3)) / said_first.sum()
    copied = patterns[:, rows, :, last, answer].mean(0)  # the indexed axes come first
    return HeadScores(previous, copied, z.unflatten(-1, (patterns.shape[2], -1)))


@torch.no_grad()
def find_induction_heads(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split = "test", n: int = 200, seed: int = 0
) -> InductionHeads:
    """Score every head and ablate the two best. Cost: four forward passes over `n` examples."""
    found = score_heads(model, tokenizer, split, n, seed)

    def difference() -> float:
        return measure_task(model, tokenizer, "induction", split, n, seed).logit_difference

    def head(scores: Float[Tensor, "layer head"]) -> ScoredHead:
        first, second = scores.flatten().topk(2)[0].tolist()
        layer, index = divmod(int(scores.argmax()), scores.shape[1])
        with _head_ablated(model, layer, index, found.mean_z):
            return ScoredHead(head_name(layer, index), first, second, difference())

    return InductionHeads(difference(), head(found.previous_token), head(found.induction))


@contextmanager
def _head_ablated(
    model: PreTrainedModel, layer: int, head: int, mean_z: Float[Tensor, "layer head d_head"]
) -> Iterator[None]:
    """Replace one head's output, before the projection, by its mean."""

    def replace(_module: object, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = inputs[0].unflatten(-1, (mean_z.shape[1], -1)).clone()
        z[..., head, :] = mean_z[layer, head]
        return (z.flatten(-2), *inputs[1:])

    handle = attention_projections(model)[layer].register_forward_pre_hook(replace)
    try:
        yield
    finally:
        handle.remove()
