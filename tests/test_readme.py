"""What README.md says is true: its Python runs, its commands parse, its files exist."""

from __future__ import annotations

import re
import shlex
import webbrowser
from pathlib import Path

import pytest

from mechwork.cli.entry import build_parser
from mechwork.models.anatomy import CLAIMED

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, mark: str = "") -> str:
    """The fenced block of a language, directly after `mark` if one is given."""
    found = re.search(rf"{re.escape(mark)}\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no {language} block {mark}"
    return found[1]


def test_the_python_runs_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    names: dict[str, object] = {}
    exec(compile(block("python"), "README.md", "exec"), names)
    assert (tmp_path / "ioi.html").stat().st_size > 100_000
    assert len(opened) == 1
    assert "Pearson" in str(names["approx"].agreement(names["exact"]))  # type: ignore[attr-defined]


def test_the_commands_are_marked_and_parse() -> None:
    report, tests = block("sh", "<!-- ci: report -->"), block("sh", "<!-- ci: tests -->")
    install, command = report.strip().split(" && ")
    assert install == "pip install -c constraints.txt ."
    assert build_parser().parse_args(shlex.split(command)[1:]).verb == "discover"
    assert tests.strip().endswith("python -m tests.gate")


def test_every_command_that_is_mentioned_exists() -> None:
    mentioned = re.findall(r"`mechwork ([^`]+)`", README)
    assert len(mentioned) >= 5
    for command in mentioned:
        if command.isupper():
            continue
        words = shlex.split(command.split(",")[0])
        build_parser().parse_args(words)


def test_files_and_links_that_are_mentioned_exist() -> None:
    paths = [path for path in re.findall(r"\]\(([^)]+)\)", README) if "://" not in path]
    folders = [
        f"mechwork/{name}"
        for name in re.findall(r"`(\w+(?:/|\.py))`", README)
        if name not in {"data/", "tests/", "mechwork/"}
    ]
    for path in [*paths, *folders, "data", "tests/reference", "constraints.txt", "LICENSE"]:
        assert (ROOT / path).exists(), path


def test_the_number_of_architectures() -> None:
    assert len(CLAIMED) == 16
    assert "of sixteen decoder architectures" in README
