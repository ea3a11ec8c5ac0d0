"""The same statements in several languages: praise and blame, as examples of a probe and as pairs between languages.

``data/tasks/sentiment.json`` holds 320 statements ("The book was wonderful.") in English, French, Spanish and German,
number by number the same. They are short and plain, and some words look alike in several languages ("terrible"): a
probe that carries over may have read letters. No bundled model knows these words; SmolLM2-135M knows some.

    english, *others = parallel_prompts(model).items()
    study_shift(model, english[1], dict(others), site, rate=0.1, parallel=True)
    study_spectrum(model, Examples.of_task(language_task(model, "french")))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import bundled
from ..arguments import checked
from ..errors import InputError, UnknownNameError
from ..tasks.encode import single_token, tokenise
from ..tasks.task import Task
from .examples import Examples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LANGUAGES = ("english", "french", "spanish", "german")


def statements(language: str) -> list[tuple[str, bool, int]]:
    """(text, whether it praises, number of its word) of every statement; raises `UnknownNameError` for a language."""
    if language not in LANGUAGES:
        raise UnknownNameError("language", language, LANGUAGES)
    table = bundled.load_json("tasks", "sentiment.json")["languages"][language]
    found = []
    for side in (True, False):
        words = table["praise" if side else "blame"]
        for number, word in enumerate(words):
            for subject in table["subjects"]:
                for frame in table["frames"]:
                    text = frame.replace("{SUBJECT}", subject).replace("{WORD}", word)
                    found.append((text[0].upper() + text[1:], side, number + (0 if side else len(words))))
    return found


@checked
def parallel_prompts(
    model: TransformerBridge, languages: Sequence[str] = LANGUAGES, *, everywhere: bool = False
) -> dict[str, Examples]:
    """Language -> its statements, praise the positive class, read at the last token or `everywhere`.

    All statements with one word, in every language, are a group. Raises `InputError` for no languages or a model
    without a tokenizer, `UnknownNameError` for an unknown language.
    """
    if not languages:
        raise InputError(f"name one language or more of {', '.join(LANGUAGES)}; got none")
    found = {}
    for language in languages:
        rows = statements(language)
        prompts = [tokenise(model, text) for text, _, _ in rows]
        found[language] = Examples.of_tokens(
            prompts, [side for _, side, _ in rows], [group for _, _, group in rows], everywhere=everywhere
        )
    return found


@checked
def language_task(
    model: TransformerBridge,
    language: str,
    other: str = "english",
    n: int = 64,
    *,
    openings: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Task:
    """`n` pairs of one statement in two languages; right answers begin a sentence in `language`, wrong ones in `other`.

    Metric: mean logit of words that begin sentences (" Le", " Il", ...) minus that of the other language's, after the
    statement. `openings`: these words, of both languages (default: five of each). Raises `InputError` for the same
    language twice, or where no such word is one token.
    """
    if language == other or not 2 <= n <= len(statements(language)):
        raise InputError(f"two languages and 2 to {len(statements(language))} pairs; got {language}, {other}, {n=}")
    table = bundled.load_json("tasks", "sentiment.json")["languages"]
    words = openings or (table[language]["openings"], table[other]["openings"])
    known = [dict.fromkeys(single_token(model, f" {word.strip()}") for word in side) for side in words]
    answers = [[i for i in mine if i is not None and i not in theirs] for mine, theirs in (known, known[::-1])]
    for name, found, side in zip((language, other), answers, words, strict=True):
        if not found:
            raise InputError(
                f"words that begin a sentence in {name}, and in the other language none, are one token of this model; "
                f"of {', '.join(side)} none is. Give others: openings=((...), (...))"
            )
    step = len(statements(language)) / n
    picked = [int(i * step) for i in range(n)]
    sides = [[tokenise(model, statements(name)[i][0]) for i in picked] for name in (language, other)]
    spans = [[{"STATEMENT": range(len(row) - 1), "END": [len(row) - 1]} for row in side] for side in sides]
    return Task.from_tokens(
        sides[0], sides[1], [answers[0]] * n, [answers[1]] * n, name=f"{language} rather than {other}",
        spans=spans[0], corrupt_spans=spans[1],
    )  # fmt: skip
