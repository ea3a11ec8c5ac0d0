"""The README's pictures: ``python -m tests.render.picture`` finds the IOI circuit of gpt2-6l and photographs what is made of it.

Needs chromium and playwright, as the browser tests do. Writes graph.png (the circuit, one head in focus), places.png (the same over
the prompt's spans) and report.png (the report's first screen) into .github.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import mechwork as mw
from mechwork.circuits import score_attention_edges, score_positions
from mechwork.render import render_graph, render_positions, render_report

TARGET = Path(__file__).resolve().parents[2] / ".github"
FOCUS = "() => mechwork.select('a5.h1', null)"


def pages() -> dict[str, tuple[str, int, str]]:
    """Name of the picture -> page, height of the window, what is done before the photograph."""
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=128, seed=0)
    found = mw.discover(model, task)
    spans = score_positions(model, task.train, positions="spans")
    moves = score_attention_edges(model, task.train, positions="spans")
    report = render_report(task, *found.results)
    return {
        "graph": (render_graph(found.circuit), 720, FOCUS),
        "places": (render_positions(spans, moves, n_edges=90, title="IOI in gpt2-6l, by span"), 720, "() => null"),
        "report": (report, 860, "() => null"),
    }


def photograph(browser: Any, html: str, target: Path, *, height: int, before: str) -> None:
    """Opens a page, lets it settle, and writes a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(html, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1200, "height": height}, device_scale_factor=1.5)
        page.goto(file.as_uri())
        page.wait_for_timeout(2500)
        page.evaluate(before)
        page.wait_for_timeout(800)
        page.screenshot(path=str(target))
        page.close()
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    """Find, draw, photograph."""
    from playwright.sync_api import sync_playwright

    TARGET.mkdir(exist_ok=True)
    made = pages()
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (html, height, before) in made.items():
            photograph(browser, html, TARGET / f"{name}.png", height=height, before=before)
        browser.close()


if __name__ == "__main__":
    main()
