"""Wrong arguments to the command line, by its parsers: an exit code of the table and one line, never a traceback."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import torch

from mechwork.cli.entry import VERBS, build_parser, main
from tests.faults.core import Tally

BAD = (
    "", " ", "x", "-1", "0", "1.5", "nan", "inf", "1e999", "9" * 40, "\x1b[31mred", "../../../etc/passwd", "/dev/null",
    "/", ".", "a" * 300, "ünï", "=1+1", "a0.h1", "a9.h9", "--", "null", "'; rm -rf /", "%s%n", "\udcff", "owner/name",
)  # fmt: skip
HEAVY = ("train", "truth", "agreement", "leaderboard", "discover", "reuse", "steer", "diverge", "features", "circuits")
LONGEST = 4.0
"""CPU seconds after which a call that was not refused is interrupted."""
CODES = {0, 1, 2, 3, 4, 130}


def arguments(verb: str, tally: Tally) -> list[str]:
    """Options of the verb with values that do not fit, one to three of them; positional arguments likewise."""
    draw = tally.draw
    parsers = next(a for a in build_parser(verb)._actions if isinstance(a, argparse._SubParsersAction))
    parser: argparse.ArgumentParser = parsers.choices[verb]
    said: list[str] = [verb]
    actions = [a for a in parser._actions if a.dest != "help"]
    for action in actions:
        if not action.option_strings and action.nargs != 0:
            choices = [str(c) for c in action.choices] if action.choices and draw.random() < 0.5 else []
            said += [
                draw.choice(choices or BAD) for _ in range(1 if action.nargs in (None, "?") else draw.randrange(3))
            ]
    options = [a for a in actions if a.option_strings]
    for action in draw.sample(options, min(len(options), draw.randrange(1, 4))):
        said.append(draw.choice(action.option_strings))
        if action.nargs != 0:
            said.append(draw.choice(BAD))
    return said


def one(tally: Tally, said: list[str]) -> None:
    """One call in this process."""
    out, err = io.StringIO(), io.StringIO()
    threads, offline = torch.get_num_threads(), os.environ.get("HF_HUB_OFFLINE")
    what = " ".join(map(repr, said))[:160]
    before = signal.signal(signal.SIGVTALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)  # then it runs, which is an answer too
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: Any = main(said)
    except BaseException as error:  # noqa: BLE001 - counted
        tally.check(False, f"{what}: {type(error).__name__}: {str(error)[:140]}")
        return
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        torch.set_num_threads(threads)
        os.environ["HF_HUB_OFFLINE"] = offline or "1"
    text = out.getvalue() + err.getvalue()
    wrong = ""
    if code not in CODES:
        wrong = f"exit code {code}"
    elif "unexpected " in err.getvalue():
        wrong = err.getvalue().strip()[-200:]
    elif "Traceback" in text and "-v" not in " ".join(said):
        wrong = "a traceback"
    elif "\x1b[31m" in text:
        wrong = "a terminal escape of the argument is printed"
    elif code and not err.getvalue().strip():
        wrong = "it fails without a word"
    tally.check(not wrong, f"{what}: {wrong}")


def run(tally: Tally) -> None:
    """Verbs that compute for long get only arguments that must be refused before: those with a wrong task or model."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        try:
            for _ in range(tally.times(600)):
                draw = tally.draw
                verb = draw.choice([verb for verb in VERBS if verb != "serve"])  # which runs until it is interrupted
                said = arguments(verb, tally)
                if verb in HEAVY and not any(bad in said[1:] for bad in BAD):
                    said += ["--model", "no such model"]
                if verb in HEAVY:
                    said += ["--device", "nowhere"] if "--device" not in said and verb != "train" else []
                one(tally, said)
        finally:
            os.chdir(before)
