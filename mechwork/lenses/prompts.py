"""Prompts as right-padded token ids, and targets as single tokens: what every decoder takes in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..models.anatomy import check_ready
from ..models.borrow import borrows
from ..shapes import PositionMask, Tokens
from ..tasks.encode import answer_token, tokenise
from ..tasks.marks import check_marks, plain_tokens
from ..tasks.padding import token_rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Prompt = str | Sequence[int]


@dataclass(frozen=True, eq=False)
class Prompts(Readable):
    """Token ids ``[batch, pos]``, right-padded; `mask` says which are real."""

    tokens: Tokens
    mask: PositionMask

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def ends(self) -> Tensor:
        """The last real position of each prompt."""
        return self.mask.sum(dim=1) - 1


@borrows
def as_prompts(
    model: TransformerBridge, prompts: str | Tensor | Prompts | Sequence[Prompt] | Sequence[int] | Mapping[str, Any]
) -> Prompts:
    """A text, several texts, lists of token ids, a tensor ``[pos]`` or ``[batch, pos]``, or a tokenizer's ``input_ids``
    with their ``attention_mask``, padded on either side, as `Prompts`.

    Raises `InputError` for empty text, ids outside the vocabulary, or prompts longer than the context.
    """
    anatomy = check_ready(model)
    if isinstance(prompts, Prompts):
        rows = [row[mask].tolist() for row, mask in zip(prompts.tokens, prompts.mask, strict=True)]
    elif isinstance(prompts, Mapping):
        rows = token_rows(prompts)
    elif isinstance(prompts, Tensor):
        if not prompts.ndim:
            raise InputError(f"prompts are token ids [pos] or [batch, pos]; got one number, {prompts.item()}")
        rows = token_rows(prompts.reshape(-1, prompts.shape[-1])) if prompts.numel() else []
    else:
        given: list[Any] = [prompts] if isinstance(prompts, str) else _listed(prompts)
        if given and all(isinstance(item, int) for item in given):
            given = [given]
        if any(isinstance(text, str) and not text for text in given):
            raise InputError("a prompt needs at least one character; got an empty text")
        rows = [tokenise(model, p) if isinstance(p, str) else token_rows([_listed(p)])[0] for p in given]
    if not rows or not all(rows):
        raise InputError("prompts need at least one token each; got an empty one")
    ids = torch.tensor([i for row in rows for i in row])
    check_marks(model, ids)
    longest, highest = max(map(len, rows)), int(plain_tokens(ids.clamp(min=0)).max())
    if longest > anatomy.n_ctx or highest >= anatomy.d_vocab or min(map(min, rows)) < 0:
        raise InputError(
            f"prompts have at most {anatomy.n_ctx} tokens, with ids 0 to {anatomy.d_vocab - 1}; the longest has "
            f"{longest}, the largest id is {highest}"
        )
    if not anatomy.causal and len({len(row) for row in rows}) > 1:
        raise InputError("in this model every position attends to all others: prompts need one length")
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return Prompts(tokens, mask)


def _listed(prompts: Any) -> list[Any]:
    """What can be gone through; raises `InputError` for anything else."""
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise InputError(f"prompts are texts or token ids, one or a list of them; got {prompts!r:.80}")
    return prompts.tolist() if isinstance(prompts, Tensor) and prompts.ndim == 1 else list(prompts)


def one_token(model: TransformerBridge, target: str | int) -> int:
    """The id of a target; raises `InputError` for text of several tokens, naming the pieces, and for unknown ids."""
    if isinstance(target, str):
        return answer_token(model, target, " as a target")
    n = read_vocabulary(model)
    if not 0 <= int(target) < n:
        raise InputError(f"token ids of this model are 0 to {n - 1}; got {target}")
    return int(target)


def read_vocabulary(model: TransformerBridge) -> int:
    """How many tokens the unembedding knows."""
    return int(model.W_U.shape[1])


def token_text(model: TransformerBridge, token: int) -> str:
    """A token as text; its number where the model has no tokenizer."""
    return model.tokenizer.decode([token]) if model.tokenizer is not None else str(token)
