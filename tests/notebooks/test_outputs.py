"""What travels inside the notebooks: outputs of this code, light, without traces of a machine; and no answers."""

from __future__ import annotations

import base64
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from notebooks.course import EXERCISES
from notebooks.course.outputs import as_png, light, merged
from notebooks.course.pairing import build, code_sha256, outputs_of, pair, read_cells, sources, with_outputs

each = pytest.mark.parametrize("source", sources(), ids=lambda source: source.stem)

SHARED = {"import torch", "with torch.no_grad():", 'return kept["x"]'}
"""Lines that stand in solutions and may stand in lessons too."""


@each
def test_outputs_are_of_this_code_and_light(source: Path) -> None:
    """python -m notebooks.course.outputs NN renews them."""
    target = source.with_suffix(".ipynb")
    notebook = json.loads(target.read_text(encoding="utf-8"))
    of = notebook["metadata"].get("mechwork", {}).get("outputs_of")
    assert of == code_sha256(build(source.read_text(encoding="utf-8"))), (
        f"stale: python -m notebooks.course.outputs {source.name[:2]}"
    )
    assert target.stat().st_size < 150_000
    made = [output for _, outputs in outputs_of(notebook) for output in outputs]
    assert sum("image/png" in output.get("data", {}) for output in made) >= 1
    assert all("text/html" not in output.get("data", {}) for output in made)
    assert all(output["output_type"] != "error" for output in made)
    words = json.dumps([output.get("text", output.get("data", {}).get("text/plain", "")) for output in made])
    assert not re.search(r"/(?:work|tmp|home|root|Users)/", words)


@each
def test_no_answer_stands_on_the_page(source: Path) -> None:
    """No line of a solution, but for its first, stands in the lesson; nor does a number that is asked for."""
    text = source.read_text(encoding="utf-8")
    lines = {" ".join(line.split()) for _, cell in read_cells(text) for line in cell.splitlines()}
    prose = "\n".join(cell for kind, cell in read_cells(text) if kind == "markdown")
    for name in re.findall(r'course\.check\("(\d+\.\d)"', text):
        solution = EXERCISES[name].solution
        own = {" ".join(line.split()) for line in solution.strip().splitlines() if not line.startswith("def ")}
        assert not {line for line in own - SHARED if len(line) > 12} & lines, name
        found = re.fullmatch(r"\w+ = (-?[\d.]+)", solution.strip())
        assert found is None or not re.search(rf"(?<![\d.]){re.escape(found[1])}(?![\d.])", prose), name


def test_outputs_stay_with_their_code(tmp_path: Path) -> None:
    source = tmp_path / "00_x.py"
    source.write_text("# %% [markdown]\n# Words\n\n# %%\nprint(1)\n", encoding="utf-8")
    printed = [{"name": "stdout", "output_type": "stream", "text": ["1\n"]}]
    whole = with_outputs(build(source.read_text(encoding="utf-8")), [(1, printed)])
    source.with_suffix(".ipynb").write_text(json.dumps(whole), encoding="utf-8")
    source.write_text("# %% [markdown]\n# Other words\n\n# %%\nprint(1)\n", encoding="utf-8")
    assert outputs_of(pair(source)) == [(1, printed)]
    source.write_text("# %% [markdown]\n# Other words\n\n# %%\nprint(2)\n", encoding="utf-8")
    assert outputs_of(pair(source)) == [(None, [])]


def test_a_figure_becomes_a_picture_and_a_path_a_name() -> None:
    frame = '<div><iframe srcdoc="&lt;p&gt;a page&lt;/p&gt;" sandbox="allow-scripts"></iframe></div>'
    output = {"output_type": "display_data", "data": {"text/html": frame, "text/plain": "Words"}, "metadata": {}}
    seen: list[str] = []
    made = light(output, lambda page: seen.append(page) or b"picture")
    assert seen == ["<p>a page</p>"]
    assert made["data"] == {"text/plain": ["Words"], "image/png": base64.b64encode(b"picture").decode()}
    said = (("stdout", "saved /tmp/a-b/c.html\n"), ("stderr", "a warning"), ("stdout", "key/value 1/2\n"))
    printed = [{"output_type": "stream", "name": name, "text": [text]} for name, text in said]
    assert "".join(light(merged(printed)[0], lambda page: b"")["text"]) == "saved c.html\nkey/value 1/2\n"


def test_the_picture_is_a_png_of_its_pixels() -> None:
    """Read back by hand: a palette, one byte per pixel, no filter."""
    import zlib

    pixels = np.random.default_rng(0).integers(0, 4, (5, 7, 3)).astype(np.uint8) * 60
    data, at, chunks = as_png(pixels), 8, {}
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + size]
        assert zlib.crc32(data[at + 4 : at + 8 + size]) == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        at += 12 + size
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (7, 5)
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    index = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(5, 8)[:, 1:]
    assert np.array_equal(palette[index], pixels)
