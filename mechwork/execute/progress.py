"""One kind of progress: a callback that is told how much is done, of how much, and of what; and the time that is left.

progress(done, total, what)      done rises to total; what names the work ("patching resid_pre")
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, what)`` while long work goes on. What it raises stops the work between two units.
"""


@dataclass
class Clock:
    """Seconds that are left, from how long what is done took. `now` is the clock that is read.

    Work that was done before the first call (kept from an earlier run) is not counted as speed.
    """

    now: Callable[[], float] = time.monotonic
    _first: tuple[float, int] | None = field(default=None, init=False)

    def left(self, done: int, total: int) -> float | None:
        """Seconds until `total`; None while nothing was seen to be done."""
        at = self.now()
        if self._first is None or done < self._first[1]:
            self._first = (at, done)
        begun, already = self._first
        if done >= total:
            return 0.0
        return (at - begun) * (total - done) / (done - already) if done > already else None


def say_time(seconds: float) -> str:
    """A duration in words of two numbers at most: ``"8 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
