"""Who may write where: the result goes to stdout, everything else to stderr.

The result is one readable text, or with ``--json`` exactly one JSON object. Progress is a line that redraws itself on a
terminal and a few plain lines elsewhere. Whatever libraries print while a verb runs is kept off stdout. Characters that
do not print are escaped: no prompt or name acts on the terminal.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

from ..discovery.plain import dump_json
from ..harmless import visible


@runtime_checkable
class Writable(Protocol):
    """What is written to: a file, a terminal, a string buffer."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...
    def isatty(self) -> bool: ...


@dataclass
class Console:
    """`verbosity` is -1 (errors only), 0, or 1 and more (what ``-v`` adds)."""

    json: bool = False
    verbosity: int = 0
    out: Writable = field(default_factory=lambda: sys.stdout)
    err: Writable = field(default_factory=lambda: sys.stderr)

    def result(self, text: str, data: dict[str, Any]) -> None:
        """The one thing that goes to stdout."""
        print(dump_json(data) if self.json else visible(text), file=self.out, flush=True)

    def say(self, text: str) -> None:
        """A line about what is going on."""
        if self.verbosity >= 0:
            print(visible(text), file=self.err, flush=True)

    def detail(self, text: str) -> None:
        """A line that only ``-v`` shows."""
        if self.verbosity > 0:
            self.say(text)

    def error(self, text: str) -> None:
        """What went wrong; shown also with ``-q``."""
        print(f"mechwork: {visible(text)}", file=self.err, flush=True)

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[ProgressLine]:
        """A named piece of work; yields its progress callback and, at the end, says how long it took."""
        progress = ProgressLine(self, what)
        begun = time.monotonic()
        if not progress.redraws:
            self.detail(f"{what} ...")
        try:
            yield progress
        finally:
            progress.clear()
        self.say(f"{what}: {time.monotonic() - begun:.1f} s")

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        """While a verb runs, what libraries print goes to stderr with ``-v`` and nowhere without."""
        with contextlib.redirect_stdout(cast(io.TextIOBase, self.err) if self.verbosity > 0 else io.StringIO()):
            yield


class ProgressLine:
    """A callback ``(done, total, what)``: a redrawn line on a terminal, otherwise a plain line every `EVERY` seconds.

    Whatever was begun to be counted is counted to its end.
    """

    EVERY = 5.0

    def __init__(self, console: Console, what: str) -> None:
        self._console, self._what = console, what
        self.redraws = console.verbosity >= 0 and console.err.isatty()
        self._last = time.monotonic()
        self._width = 0
        self._told = False

    def __call__(self, done: int, total: int, what: str = "") -> None:
        now = time.monotonic()
        early = now - self._last < (0.1 if self.redraws else self.EVERY)
        if self._console.verbosity < 0 or (early and not (self._told and done >= total)):
            return
        self._last, self._told = now, done < total
        line = visible(f"{self._what}: {what or 'step'} {done} of {total}")
        if not self.redraws:
            self._console.say(line)
            return
        self._width = max(self._width, len(line))
        print(f"\r{line:<{self._width}}", end="", file=self._console.err, flush=True)

    def clear(self) -> None:
        """Take the redrawn line away."""
        if self._width:
            print(f"\r{' ' * self._width}\r", end="", file=self._console.err, flush=True)
