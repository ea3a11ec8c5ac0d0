"""The README's picture: ``python -m tests.render.picture`` finds the IOI circuit of gpt2-6l and photographs its page.

Needs chromium and playwright, as the browser tests do. Writes .github/graph.png.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import mechwork as mw
from mechwork.render import render_graph

TARGET = Path(__file__).resolve().parents[2] / ".github" / "graph.png"


def main() -> None:
    """Score, draw, photograph."""
    from playwright.sync_api import sync_playwright

    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=128, seed=0)
    scores = mw.score_edges(model, task.train, rules="relp")
    circuit = scores.circuit(n_edges=scores.space.n_edges // 20)
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as browsers:
        page_file = Path(folder) / "graph.html"
        page_file.write_text(render_graph(circuit), encoding="utf-8")
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 720}, device_scale_factor=1.5)
        page.goto(page_file.as_uri())
        page.wait_for_timeout(1000)
        page.screenshot(path=str(TARGET))
        browser.close()
    print(f"{TARGET}: {circuit}")


if __name__ == "__main__":
    main()
