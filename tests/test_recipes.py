"""The four recipes of CONTRIBUTING are done, in a copy of the house: new files only, as many as the table says, and
their tests pass there.

``tests/recipes/RECIPE`` holds the files that a contributor writes, where they go. Nothing that exists is changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "tests" / "recipes"
NAMES = ("rule", "task", "panel", "verb")


def files_of(recipe: str) -> list[Path]:
    """The recipe's files, relative to the house."""
    base = RECIPES / recipe
    found = [file.relative_to(base) for file in base.rglob("*") if file.is_file()]
    return sorted(file for file in found if "__pycache__" not in file.parts)


def promised() -> dict[str, int]:
    """Recipe -> number of files, its test included, from the table of CONTRIBUTING."""
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {name: int(n) for name, n in re.findall(r"^\| (\w+) \| (\d) \|", text, re.MULTILINE)}


@pytest.mark.parametrize("recipe", NAMES)
def test_a_recipe_is_new_files_only_as_many_as_is_said(recipe: str) -> None:
    files = files_of(recipe)
    assert not [file for file in files if (ROOT / file).exists()]
    assert len(files) == promised()[recipe]
    assert sum(file.parts[0] == "tests" for file in files) == 1


def test_the_recipes_work_in_a_copy_of_the_house(tmp_path: Path) -> None:
    """All four at once, so that they also do not disturb each other."""
    skipped = shutil.ignore_patterns("__pycache__", "recipes")
    shutil.copytree(ROOT / "mechwork", tmp_path / "mechwork", ignore=skipped)
    for folder in ("data", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skipped, copy_function=os.symlink)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    tests = []
    for recipe in NAMES:
        for file in files_of(recipe):
            assert not (tmp_path / file).exists()
            shutil.copy(RECIPES / recipe / file, tmp_path / file)
            tests += [str(file)] if file.parts[0] == "tests" else []
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("MECHWORK_SHARD", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\b6 passed", done.stdout), done.stdout[-400:]
