"""One word, one thing: no two classes of mechwork have one name."""

from __future__ import annotations

import ast
from pathlib import Path

import mechwork

PACKAGE = Path(mechwork.__file__).parent


def test_no_two_classes_have_one_name() -> None:
    found: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert len(found) > 400
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
