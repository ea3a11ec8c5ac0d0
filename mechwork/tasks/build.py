"""From text to tasks: tokenisation, single-token checks, and pairs from a user's file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .metrics import Metric, MetricFunction, find_metric, logit_difference
from .pairs import PromptPairs, Spans
from .read import read_rows
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class TextPair:
    """One pair as text. Spans are character ranges ``(start, end)`` of the clean / corrupt prompt."""

    clean: str
    corrupt: str
    correct: tuple[str, ...]
    incorrect: tuple[str, ...]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    corrupt_spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    template: str = ""
    split: str = ""


def require_tokenizer(model: TransformerBridge) -> Any:
    """The model's tokenizer; raises `InputError` for a model without one."""
    if model.tokenizer is None:
        raise InputError(
            "this model has no tokenizer, so text cannot become tokens. Give it one, load_model(..., tokenizer=...), "
            "or use Task.from_tokens with token ids."
        )
    return model.tokenizer


def prepends_bos(model: TransformerBridge) -> bool:
    """Whether prompts of this model start with a beginning-of-sequence token."""
    return bool(model.cfg.default_prepend_bos) and require_tokenizer(model).bos_token_id is not None


def tokenise(model: TransformerBridge, text: str) -> list[int]:
    """Token ids of a prompt, with the model's own habit about the beginning-of-sequence token."""
    ids = require_tokenizer(model)(text, add_special_tokens=False)["input_ids"]
    return [model.tokenizer.bos_token_id, *ids] if prepends_bos(model) else list(ids)


def single_token(model: TransformerBridge, word: str) -> int | None:
    """The id of `word` (with its leading space, if it has one) when the tokenizer knows it as one token."""
    ids = require_tokenizer(model)(word, add_special_tokens=False)["input_ids"]
    return ids[0] if len(ids) == 1 else None


def keep_single_tokens(model: TransformerBridge, words: Iterable[str], needed: int, what: str) -> list[str]:
    """The words that are one token after a space; raises `InputError` when fewer than `needed` are."""
    words = list(words)
    kept = [word for word in words if single_token(model, f" {word}") is not None]
    if len(kept) < needed:
        raise InputError(
            f"this task needs at least {needed} {what} that are single tokens of the model's tokenizer; "
            f"{len(kept)} of the {len(words)} known ones are ({', '.join(kept[:8]) or 'none'}). Use another model, or "
            "your own pairs."
        )
    return kept


def build_task(
    model: TransformerBridge,
    name: str,
    pairs: Sequence[TextPair],
    *,
    metric: str | Metric | MetricFunction = logit_difference,
    description: str = "",
    citation: str = "",
) -> Task:
    """A task from text pairs: tokenised, answers checked to be single tokens, character spans turned into
    token spans.
    """
    if not pairs:
        raise InputError(f"task {name!r} needs at least one pair; got none")
    tokenizer = require_tokenizer(model)
    clean = [tokenise(model, pair.clean) for pair in pairs]
    corrupt = [tokenise(model, pair.corrupt) for pair in pairs]
    n_ctx = int(model.cfg.n_ctx)
    for row, ids in enumerate((*clean, *corrupt)):
        if len(ids) > n_ctx:
            raise InputError(
                f"prompts must fit the model's context of {n_ctx} tokens; that of pair {row % len(pairs)} has "
                f"{len(ids)}"
            )
    has_spans = any(pair.spans for pair in pairs)
    built = PromptPairs.from_tokens(
        clean,
        corrupt,
        [[answer_token(model, text, f" of pair {row}") for text in pair.correct] for row, pair in enumerate(pairs)],
        [[answer_token(model, text, f" of pair {row}") for text in pair.incorrect] for row, pair in enumerate(pairs)],
        spans=[_token_spans(model, pair.clean, pair.spans) for pair in pairs] if has_spans else None,
        corrupt_spans=[_token_spans(model, p.corrupt, p.corrupt_spans or p.spans) for p in pairs]
        if has_spans
        else None,
        templates=[pair.template for pair in pairs],
        pad_token=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
    )

    def strings(ids: list[int]) -> tuple[str, ...]:
        return tuple(tokenizer.decode([i]) for i in ids)

    return Task(
        name,
        built,
        find_metric(metric),
        description,
        citation,
        splits=tuple(pair.split for pair in pairs) if any(pair.split for pair in pairs) else (),
        texts=tuple((strings(a), strings(b)) for a, b in zip(clean, corrupt, strict=True)),
        answer_texts=tuple((", ".join(pair.correct), ", ".join(pair.incorrect)) for pair in pairs),
    )


def from_file(
    model: TransformerBridge,
    path: str | Path,
    *,
    metric: str | Metric | MetricFunction = "logit_difference",
    name: str | None = None,
) -> Task:
    """A task from a user's CSV or JSONL file with the columns ``clean, corrupt, correct, incorrect`` (and, if wanted,
    ``split``).

    Answers are the text that follows the prompt, leading space included where the tokenizer wants one; in JSONL they
    may be lists. Raises `NotFoundError` for a missing file and `InputError`, naming the row, for a file that is not
    UTF-8, a missing, doubled or surplus column, a split that is neither train nor test, an answer of several tokens,
    prompts of unequal length or an identical pair.
    """
    path = Path(path)
    rows = [row for _, row in read_rows(path)]
    pairs = [
        TextPair(
            clean=_cell(row, "clean", i),
            corrupt=_cell(row, "corrupt", i),
            correct=_as_tuple(row.get("correct"), "correct", i),
            incorrect=_as_tuple(row.get("incorrect"), "incorrect", i),
            split=str(row.get("split") or ""),
        )
        for i, row in enumerate(rows)
    ]
    return build_task(model, name or path.stem, pairs, metric=metric, description=f"pairs from {path.name}")


def _cell(row: Mapping[str, Any], column: str, index: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        raise InputError(f"pair {index} needs a text in column {column!r}; its columns are {', '.join(map(str, row))}")
    return value


def _as_tuple(value: Any, column: str, index: int) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if not values or not all(isinstance(v, str) and v for v in values):
        raise InputError(f"pair {index} needs text (or, in JSONL, a list of texts) in column {column!r}; got {value!r}")
    return values


def answer_token(model: TransformerBridge, text: str, where: str = "") -> int:
    """The id of an answer; raises `InputError`, with its pieces, for text that is not a single token."""
    token = single_token(model, text)
    if token is None:
        pieces = [model.tokenizer.decode([i]) for i in model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        raise InputError(
            f"an answer must be a single token; {text!r}{where} is {len(pieces)}: {pieces}. "
            "Use a shorter word, or check the leading space."
        )
    return token


def _token_spans(model: TransformerBridge, text: str, spans: Mapping[str, tuple[int, int]]) -> Spans:
    """Character ranges as token positions; a token belongs to a span when they overlap in anything but white space."""
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    shift = 1 if prepends_bos(model) else 0
    found: dict[str, list[int]] = {}
    for name, (start, end) in spans.items():
        found[name] = [
            i + shift for i, (a, b) in enumerate(encoded["offset_mapping"]) if text[max(a, start) : min(b, end)].strip()
        ]
    return found
