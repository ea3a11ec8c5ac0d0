"""From text to tasks: tokenisation, single-token checks, and pairs from a user's file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..arguments import checked
from ..errors import InputError
from ..models.anatomy import device_of
from ..models.borrow import run_tail
from .alignment import align
from .answers import Asked, answer_ids, arrange
from .chat import chat_template, read_messages, render
from .encode import answer_token, prepends_bos, require_tokenizer, single_token, tokenise
from .metrics import Metric, MetricFunction, find_metric, logit_difference
from .pairs import PromptPairs, Spans
from .read import read_rows
from .rows import TextPair, draw_split, text_pairs
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


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
    """A task from text pairs: tokenised, character spans turned into token spans (found, where prompts of a pair differ
    in length and none are named: `mechwork.tasks.alignment`), of each answer the tokens that the metric reads (see
    `mechwork.tasks.answers`).
    """
    if not pairs:
        raise InputError(f"task {name!r} needs at least one pair; got none")
    tokenizer = require_tokenizer(model)
    clean = [tokenise(model, pair.clean, complete=pair.complete) for pair in pairs]
    corrupt = [tokenise(model, pair.corrupt, complete=pair.complete) for pair in pairs]
    n_ctx = int(model.cfg.n_ctx)
    for row, ids in enumerate((*clean, *corrupt)):
        if len(ids) > n_ctx:
            raise InputError(
                f"prompts must fit the model's context of {n_ctx} tokens; that of pair {row % len(pairs)} has "
                f"{len(ids)}"
            )
    measure = find_metric(metric)
    has_spans = any(pair.spans for pair in pairs)
    for row, (pair, a, b) in enumerate(zip(pairs, clean, corrupt, strict=True)):
        if has_spans and not pair.spans and len(a) != len(b):
            raise InputError(
                f"pair {row} has prompts of {len(a)} and {len(b)} tokens and names no span, while others do, so "
                "nothing says which tokens correspond. Name spans in every pair of different length, or in none: then "
                "they are found."
            )
    spans = [_token_spans(model, p.clean, p.spans, p) for p in pairs] if has_spans else None
    corrupt_spans = (
        [_token_spans(model, p.corrupt, p.corrupt_spans or p.spans, p) for p in pairs] if has_spans else None
    )
    if not has_spans and any(len(a) != len(b) for a, b in zip(clean, corrupt, strict=True)):
        n_begun = int(prepends_bos(model))
        found = [
            align(a, b, f"pair {row}", n_begun=n_begun) for row, (a, b) in enumerate(zip(clean, corrupt, strict=True))
        ]
        spans, corrupt_spans = [a for a, _ in found], [b for _, b in found]
    asked = Asked(clean, corrupt, spans, corrupt_spans)
    texts = [(pair.correct, pair.incorrect) for pair in pairs]
    ids = [answer_ids(model, one, measure, row) for row, one in enumerate(texts)]
    asked, origin, answers = arrange(asked, ids, measure, texts)
    for row, ids in enumerate((*asked.clean, *asked.corrupt)):
        if len(ids) > n_ctx:
            raise InputError(
                f"prompts with their answers must fit the model's context of {n_ctx} tokens; that of pair "
                f"{origin[row % len(origin)]} has {len(ids)}"
            )
    built = PromptPairs.from_tokens(
        asked.clean,
        asked.corrupt,
        answers.correct,
        answers.incorrect,
        spans=asked.spans,
        corrupt_spans=asked.corrupt_spans,
        templates=[pairs[i].template for i in origin],
        pad_token=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        continuations=answers.continuations,
    )

    def strings(ids: list[int]) -> tuple[str, ...]:
        return tuple(tokenizer.decode([i]) for i in ids)

    return Task(
        name,
        built,
        measure,
        description,
        citation,
        splits=tuple(pairs[i].split for i in origin) if any(pair.split for pair in pairs) else (),
        texts=tuple((strings(a), strings(b)) for a, b in zip(asked.clean, asked.corrupt, strict=True)),
        answer_texts=tuple((", ".join(pairs[i].correct), ", ".join(pairs[i].incorrect)) for i in origin),
    )


@checked
def from_file(
    model: TransformerBridge,
    path: str | Path,
    *,
    metric: str | Metric | MetricFunction = "logit_difference",
    name: str | None = None,
    chat: bool = False,
) -> Task:
    """A task from a user's CSV or JSONL file with the columns ``clean, corrupt, correct, incorrect`` and, if wanted,
    ``split``, ``spans`` and others (see `mechwork.tasks.rows`). Without ``split`` one is drawn, and the task's
    description says so.

    Answers are the text that follows the prompt, leading space included where the tokenizer wants one. With `chat`
    prompts go through the tokenizer's chat template (see `mechwork.tasks.chat`). Raises `NotFoundError` for a missing
    file and `InputError`, naming the row, for a file that is not UTF-8, a missing, doubled or surplus column, a split
    that is neither train nor test, answers of several tokens under a metric of one
    (``metric="sequence_difference"`` and others read them whole), spans that are not in the prompt, spans in some pairs
    of different length and not in others, prompts that cannot be aligned, an identical pair. Tokens that the spans
    leave out are spans of their own, and the description says which.
    """
    path = Path(path)
    rows = [row for _, row in read_rows(path)]
    return _from_rows(model, rows, name or path.stem, metric, f"pairs from {path.name}", chat=chat)


@checked
def from_chat(
    model: TransformerBridge,
    pairs: Sequence[Mapping[str, Any]],
    *,
    system: str | None = None,
    metric: str | Metric | MetricFunction = "logit_difference",
    name: str = "chat",
) -> Task:
    """A task of a model that is used through its chat template; `pairs` are rows as in a file (`mechwork.tasks.rows`):
    ``clean`` and ``corrupt`` a user's turn or a list of messages, ``correct``, ``incorrect``, and if wanted
    ``assistant`` (the beginning of the answer), ``split``, ``spans``. `system`: the system turn of pairs without one.

    Raises `InputError` for a tokenizer without a template, roles out of order, and text that the template changes.

        pair = {"clean": "Capital of Peru?", "corrupt": "Capital of Cuba?", "correct": "Lima", "incorrect": "Havana"}
        task = mw.tasks.from_chat(model, [pair], metric="sequence_difference")
    """
    return _from_rows(model, list(pairs), name, metric, "a chat", chat=True, system=system)


@checked
def from_text(
    model: TransformerBridge,
    clean: str,
    corrupt: str,
    correct: str | Sequence[str],
    incorrect: str | Sequence[str],
    *,
    metric: str | Metric | MetricFunction = "logit_difference",
    name: str = "one pair",
) -> Task:
    """A task of one pair of prompts. Answers are texts that follow the clean prompt, leading space included.

    Raises `InputError` for equal prompts, prompts too long for the model or of different length with nothing in common,
    answers of several tokens under a metric of one. Cost: nothing.

    >>> task = from_text(model, "Mary and John went. John saw", "Mary and John went. Mary saw", " Mary", " John")
    >>> len(task)
    1
    """
    row = {"clean": clean, "corrupt": corrupt, "correct": correct, "incorrect": incorrect}
    return build_task(model, name, text_pairs([row]), metric=metric, description="one pair of prompts")


@checked
def from_prompt(
    model: TransformerBridge,
    prompt: str,
    answer: str | None = None,
    rival: str | None = None,
    *,
    chat: bool = False,
) -> Task:
    """A task of one prompt without a corrupt one, for methods that need none (zero and mean ablation, lenses, edges
    scored under those ablations). Metric: logit of `answer` minus that of `rival`, single tokens; default: the most
    probable next token, and the most probable other one (1 forward). With `chat` the prompt is a user's turn.

    >>> task = mw.tasks.from_prompt(model, "When Mary and John went to the store, John gave a drink to")
    >>> task.answer_texts[0][0]
    ' Mary'
    """
    if not isinstance(prompt, str) or not prompt:
        raise InputError(f"a prompt is a text of at least one token; got {prompt!r:.60}")
    template = chat_template(model) if chat else ""
    if chat:
        prompt = render(model, read_messages(prompt, "the prompt"), (), "the prompt").text
    ids = tokenise(model, prompt, complete=chat)
    if len(ids) > int(model.cfg.n_ctx):
        raise InputError(f"a prompt must fit the model's context of {model.cfg.n_ctx} tokens; it has {len(ids)}")
    chosen = [answer_token(model, text) for text in (answer, rival) if text is not None]
    if answer is None or rival is None:
        with torch.no_grad():
            best = run_tail(model, torch.tensor([ids], device=device_of(model)), 1)[0, -1].topk(3).indices.tolist()
        best = [token for token in best if token not in chosen]
        chosen = [best.pop(0) if text is None else answer_token(model, text) for text in (answer, rival)]
    strings = tuple(model.tokenizer.decode([i]) for i in ids)
    words = [str(model.tokenizer.decode([i])) for i in chosen]
    return Task(
        "one prompt",
        PromptPairs.from_tokens([ids], [ids], chosen[:1], chosen[1:], alone=True),
        description="one prompt, no corrupt one",
        texts=((strings, strings),),
        answer_texts=((words[0], words[1]),),
        chat_template=template,
    )


def _from_rows(
    model: TransformerBridge,
    rows: Sequence[Mapping[str, Any]],
    name: str,
    metric: str | Metric | MetricFunction,
    description: str,
    *,
    chat: bool,
    system: str | None = None,
) -> Task:
    require_tokenizer(model)
    template = chat_template(model) if chat else ""
    pairs, said = draw_split(text_pairs(rows, model if chat else None, system=system), name)
    description = f"{description}; {said}" if said else description
    task = build_task(model, name, pairs, metric=metric, description=description)
    if said := _left_out(rows, task):
        task = replace(task, description=f"{task.description}; {said}")
    return replace(task, chat_template=template)


def _left_out(rows: Sequence[Mapping[str, Any]], task: Task) -> str:
    """Where rows name spans, a sentence on the tokens that no span names; nothing where there are none."""
    if not any(row.get("spans") for row in rows):
        return ""
    spans = {**task.pairs.spans, **task.pairs.corrupt_spans}
    others = [name for name in spans if name == "start" or name.endswith("+")]
    return f"tokens that no span names are spans too: {', '.join(others)}" if others else ""


def _token_spans(model: TransformerBridge, text: str, spans: Mapping[str, tuple[int, int]], pair: TextPair) -> Spans:
    """Character ranges as token positions; a token belongs to a span when they overlap in anything but white space. In
    a chat the last token belongs to none: it is `END`.
    """
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    shift = 1 if prepends_bos(model) and not pair.complete else 0
    offsets = encoded["offset_mapping"]
    found: dict[str, list[int]] = {}
    for name, (start, end) in spans.items():
        found[name] = [
            i + shift
            for i, (a, b) in enumerate(offsets[:-1] if pair.complete else offsets)
            if text[max(a, start) : min(b, end)].strip()
        ]
        if pair.complete and found[name]:  # white space inside a turn is the turn's
            found[name] = list(range(found[name][0], found[name][-1] + 1))
    return found
