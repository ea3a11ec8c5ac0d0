"""A task: pairs of prompts and the metric that says whether the behaviour is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..arguments import checked
from ..display import Readable
from ..errors import InputError, MetricError
from ..harmless import visible
from ..models.anatomy import device_of
from ..models.borrow import borrow, run_tail
from ..provenance import Provenance
from .answers import Asked, arrange, nested_ids
from .marks import check_marks
from .metrics import METRICS, Metric, MetricFunction, accuracy, find_metric, logit_difference
from .padding import TokenBatch, token_rows
from .pairs import PromptPairs, Spans

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Task(Readable):
    """Clean/corrupt pairs, a metric, and which pairs are for finding (`train`) and which for testing (`test`).

    `splits` holds ``"train"``, ``"size"`` or ``"test"`` per pair; without splits, each part is the whole task.
    `texts` holds the pairs' prompts as token strings, for people. When answers have several tokens a question can have
    several pairs, one after another (`tasks.continuations`): ``len`` counts pairs, slices take whole questions.

    >>> task = Task.from_tokens([[1, 2, 3]], [[1, 4, 3]], correct=[5], incorrect=[6])
    >>> len(task), task.metric.name
    (1, 'logit_difference')
    """

    name: str
    pairs: PromptPairs
    metric: Metric = logit_difference
    description: str = ""
    citation: str = ""
    splits: tuple[str, ...] = ()
    texts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    answer_texts: tuple[tuple[str, str], ...] = ()
    chat_template: str = ""

    def __post_init__(self) -> None:
        whole = self.pairs.continuations is not None
        if whole != (self.metric.takes == "whole") and (whole or self.metric.takes != "one"):
            carries = "carry whole answers" if whole else "carry one token per answer"
            fitting = [name for name, one in METRICS.items() if (one.takes == "whole") == whole]
            raise InputError(
                f"metric {self.metric.name!r} reads other tokens of an answer than the pairs of {self.name!r}, which "
                f"{carries}. Use one of {', '.join(fitting)}, or build the task from text with "
                f"metric={self.metric.name!r}."
            )

    @classmethod
    @checked
    def from_tokens(
        cls,
        clean: TokenBatch,
        corrupt: TokenBatch,
        correct: Tensor | Sequence[Any],
        incorrect: Tensor | Sequence[Any],
        *,
        metric: str | Metric | MetricFunction = "logit_difference",
        name: str = "custom",
        spans: Sequence[Spans] | None = None,
        corrupt_spans: Sequence[Spans] | None = None,
    ) -> Task:
        """A task from token ids: lists of any lengths, a tensor ``[batch, pos]``, or a tokenizer's ``input_ids`` with
        their ``attention_mask``, padded on either side (`mechwork.tasks.padding`). Answers are ``[batch]`` or
        ``[batch, n]``; see `PromptPairs.from_tokens`. Under metrics of answers of several tokens (``first_token``,
        ``first_difference``, ``sequence_...``) an answer is a list of ids, and each pair has a list of answers:
        ``correct=[[[5, 6]]]``.

        Raises `InputError` for unequal lengths without spans, identical pairs, missing or overlapping answers.
        """
        measure = find_metric(metric)
        if measure.takes == "one":
            pairs = PromptPairs.from_tokens(
                clean, corrupt, correct, incorrect, spans=spans, corrupt_spans=corrupt_spans
            )
            return cls(name, pairs, measure)
        asked = Asked(token_rows(clean), token_rows(corrupt), spans, corrupt_spans or spans)
        if len(asked.clean) != len(asked.corrupt):
            raise InputError(
                f"as many corrupt as clean prompts are needed; got {len(asked.corrupt)}, {len(asked.clean)}"
            )
        unequal = any(len(a) != len(b) for a, b in zip(asked.clean, asked.corrupt, strict=True))
        if unequal and (spans is None or corrupt_spans is None):
            PromptPairs.from_tokens(
                clean, corrupt, [0] * len(asked.clean), [1] * len(asked.clean)
            )  # says what is missing
        answers = nested_ids(correct, incorrect, len(asked.clean))
        asked, _, found = arrange(asked, answers, measure, [(str(c), str(i)) for c, i in answers])
        pairs = PromptPairs.from_tokens(
            asked.clean, asked.corrupt, found.correct, found.incorrect, spans=asked.spans,
            corrupt_spans=asked.corrupt_spans, continuations=found.continuations,
        )  # fmt: skip
        return cls(name, pairs, measure)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: slice | Sequence[int]) -> Task:
        index = list(range(len(self)))[self._whole(rows)] if isinstance(rows, slice) else list(rows)
        return replace(
            self,
            pairs=self.pairs[index],
            splits=tuple(self.splits[i] for i in index) if self.splits else (),
            texts=tuple(self.texts[i] for i in index) if self.texts else (),
            answer_texts=tuple(self.answer_texts[i] for i in index) if self.answer_texts else (),
        )

    def _whole(self, rows: slice) -> slice:
        """Both ends moved down to where a question begins, so that consecutive slices stay so."""
        n = self.pairs.n_per_question
        start, stop, step = rows.indices(len(self))
        if n == 1 or step != 1:
            return rows
        return slice(start // n * n, max(start // n + 1, stop // n) * n)

    @property
    def train(self) -> Task:
        """The pairs to find circuits on."""
        return self._split("train")

    @property
    def sizing(self) -> Task:
        """The pairs on which a circuit's size is chosen: train pairs set aside for it, else all of them."""
        return self._split("size" if "size" in self.splits else "train")

    @property
    def test(self) -> Task:
        """The held-out pairs (other names, other templates) to test circuits on."""
        return self._split("test")

    def _split(self, split: str) -> Task:
        if not self.splits:
            return self
        rows = [i for i, s in enumerate(self.splits) if s == split]
        if not rows:
            raise InputError(f"task {self.name!r} has no {split} pairs; its splits are {sorted(set(self.splits))}")
        return self[rows]

    def with_metric(self, metric: str | Metric | MetricFunction, model: TransformerBridge | None = None) -> Task:
        """The same pairs under another metric; `kl_divergence` runs `model` once on the clean prompts (1 forward)."""
        metric = find_metric(metric)
        pairs = self.pairs
        if metric.needs_reference:
            if model is None:
                raise InputError(
                    f"{metric.name} compares with the clean run: pass the model, task.with_metric({metric.name!r}, "
                    "model)"
                )
            with torch.no_grad():
                logits = run_tail(model, pairs.clean_tokens.to(device_of(model)), pairs.n_tail)
            pairs = replace(pairs, reference_logprobs=pairs.final(logits).log_softmax(dim=-1).cpu())
        return replace(self, pairs=pairs, metric=metric)

    def accuracy(self, model: TransformerBridge) -> float:
        """Share of pairs in which `model` puts a correct answer above every incorrect one, on the clean prompts.

        Of several correct answers the best one counts. Cost: 1 forward.
        """
        hits = 0
        check_marks(model, self.pairs.clean_tokens)
        with borrow(model), torch.no_grad():
            for pairs in self.pairs.batches(64):
                pairs = pairs.to(next(model.parameters()).device)
                logits = run_tail(model, pairs.clean_tokens, pairs.n_tail)
                hits += int(accuracy(logits, pairs).sum())
        return hits / len(self)

    def measure(self, logits: Tensor, pairs: PromptPairs | None = None) -> Tensor:
        """The metric per pair; raises `MetricError` when a value is not finite or the shape is not ``(batch,)``."""
        pairs = self.pairs if pairs is None else pairs
        values = self.metric(logits, pairs)
        if tuple(values.shape) != (len(pairs),):
            raise MetricError(
                f"metric {self.metric.name!r} must return one value per pair, shape ({len(pairs)},), not averaged; "
                f"got {tuple(values.shape)}"
            )
        if not bool(values.isfinite().all()):
            row = int((~values.isfinite()).nonzero()[0])
            raise MetricError(f"metric {self.metric.name!r} must be finite; it is {float(values[row])} for pair {row}")
        return values

    def describe(self, n: int = 5) -> str:
        """The first `n` pairs side by side as text, differing tokens in [brackets], with the answers and, where prompts
        of a pair differ in length, the spans by which they correspond.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"n counts pairs to show and is at least 1; got {n!r}")
        lines = [f"{self.name}: {len(self)} pairs, metric {self.metric.name}", self.description]
        for i in range(min(n, len(self))):
            clean, corrupt = self.prompt_texts(i)
            marked = [self._mark(clean, corrupt), self._mark(corrupt, clean)]
            if not self.pairs.aligned:
                one, there = self.pairs[[i]], (corrupt, clean)
                sides = (one.alignment(), one.corrupt_as_host().alignment())
                marked = [
                    self._mark_by(a, b, index[0].tolist())
                    for a, b, index in zip(there[::-1], there, sides, strict=True)
                ]
            correct, incorrect = self.answer_texts[i] if self.answer_texts else self._answer_ids(i)
            lines += [
                f"  clean    {marked[0]}",
                f"  corrupt  {marked[1]}",
                f"           -> {correct!r} rather than {incorrect!r}",
            ]
            if not self.pairs.aligned:
                lines.append(f"  aligned  {self._spans_of(i)}")
        return "\n".join(visible(line) for line in lines if line)

    def prompt(self, row: int, *, corrupt: bool = False) -> str:
        """The clean (or corrupt) prompt of pair `row` as text; token ids where no text is known."""
        texts = self.prompt_texts(range(len(self))[row])[int(corrupt)]
        return ("" if self.texts else " ").join(texts)

    def prompt_texts(self, row: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Token strings of the clean and the corrupt prompt of pair `row` (token ids where no text is known)."""
        if self.texts:
            return self.texts[row]
        pairs = self.pairs
        clean, corrupt = (pairs.prompt(row, corrupt=corrupt) for corrupt in (False, True))
        return tuple(f" {t}" for t in clean), tuple(f" {t}" for t in corrupt)

    def position_labels(self, positions: tuple[str, ...]) -> tuple[str, ...]:
        """Labels for a position axis: the token where all clean prompts share it, the position's number otherwise."""
        if not (self.texts and self.pairs.one_length and len(positions) == int(self.pairs.lengths[0])):
            return positions
        columns = zip(*(clean for clean, _ in self.texts), strict=True)
        return tuple(
            f"{i} {tokens[0].strip()}" if len(set(tokens)) == 1 else str(i) for i, tokens in enumerate(columns)
        )

    def provenance(self) -> Provenance:
        """Name, size, metric and sha256 of the data, and the text of a chat's template."""
        chat = {"chat_template": self.chat_template} if self.chat_template else {}
        facts = {"name": self.name, "n": len(self), "metric": self.metric.name, "sha256": self.pairs.fingerprint()}
        return {**facts, **chat}

    def _spans_of(self, row: int) -> str:
        """Names of a pair's spans with their tokens on both sides: ``start 5, differs 1|2, END 1``."""
        names = list(dict.fromkeys([*self.pairs.spans, *self.pairs.corrupt_spans]))
        said = []
        for name in names:
            n, m = (
                int(side[name][row].sum()) if name in side else 0
                for side in (self.pairs.spans, self.pairs.corrupt_spans)
            )
            if n or m:
                said.append(f"{name} {n}" if n == m else f"{name} {n}|{m}")
        return ", ".join(said)

    @staticmethod
    def _mark_by(tokens: Sequence[str], other: Sequence[str], index: Sequence[int]) -> str:
        same = [at >= 0 and other[at] == token for token, at in zip(tokens, index, strict=False)]
        return "".join(token if is_same else f"[{token}]" for token, is_same in zip(tokens, same, strict=True))

    def _answer_ids(self, row: int) -> tuple[Any, Any]:
        return self.pairs.correct[row].tolist(), self.pairs.incorrect[row].tolist()

    @staticmethod
    def _mark(tokens: Sequence[str], other: Sequence[str]) -> str:
        padded = list(other) + [""] * max(0, len(tokens) - len(other))
        return "".join(f"[{token}]" if token != twin else token for token, twin in zip(tokens, padded, strict=False))
