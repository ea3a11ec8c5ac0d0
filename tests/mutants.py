"""What the tests notice: ``python -m tests.mutants [--path mechwork/patching ...] [--n 40] [--seed 0] [--keep FILE]``.

A mutant is one small change in the body of one function: a comparison, an operator, a bound, a sign, a constant, a
condition, a refusal that is left out. It is *killed* when a test that calls the function fails. Each test of the
folders is run once with a profiler, which tells what functions it calls and how long it takes (kept in the file of
``--map``); a mutant then runs the tests that call its function, those of its own file and folder first, in a fork of a
process that has everything loaded and collected: the function's code is exchanged in place, so nothing is imported
again. Survivors are printed with their line, to be killed or explained: `tests/survivors.txt` names those that change
nothing that can be seen (``equivalent``, not counted) and those that are let live (``left``, counted), each with the
reason. With ``--keep FILE`` a run that was stopped goes on where it was, and ``--again survived`` tries survivors anew,
after tests were added or without ``--quick``; ``--seconds SECONDS`` gives each mutant tests of so many seconds. The
score is printed per folder; the exit status is 1 when less than ``--floor`` per cent of all are killed.

Not mutated: module constants, default values, annotations, texts, messages, ``__repr__`` and ``__str__``.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import logging
import os
import pkgutil
import signal
import sys
import time
import types
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.mutations import ROOT, Mutant, drawn, mutants_of

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

CORE = ("patching", "circuits", "relevance", "interventions", "ablation", "lenses", "tasks")
ALWAYS = ("tests/test_numbers.py", "tests/test_hard_task.py", "tests/test_bad_calls.py")
PLAIN = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib", "-W", "ignore"]
LONGEST, MOST_TESTS = 4.0, 60
"""A mutant may take this many times what its tests took; so many tests are tried."""
EXPLAINED = ROOT / "tests" / "survivors.txt"
MOST_OF_ONE = 60.0
"""Seconds of CPU after which a test is too dear to be tried on mutants."""
SHARED = ("tiny_gpt2", "tiny_gpt2_64", "family_model", "family_model64", "bundled_model")
"""Fixtures whose models are built once."""
NO_CODE = 7
"""Exit code of a fork where a mutant cannot be put in."""


# ---- running them ----------------------------------------------------------------------------------------------------


Functions = dict[tuple[str, str], list[types.FunctionType]]


def functions_loaded() -> Functions:
    """Every function of mechwork, by its file and its name there (one that is wrapped may be there several times)."""
    found: Functions = defaultdict(list)
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and thing.__code__.co_filename.startswith(str(ROOT / "mechwork")):
            found[thing.__code__.co_filename, thing.__code__.co_qualname].append(thing)
    return found


def exchange(mutant: Mutant, functions: Functions) -> bool:
    """Put the mutant's code into the loaded function; False where that cannot be done."""
    file = str(ROOT / mutant.file)
    found = _code_of(compile(mutant.source(), file, "exec"), mutant.function)
    changed = False
    for thing in functions.get((file, mutant.function), []):
        if found is not None and thing.__code__.co_freevars == found.co_freevars:
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


def chosen_tests(mutant: Mutant, rows: Rows, most: float) -> Rows:
    """Tests of the mutant's file, then of its folder, then the others; within the limits, at least one."""
    stem, folder = Path(mutant.file).stem, Path(mutant.file).parts[1]

    def order(row: tuple[float, str]) -> tuple[bool, bool, float]:
        file = row[1].partition("::")[0]
        return f"test_{stem}.py" not in file, not file.startswith((f"tests/{folder}/", *ALWAYS)), row[0]

    chosen: Rows = []
    for row in sorted(rows, key=order)[:MOST_TESTS]:
        if chosen and sum(seconds for seconds, _ in chosen) + row[0] > most:
            continue
        chosen.append(row)
    return chosen


