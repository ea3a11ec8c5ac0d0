"""The decks: one per lesson from its source, no answers in them, offline, and nothing runs over a slide's edge."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from notebooks.course import EXERCISES
from notebooks.course.pairing import pair, sources
from notebooks.course.slides import deck, main, slides_of
from tests.browser import OpenPage

pytest.importorskip("markdown", reason="the package markdown is not installed")


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)
def test_a_deck_has_the_lesson_and_not_its_answers(source: Path) -> None:
    page, slides = deck(source), slides_of(pair(source))
    assert 10 < len(slides) < 60
    assert page.count("<section ") == len(slides)
    titles = [slide.title for slide in slides]
    text = source.read_text(encoding="utf-8")
    assert titles[0].startswith(f"{int(source.name[:2])}. ")
    assert all(any(title.startswith(f"Exercise {name}") for title in titles) for name in _names(text))
    assert not re.search(r'(?:src|href)="(?!data:)', page), "a deck asks for nothing"
    for name in _names(text):
        assert EXERCISES[name].solution.strip() not in page


def _names(text: str) -> list[str]:
    return re.findall(r"### Exercise (\d+\.\d)", text)


def test_the_command_writes_one_page_per_lesson(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(str(tmp_path / "decks"))
    assert len(list((tmp_path / "decks").glob("*.html"))) == len(sources()) == len(capsys.readouterr().out.split())


def test_a_deck_in_a_browser(open_page: OpenPage) -> None:
    """Keys move, one slide is seen at a time, every slide fits in letters that can be read."""
    source = next(path for path in sources() if path.name.startswith("09"))
    tab = open_page(deck(source), wait="section", width=1280, height=720)
    n = tab.page.locator("section").count()
    seen, overflowing, smallest = set(), [], 99.0
    for number in range(n):
        tab.settle()
        visible = tab.page.locator("section:visible")
        assert visible.count() == 1
        seen.add(tab.page.locator("footer").inner_text())
        fits, size = visible.evaluate(
            "(s) => [s.scrollHeight <= s.clientHeight + 2, parseFloat(getComputedStyle(s).fontSize)]"
        )
        smallest = min(smallest, size)
        overflowing += [] if fits else [number + 1]
        if number in (0, 9):
            tab.picture(f"slides-{number}")
        tab.page.keyboard.press("ArrowRight")
    assert len(seen) == n
    assert overflowing == []
    assert smallest > 12
    assert tab.page.locator("img").count() >= 1
    assert all(
        tab.page.locator("img").evaluate_all("(all) => all.map((i) => i.naturalWidth > 100 && i.alt.length > 5)")
    )
    tab.page.keyboard.press("Home")
    assert tab.page.locator("section:visible h1").count() == 1
