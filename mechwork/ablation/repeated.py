"""Random tokens said again: the prompts on which attention roles are measured, as a task.

    clean    BOS r1 ... rn r1 ... rk      ->  r(k+1)      ``length`` n distinct random tokens, the first ``again`` k of
    them repeated corrupt  BOS r1 ... rn s1 ... sk                      the same, continued by k other random tokens

The metric is the mean log-probability, in nats, of the next token at every query of the repetition (its negative is the
in-context loss).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..models.anatomy import read_anatomy
from ..models.borrow import borrows
from ..shapes import Logits, PerExample
from ..tasks.metrics import Metric
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

IN_CONTEXT = "in_context_log_probability"


@dataclass(frozen=True, eq=False)
class RepeatedTokens(Readable):
    """The task and where things stand: the list begins at column `start`, its repetition at `start` + `length`."""

    task: Task
    start: int
    length: int
    again: int

    @property
    def queries(self) -> Int[Tensor, " query"]:
        """Columns of the repeated tokens."""
        first = self.start + self.length
        return torch.arange(first, first + self.again)

    @property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """The clean prompts."""
        return self.task.pairs.clean_tokens


@borrows
def repeated_tokens(
    model: TransformerBridge,
    n: int = 32,
    length: int = 12,
    *,
    again: int | None = None,
    like: Task | None = None,
    tokens: Int[Tensor, " candidate"] | None = None,
    seed: int = 0,
) -> RepeatedTokens:
    """`n` prompts of `length` random distinct tokens, of which the first `again` (default: all but one) are said again.

    Candidates are `tokens`, or the changing words of the task `like` (those in at most a fifth of its prompts: small
    models know repetition only of words they met in lists), or by default the vocabulary's words that begin with a
    space. A BOS token comes first where the tokenizer (or, for models without one, token 0) gives one.

    Raises `InputError` when the prompts do not fit the model's context or there are too few candidates.
    """
    anatomy = read_anatomy(model)
    again = length - 1 if again is None else again
    if not length >= 3 or not 1 <= again < length:
        raise InputError(
            f"lists have at least 3 tokens, of which 1 to length - 1 are said again; got length={length}, again={again}"
        )
    if 1 + length + again > anatomy.n_ctx:
        raise InputError(
            f"1 + {length} + {again} tokens do not fit this model's context of {anatomy.n_ctx}. Choose a shorter "
            "length."
        )
    pool = tokens if tokens is not None else candidate_tokens(model) if like is None else changing_words(like)
    if len(pool) < length + again:
        raise InputError(
            f"{length + again} different tokens are drawn per prompt; there are {len(pool)} candidates. Choose a "
            "shorter length."
        )
    bos = 0 if model.tokenizer is None else getattr(model.tokenizer, "bos_token_id", None)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([pool[torch.randperm(len(pool), generator=generator)[: length + again]] for _ in range(n)])
    words, others = drawn[:, :length], drawn[:, length:]
    head = torch.full((n, 0 if bos is None else 1), bos or 0)
    clean = torch.cat([head, words, words[:, :again]], dim=1)
    corrupt = torch.cat([head, words, others], dim=1)
    pairs = PromptPairs.from_tokens(clean, corrupt, words[:, again], others[:, -1])
    metric = Metric(IN_CONTEXT, _InContext(head.shape[1] + length))
    return RepeatedTokens(Task("repeated tokens", pairs, metric), head.shape[1], length, again)


def candidate_tokens(model: TransformerBridge, least: int = 64) -> Int[Tensor, " candidate"]:
    """Token ids of words that begin with a space; every id but the special ones where there are fewer than `least` such
    words.
    """
    tokenizer, n = model.tokenizer, read_anatomy(model).d_vocab
    if tokenizer is None:
        return torch.arange(1, n)
    special = set(getattr(tokenizer, "all_special_ids", []))
    texts = tokenizer.convert_ids_to_tokens(list(range(min(n, len(tokenizer)))))
    words = [i for i, text in enumerate(texts) if text and text[0] in "Ġ▁" and text[1:].isalpha() and i not in special]
    return torch.tensor(words if len(words) >= least else [i for i in range(len(texts)) if i not in special])


def changing_words(task: Task) -> Int[Tensor, " candidate"]:
    """Token ids that stand in at least one and at most a fifth of a task's clean prompts."""
    tokens = task.pairs.clean_tokens.masked_fill(~task.pairs.mask, -1)
    ids = tokens[tokens >= 0].unique()
    share = torch.stack([(tokens == token).any(dim=1).float().mean() for token in ids])
    return ids[share <= 0.2]


@dataclass(frozen=True)
class _InContext:
    """Mean log-probability of the next token at the queries from column `first` on."""

    first: int

    def __call__(self, logits: Logits, pairs: PromptPairs) -> PerExample:
        tail = pairs.clean_tokens.shape[1] - self.first
        following = torch.cat([pairs.clean_tokens[:, self.first + 1 :], pairs.correct[:, :1]], dim=1).to(logits.device)
        log_probabilities: Float[Tensor, "batch query d_vocab"] = logits[:, -tail:].log_softmax(dim=-1)
        return log_probabilities.gather(-1, following[..., None])[..., 0].mean(dim=-1)
