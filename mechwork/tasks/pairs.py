"""Clean/corrupt pairs of prompts: the data that every method runs on.

Prompts are right-padded token ids; under causal attention padding at the end changes nothing before it, so no mask is
needed. The answer is read at the last real token of each prompt (`end`). A *span* is a named group of positions; spans
partition every prompt, so that pairs of different length can be compared by span.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..provenance import hash_tensors
from ..shapes import Logits, PositionMask, Tokens
from .continuations import ABSENT as NO_TOKEN
from .continuations import TENSORS, Continuations
from .marks import plain_tokens
from .padding import TokenBatch, token_id, token_rows

END = "END"
ABSENT = NO_TOKEN
"""Pads `correct` and `incorrect` when rows have different numbers of answers."""

Spans = Mapping[str, Sequence[int]]
"""One prompt's spans: name -> token positions (counting a prepended BOS)."""


@dataclass(frozen=True, eq=False)
class PromptPairs(Readable):
    """`batch` pairs of prompts with their answers.

    `correct` and `incorrect` are token ids ``[batch, n]``, padded with `ABSENT`. `spans` and `corrupt_spans` are
    position masks that partition the clean and the corrupt prompts. `continuations` says which tokens are read where
    when answers have several; then `correct` and `incorrect` are their first tokens. `alone`: prompts without a corrupt
    one, which then are their own. Slicing (``pairs[:8]``,
    ``pairs[[0, 3]]``) gives pairs. Build with `from_tokens` or, from text, with `build_pairs`.
    """

    clean_tokens: Tokens
    corrupt_tokens: Tokens
    lengths: Int[Tensor, " batch"]
    corrupt_lengths: Int[Tensor, " batch"]
    correct: Int[Tensor, "batch n_correct"]
    incorrect: Int[Tensor, "batch n_incorrect"]
    spans: dict[str, PositionMask] = field(default_factory=dict)
    corrupt_spans: dict[str, PositionMask] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    reference_logprobs: Float[Tensor, "batch d_vocab"] | None = None
    continuations: Continuations | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise InputError("a task needs at least one pair of prompts; got none")
        _check_answers(self.correct, self.incorrect, may_share=self.continuations is not None)
        differing = (self.lengths != self.corrupt_lengths).nonzero().flatten().tolist()
        if differing and not (self.spans and self.corrupt_spans):
            row = differing[0]
            raise InputError(
                "the clean and corrupt prompts of a pair must have the same number of tokens, or named spans that say "
                f"which tokens correspond; pair {row} has {int(self.lengths[row])} and "
                f"{int(self.corrupt_lengths[row])}. "
                "Reword one of the prompts, or pass spans for both."
            )
        if not differing and not self.alone:
            same = ((self.clean_tokens == self.corrupt_tokens) | ~self.mask).all(dim=-1)
            if bool(same.any()):
                row = int(same.nonzero()[0])
                raise InputError(f"clean and corrupt prompts must differ; those of pair {row} are identical")

    @classmethod
    def from_tokens(
        cls,
        clean: TokenBatch,
        corrupt: TokenBatch,
        correct: Tensor | Sequence[int] | Sequence[Sequence[int]],
        incorrect: Tensor | Sequence[int] | Sequence[Sequence[int]],
        *,
        spans: Sequence[Spans] | None = None,
        corrupt_spans: Sequence[Spans] | None = None,
        templates: Sequence[str] = (),
        pad_token: int = 0,
        continuations: Continuations | None = None,
        alone: bool = False,
    ) -> PromptPairs:
        """Pairs from token ids: tensors ``[batch, pos]``, lists of lists (of different lengths) or what a tokenizer
        returns, padded on either side (`mechwork.tasks.padding`); answers ``[batch]`` or ``[batch, n]``.

        `spans` names positions of each clean prompt (0: its first real token); the gaps between them become spans of
        their own. `corrupt_spans` defaults to `spans` and is required when a pair's prompts differ in length.
        """
        clean_rows, corrupt_rows = token_rows(clean), token_rows(corrupt)
        if len(clean_rows) != len(corrupt_rows):
            raise InputError(
                f"as many corrupt as clean prompts are needed; got {len(corrupt_rows)} and {len(clean_rows)}"
            )
        if not clean_rows or any(not row for row in (*clean_rows, *corrupt_rows)):
            raise InputError("every prompt needs at least one token; got an empty prompt or no prompts")
        width = max(len(row) for row in (*clean_rows, *corrupt_rows))
        lengths = torch.tensor([len(row) for row in clean_rows])
        corrupt_lengths = torch.tensor([len(row) for row in corrupt_rows])
        if spans is not None and corrupt_spans is None and bool((lengths == corrupt_lengths).all()):
            corrupt_spans = spans
        return cls(
            clean_tokens=_pad(clean_rows, width, pad_token),
            corrupt_tokens=_pad(corrupt_rows, width, pad_token),
            lengths=lengths,
            corrupt_lengths=corrupt_lengths,
            correct=_answers(correct, len(clean_rows), "correct"),
            incorrect=_answers(incorrect, len(clean_rows), "incorrect"),
            spans=_span_masks(spans, lengths.tolist(), width) if spans is not None else {},
            corrupt_spans=_span_masks(corrupt_spans, corrupt_lengths.tolist(), width)
            if corrupt_spans is not None
            else {},
            templates=tuple(templates),
            continuations=continuations,
            alone=alone,
        )

    def __len__(self) -> int:
        return self.clean_tokens.shape[0]

    def __getitem__(self, rows: slice | Sequence[int] | Int[Tensor, " n"]) -> PromptPairs:
        index = torch.arange(len(self))[rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long)]
        if index.numel() == 0:
            raise InputError(f"the selection {rows!r} leaves no pairs of {len(self)}")
        width = int(torch.maximum(self.lengths[index], self.corrupt_lengths[index]).max())

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index.to(tensor.device)]

        return replace(
            self,
            clean_tokens=pick(self.clean_tokens)[:, :width],
            corrupt_tokens=pick(self.corrupt_tokens)[:, :width],
            lengths=pick(self.lengths),
            corrupt_lengths=pick(self.corrupt_lengths),
            correct=pick(self.correct),
            incorrect=pick(self.incorrect),
            spans={name: pick(mask)[:, :width] for name, mask in self.spans.items()},
            corrupt_spans={name: pick(mask)[:, :width] for name, mask in self.corrupt_spans.items()},
            templates=tuple(self.templates[i] for i in index.tolist()) if self.templates else (),
            reference_logprobs=None if self.reference_logprobs is None else pick(self.reference_logprobs),
            continuations=None if self.continuations is None else self.continuations[index],
        )

    def prompt(self, row: int, *, corrupt: bool = False) -> list[int]:
        """Token ids of the clean (or corrupt) prompt of pair `row`, without padding; `Task.prompt` has the text."""
        if not isinstance(row, int) or not -len(self) <= row < len(self):
            raise InputError(f"pairs here are 0 to {len(self) - 1}; got {row!r}")
        tokens, lengths = (self.corrupt_tokens, self.corrupt_lengths) if corrupt else (self.clean_tokens, self.lengths)
        return plain_tokens(tokens[row, : int(lengths[row])]).tolist()

    def batches(self, size: int) -> Iterator[PromptPairs]:
        """Consecutive pieces of at most `size` pairs, but whole questions; pieces are as wide as their own longest
        prompt.
        """
        size = self.whole(size)
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @property
    def n_per_question(self) -> int:
        """Pairs per question: 1 unless answers of several tokens begin differently (see `continuations`)."""
        return 1 if self.continuations is None else self.continuations.n_pairs

    def per_question(self, values: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "question *rest"]:
        """The mean over each question's pairs, which is the question's own value (of truth values: their own, which is
        the same in all); `values` itself where questions have one pair.
        """
        n = self.n_per_question
        if n == 1:
            return values
        return values[::n] if values.dtype == torch.bool else values.unflatten(0, (-1, n)).mean(dim=1)

    def whole(self, n: int) -> int:
        """The most pairs up to `n` that are whole questions; one question at least."""
        return max(1, n // self.n_per_question) * self.n_per_question

    def to(self, device: torch.device | str) -> PromptPairs:
        """The same pairs with every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor | Continuations):
                return value.to(device)
            return {name: mask.to(device) for name, mask in value.items()} if isinstance(value, dict) else value

        return PromptPairs(**{name: move(getattr(self, name)) for name in self.__dataclass_fields__})

    @property
    def mask(self) -> PositionMask:
        """True at the real tokens of the clean prompts."""
        return torch.arange(self.clean_tokens.shape[1], device=self.lengths.device) < self.lengths[:, None]

    @property
    def aligned(self) -> bool:
        """Whether both prompts of every pair have the same length, so that positions correspond one to one."""
        return bool((self.lengths == self.corrupt_lengths).all())

    @property
    def one_length(self) -> bool:
        """Whether all prompts have one length, so that token positions can be compared across pairs."""
        return self.aligned and bool((self.lengths == self.lengths[0]).all())

    def final(self, logits: Logits) -> Float[Tensor, "batch d_vocab"]:
        """Logits at the last real token of each clean prompt, from logits of all columns or of the last ones only."""
        end = (self.lengths - 1 - (self.clean_tokens.shape[1] - logits.shape[1])).to(logits.device)
        return logits[torch.arange(len(self), device=logits.device), end]

    @property
    def read_columns(self) -> Int[Tensor, "batch n_columns"]:
        """The columns of the clean prompts at which answers are read: the last token, or those of `continuations`."""
        ends = self.lengths[:, None] - 1
        return ends if self.continuations is None else ends - self.continuations.read_backs.to(ends.device)

    def read(self, logits: Logits) -> Float[Tensor, "batch n_columns d_vocab"]:
        """Logits at `read_columns`, from logits of all columns or of the last ones only."""
        columns = (self.read_columns - (self.clean_tokens.shape[1] - logits.shape[1])).to(logits.device)
        return logits[torch.arange(len(self), device=logits.device)[:, None], columns]

    @property
    def n_tail(self) -> int:
        """How many last columns hold every column that is read."""
        return self.clean_tokens.shape[1] - int(self.read_columns.min())

    def corrupt_as_host(self) -> PromptPairs:
        """The pairs with the two prompts exchanged, answers kept: for metrics of runs of the corrupt prompts."""
        return replace(
            self,
            clean_tokens=self.corrupt_tokens,
            corrupt_tokens=self.clean_tokens,
            lengths=self.corrupt_lengths,
            corrupt_lengths=self.lengths,
            spans=self.corrupt_spans,
            corrupt_spans=self.spans,
        )

    def alignment(self) -> Int[Tensor, "batch pos"]:
        """For every position of the clean prompt the corresponding one of the corrupt prompt, `ABSENT` where none is.

        Equal lengths: the same position. Otherwise span by span, right-aligned within a span.
        """
        width = self.clean_tokens.shape[1]
        positions = torch.arange(width, device=self.lengths.device).expand(len(self), width)
        if self.aligned:
            return torch.where(self.mask, positions, ABSENT)
        index = torch.full_like(positions, ABSENT)
        for name, mask in self.spans.items():
            if name not in self.corrupt_spans:
                continue
            for row in range(len(self)):
                here, there = mask[row].nonzero().flatten(), self.corrupt_spans[name][row].nonzero().flatten()
                n = min(len(here), len(there))
                if n:
                    index[row, here[-n:]] = there[-n:]
        return index

    def require_corrupt(self) -> None:
        """Raises `InputError` for prompts without a corrupt one."""
        if self.alone:
            raise InputError(
                "this compares with a corrupt prompt, and there is one prompt alone. Ablate by 'zero' (or 'mean', with "
                "other prompts as reference), or give pairs."
            )

    def cells(self, positions: str) -> tuple[tuple[str, ...], Bool[Tensor, "cell batch pos"]]:
        """What an effect is resolved over: labels and, for each, the positions of every prompt that belong to it.

        ``"all"``: one cell of every position. ``"spans"``: one cell per span. ``"each"``: one cell per token position
        when all prompts have one length, per span otherwise.
        """
        if positions == "all":
            return ("all",), self.mask[None]
        if positions == "each" and self.one_length:
            width = int(self.lengths[0])
            one_hot = torch.eye(width, dtype=torch.bool, device=self.mask.device)
            return tuple(str(i) for i in range(width)), one_hot[:, None, :].expand(width, len(self), width)
        if positions not in ("each", "spans"):
            raise InputError(f"positions must be 'each', 'spans' or 'all'; got {positions!r}")
        if not self.spans:
            raise InputError(
                "positions can be compared across prompts of different length only by span, and this task has no "
                "spans. "
                "Pass positions='all', give spans, or use prompts of one length."
            )
        return tuple(self.spans), torch.stack(list(self.spans.values()))

    def fingerprint(self) -> str:
        """sha256 of tokens and answers: which data a result was computed from."""
        tensors = {
            n: getattr(self, n)
            for n in ("clean_tokens", "corrupt_tokens", "lengths", "corrupt_lengths", "correct", "incorrect")
        }
        if self.continuations is not None:
            tensors |= {f"continuations.{n}": getattr(self.continuations, n) for n in TENSORS}
        return hash_tensors(tensors)


def _pad(rows: list[list[int]], width: int, pad_token: int) -> Tokens:
    return torch.tensor([row + [pad_token] * (width - len(row)) for row in rows])


def _answers(answers: Any, n_rows: int, name: str) -> Int[Tensor, "batch n"]:
    rows = answers.tolist() if isinstance(answers, Tensor) else answers
    if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise InputError(f"{name} answers are token ids, one or a list per pair; got {answers!r:.80}")
    lists = [row if isinstance(row, list) else list(row) if isinstance(row, tuple) else [row] for row in rows]
    if len(lists) != n_rows:
        raise InputError(f"{name} answers must be one row per pair; got {len(lists)} rows for {n_rows} pairs")
    lists = [[token_id(token, f"{name} {i}", ABSENT) for token in row] for i, row in enumerate(lists)]
    width = max(len(row) for row in lists)
    return torch.tensor([row + [ABSENT] * (width - len(row)) for row in lists], dtype=torch.long)


def _check_answers(correct: Tensor, incorrect: Tensor, *, may_share: bool) -> None:
    for name, answers in (("correct", correct), ("incorrect", incorrect)):
        if answers.ndim != 2 or bool((answers == ABSENT).all(dim=-1).any()):
            raise InputError(
                f"every pair needs at least one {name} token id, as [batch] or [batch, n]; got {tuple(answers.shape)}"
            )
    both = (correct[:, :, None] == incorrect[:, None, :]) & (correct[:, :, None] != ABSENT)
    if bool(both.any()) and not may_share:
        row = int(both.any(dim=(1, 2)).nonzero()[0])
        raise InputError(
            f"correct and incorrect answers must differ; pair {row} has the token {int(correct[row][0])} in both"
        )


def _span_masks(spans: Sequence[Spans], lengths: Sequence[int], width: int) -> dict[str, PositionMask]:
    """Masks of the given spans and of the gaps between them; a gap is named after the span before it (``"S1+"``)."""
    if len(spans) != len(lengths):
        raise InputError(f"spans must be one mapping per prompt; got {len(spans)} for {len(lengths)} prompts")
    masks: dict[str, Tensor] = {}
    for row, (names, length) in enumerate(zip(spans, lengths, strict=True)):
        owner: list[str | None] = [None] * length
        for name, positions in names.items():
            for position in positions:
                if not 0 <= position < length:
                    raise InputError(
                        f"span {name!r} of prompt {row} names position {position}; the prompt has {length} tokens"
                    )
                if owner[position] is not None:
                    raise InputError(
                        f"spans must not overlap; position {position} of prompt {row} is in {owner[position]} and "
                        f"{name}"
                    )
                owner[position] = name
        if owner[-1] is None:
            owner[-1] = END
        previous = "start"
        for position, name in enumerate(owner):
            label = name if name is not None else (previous if previous == "start" else f"{previous}+")
            previous = name if name is not None else previous
            masks.setdefault(label, torch.zeros(len(lengths), width, dtype=torch.bool))[row, position] = True
    order = _span_order(masks)
    return {name: masks[name] for name in order}


def _span_order(masks: Mapping[str, Tensor]) -> list[str]:
    """Span names by the mean position at which they stand, so that axes read from left to right."""
    columns = {name: mask.nonzero()[:, 1].float().mean().item() for name, mask in masks.items()}
    return sorted(masks, key=lambda name: columns[name])
