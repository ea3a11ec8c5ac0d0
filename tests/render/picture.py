"""The README's pictures: ``python -m tests.render.picture`` finds the IOI circuit of gpt2-6l and photographs what is
made of it.

Needs chromium and playwright, as the browser tests do, and about a minute of CPU. Writes graph.png (the strongest
connected edges as the interactive graph shows them), places.png (the same over the prompt's spans), report.png (the
report's first screen) and slide.svg (what `mechwork.figure` makes) into .github. ``--out DIR`` writes them elsewhere.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import mechwork as mw
from mechwork.circuits import score_attention_edges, score_positions
from mechwork.render import render_circuit, render_positions, render_report
from mechwork.runs import AttentionPatterns

TARGET = Path(__file__).resolve().parents[2] / ".github"


def pages(target: Path) -> dict[str, tuple[str, int, str]]:
    """Name of the picture -> page, height of the window, what is done before the photograph."""
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=128, seed=0)
    found = mw.discover(model, task)
    spans = score_positions(model, task.train, positions="spans")
    moves = score_attention_edges(model, task.train, positions="spans")
    report = render_report(task, *found.results)
    rest = [result for result in found.results if result is not found.circuit]
    mw.figure(found.circuit, *rest, task=task, n_edges=12).save(target / "slide.svg")
    graph = render_circuit(found.circuit, task, *(r for r in rest if not isinstance(r, AttentionPatterns)))
    return {
        "graph": (graph, 760, "() => null"),
        "places": (
            render_positions(spans, moves, n_edges=90, title="IOI in gpt2-6l, by span", task=task),
            720,
            "() => null",
        ),
        "report": (report, 800, "() => null"),
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

    target = Path(sys.argv[2]) if sys.argv[1:2] == ["--out"] else TARGET
    target.mkdir(exist_ok=True)
    made = pages(target)
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (html, height, before) in made.items():
            photograph(browser, html, target / f"{name}.png", height=height, before=before)
        browser.close()


if __name__ == "__main__":
    main()
