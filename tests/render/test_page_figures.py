"""The figures of the pages are there, small, plain, and no older than their recipes."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.gate import fewer
from tests.render.figures import RECIPES, RECORD, TARGET, numbers, recipe_hash

PAGES = Path(__file__).resolve().parents[2] / "notebooks" / "docs"
AGAIN = "run python -m tests.render.figures {}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_page_shows_a_figure_made_by_the_recipe_of_today(name: str) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record[name]["recipe"] == recipe_hash(name), AGAIN.format(name)
    file = TARGET / f"{name}.svg"
    assert file.stat().st_size < 100_000
    root = ElementTree.parse(file).getroot()
    assert root.tag.endswith("svg")
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    shown = re.findall(rf"!\[([^\]]*)\]\(assets/figures/{name}\.svg\)", (PAGES / f"{name}.md").read_text("utf-8"))
    assert len(shown) == 1
    assert len(shown[0].split()) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", fewer(list(RECIPES), list(RECIPES)[::3]))
def test_a_figure_shows_what_the_library_finds_today(name: str) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))[name]["numbers"]
    found = numbers(RECIPES[name]())
    scale = max(map(abs, record))
    assert len(found) == len(record), AGAIN.format(name)
    assert found == pytest.approx(record, rel=0.05, abs=0.02 * scale), AGAIN.format(name)
