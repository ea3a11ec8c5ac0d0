"""What the tests notice: ``python -m tests.mutants [--path mechwork/patching ...] [--n 40] [--seed 0] [--keep FILE]``.

A mutant is one small change in the body of one function: a comparison, an operator, a bound, a sign, a constant, a
condition, a refusal that is left out. It is *killed* when a test that calls the function fails. Once per run each test
of the folders is run with a profiler, which tells what functions it calls and how long it takes; a mutant then runs the
tests that call its function, those of its own file and folder first, in a fork of a process that has everything loaded:
the function's code is exchanged in place, so nothing is imported again. Survivors are printed with their line, to be
killed or explained. With ``--keep FILE`` a run that was stopped goes on where it was, and ``--again survived`` tries
survivors anew, after tests were added or without ``--quick``.

Not mutated: module constants, default values, annotations, texts, messages, ``__repr__`` and ``__str__``.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import logging
import os
import pkgutil
import random
import signal
import sys
import time
import types
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.mutations import ROOT, Mutant, mutants_of

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

CORE = ("patching", "circuits", "relevance", "interventions", "ablation", "lenses", "tasks")
ALWAYS = ("tests/test_hard_task.py", "tests/test_bad_calls.py")
PLAIN = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib", "-W", "ignore"]
LONGEST, MOST_TESTS, MOST_SECONDS = 4.0, 60, 40.0
"""A mutant may take this many times what its tests took; so many tests are tried, of so many seconds together."""


# ---- running them ----------------------------------------------------------------------------------------------------


def exchange(mutant: Mutant) -> bool:
    """Put the mutant's code into the loaded function; False where that cannot be done."""
    file = str(ROOT / mutant.file)
    found = _code_of(compile(mutant.source, file, "exec"), mutant.function)
    if found is None:
        return False
    changed = False
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and thing.__code__.co_filename == file:
            same = thing.__code__.co_qualname == mutant.function
            if same and thing.__code__.co_freevars == found.co_freevars:
                thing.__code__ = found
                changed = True
    return changed


def _code_of(code: types.CodeType, qualname: str) -> types.CodeType | None:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            if constant.co_qualname == qualname:
                return constant
            inner = _code_of(constant, qualname)
            if inner is not None:
                return inner
    return None


class Watch:
    """A pytest plugin: which functions of mechwork each passing test calls, and how long it takes."""

    def __init__(self) -> None:
        self.calls: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}

    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> None:
        self.now: set[str] = set()
        self.begun = time.process_time()
        root = str(ROOT / "mechwork")

        def profile(frame: types.FrameType, event: str, arg: Any) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(root):
                self.now.add(f"{code.co_filename[len(str(ROOT)) + 1 :]}::{code.co_qualname.split('.<locals>')[0]}")

        sys.setprofile(profile)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "teardown":
            sys.setprofile(None)
            self.seconds[report.nodeid] = time.process_time() - self.begun
            self.calls.setdefault(report.nodeid, sorted(self.now))
        elif report.failed:
            self.calls[report.nodeid] = []


def in_child(work: Any, seconds: float | None = None) -> tuple[int, str]:
    """Exit code and words of `work` in a fork; a negative code is the signal that ended it."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if seconds is not None:
            signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        code = 9
        try:
            code, said = work()
            os.write(writer, said.encode())
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode()
    _, status = os.waitpid(child, 0)
    return (-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)), said


def pytest_run(arguments: list[str], *plugins: Any) -> int:
    import pytest

    return int(pytest.main([*PLAIN, *arguments], plugins=list(plugins)))


Rows = list[tuple[float, str]]


def coverage_map(tests: list[str], place: Path) -> dict[str, Rows]:
    """Function -> (seconds, test), the quickest first. Kept in a file, and used again while it is there."""
    if not place.is_file():

        def work() -> tuple[int, str]:
            watch = Watch()
            pytest_run([*tests], watch)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps({"calls": watch.calls, "seconds": watch.seconds}), encoding="utf-8")
            return 0, ""

        in_child(work)
    data = json.loads(place.read_text(encoding="utf-8"))
    found: dict[str, Rows] = defaultdict(list)
    for test, functions in data["calls"].items():
        for function in functions:
            found[function].append((data["seconds"].get(test, 9.0), test))
    return {name: sorted(rows) for name, rows in found.items()}


def chosen_tests(mutant: Mutant, rows: Rows) -> Rows:
    """Tests of the mutant's file, then of its folder, then the others; within the limits, at least one."""
    stem, folder = Path(mutant.file).stem, Path(mutant.file).parts[1]

    def order(row: tuple[float, str]) -> tuple[bool, bool, float]:
        file = row[1].partition("::")[0]
        return f"test_{stem}.py" not in file, not file.startswith((f"tests/{folder}/", *ALWAYS)), row[0]

    chosen: Rows = []
    for row in sorted(rows, key=order)[:MOST_TESTS]:
        if chosen and sum(seconds for seconds, _ in chosen) + row[0] > MOST_SECONDS:
            continue
        chosen.append(row)
    return chosen


