"""JupyterLab and marimo themselves, in a real browser: a gesture answers beside a running cell, a stored notebook keeps
its page, two tabs, a kernel that restarts, a server that ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.live.hosts import PATIENCE, TOKEN, jupyter_lab, marimo, write_notebook

FRAME = "iframe[title='mechwork live']"
MAKE = """import mechwork as mw
model = mw.load_model("gpt2-6l")
task = mw.tasks.ioi(model, n=16, seed=0)
live = mw.explore(model, task)
live"""
BUSY = """tokens, wrong = task.pairs.clean_tokens[:1], 0
plain, n = model(tokens), len(live.session.history)
import time
print("cell begins", flush=True)
until = time.monotonic() + 60
while len(live.session.history) == n and time.monotonic() < until:
    wrong += not bool((model(tokens) == plain).all())
print("wrong forwards:", wrong)"""
CHECK = """spec = mw.AblationSpec(["a4.h1"], kind="mean")
right = float(mw.ablate(model, task[:1], spec, reference=task).ablated_per_example.mean())
print("equal:", live.session.history[-1].answer.data["metric"] == right)"""


def ablate(page: Any, place: str = "a4.h1") -> str:
    """Clicks a box and *Ablate*; what is said when the controls are there."""
    frame = page.frame_locator(FRAME)
    frame.locator("#lv-freeze:not([disabled])").wait_for(timeout=PATIENCE)
    frame.locator(f'[data-place="{place}"]').click(timeout=PATIENCE)
    frame.locator('[data-action="ablate"]').click()
    frame.locator("#lv-control", has_text="random other place").wait_for(timeout=PATIENCE)
    return frame.locator("#lv-says").inner_text()


def run_cell(page: Any, i: int) -> None:
    page.locator("#jp-bottom-panel, #jp-main-statusbar", has_text="Idle").first.wait_for(timeout=PATIENCE)
    page.locator(".jp-CodeCell .jp-InputArea-editor").nth(i).click()
    page.keyboard.press("Control+Enter")


def printed(page: Any, text: str) -> None:
    page.locator(".jp-OutputArea-output", has_text=text).first.wait_for(timeout=PATIENCE)


@pytest.mark.slow
def test_jupyterlab(browser: Any, tmp_path: Path, artefacts: Path) -> None:
    write_notebook(tmp_path / "n.ipynb", MAKE, BUSY, CHECK)
    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    with jupyter_lab(tmp_path) as (root, program):
        page = context.new_page()
        page.goto(f"{root}/lab/tree/n.ipynb?token={TOKEN}")
        page.locator(".jp-CodeCell").first.wait_for(timeout=PATIENCE)
        run_cell(page, 0)
        assert "the lead of" in ablate(page)
        page.screenshot(path=str(artefacts / "jupyterlab.png"))
        # beside a running cell
        page.frame_locator(FRAME).locator("#lv-undo").click()
        run_cell(page, 1)
        printed(page, "cell begins")
        ablate(page)
        printed(page, "wrong forwards: 0")
        run_cell(page, 2)
        printed(page, "equal: True")
        # a second tab sees what was done, and has a voice of its own
        page.keyboard.press("Control+s")
        page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')", timeout=PATIENCE)
        stored = json.loads((tmp_path / "n.ipynb").read_text())
        kept = [out["data"] for out in stored["cells"][0]["outputs"] if "data" in out]
        assert any("mechwork live" in "".join(data.get("text/html", "")) for data in kept)
        assert not [out for out in stored["cells"][0]["outputs"] if out["output_type"] == "stream"], "no warnings"
        second = context.new_page()
        second.goto(f"{root}/lab/tree/n.ipynb")
        second.frame_locator(FRAME).locator("#lv-history li").first.wait_for(timeout=PATIENCE)
        ablate(second, "a5.h1")
        assert page.frame_locator(FRAME).locator("#lv-error").is_hidden()
        second.close()
        # the kernel restarts: the page stays and says so
        kernels = page.request.get(f"{root}/api/kernels", headers={"Authorization": f"token {TOKEN}"}).json()
        cookies = {cookie["name"]: cookie["value"] for cookie in context.cookies()}
        again = page.request.post(
            f"{root}/api/kernels/{kernels[0]['id']}/restart",
            headers={"Authorization": f"token {TOKEN}", "X-XSRFToken": cookies.get("_xsrf", "")},
        )
        assert again.ok, again.text()
        page.frame_locator(FRAME).locator('[data-action="ablate"]').click()
        said = page.frame_locator(FRAME).locator("#lv-error:not([hidden])")
        said.wait_for(timeout=PATIENCE)
        assert "has gone" in said.inner_text()
        page.screenshot(path=str(artefacts / "jupyterlab-restarted.png"))
        # reopened with a new kernel: today's page, not live, and it says how to make it so
        reopened = context.new_page()
        reopened.goto(f"{root}/lab/tree/n.ipynb")
        frame = reopened.frame_locator(FRAME)
        frame.locator("#lv-offline").wait_for(timeout=PATIENCE)
        assert frame.locator(".lv-token").count() > 10
        assert frame.locator('[data-action="ablate"]').is_disabled()
        reopened.screenshot(path=str(artefacts / "jupyterlab-reopened.png"))
        run_cell(reopened, 0)
        frame.locator("#lv-freeze:not([disabled])").wait_for(timeout=PATIENCE)
        assert "the lead of" in ablate(reopened)
        # the server ends
        program.terminate()
        program.wait(30)
        frame.locator('[data-action="patch"]').dispatch_event("click")  # Jupyter's own dialog lies above
        said = frame.locator("#lv-error:not([hidden])")
        said.wait_for(timeout=PATIENCE)
        assert "has gone" in said.inner_text()
    context.close()


FIGURE = "iframe[title='mechwork figure']"


@pytest.mark.slow
def test_figures_of_a_jupyterlab_notebook_share_one_script(browser: Any, tmp_path: Path, artefacts: Path) -> None:
    made = ["from tests.render import synthetic", *(f"synthetic.effects()['{k}']" for k in ("resid_pre", "z"))]
    write_notebook(tmp_path / "n.ipynb", *made, "synthetic.curve()")

    def drawn(page: Any, *cells: int) -> None:
        for i in cells:
            frame = page.locator(".jp-CodeCell").nth(i).locator(FIGURE)
            frame.scroll_into_view_if_needed(timeout=PATIENCE)
            frame.content_frame.locator(".main-svg").first.wait_for(timeout=PATIENCE)

    def holders(page: Any) -> list[int]:
        page.keyboard.press("Control+s")
        page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')", timeout=PATIENCE)
        cells = json.loads((tmp_path / "n.ipynb").read_text())["cells"]
        return [i for i, cell in enumerate(cells) if len(json.dumps(cell["outputs"])) > 1_000_000]

    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    with jupyter_lab(tmp_path) as (root, _):
        page = context.new_page()
        page.goto(f"{root}/lab/tree/n.ipynb?token={TOKEN}")
        page.locator(".jp-CodeCell").first.wait_for(timeout=PATIENCE)
        for i in range(4):
            run_cell(page, i)
        drawn(page, 1, 2, 3)
        assert holders(page) == [1]
        run_cell(page, 1)  # the holder alone, again
        drawn(page, 1, 2, 3)
        page.screenshot(path=str(artefacts / "jupyterlab-shared.png"))
        assert holders(page) == [1]
        reopened = context.new_page()
        reopened.goto(f"{root}/lab/tree/n.ipynb")
        drawn(reopened, 1, 2, 3)
        reopened.close()
        page.locator(".jp-CodeCell .jp-InputPrompt").nth(1).click()
        page.keyboard.press("d")
        page.keyboard.press("d")  # the holder is deleted
        run_cell(page, 2)
        drawn(page, 1, 2)
        assert holders(page) == [2]
        reopened = context.new_page()
        reopened.goto(f"{root}/lab/tree/n.ipynb")
        drawn(reopened, 1, 2)
    context.close()


MARIMO = f"""import marimo
app = marimo.App()

@app.cell
def _():
    {MAKE.replace(chr(10), chr(10) + "    ")}
    return (live,)

if __name__ == "__main__":
    app.run()
"""


@pytest.mark.slow
def test_marimo(browser: Any, tmp_path: Path, artefacts: Path) -> None:
    (tmp_path / "n.py").write_text(MARIMO)
    context = browser.new_context(viewport={"width": 1400, "height": 1200})
    with marimo(tmp_path, "n.py") as (root, program):
        page = context.new_page()
        page.goto(root)
        said = ablate(page)
        assert "the lead of" in said
        page.screenshot(path=str(artefacts / "marimo.png"))
        second = context.new_page()  # a kernel of its own: nothing done yet
        second.goto(root)
        assert ablate(second) == said
        second.close()
        program.terminate()
        program.wait(30)
        frame = page.frame_locator(FRAME)
        frame.locator('[data-action="patch"]').click()
        frame.locator("#lv-error:not([hidden])").wait_for(timeout=PATIENCE)
        assert "has gone" in frame.locator("#lv-error").inner_text()
    context.close()
