"""The panel draws the result's page and its part of a report, and asks for nothing from outside."""

from __future__ import annotations

from mechwork.discovery.size import Sizing
from mechwork.render.findings import EXTENSIONS
from tests.artefacts.made import make


def test_the_page_is_the_panels_and_needs_no_network() -> None:
    page = make(Sizing).to_html()
    assert "Sizes that were tried" in page
    assert "src=" not in page.replace("data:", "")
    assert "http://" not in page
    assert EXTENSIONS[Sizing][0] == "evaluation"
