"""A real browser for the drawings: Debian's chromium, headless, driven by playwright, every request but file://
aborted.

`open_page(html)` gives a `Tab`; when the test ends the tab must have made no request and no console error.
Screenshots go to the folder named by MECHWORK_ARTEFACTS, else to the test's own temporary folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Tab:
    """A page under test, with what it must not have done."""

    page: Any
    artefacts: Path
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def picture(self, name: str, **options: Any) -> Path:
        """A screenshot among the artefacts."""
        path = self.artefacts / f"{name}.png"
        self.page.screenshot(path=str(path), **options)
        return path

    def settle(self) -> None:
        """Waits until what was asked for has been drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def address(self, holds: str) -> str:
        """The part of the address after ``#``, once it is written and has `holds` in it."""
        self.page.wait_for_function("(text) => location.hash.includes(text)", arg=holds)
        return self.page.evaluate("() => location.hash")

    def state(self, k: int = 0) -> dict[str, Any]:
        """The state of the k-th graph."""
        self.settle()
        return self.page.evaluate("(k) => mechwork.graphs[k].store.get()", k)

    def drawn(self) -> list[str]:
        """Names of the edges that can be seen."""
        self.settle()
        return self.page.evaluate(
            """() => { const app = mechwork.graphs[0], g = app.graph(), seen = app.seen(), lit = app.drawing.lit();
            const name = (e) => g.names[g.source[e]] + '->' + g.names[g.target[e]] + (g.kind[e] < 3 ? '<' +
            'qkv'[g.kind[e]] + '>' : '');
            return [...Array(g.m).keys()].filter((e) => seen.edgeOn[e] || lit.includes(e)).map(name) }"""
        )

    def node(self, name: str) -> Any:
        """The drawn node of that name."""
        i = self.page.evaluate("(name) => mechwork.graphs[0].graph().index.get(name)", name)
        return self.page.locator(f".mw-nodes [data-node='{i}'] .mw-shape").first

    def click_node(self, name: str, **options: Any) -> None:
        self.node(name).click(**options)
        self.settle()


OpenPage = Callable[..., Tab]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser per worker; skips where none is installed."""
    api = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    found = os.environ.get("MECHWORK_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screenshots are kept."""
    folder = Path(os.environ.get("MECHWORK_ARTEFACTS") or tmp_path / "artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def open_page(browser: Any, tmp_path: Path, artefacts: Path) -> Iterator[OpenPage]:
    """Opens HTML from a file, with the network cut; checks at the end that nothing was requested and nothing failed."""
    contexts, tabs = [], []

    def open_(
        html: str,
        *,
        dark: bool = False,
        width: int = 1280,
        height: int = 860,
        scripts: bool = True,
        wait: str = ".mw-nodes .mw-node",
        before: str = "",
        touch: bool = False,
    ) -> Tab:
        path = tmp_path / f"page{len(tabs)}.html"
        path.write_text(html, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light",
            java_script_enabled=scripts, accept_downloads=True, reduced_motion="reduce",
            has_touch=touch, is_mobile=touch,
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        tab = Tab(page, artefacts)
        tabs.append(tab)
        local = ("file:", "data:", "blob:", "about:")
        context.route("**/*", lambda route: route.continue_() if route.request.url.startswith(local) else route.abort())
        page.on("request", lambda request: None if request.url.startswith(local) else tab.requests.append(request.url))
        page.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: tab.errors.append(str(error)))
        if before:
            page.add_init_script(before)
        page.goto(path.as_uri())
        if scripts and wait:
            page.wait_for_selector(wait, state="attached")
            tab.settle()
        return tab

    yield open_
    for tab in tabs:
        assert tab.requests == [], "the page must ask the network for nothing"
        assert tab.errors == [], "the page must log no errors"
    for context in contexts:
        context.close()
