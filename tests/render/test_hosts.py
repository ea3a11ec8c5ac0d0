"""Results in the pages of notebook hosts: what nbconvert writes, and what is left where a host does not trust the
notebook.

`tests.render.notebook_hosts` looks into a real JupyterLab, which is no part of mechwork's own environment. Here its
sanitiser is
played by one of the same rules: no frames, scripts, styles, forms and handlers; pictures only as data.
"""

from __future__ import annotations

from html import escape
from html.parser import HTMLParser
from typing import Any

import nbformat
import pytest

from mechwork.display import Displayable
from tests.browser import OpenPage
from tests.notebooks.second_pass import to_page
from tests.render import synthetic

GONE = {
    "iframe",
    "script",
    "style",
    "object",
    "embed",
    "form",
    "input",
    "button",
    "noscript",
    "base",
    "link",
    "meta",
    "svg",
    "math",
}
KEPT = {
    "src",
    "alt",
    "width",
    "height",
    "class",
    "id",
    "title",
    "scope",
    "style",
    "role",
    "aria-label",
    "tabindex",
    "colspan",
    "rowspan",
}
VOID = {"img", "br", "hr", "col"}


class Sanitiser(HTMLParser):
    """Markup as a host leaves it that does not trust the notebook; with `styled=False` also without style
    attributes.
    """

    def __init__(self, *, styled: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.kept: list[str] = []
        self.inside: list[str] = []
        self.names = KEPT if styled else KEPT - {"style"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in GONE:
            self.inside += [] if tag in {"input", "base", "link", "meta", "embed"} else [tag]
            return
        fine = {
            name: value or ""
            for name, value in attrs
            if name in self.names and (name != "src" or (value or "").startswith("data:image/"))
        }
        if not self.inside:
            written = "".join(f' {name}="{escape(value)}"' for name, value in fine.items())
            self.kept.append(f"<{tag}{written}>")

    def handle_endtag(self, tag: str) -> None:
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()
        elif not self.inside and tag not in VOID | GONE:
            self.kept.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.kept.append(escape(data, quote=False))


def sanitise(markup: str, *, styled: bool = True) -> str:
    parser = Sanitiser(styled=styled)
    parser.feed(markup)
    return "".join(parser.kept)


def notebook(*results: Any) -> nbformat.NotebookNode:
    """One cell per result, as a kernel leaves it."""
    cells = [
        nbformat.v4.new_code_cell(
            type(result).__name__, execution_count=i,
            outputs=[nbformat.v4.new_output("execute_result",
            {"text/html": result._repr_html_(), "text/plain": repr(result)}, execution_count=i)],
        )
        for i, result in enumerate(results, start=1)
    ]  # fmt: skip
    return nbformat.v4.new_notebook(cells=cells)


def displayed() -> list[Displayable]:
    """One result of every class that a report shows."""
    return list({type(result): result for result in synthetic.everything() if isinstance(result, Displayable)}.values())


def test_the_page_of_nbconvert_is_alive_and_asks_for_nothing(open_page: OpenPage) -> None:
    page = to_page(notebook(synthetic.circuit(), synthetic.effects()["resid_pre"], synthetic.lens_table()))
    tab = open_page(page, wait="iframe[title='mechwork figure']", height=1600)
    frames = tab.page.locator("iframe[title='mechwork figure']")
    assert frames.count() == 3
    graph, plot, lens = (frames.nth(i).content_frame for i in range(3))
    frames.first.scroll_into_view_if_needed()
    graph.locator("[aria-label^='attention head a4.h1'] .mw-shape").click()
    graph.locator(".mw-panel-head h2", has_text="a4.h1").wait_for()
    frames.nth(1).scroll_into_view_if_needed()
    plot.locator(".main-svg").first.wait_for()
    frames.nth(2).scroll_into_view_if_needed()
    lens.locator(".mw-lens-grid td").first.hover()
    lens.locator(".mw-lens-tip").wait_for()
    tab.picture("host-nbconvert")


@pytest.mark.parametrize("styled", [True, False], ids=["styles kept", "styles stripped"])
def test_every_result_is_seen_in_an_untrusted_notebook(open_page: OpenPage, styled: bool) -> None:
    results = displayed()
    assert len(results) > 12
    markup = [sanitise(result._repr_html_(), styled=styled) for result in results]
    assert all("<iframe" not in text and "<script" not in text for text in markup)
    body = "".join(
        f"<section data-of={type(r).__name__}>{text}</section>" for r, text in zip(results, markup, strict=True)
    )
    tab = open_page(f"<!doctype html><meta charset='utf-8'>{body}", wait="section")
    for result in results:
        section = tab.page.locator(f"section[data-of={type(result).__name__}]")
        shown = section.locator("table tbody tr, pre, img")
        assert shown.count() >= 1, type(result).__name__
        shown.first.scroll_into_view_if_needed()
        assert shown.first.is_visible(), type(result).__name__
        assert len(section.inner_text().strip()) > 20, type(result).__name__
    picture = tab.page.locator("section[data-of=Circuit] img")
    assert picture.evaluate("(image) => image.naturalWidth") > 300
    tab.picture(f"host-untrusted-{'styled' if styled else 'plain'}")


def test_hostile_tokens_run_nothing_where_no_frame_holds_them(open_page: OpenPage) -> None:
    """The still form stands in the host's own page: it must be harmless also before any sanitiser has seen it."""
    stills = [
        sanitise(r._repr_html_())
        for r in (synthetic.patterns(synthetic.HOSTILE), synthetic.lens_table(synthetic.HOSTILE))
    ]
    whole = [r._repr_html_() for r in (synthetic.patterns(synthetic.HOSTILE), synthetic.lens_table(synthetic.HOSTILE))]
    tab = open_page(f"<!doctype html><meta charset='utf-8'>{''.join([*stills, *whole])}", wait="iframe")
    tab.settle()
    assert tab.page.evaluate("() => window.pwned === undefined")
    assert tab.page.locator("img[onerror]").count() == 0
