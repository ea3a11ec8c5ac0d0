"""Every page of the documentation is true: its Python runs in order, its commands parse, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import webbrowser
from pathlib import Path

import pytest

from mechwork.cli.entry import build_parser
from mechwork.relevance import PRESETS
from mechwork.relevance.composite import RULES
from tests.gate import fewer

DOCS = Path(__file__).resolve().parents[1] / "notebooks" / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", fewer(PAGES, PAGES[::2]), ids=lambda page: page.stem)
def test_the_python_runs_as_written(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda url: True)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"`mechwork ([^`\n]+)`", text):
        build_parser().parse_args(shlex.split(command))
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link


def test_every_rule_and_preset_is_on_the_page() -> None:
    """A rule in a file of its own says in its docstring what it does and where it comes from."""
    text = (DOCS / "relevance.md").read_text(encoding="utf-8")
    listed = [name for name, rule in RULES.items() if rule.__module__.endswith((".rules", ".linear"))]
    assert len(listed) == 13
    for name in (*PRESETS, *listed):
        assert f"`{name}" in text, name
    assert all(rule.__doc__ for rule in RULES.values())
