"""The second pass: every exercise judged, every claim checked, and the page that nbconvert makes, looked at in a
browser.

The first pass is nbmake's. Screenshots go to the folder named by MECHWORK_ARTEFACTS, else to the test's temporary
folder.
"""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace as Made
from typing import Any

import pytest

from notebooks.course.pairing import sources
from tests.browser import Tab
from tests.gate import TWICE, fewer

from .second_pass import execute, exercises_in, printed_answers, read, run, to_page

COUNT_COLOURS = """async (data) => {
    const image = await createImageBitmap(await (await fetch('data:image/png;base64,' + data)).blob());
    const canvas = Object.assign(document.createElement('canvas'), { width: image.width, height: image.height });
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const seen = new Set(new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer));
    return seen.size;
}"""
"""How many different colours a picture has: a blank figure has one or two."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("source", fewer(sources(), sources()[TWICE]), ids=lambda source: source.stem)
def test_exercises_claims_and_page(source: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    done = execute(source, tmp_path)
    names = exercises_in(source)
    assert len(done.told) == len(names) + 1
    for name, said in zip(names, done.told, strict=False):
        assert said.count("not yet: ") >= 2
        assert f"{name}  right. " in said
        assert "could not be judged" not in said.split("right. ")[-1]
    assert printed_answers(done.notebook, done.told) == []
    assert list((tmp_path / "reports").iterdir()), "the notebook saves a report or a figure"
    look_at(source.stem, to_page(done.notebook), request)


def test_an_answer_that_is_printed_is_found() -> None:
    lesson = Made(cells=[{"outputs": [{"text": "biases +0.9304\na1 12, 1.50"}]}, {"source": "no output"}])
    said = ["not yet: no.\nthe answer is 0.93041", "the answer is 12", "the answer is 0.934", "the answer is END"]
    assert printed_answers(lesson, said) == ["+0.9304"]


def look_at(name: str, page: str, request: pytest.FixtureRequest) -> None:
    """Opens the page offline; every frame has something in it. Requests and console errors fail when the tab closes."""
    tab: Tab = request.getfixturevalue("open_page")(page, wait="main", height=1000)
    assert tab.page.locator(".jp-Cell, .cell").count() > 15
    frames = tab.page.locator("iframe[title='mechwork figure']")
    assert frames.count() >= 1
    for number in range(frames.count()):
        frame = frames.nth(number)
        frame.scroll_into_view_if_needed()
        inside = frame.content_frame
        inside.locator(".main-svg, .mw-nodes .mw-node, canvas, table, .mw-token").first.wait_for(timeout=60_000)
        tab.settle()
        assert colours(tab, frame) > 20, f"figure {number} of {name} is blank"
        frame.screenshot(path=str(tab.artefacts / f"notebook-{name}-figure{number}.png"))
    height = tab.page.evaluate("() => document.documentElement.scrollHeight")
    tab.page.set_viewport_size({"width": 1280, "height": min(height, 12_000)})  # frames out of sight are not painted
    tab.page.evaluate("() => new Promise((done) => setTimeout(done, 500))")
    tab.picture(f"notebook-{name}")


def colours(tab: Tab, frame: Any) -> int:
    """Different colours in a picture of the frame."""
    import base64

    return tab.page.evaluate(COUNT_COLOURS, base64.b64encode(frame.screenshot()).decode())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_out_of_order_and_twice(tmp_path: Path) -> None:
    """A later cell first: the message says which cells to run. Then all of them, and all of them again."""
    notebook = read(next(source for source in sources() if source.stem == "02_cached_runs"))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    begin, later = code[0], code[3]  # the first that uses what a cell above has made
    notebook.cells = [copy.deepcopy(cell) for cell in (begin, later, *code, *code)]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    run(notebook, tmp_path, allow_errors=True)
    first, *rest = notebook.cells[1:]
    assert any(output.output_type == "error" and output.ename == "NameError" for output in first.outputs)
    assert any("Run the cells above first" in output.get("text", "") for output in first.outputs)
    assert not [output for cell in rest for output in cell.outputs if output.output_type == "error"]