def judge(mutant: Mutant, rows: Rows) -> str:
    """``killed``, ``survived``, ``not called`` by any test, or ``no code`` where it could not be put in."""
    if not rows:
        return "not called"
    chosen = chosen_tests(mutant, rows)
    limit = 10 + LONGEST * sum(seconds for seconds, _ in chosen)

    def work() -> tuple[int, str]:
        if not exchange(mutant):
            return 7, ""
        return pytest_run(["-x", *(test for _, test in chosen)]), ""

    code, _ = in_child(work, limit)
    return {0: "survived", 7: "no code"}.get(code, "killed")


def judged(place: Path | None) -> dict[str, str]:
    """Outcome of each mutant that a run before this one kept in `place`, by its words."""
    if place is None or not place.is_file():
        return {}
    rows = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    return {row["mutant"]: row["outcome"] for row in rows}


def load_everything() -> None:
    """Import all of mechwork, so that forks need not."""
    import mechwork

    for module in pkgutil.walk_packages(mechwork.__path__, "mechwork."):
        if "_data" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import pytest

    import tests.families

    assert tests.families
    assert pytest


def warm(tests: list[str], calls: dict[str, Rows]) -> None:
    """Import the tests and build the models that they share, so that forks need not."""
    quickest: dict[str, tuple[float, str]] = {}
    for seconds, test in sorted({row for rows in calls.values() for row in rows}):
        family = test.partition("[")[2].rstrip("]").partition("-")[0]
        for word in (family, "bundled" if "bundled" in test else ""):
            quickest.setdefault(word, (seconds, test))
    with Path(os.devnull).open("w", encoding="utf-8") as null, contextlib.redirect_stdout(null):
        pytest_run(["--collect-only", *tests])
        pytest_run([test for _, test in quickest.values()][:12])


def main(arguments: list[str] | None = None) -> int:
    """Print every survivor and the score per folder; exit status 1 below the floor."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--path", action="append", help="files or folders (default: the core folders)")
    parser.add_argument("--tests", action="append", help="files or folders of tests (default: those of the folders)")
    parser.add_argument("--n", type=int, default=40, help="mutants to try, spread over the files (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--floor", type=float, default=0.0, help="least share killed")
    parser.add_argument("--quick", action="store_true", help="only the tests that the quick gate runs")
    parser.add_argument("--map", type=Path, default=None, help="where to keep which test calls what")
    parser.add_argument(
        "--keep", type=Path, default=None, help="a .jsonl of outcomes: written as they come, read first"
    )
    parser.add_argument("--again", action="append", default=[], choices=["survived", "not called"], help="try anew")
    args = parser.parse_args(arguments)
    os.chdir(ROOT)
    os.environ["MECHWORK_FAMILIES"] = os.environ.get("MECHWORK_FAMILIES", "gpt2,llama")
    if args.quick:
        os.environ["MECHWORK_SHARD"] = "quick"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    paths = [ROOT / path for path in args.path or [f"mechwork/{name}" for name in CORE]]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    folders = {file.relative_to(ROOT / "mechwork").parts[0] for file in files}
    tests = args.tests or [*(f"tests/{name}" for name in sorted(folders) if (ROOT / "tests" / name).is_dir()), *ALWAYS]
    every = [mutant for file in files for mutant in mutants_of(file)]
    draw = random.Random(args.seed)
    chosen = every if not args.n or args.n >= len(every) else draw.sample(every, args.n)
    load_everything()
    kept = args.map or ROOT / "reports" / "mutants" / f"{'-'.join(sorted(folders))}.json"
    calls = coverage_map(tests, kept)
    print(f"{len(chosen)} of {len(every)} mutants, tests: {' '.join(tests)}", flush=True)
    warm(tests, calls)
    score: dict[str, Counter[str]] = defaultdict(Counter)
    known = judged(args.keep)
    for mutant in chosen:
        outcome = known.get(str(mutant), "")
        if not outcome or outcome in args.again:
            outcome = judge(mutant, calls.get(f"{mutant.file}::{mutant.function}", []))
            if args.keep is not None:
                with args.keep.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"mutant": str(mutant), "outcome": outcome}) + "\n")
        score[Path(mutant.file).parts[1]][outcome] += 1
        if outcome != "killed":
            print(f"  {outcome:<10} {mutant}", flush=True)
    print(f"{'folder':<16}{'killed':>8}{'survived':>10}{'not called':>12}{'no code':>9}{'score':>8}")
    killed = tried = 0
    for folder, row in sorted(score.items()):
        n = row["killed"] + row["survived"] + row["not called"]
        killed, tried = killed + row["killed"], tried + n
        cells = f"{row['killed']:>8}{row['survived']:>10}{row['not called']:>12}{row['no code']:>9}"
        print(f"{folder:<16}{cells}{row['killed'] / max(n, 1):>8.0%}")
    print(f"{killed} of {tried} killed ({killed / max(tried, 1):.0%}); seed {args.seed}")
    return int(killed < args.floor * tried)


if __name__ == "__main__":
    sys.exit(main())
