"""Word lists of the shipped grammar, cut to one split and to the words a given tokenizer keeps whole.

Splits: ``"train"`` words occur in the task's training sentences, ``"validation"`` words choose checkpoints, ``"test"``
words are held out for the reported numbers. Held-out words do occur in other training text (filler, copying, lists), so
that their embeddings are trained; ``"all"`` is the union, and is what that text draws from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from ... import bundled
from ...errors import InputError

WORDS = frozenset(
    [
        "Austin",
        "Bill",
        "Christian",
        "Crystal",
        "Don",
        "Frank",
        "Grace",
        "Holly",
        "Iris",
        "Ivy",
        "Mark",
        "Max",
        "Ray",
        "Rose",
        "Will",
    ]
)
"""Names that are also common English words. Our own tokenizers, which learned the invented names too, keep them as
names.
"""

Split = Literal["train", "validation", "test", "all"]
SPLITS: tuple[str, ...] = ("train", "validation", "test")


def _one_token(text: str) -> int:
    return 1


class Lexicon:
    """Lists of words for one split, without those that a tokenizer breaks up.

    `count` is the tokenizer's number of tokens of a text, which is given as it stands in a sentence, with its leading
    space where it has one; without it every word stays.
    """

    def __init__(self, split: Split = "train", count: Callable[[str], int] | None = None) -> None:
        if split not in (*SPLITS, "all"):
            raise InputError(f"split is one of {(*SPLITS, 'all')}, got {split!r}")
        self.split: Split = split
        self._count = count or _one_token
        self._counted = count is not None

    def _cut(self, table: dict[str, list[Any]]) -> list[Any]:
        parts = SPLITS if self.split == "all" else (self.split,)
        return [word for part in parts for word in table[part]]

    def _whole(self, words: Sequence[str]) -> list[str]:
        return [word for word in words if self._count(f" {word}") == 1]

    @cached_property
    def female(self) -> list[str]:
        return self._whole(self._cut(bundled.load_json("tasks", "names.json")["female"]))

    @cached_property
    def male(self) -> list[str]:
        return self._whole(self._cut(bundled.load_json("tasks", "names.json")["male"]))

    @cached_property
    def names(self) -> list[str]:
        """Real and invented first names.

        A tokenizer that was not made for the invented ones keeps whole only those that are words ("Note", "Five"):
        where it breaks up most of them, none is used, nor any real name that is a common word.
        """
        real = self.female + self.male
        invented = self._cut(bundled.load_json("tasks", "names.json")["invented"])
        known = self._whole(invented)
        if 2 * len(known) < len(invented):
            return [name for name in real if name not in WORDS]
        return real + known

    @cached_property
    def places(self) -> list[str]:
        return self._whole(bundled.load_json("tasks", "ioi.json")["words"]["place"])

    @cached_property
    def objects(self) -> list[str]:
        return self._whole(bundled.load_json("tasks", "ioi.json")["words"]["object"])

    @cached_property
    def events(self) -> list[str]:
        """Nouns that last: war, journey, ..."""
        return self._whole(self._cut(bundled.load_json("tasks", "greater_than.json")["words"]["NOUN"]))

    @cached_property
    def centuries(self) -> list[str]:
        return self._whole(self._cut(bundled.load_json("tasks", "greater_than.json")["words"]["XX"]))

    def two_tokens(self, century: str, year: int) -> bool:
        """Whether a year such as 1732 is its century and its two digits, one token each."""
        if not self._counted:
            return True
        digits = f"{year:02d}"
        return self._count(f" {century}{digits}") == 2 and self._count(digits) == 1

    @cached_property
    def years(self) -> list[tuple[str, int]]:
        """Every (century, year) that is two tokens."""
        words = bundled.load_json("tasks", "greater_than.json")["words"]
        span = range(words["first_year"], words["last_year"] + 1)
        return [(century, year) for century in self.centuries for year in span if self.two_tokens(century, year)]

    @cached_property
    def adjectives(self) -> list[str]:
        """Adjectives for people."""
        return self._whole(bundled.load_json("tasks", "pronoun.json")["words"]["adjective"])

    @cached_property
    def roles(self) -> list[str]:
        return self._whole(bundled.load_json("tasks", "pronoun.json")["words"]["role"])

    @cached_property
    def nouns(self) -> list[tuple[str, str]]:
        """(singular, plural) pairs of which both are kept."""
        pairs = self._cut(bundled.load_json("tasks", "agreement.json")["words"]["NOUN"])
        return [(one, many) for one, many in pairs if len(self._whole((one, many))) == 2]

    @cached_property
    def thing_adjectives(self) -> list[str]:
        """Adjectives for things and animals."""
        return self._whole(bundled.load_json("tasks", "agreement.json")["words"]["adjective"])

    @cached_property
    def arguments(self) -> list[str]:
        """Names of function arguments."""
        return self._whole(self._cut(bundled.load_json("tasks", "docstring.json")["words"]["argument"]))

    @cached_property
    def descriptions(self) -> list[str]:
        return self._whole(bundled.load_json("tasks", "docstring.json")["words"]["description"])

    @cached_property
    def functions(self) -> list[str]:
        return self._whole(bundled.load_json("tasks", "docstring.json")["words"]["FUNC"])

    @cached_property
    def words(self) -> list[str]:
        """Words for induction lists."""
        return self._whole(self._cut(bundled.load_json("tasks", "induction.json")["words"]["word"]))

    @cached_property
    def countries(self) -> list[tuple[str, str]]:
        """(country, capital) pairs of which both are kept."""
        pairs = self._cut(bundled.load_json("tasks", "capitals.json")["words"]["COUNTRY"])
        return [(country, capital) for country, capital in pairs if len(self._whole((country, capital))) == 2]

    @cached_property
    def colors(self) -> list[str]:
        return self._whole(bundled.load_json("tasks", "colored_objects.json")["words"]["color"])

    @cached_property
    def surfaces(self) -> list[str]:
        """Where things lie: table, desk, ..."""
        return self._whole(bundled.load_json("tasks", "colored_objects.json")["words"]["surface"])

    @cached_property
    def things(self) -> list[str]:
        """Things that have a color."""
        return self._whole(self._cut(bundled.load_json("tasks", "colored_objects.json")["words"]["thing"]))

    def translated(self, relations: Sequence[str]) -> list[dict[str, str]]:
        """Words with their images under `relations`, all of them kept: ``{"word": "hot", "antonym": "cold", ...}``."""
        data = bundled.load_json("tasks", "in_context.json")
        rows: list[dict[str, str]] = [
            dict(zip(("word", *data["relations"]), row, strict=True)) for row in self._cut(data["words"]["WORD"])
        ]
        wanted = ("word", *relations)
        return [row for row in rows if len(self._whole([row[key] for key in wanted])) == len(wanted)]

    @cached_property
    def dictionary(self) -> list[dict[str, str]]:
        """`translated` for every relation."""
        return self.translated(bundled.load_json("tasks", "in_context.json")["relations"])

    def need(self, attribute: str, n: int, what: str) -> None:
        """Refuse a vocabulary with fewer than `n` usable words in the list called `attribute`.

        Raises:
            InputError: says how many were found and how many are needed.
        """
        found = len(getattr(self, attribute))
        if found < n:
            raise InputError(
                f"{what} needs at least {n} {attribute} that are one token each in the {self.split!r} split; this "
                f"tokenizer has {found}. Use another model, another split, or your own pairs (mechwork.tasks.from_file)"
            )