class Judge:
    """A pytest plugin that runs chosen tests of the collected ones, again and again, in forks."""

    def __init__(self, work: Callable[[Judge], None]) -> None:
        self.work, self.failed = work, ""
        self.items: dict[str, Any] = {}
        self.functions: Functions = {}

    def pytest_runtestloop(self, session: Any) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.work(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or (report.nodeid if report.failed else "")

    def run(self, names: Sequence[str]) -> tuple[int, str]:
        """Here and now; 1 and the first that fails, or 0."""
        items = [self.items[name] for name in names]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                break
        return int(bool(self.failed)), self.failed

    def warm(self) -> None:
        """Build the models that tests share, so that forks need not."""
        chosen = [
            name
            for fixture in SHARED
            for name in [name for name, item in self.items.items() if fixture in getattr(item, "fixturenames", ())][:3]
        ]
        for name in chosen:  # each is torn down, also where one fails
            self.run([name])
        self.failed = ""
        self.functions = functions_loaded()
        gc.collect()
        gc.freeze()  # forks share what is not touched

    def watched(self, name: str) -> tuple[int, str]:
        """Runs a test; which functions of mechwork it calls and how long it takes, as JSON (none of one that fails)."""
        called: set[str] = set()
        root, begun = str(ROOT / "mechwork"), time.process_time()

        def profile(frame: types.FrameType, event: str, arg: Any) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(root):
                called.add(f"{code.co_filename[len(str(ROOT)) + 1 :]}::{code.co_qualname.split('.<locals>')[0]}")

        sys.setprofile(profile)
        code, _ = self.run([name])
        sys.setprofile(None)
        return 0, json.dumps([[] if code else sorted(called), time.process_time() - begun])

    def coverage_map(self, place: Path) -> dict[str, Rows]:
        """Function -> (seconds, test). Kept in a file: only tests that are not in it are run."""
        tests: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
        for i, name in enumerate(new := [name for name in self.items if name not in tests]):
            code, said = in_child(lambda name=name: self.watched(name), MOST_OF_ONE)
            tests[name] = json.loads(said) if code == 0 else [[], MOST_OF_ONE]
            if i % 20 == 0 or i == len(new) - 1:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(json.dumps(tests), encoding="utf-8")
        found: dict[str, Rows] = defaultdict(list)
        for name in self.items:
            functions, seconds = tests[name]
            for function in functions:
                found[function].append((seconds, name))
        return {name: sorted(rows) for name, rows in found.items()}

    def judge(self, mutant: Mutant, rows: Rows, most: float) -> tuple[str, str]:
        """``killed``, ``survived``, ``not called`` by any test, or ``no code`` where it could not be put in; and the
        test that killed it.
        """
        chosen = chosen_tests(mutant, rows, most)
        if not chosen:
            return "not called", ""
        limit = 10 + LONGEST * sum(seconds for seconds, _ in chosen)

        def work() -> tuple[int, str]:
            return self.run([test for _, test in chosen]) if exchange(mutant, self.functions) else (NO_CODE, "")

        code, by = in_child(work, limit)
        return {0: "survived", NO_CODE: "no code"}.get(code, "killed"), by


def judged(place: Path | None, what: str = "outcome") -> dict[str, str]:
    """Outcome of each mutant that a run before this one kept in `place` (or ``"by"``: what killed it), by its name."""
    if place is None or not place.is_file():
        return {}
    rows = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    return {row["mutant"]: row[what] for row in rows}


def explained() -> dict[str, str]:
    """Why a mutant lives, by its name: ``equivalent`` or ``left``, and the reason. Of `EXPLAINED`."""
    rows = [line.split(" | ") for line in EXPLAINED.read_text(encoding="utf-8").splitlines() if " | " in line]
    return {name: f"{kind}: {reason}" for kind, name, reason in rows}


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


def main(arguments: list[str] | None = None) -> int:
    """Print every survivor and the score per folder; exit status 1 below the floor."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--path", action="append", help="files or folders (default: the core folders)")
    parser.add_argument("--tests", action="append", help="files or folders of tests (default: those of the folders)")
    parser.add_argument("--n", type=int, default=40, help="mutants to try, spread over the files (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--floor", type=float, default=0.0, help="least share killed, in per cent")
    parser.add_argument("--quick", action="store_true", help="only the tests that the quick gate runs")
    parser.add_argument("--seconds", type=float, default=40.0, help="seconds of tests that a mutant gets, at most")
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
    chosen = drawn(every, args.n, args.seed)
    load_everything()
    kept = args.map or ROOT / "reports" / "mutants" / f"{'-'.join(sorted(folders))}.json"
    print(f"{len(chosen)} of {len(every)} mutants, tests: {' '.join(tests)}", flush=True)
    share: list[float] = []
    pytest_run(["-s", *tests], Judge(lambda judge: share.append(score(judge, chosen, kept, args))))
    return status(share, args.floor)


def status(shares: Sequence[float], floor: float) -> int:
    """The exit status: 1 below the floor (per cent), and where nothing was judged."""
    if not shares:
        print("no mutant was judged")
        return 1
    low = 100 * shares[0] < floor
    print(f"{'below' if low else 'not below'} the floor for the core: {100 * shares[0]:.1f}% of {floor:g}%")
    return int(low)


COLUMNS = ("killed", "survived", "not called", "doubtful", "equivalent", "no code")


def score(judge: Judge, mutants: list[Mutant], place: Path, args: argparse.Namespace) -> float:
    """The share that is killed; prints the others and the table."""
    judge.warm()
    calls = judge.coverage_map(place)
    known, killers, reasons = judged(args.keep), judged(args.keep, "by"), explained()
    for mutant in sorted(mutants, key=lambda mutant: (mutant.file, mutant.line)):
        outcome, reason = known.get(mutant.name, ""), reasons.get(mutant.name, "")
        if reason.startswith("equivalent"):
            outcome = "equivalent"
        elif not outcome or outcome in args.again:
            outcome, by = judge.judge(mutant, calls.get(f"{mutant.file}::{mutant.function}", []), args.seconds)
            killers[mutant.name] = by
            if args.keep is not None:
                with args.keep.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"mutant": mutant.name, "outcome": outcome, "by": by}) + "\n")
        known[mutant.name] = outcome
        if outcome not in ("killed", "equivalent"):
            print(f"  {outcome:<10} {mutant} {reason}", flush=True)
    return share_of(judge, mutants, known, killers, args.seed)


def share_of(
    judge: Judge, mutants: list[Mutant], outcomes: dict[str, str], killers: dict[str, str], seed: int
) -> float:
    """Prints the table per folder. A test that fails without a mutant too has killed nothing."""
    there = {killers[mutant.name] for mutant in mutants if outcomes[mutant.name] == "killed"} & judge.items.keys()
    broken = {name for name in sorted(there) if in_child(lambda name=name: judge.run([name]))[0]}
    for name in sorted(broken):
        print(f"{name} fails without a mutant too")
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant in mutants:
        outcome = outcomes[mutant.name]
        doubtful = outcome == "killed" and killers[mutant.name] in broken
        found[Path(mutant.file).parts[1]]["doubtful" if doubtful else outcome] += 1
    found["all"] = sum(found.values(), Counter())
    print(f"{'folder':<16}{''.join(f'{name:>12}' for name in COLUMNS)}{'score':>8}")
    share = 0.0
    for folder, row in found.items():
        share = row["killed"] / max(1, sum(row[name] for name in COLUMNS[:4]))
        print(f"{folder:<16}{''.join(f'{row[name]:>12}' for name in COLUMNS)}{share:>8.1%}")
    print(f"{len(mutants)} mutants; seed {seed}")
    return share


if __name__ == "__main__":
    sys.exit(main())
