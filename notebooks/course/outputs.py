"""The outputs that travel with the notebooks: ``python -m notebooks.course.outputs [02 09 ...]`` runs and renews them.

Each notebook is run from top to bottom in a kernel of its own, unanswered, as a student finds it. Text stays as it is;
every figure becomes a picture (PNG, at most 256 colours), taken by a browser without a network, because figures that
live need megabytes of script. The notebook's metadata say of which code cells the outputs are (a hash): a test
compares. It prints the CPU seconds of each (one thread: OMP_NUM_THREADS=1), which are those of the teaching plan. Needs
nbclient, playwright and chromium (the extra ``dev``). With MECHWORK_REAL_MODEL set, lesson 9 runs live
and its numbers are stored too.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .pairing import NOTEBOOKS, build, sources, to_json, with_outputs

FRAME = re.compile(r'<iframe srcdoc="(.*?)" sandbox=', re.DOTALL)
DRAWN = ".main-svg, .mw-nodes .mw-node, canvas, table, .mw-token"
WIDTH, HEIGHT, TALLEST = 960, 700, 1000
"""Of the window in pixels, and of a picture that is taller than the window."""
HIDDEN = re.compile(r"(?<![\w.])/(?:[\w.+-]+/)+(?=[\w.+-]+)")
"""Folders of this machine in an output; the name of the file stays."""

Picture = Callable[[str], bytes]


def renew(source: Path, picture: Picture) -> tuple[Path, float]:
    """Run one notebook and write it with light outputs: the file, and the CPU seconds of all cells."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads(to_json(build(source.read_text(encoding="utf-8"))), as_version=4)
    if source.name.startswith("09") and os.environ.get("MECHWORK_REAL_MODEL"):
        storing = "from course import real\n\nreal.store()"
        notebook.cells.append(nbformat.v4.new_code_cell(storing, metadata={"tags": ["storing"]}))
    with tempfile.TemporaryDirectory() as folder:
        paths = os.pathsep.join(filter(None, [str(NOTEBOOKS), str(NOTEBOOKS.parent), os.environ.get("PYTHONPATH", "")]))
        client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}})
        whole = {"MECHWORK_WHOLE_FIGURES": "1"}  # each is photographed alone
        before = _children()
        client.execute(env={**os.environ, "PYTHONPATH": paths, **whole})
        seconds = _children() - before
    made = json.loads(nbformat.writes(notebook))
    cells = [cell for cell in made["cells"] if "storing" not in cell["metadata"].get("tags", ())]
    outputs = [
        (cell["execution_count"], [light(output, picture) for output in merged(cell["outputs"])])
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    target = source.with_suffix(".ipynb")
    made = with_outputs(build(source.read_text(encoding="utf-8")), outputs)
    target.write_text(to_json(made), encoding="utf-8")
    return target, seconds


def _children() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def merged(outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring pieces of printed text as one; what is printed to stderr (warnings of this machine) left out."""
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output["output_type"] == kept[-1]["output_type"] == "stream":
            kept[-1] = {**kept[-1], "text": [*kept[-1]["text"], *output["text"]]}
        else:
            kept.append(output)
    return kept


def light(output: dict[str, Any], picture: Picture) -> dict[str, Any]:
    """An output with its figure as a picture, and without the machine's folders."""
    data = output.get("data")
    if data is None:
        return {**output, "text": "".join(HIDDEN.sub("", "".join(output["text"]))).splitlines(keepends=True)}
    found = FRAME.search("".join(data.get("text/html", "")))
    words = HIDDEN.sub("", "".join(data.get("text/plain", "")))
    kept: dict[str, Any] = {"text/plain": words.splitlines(keepends=True)}
    if found is not None:
        kept["image/png"] = base64.b64encode(picture(html.unescape(found[1]))).decode("ascii")
    return {**output, "data": kept, "metadata": {}}


def as_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG with a palette, of pixels ``[row, column, 3]``: the 256 most frequent colours that can be told apart.

    Other colours become the nearest of these.
    """
    rows, columns, _ = pixels.shape
    colours, where, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    # of colours that look the same, one
    alike = np.unique(colours[order] >> 3, axis=0, return_index=True)[1]
    palette = colours[order[np.sort(alike)[:256]]]
    far = ((colours[:, None].astype(int) - palette[None].astype(int)) ** 2).sum(-1)
    index = far.argmin(axis=1).astype(np.uint8)[where.reshape(-1)].reshape(rows, columns)
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), index], axis=1).tobytes()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")


PIXELS = """async (data) => {
    const image = Object.assign(new Image(), { src: 'data:image/png;base64,' + data });
    await image.decode();
    const canvas = Object.assign(document.createElement('canvas'), { width: image.width, height: image.height });
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const bytes = context.getImageData(0, 0, image.width, image.height).data;
    let text = '';
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return [image.width, image.height, btoa(text)];
}"""
"""A PNG's pixels, read by the browser that made it."""


def take_pictures(chromium: Any) -> Picture:
    """page -> picture, in a tab that may ask the network for nothing."""
    context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, offline=True, reduced_motion="reduce")

    def picture(page: str) -> bytes:
        tab = context.new_page()
        tab.set_content(page, timeout=300_000)
        tab.locator(DRAWN).first.wait_for(state="attached", timeout=300_000)
        tab.wait_for_timeout(1_000)
        height = min(TALLEST, int(tab.evaluate("() => Math.ceil(document.body.getBoundingClientRect().height) + 16")))
        taken = tab.screenshot(timeout=300_000, full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        width, height, data = tab.evaluate(PIXELS, base64.b64encode(taken).decode("ascii"))
        tab.close()
        pixels = np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)[..., :3]
        return as_png(pixels)

    return picture


def main(wanted: Sequence[str]) -> None:
    """Renew the outputs of the lessons whose numbers are given; of all, without any."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("MECHWORK_CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        sys.exit("pictures are taken by a browser, and no chromium is installed (Debian: apt-get install chromium)")
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        for source in sources():
            if not wanted or source.name[:2] in wanted:
                target, seconds = renew(source, take_pictures(chromium))
                print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB, {seconds:.0f} s of CPU", flush=True)
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1:])
