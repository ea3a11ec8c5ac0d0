"""Figures of one notebook share one copy of plotly: run by a kernel, exported, re-run, looked at offline."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser import OpenPage, Tab
from tests.notebooks.second_pass import to_page

ROOT = Path(__file__).resolve().parents[2]
MAP = "synthetic.effects()['{}']"
CELLS = ("from tests.render import synthetic", MAP.format("resid_pre"), MAP.format("z"), "synthetic.patterns()",
         "synthetic.patterns(synthetic.HOSTILE)", "synthetic.curve()")  # fmt: skip
DRAWN = ".js-plotly-plot .main-svg, .mw-large canvas"
LATE = ".mw-missing"

Run = Callable[..., str]


@pytest.fixture(scope="module")
def kernel() -> Iterator[Run]:
    """A kernel to which cells are sent as JupyterLab sends them: with their ids, and those of deleted cells."""
    from jupyter_client.manager import start_new_kernel

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MECHWORK_WHOLE_FIGURES", None)
    manager, client = start_new_kernel(kernel_name="python3", env=environment, cwd=str(ROOT))

    def run(cell: str | None, code: str, *, deleted: tuple[str, ...] = ()) -> str:
        content = {"code": code, "silent": False, "allow_stdin": bool(cell), "user_expressions": {}}
        metadata = {"cellId": cell, "deletedCells": list(deleted)} if cell else {}
        message: Any = client.session.msg("execute_request", content, metadata=metadata)
        client.shell_channel.send(message)
        shown = []
        while True:
            answer: Any = client.get_iopub_msg(timeout=120)
            if answer["parent_header"].get("msg_id") != message["header"]["msg_id"]:
                continue
            assert answer["msg_type"] != "error", answer["content"]
            shown.append(answer["content"].get("data", {}).get("text/html", ""))
            if answer["content"].get("execution_state") == "idle":
                return "".join(shown)

    try:
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def copies_in(markup: str) -> list[str]:
    """The packed scripts that stand in the frames of this markup."""
    return re.findall(r'data-vendor="(\w+)"[^>]*>\w', unescape(markup))


def as_notebook(outputs: dict[str, str]) -> nbformat.NotebookNode:
    cells = [
        nbformat.v4.new_code_cell(name, outputs=[nbformat.v4.new_output("display_data", {"text/html": html})])
        for name, html in outputs.items()
    ]
    return nbformat.v4.new_notebook(cells=cells)


def all_drawn(tab: Tab, n: int) -> None:
    frames = tab.page.locator("iframe[title='mechwork figure']")
    assert frames.count() == n
    for i in range(n):
        frames.nth(i).scroll_into_view_if_needed()
        inside = frames.nth(i).content_frame
        inside.locator(DRAWN).first.wait_for()
        assert inside.locator(LATE).count() == 0


@pytest.mark.slow
def test_a_notebook_that_is_run_and_exported_holds_one_copy(kernel: Run, open_page: OpenPage) -> None:
    outputs = {code: kernel(None, code) for code in CELLS}
    shown = {code: html for code, html in outputs.items() if html}
    assert len(shown) == 5
    assert copies_in("".join(shown.values())) == ["plotly", "circuitsvis"]
    page = to_page(as_notebook(shown))
    assert sorted(copies_in(page)) == ["circuitsvis", "plotly"]
    tab = open_page(page, wait="iframe[title='mechwork figure']", height=1600)
    all_drawn(tab, 5)
    tab.picture("shared-nbconvert")
    print({"bytes of the notebook": sum(map(len, shown.values())), "of the first": len(shown[CELLS[1]])})
    assert sum(map(len, shown.values())) < 1.35 * (len(shown[CELLS[1]]) + len(shown[CELLS[3]]))


@pytest.mark.slow
def test_cells_that_run_again_alone_leave_a_notebook_that_is_drawn_when_reopened(
    kernel: Run, open_page: OpenPage
) -> None:
    kernel("start", CELLS[0])
    cells = {name: MAP.format(kind) for name, kind in (("a", "resid_pre"), ("b", "z"), ("c", "attn_out"))}
    saved = {name: kernel(name, code) for name, code in cells.items()}
    copies = {name: len(copies_in(html)) for name, html in saved.items()}
    # The output of an earlier test may hold the script still; then the first holds its own once it runs again.
    saved["a"] = kernel("a", cells["a"])
    assert len(copies_in(saved["a"])) == 1
    assert copies["b"] == copies["c"] == 0
    saved["b"] = kernel("b", cells["b"] + "  # changed")
    assert not copies_in(saved["b"])
    saved["a"] = kernel("a", "1 + 1")
    saved["c"] = kernel("c", cells["c"] + "  # changed")
    assert len(copies_in(saved["c"])) == 1
    del saved["a"]
    tab = open_page(to_page(as_notebook(saved)), wait="iframe[title='mechwork figure']", height=1600)
    all_drawn(tab, 2)


@pytest.mark.slow
def test_frames_draw_whichever_comes_first_and_say_when_no_copy_is_left(kernel: Run, open_page: OpenPage) -> None:
    kernel("start", CELLS[0])
    holder = kernel("x", CELLS[1] + "  # holder", deleted=("a", "b", "c"))
    if not copies_in(holder):
        holder = kernel("x", CELLS[1] + "  # holder")
    assert copies_in(holder) == ["plotly"]
    poor = kernel("y", CELLS[2] + "  # poor")
    assert not copies_in(poor)
    tab = open_page(f"<!doctype html><meta charset='utf-8'>{poor}<section></section>", wait="iframe")
    frame = tab.page.locator("iframe").first.content_frame
    frame.locator(LATE).wait_for(timeout=15_000)
    assert "Run this cell once more" in frame.locator(LATE).inner_text()
    tab.picture("shared-missing")
    tab.page.evaluate("(html) => (document.querySelector('section').innerHTML = html)", holder)
    frame.locator(DRAWN).first.wait_for()
    assert frame.locator(LATE).count() == 0
    # One that was lent lends on: the holder goes, another comes.
    tab.page.evaluate("(html) => (document.querySelector('section').innerHTML = html)", poor)
    tab.page.locator("section iframe").content_frame.locator(DRAWN).first.wait_for()
