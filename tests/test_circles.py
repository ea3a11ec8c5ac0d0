"""No circle between folders of mechwork, imports inside functions and dynamic ones by name included."""

from __future__ import annotations

import ast
from pathlib import Path

import mechwork

PACKAGE = Path(mechwork.__file__).parent
ALLOWED = {("display", "render")}
"""Showing a result brings in the drawings by name, which register themselves: no code of `display` knows them."""


def folder_of(parts: tuple[str, ...]) -> str:
    return parts[0] if parts else ""


def imports(file: Path) -> set[str]:
    """Folders (or files) of mechwork that a module imports anywhere, except for type checkers only."""
    here = file.relative_to(PACKAGE).with_suffix("").parts
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }  # fmt: skip
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            module = tuple((node.module or "").split(".")) if node.module else ()
            if not node.level:
                if module[:1] != ("mechwork",):
                    continue
                module = module[1:]
            whole = (*base, *module)
            found |= {whole[0]} if whole else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mechwork.")}
    return {name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def edges() -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        if name.parts == ("__init__.py",):
            continue
        source = folder_of(name.with_suffix("").parts)
        for target in imports(file) - {source}:
            found.setdefault((source, target), []).append(name.as_posix())
    return found


def circles(pairs: set[tuple[str, str]]) -> list[set[str]]:
    """Groups of folders that reach each other."""
    nodes = {name for pair in pairs for name in pair}
    reach = {node: {b for a, b in pairs if a == node} for node in nodes}
    for middle in nodes:
        for node in nodes:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in nodes if a in reach[a]}
    return [set(group) for group in groups]


def test_the_search_finds_a_circle() -> None:
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [{"a", "b", "c"}]
    assert circles({("a", "b"), ("b", "c"), ("a", "c")}) == []
    assert "tasks" in imports(PACKAGE / "cli" / "tasks.py")


def test_no_circle_between_folders() -> None:
    found = edges()
    assert len(found) > 50
    groups = circles(set(found) - ALLOWED)
    assert not groups, {
        pair: files for pair, files in found.items() for group in groups if set(pair) <= group
    }  # fmt: skip
