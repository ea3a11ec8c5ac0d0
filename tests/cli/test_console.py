"""Streams, JSON and progress lines."""

from __future__ import annotations

import io
import json

import pytest

from mechwork.cli.console import Console, ProgressLine, dump_json


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def make(
    verbosity: int = 0, *, terminal: bool = False, as_json: bool = False
) -> tuple[Console, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
    return Console(json=as_json, verbosity=verbosity, out=out, err=err), out, err


def test_json_is_strict_and_complete() -> None:
    text = dump_json({"a": float("nan"), "b": (1, [float("inf")]), "c": {2: "é"}})
    assert json.loads(text) == {"a": None, "b": [1, [None]], "c": {"2": "é"}}
    assert "é" in text


def test_the_result_alone_is_on_stdout() -> None:
    console, out, err = make()
    with console.step("work"):
        console.say("something")
    console.result("done", {})
    assert out.getvalue() == "done\n"
    assert "something" in err.getvalue()


def test_quiet_says_nothing_but_errors() -> None:
    console, out, err = make(-1, terminal=True)
    with console.step("work") as progress:
        progress._last = -100
        progress(1, 2, "cells")
    console.detail("detail")
    assert err.getvalue() == ""
    console.error("broken")
    assert err.getvalue() == "mechwork: broken\n"
    assert out.getvalue() == ""


def test_plain_progress_is_a_line_now_and_then() -> None:
    console, _, err = make()
    progress = ProgressLine(console, "patching")
    progress(1, 10, "cells")
    assert err.getvalue() == ""
    progress._last -= ProgressLine.EVERY + 1
    progress(5, 10, "cells")
    progress(6, 10, "cells")
    assert err.getvalue() == "patching: cells 5 of 10\n"
    progress(10, 10, "cells")
    assert err.getvalue().splitlines()[1:] == ["patching: cells 10 of 10"]
    progress(10, 10, "cells")
    assert err.getvalue().count("10 of 10") == 1


def test_progress_that_was_never_told_has_no_end_either() -> None:
    console, _, err = make()
    ProgressLine(console, "patching")(10, 10, "cells")
    assert err.getvalue() == ""


def test_progress_on_a_terminal_redraws_one_line_and_takes_it_away() -> None:
    console, _, err = make(terminal=True)
    with console.step("patching") as progress:
        for done in (1, 2):
            progress._last -= 1
            progress(done, 10, "cells")
    shown = err.getvalue()
    assert shown.count("\r") >= 3
    assert shown.splitlines()[-1].startswith("patching: ")
    assert shown.rsplit("\r", 1)[-1].startswith("patching: 0.")


def test_a_step_that_fails_is_not_reported_as_done() -> None:
    console, _, err = make()
    with pytest.raises(ValueError, match="no"), console.step("work"):
        raise ValueError("no")
    assert err.getvalue() == ""
