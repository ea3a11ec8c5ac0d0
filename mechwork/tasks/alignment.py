"""Which tokens of two prompts of different length correspond: spans found from the tokens.

The common beginning, the longest common runs, and what lies between them, in both prompts in the same order:

    clean    When Mary went home, Tom gave   a drink to
    corrupt  When Mary went home, she gladly gave   a drink to
    spans    start                differs    same   ... END

``start`` is the common beginning, ``END`` the last token of each, ``same``, ``same2`` ... the common runs between (the
longest first found, Ratcliff and Obershelp's way), ``differs``, ``differs2`` ... what lies between those. A span can be
empty on one side: its tokens then correspond to nothing. Within ``differs`` tokens correspond from the right, as in
every span (`PromptPairs.alignment`). Prompts of one length correspond position by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from ..errors import InputError
from .pairs import END

Span = dict[str, list[int]]


def align(
    clean: Sequence[int], corrupt: Sequence[int], where: str = "a pair", *, n_begun: int = 0
) -> tuple[Span, Span]:
    """Spans of both prompts, by token ids. Raises `InputError` for prompts of different length that have nothing in
    common after the first `n_begun` tokens (which every prompt of the model has).

    >>> align([1, 2, 3, 9], [1, 5, 6, 3, 9])[1]
    {'start': [0], 'differs': [1, 2], 'same': [3], 'END': [4]}
    """
    spans: tuple[Span, Span] = ({}, {})
    counts = {"same": 0, "differs": 0}
    for equal, a, b in _runs(clean[:-1], corrupt[:-1]):
        name = "start" if equal and not spans[0] and a.start == b.start == 0 else "same" if equal else "differs"
        if name in counts:
            counts[name] += 1
            name = name if counts[name] == 1 else f"{name}{counts[name]}"
        for side, run in zip(spans, (a, b), strict=True):
            side[name] = list(run)
    common = [p for name in spans[0] if name.startswith(("start", "same")) for p in spans[0][name]]
    if len(clean) != len(corrupt) and len(common) <= n_begun:
        raise InputError(
            f"{where} has prompts of {len(clean)} and {len(corrupt)} tokens without one token in common before the "
            "last, so nothing says which correspond. Reword one of them, or name spans for both."
        )
    for side, prompt in zip(spans, (clean, corrupt), strict=True):
        side[END] = [len(prompt) - 1]
    return spans


def _runs(clean: Sequence[int], corrupt: Sequence[int]) -> list[tuple[bool, range, range]]:
    """Consecutive runs that are equal in both or differ."""
    if len(clean) == len(corrupt):
        found: list[tuple[bool, range, range]] = []
        for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)):
            if found and found[-1][0] == (a == b):
                found[-1] = (a == b, run := range(found[-1][1].start, i + 1), run)
            else:
                found.append((a == b, range(i, i + 1), range(i, i + 1)))
        return found
    blocks = SequenceMatcher(None, list(clean), list(corrupt), autojunk=False).get_opcodes()
    return [(tag == "equal", range(a, b), range(c, d)) for tag, a, b, c, d in blocks]
