"""Small changes of the code, one at a time: what `tests.mutants` tries. See there."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = ("__repr__", "__str__", "_table", "provenance", "describe")

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
    """One change: the `number`-th of its kind (`what`) in its function."""

    file: str
    function: str
    line: int
    what: str
    number: int

    @property
    def name(self) -> str:
        """What it is called: without the line, so that it stays the same when the file changes elsewhere."""
        return f"{self.file} {self.function}: {self.what} #{self.number}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.what} #{self.number}"

    def source(self) -> str:
        """The whole file with the change."""
        tree = ast.parse((ROOT / self.file).read_text(encoding="utf-8"))
        for found, change in _walk(tree, self.file):
            if found == self:
                change()
                return ast.unparse(tree)
        raise ValueError(f"no such mutant: {self}")


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield from (mutant for mutant, _ in _walk(tree, path.relative_to(ROOT).as_posix()))


def drawn(mutants: list[Mutant], n: int, seed: int) -> list[Mutant]:
    """`n` of them, each by its own number: a change elsewhere in the code draws no others."""
    order = sorted(mutants, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.name}".encode()).digest())
    return order[:n] if n else order


def _walk(tree: ast.Module, file: str) -> Iterator[tuple[Mutant, Any]]:
    """Each mutant, and what makes the change in the tree."""
    for qualname, function in _functions(tree):
        if function.name in SKIPPED:
            continue
        count: Counter[str] = Counter()
        for node in _nodes(function):
            for what, change in _changes(node):
                count[what] += 1
                yield Mutant(file, qualname, getattr(node, "lineno", 0), what, count[what]), change


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


Change = tuple[str, Any]


def swap(owner: Any, name: str, new: Any, what: str) -> Change:
    return what, lambda: setattr(owner, name, new)


def _changes(node: Any) -> Iterator[Change]:
    """What can be done to a node: a word for it, and the doing."""
    yield from _operators(node)
    yield from _calls(node)
    if isinstance(node, ast.If | ast.IfExp):
        yield swap(node, "test", ast.UnaryOp(ast.Not(), node.test), "condition turned round")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value: Any = node.value
        new = (not value) if isinstance(value, bool) else value + 1 if value != 1 else 0
        yield swap(node, "value", new, f"{node.value} -> {new}")
    if isinstance(node, ast.Slice) and node.lower is not None and node.upper is None:
        yield "x[a:] -> x[:a]", _bounds(node, None, node.lower)
    elif isinstance(node, ast.Slice) and node.upper is not None and node.lower is None:
        yield "x[:a] -> x[a:]", _bounds(node, node.upper, None)


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


def _bounds(node: ast.Slice, lower: Any, upper: Any) -> Any:
    def put() -> None:
        node.lower, node.upper = lower, upper

    return put
