"""What the tests notice: ``python -m tests.mutants [--path mechwork/patching ...] [--n 40] [--seed 0] [--tests ...]``.

A mutant is one small change in the body of one function: a comparison, an operator, a bound, a sign, a constant, a
condition, a refusal that is left out. It is *killed* when a test that calls the function fails. Once per run each test
of the folders is run with a profiler, which tells what functions it calls and how long it takes; a mutant then runs the
tests that call its function, the quickest first, in a fork of a process that has everything loaded: the function's code
is exchanged in place, so nothing is imported again. Survivors are printed with their line, to be killed or explained.

Not mutated: module constants, default values, annotations, texts, messages, ``__repr__`` and ``__str__``.
"""

from __future__ import annotations

import argparse
import ast
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
CORE = ("patching", "circuits", "relevance", "interventions", "ablation", "lenses", "tasks")
ALWAYS = ("tests/test_hard_task.py", "tests/test_bad_calls.py")
PLAIN = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=--import-mode=importlib", "-W", "ignore"]
SKIPPED = ("__repr__", "__str__", "_table", "provenance", "describe")
LONGEST, MOST_TESTS = 4.0, 40
"""A mutant may take this many times what its tests took; and this many tests are tried."""

COMPARE: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
BINARY: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.MatMult: ast.Mult,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin", "zeros": "ones",
         "zeros_like": "ones_like", "argmax": "argmin", "argmin": "argmax", "sum": "mean", "mean": "sum"}  # fmt: skip
DROPPED = ("abs", "detach", "clone", "double", "float", "mean", "relu", "contiguous", "clamp", "copysign", "long")


@dataclass(frozen=True)
class Mutant:
    """One change: `source` is the whole file with it."""

    file: str
    function: str
    line: int
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.what}"


# ---- making them -----------------------------------------------------------------------------------------------------


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for qualname, function in _functions(tree):
        if function.name in SKIPPED:
            continue
        for node in _nodes(function):
            for what, change, back in _changes(node):
                change()
                try:
                    source = ast.unparse(tree)
                finally:
                    back()
                yield Mutant(path.relative_to(ROOT).as_posix(), qualname, getattr(node, "lineno", 0), what, source)


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{f.name}", f) for f in node.body if isinstance(f, ast.FunctionDef))


def _nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Nodes of the body, without docstrings, messages and annotations."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
            if isinstance(node, ast.Raise):
                yield node
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "defaults"):
                continue
            todo += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, ast.AST)]


Change = tuple[str, Any, Any]


def swap(owner: Any, name: str, new: Any, what: str) -> Change:
    old = getattr(owner, name)
    return what, lambda: setattr(owner, name, new), lambda: setattr(owner, name, old)


def _changes(node: Any) -> Iterator[Change]:
    """What can be done to a node: a word for it, the doing, the undoing."""
    yield from _operators(node)
    yield from _calls(node)
    if isinstance(node, ast.If | ast.IfExp):
        yield swap(node, "test", ast.UnaryOp(ast.Not(), node.test), "condition turned round")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value: Any = node.value
        new = (not value) if isinstance(value, bool) else value + 1 if value != 1 else 0
        yield swap(node, "value", new, f"{node.value} -> {new}")
    if isinstance(node, ast.Slice) and node.lower is not None and node.upper is None:
        yield "x[a:] -> x[:a]", *_both(node, None, node.lower)
    elif isinstance(node, ast.Slice) and node.upper is not None and node.lower is None:
        yield "x[:a] -> x[a:]", *_both(node, node.upper, None)


def _operators(node: Any) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        new = COMPARE[type(node.ops[0])]()
        yield swap(node, "ops", [new, *node.ops[1:]], f"{type(node.ops[0]).__name__} -> {type(new).__name__}")
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in BINARY:
        new = BINARY[type(node.op)]()
        yield swap(node, "op", new, f"{type(node.op).__name__} -> {type(new).__name__}")
    if isinstance(node, ast.BoolOp):
        new = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield swap(node, "op", new, "and <-> or")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield swap(node, "op", ast.UAdd(), "the minus sign left out")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert | ast.Not):
        dropped = ast.Invert() if isinstance(node.op, ast.Invert) else ast.Not()
        yield swap(node, "operand", ast.UnaryOp(dropped, node.operand), "not left out")


def _calls(node: Any) -> Iterator[Change]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        name = "id" if isinstance(node.func, ast.Name) else "attr"
        said = getattr(node.func, name)
        if said in NAMES and not (said in ("sum", "mean") and isinstance(node.func, ast.Name)):
            yield swap(node.func, name, NAMES[said], f"{said} -> {NAMES[said]}")
    for name, value in ast.iter_fields(node):
        for i, inner in enumerate(value if isinstance(value, list) else [value]):
            if (
                isinstance(inner, ast.Call)
                and isinstance(inner.func, ast.Attribute)
                and inner.func.attr in DROPPED
                and not isinstance(inner.func.value, ast.Name | ast.Constant)
            ):
                new = inner.func.value
                whole = [*value[:i], new, *value[i + 1 :]] if isinstance(value, list) else new
                yield swap(node, name, whole, f".{inner.func.attr}() left out")
        if isinstance(value, list):
            for i, inner in enumerate(value):
                if isinstance(inner, ast.Raise):
                    yield swap(node, name, [*value[:i], ast.Pass(), *value[i + 1 :]], "refusal left out")


def _both(node: ast.Slice, lower: Any, upper: Any) -> tuple[Any, Any]:
    kept = node.lower, node.upper

    def put(pair: tuple[Any, Any]) -> None:
        node.lower, node.upper = pair

    return lambda: put((lower, upper)), lambda: put(kept)


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


def coverage_map(tests: list[str], place: Path) -> dict[str, list[tuple[float, str]]]:
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
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for test, functions in data["calls"].items():
        for function in functions:
            found[function].append((data["seconds"].get(test, 9.0), test))
    return {name: sorted(rows) for name, rows in found.items()}


def judge(mutant: Mutant, rows: list[tuple[float, str]]) -> str:
    """``killed``, ``survived``, ``not called`` by any test, or ``no code`` where it could not be put in."""
    if not rows:
        return "not called"
    chosen = rows[:MOST_TESTS]
    limit = 10 + LONGEST * sum(seconds for seconds, _ in chosen)

    def work() -> tuple[int, str]:
        if not exchange(mutant):
            return 7, ""
        return pytest_run(["-x", *(test for _, test in chosen)]), ""

    code, _ = in_child(work, limit)
    return {0: "survived", 7: "no code"}.get(code, "killed")


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
    parser.add_argument("--floor", type=float, default=0.0, help="least share killed")
    parser.add_argument("--quick", action="store_true", help="only the tests that the quick gate runs")
    parser.add_argument("--map", type=Path, default=None, help="where to keep which test calls what")
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
    score: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant in sorted(chosen, key=lambda m: (m.file, m.line)):
        outcome = judge(mutant, calls.get(f"{mutant.file}::{mutant.function}", []))
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
