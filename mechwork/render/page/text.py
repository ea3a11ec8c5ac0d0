"""Text for pages: numbers as people read them, and hostile text made harmless.

Tokens come from other people's prompts and vocabularies. Every token passes `show_token` before it is drawn, and every
string passes `escape` on its way into markup.
"""

from __future__ import annotations

import html
import math
import re

MINUS = "\u2212"
ELLIPSIS = "…"

_VISIBLE = {"\n": "↵", "\r": "↵", "\t": "⇥", "\u2028": "↵", "\u2029": "↵"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Control characters, invisible spaces, bidirectional overrides, and lone surrogates (which UTF-8 cannot hold).

The joiners U+200C and U+200D stay: words of several scripts and many emoji are written with them."""


def escape(text: object) -> str:
    """`text` for use inside markup and inside quoted attributes."""
    return html.escape(plain(str(text)), quote=True)


def plain(text: str) -> str:
    """`text` without the characters that are invisible, reorder their surroundings, or cannot be written as UTF-8."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else "\ufffd", text)


def show_token(token: str, limit: int = 24) -> str:
    """A token as one short visible word: white space as signs, control characters replaced, long ones cut."""
    shown = "".join(_VISIBLE.get(character, character) for character in token)
    shown = _CONTROL.sub("\ufffd", shown).strip(" ") or "␣"
    return shorten(shown, limit)


def shorten(text: str, limit: int) -> str:
    """`text` of at most `limit` characters, the end replaced by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + ELLIPSIS


def number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, with a true minus sign."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return f"{MINUS if value < 0 else ''}∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits - 1}e}"
    else:
        decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        text = f"{value:.{max(decimals, 0)}f}"
        if float(text) == 0:
            text = "0"
    return text.replace("-", MINUS)


def fixed(value: float, decimals: int = 3) -> str:
    """`value` with a fixed number of decimals, for columns that are compared down the page."""
    text = f"{value:.{decimals}f}"
    return number(value) if not math.isfinite(value) else text.replace("-", "" if float(text) == 0 else MINUS)


def signed(value: float, digits: int = 3) -> str:
    """`number` with an explicit plus."""
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f}\u202f%".replace("-", MINUS)


def count(n: int) -> str:
    """A count with thousands separated."""
    return f"{n:,}"


def share_class(share: float) -> str:
    """The class that shades a token by `share` of the full colour, in steps of 5 % up to 70 %."""
    step = min(14, round(20 * share))
    return f" mw-s{step}" if step else ""


def plural(n: int, word: str) -> str:
    """``"1 edge"``, ``"1,108 edges"``."""
    return f"{count(n)} {word}" if n == 1 else f"{count(n)} {word}s"


def words(name: str) -> str:
    """A name from the glossary as words: ``logit_difference`` -> ``logit difference``."""
    return name.replace("_", " ")
