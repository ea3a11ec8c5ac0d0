r"""What can be said about one node, as data that any caller may hand in: facts, token lists, excerpts, patterns,
pictures.

    GraphOptions(facts={"a4.h1": [Fact("Effect", "+1.4"), TokenList("Promotes", [(" Mary", 3.1), (" John", 2.2)])]})

Each says how sure it is: ``measured`` (runs or weights), ``estimated`` (a first-order score), ``interpretation``
(words). The same markup stands in the side panel of the graph and in the report's component cards; nothing in it needs
a script.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import InputError
from ...runs.attention import AttentionPatterns
from ...runs.components import ComponentRow, ComponentStudy
from ..panels.attention import MAX_TOKENS
from .text import escape, fixed, number, percent, plain, share_class, show_token, signed

CERTAINTIES = ("measured", "estimated", "interpretation")
INK = (0, 114, 178)  # Okabe-Ito blue
EXCERPT = 40
"""Tokens of an excerpt, around its peak."""


def _check_certainty(certainty: str) -> None:
    if certainty not in CERTAINTIES:
        raise InputError(f"what is said about a node is {', '.join(CERTAINTIES)}; got {certainty!r}")


@dataclass(frozen=True)
class Fact:
    """One line: a label, a text, and what must be known about it (an interval, a method)."""

    label: str
    text: str
    certainty: str = "measured"
    detail: str = ""

    def __post_init__(self) -> None:
        _check_certainty(self.certainty)

    def markup(self) -> str:
        """As an item of a list."""
        detail = f' <span class="mw-muted">({escape(self.detail)})</span>' if self.detail else ""
        return f"{certainty_badge(self.certainty)}<span>{escape(self.label)}: <b>{escape(self.text)}</b>{detail}</span>"


@dataclass(frozen=True)
class TokenList:
    """Tokens with a number each, such as what a lens reads (then `shares`: probabilities) or what a head promotes."""

    label: str
    rows: Sequence[tuple[str, float]]
    certainty: str = "measured"
    shares: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        _check_certainty(self.certainty)

    def markup(self) -> str:
        """One line of tokens, each with its number."""
        say = percent if self.shares else signed
        items = "".join(
            f'<li><bdi class="mw-token">{escape(show_token(token))}</bdi> <span '
            f'class="mw-muted">{escape(say(value))}</span></li>'
            for token, value in self.rows
        )
        return f'{certainty_badge(self.certainty)}<span>{escape(self.label)}:</span><ul class="mw-tokens">{items}</ul>'


@dataclass(frozen=True)
class Excerpts:
    """Prompts with a number per token, shown as shade; the darkest is the largest number of all of them."""

    label: str
    rows: Sequence[tuple[Sequence[str], Sequence[float]]]
    certainty: str = "measured"

    def __post_init__(self) -> None:
        _check_certainty(self.certainty)
        for tokens, values in self.rows:
            if len(tokens) != len(values) or not tokens:
                raise InputError(
                    f"an excerpt has one value per token and at least one; got {len(tokens)} tokens, {len(values)} "
                    "values"
                )

    def markup(self) -> str:
        """One line per prompt: the tokens around its strongest one."""
        scale = max((abs(value) for _, values in self.rows for value in values), default=0.0) or 1.0
        lines = "".join(f"<li>{_excerpt(tokens, values, scale)}</li>" for tokens, values in self.rows)
        return (
            f'{certainty_badge(self.certainty)}<span>{escape(self.label)}:</span><ol class="mw-excerpts">{lines}</ol>'
        )


def _excerpt(tokens: Sequence[str], values: Sequence[float], scale: float) -> str:
    peak = max(range(len(values)), key=lambda i: abs(values[i]))
    first = max(0, min(peak - EXCERPT // 2, len(tokens) - EXCERPT))
    parts = ["… "] if first else []
    for token, value in list(zip(tokens, values, strict=True))[first : first + EXCERPT]:
        shade = share_class(0.6 * min(1.0, abs(value) / scale) ** 1.5)
        lead = " " if token.startswith(" ") else ""
        shown = escape(show_token(token, 60))
        parts.append(f'{lead}<bdi class="mw-lit-token{shade}" title="{escape(number(value))}">{shown}</bdi>')
    return "".join(parts) + (" …" if first + EXCERPT < len(tokens) else "")


@dataclass(frozen=True)
class Pattern:
    """A matrix of numbers between 0 and 1 over tokens, such as an attention pattern (query down, key across)."""

    label: str
    tokens: Sequence[str]
    rows: Sequence[Sequence[float]]
    certainty: str = "measured"

    def __post_init__(self) -> None:
        _check_certainty(self.certainty)
        if len(self.rows) != len(self.tokens) or any(len(row) != len(self.tokens) for row in self.rows):
            raise InputError(
                f"a pattern has one row and one column per token ({len(self.tokens)}); got {len(self.rows)} rows"
            )

    def markup(self) -> str:
        """A small picture, one pixel per cell."""
        n = min(len(self.tokens), MAX_TOKENS)
        cut = "" if n == len(self.tokens) else f", the first {n} of {len(self.tokens)} tokens"
        picture = _png([[_shade(v, k > q) for k, v in enumerate(row[:n])] for q, row in enumerate(self.rows[:n])])
        last = self.rows[n - 1][:n]
        most = max(range(n), key=lambda k: last[k])
        said = f"{self.label}; the last token looks most at {show_token(self.tokens[most])} ({fixed(last[most], 2)})"
        return (
            f"{certainty_badge(self.certainty)}<span>{escape(self.label + cut)} (query down, key across)</span>"
            f'<img class="mw-pattern" width="150" height="150" alt="{escape(said)}" '
            f'src="data:image/png;base64,{picture}">'
        )


@dataclass(frozen=True)
class Picture:
    """Any figure that the caller has drawn: SVG text, shown as an image (so nothing in it can run)."""

    label: str
    svg: str
    alternative: str
    certainty: str = "measured"

    def __post_init__(self) -> None:
        _check_certainty(self.certainty)
        if "<svg" not in self.svg:
            raise InputError("a picture is SVG text; draw it with xmlns set, so that it can stand alone")

    def markup(self) -> str:
        """The figure as an image."""
        data = base64.b64encode(self.svg.encode("utf-8", "replace")).decode()
        return (
            f'{certainty_badge(self.certainty)}<span>{escape(self.label)}</span><img class="mw-drawn" '
            f'alt="{escape(self.alternative)}" src="data:image/svg+xml;base64,{data}">'
        )


Card = Fact | TokenList | Excerpts | Pattern | Picture


def cards_markup(cards: Sequence[Card]) -> str:
    """All that is known about a node as one list; empty when nothing is."""
    items = "".join(f'<li class="mw-fact">{card.markup()}</li>' for card in cards)
    return f'<ul class="mw-known">{items}</ul>' if items else ""


def component_cards(study: ComponentStudy) -> dict[str, list[Card]]:
    """What a component study says about each node."""
    return {row.node: _of_component(row) for row in study.rows}


def attention_cards(patterns: AttentionPatterns) -> dict[str, list[Card]]:
    """The attention pattern of each head."""
    label = "Attention on one prompt"
    return {
        head: [Pattern(label, patterns.tokens, matrix.tolist())]
        for head, matrix in zip(patterns.heads, patterns.patterns.float(), strict=True)
    }


def _of_component(row: ComponentRow) -> list[Card]:
    cards: list[Card] = []
    if row.looks:
        strongest = sorted(row.looks.items(), key=lambda item: -item[1])[:3]
        cards.append(Fact("QK, mean attention to", ", ".join(f"{name} {percent(v, 0)}" for name, v in strongest)))
    if row.copying is not None:
        cards.append(Fact("OV copying score (eigenvalues, −1 to 1)", signed(row.copying, 2)))
    if row.promoted:
        cards.append(TokenList("Directly raises, at the last token of the prompt shown (logits)", row.promoted))
        cards.append(TokenList("Directly lowers there", row.suppressed))
    if row.examples:
        rows = [(example.tokens, example.values) for example in row.examples]
        cards.append(Excerpts("Prompts that move it most (shade: size of what it writes there)", rows))
    return cards


def certainty_badge(certainty: str) -> str:
    """The sign of how sure something is; what was measured carries none."""
    if certainty == "measured":
        return ""
    return f'<span class="mw-badge {certainty}">{certainty}</span>'


def _shade(value: float, hidden: bool) -> tuple[int, int, int]:  # noqa: FBT001
    if hidden:
        return 236, 236, 236
    share = max(0.0, min(1.0, value)) ** 0.5
    red, green, blue = (round(255 + (channel - 255) * share) for channel in INK)
    return red, green, blue


def _png(rows: Sequence[Sequence[tuple[int, int, int]]]) -> str:
    """A PNG of these pixels as base64: three chunks, so that no imaging library is needed."""
    raw = b"".join(b"\0" + bytes(channel for pixel in row for channel in pixel) for row in rows)
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def plain_facts(cards: Sequence[Card]) -> list[list[str]]:
    """The facts alone as text: label, text, certainty; for the JSON export."""
    facts = [card for card in cards if isinstance(card, Fact)]
    return [[plain(c.label), plain(f"{c.text} ({c.detail})" if c.detail else c.text), c.certainty] for c in facts]
