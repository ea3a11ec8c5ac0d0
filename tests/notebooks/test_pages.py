"""The pages in the folders of the documentation: their Python runs in order, their commands parse, their links lead
somewhere.
"""

from __future__ import annotations

import re
import shlex
import webbrowser
from pathlib import Path

import pytest

from mechwork.cli.entry import build_parser

DOCS = Path(__file__).resolve().parents[2] / "notebooks" / "docs"
PAGES = sorted(DOCS.glob("*/*.md"))
each = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}")

LINK = re.compile(r"\]\(([^)\s]+)\)")


@each
def test_the_python_runs_as_written(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda url: True)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"{page.name}, block {number}", "exec", dont_inherit=True), names)


@each
def test_commands_parse(page: Path) -> None:
    for command in re.findall(r"`mechwork ([^`\n]+)`", page.read_text(encoding="utf-8")):
        build_parser().parse_args(shlex.split(command))


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown builders make them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in found}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_every_page_is_on_the_front_page() -> None:
    front = (DOCS / "index.md").read_text(encoding="utf-8")
    assert {page.relative_to(DOCS).as_posix() for page in PAGES} <= set(LINK.findall(front))
