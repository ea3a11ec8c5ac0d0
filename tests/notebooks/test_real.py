"""Lesson 9's real model: stored numbers where there is none, with a word; live ones where there is; and they agree."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import mechwork as mw
from notebooks.course import real
from notebooks.course.pairing import read_cells, sources


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "_STATE", {"model": None, "file": "", "made": {}})


def test_without_a_model_it_says_so_and_gives_stored_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(real.VARIABLE, raising=False)
    assert real.real_model() is None
    assert "stored with the course" in capsys.readouterr().out
    stored = json.loads(real.STORED.read_text(encoding="utf-8"))["numbers"]
    assert real.live("anatomy", lambda: pytest.fail("nothing is measured without a model")) == stored["anatomy"]
    with pytest.raises(KeyError, match="nothing is stored as 'other'; there are anatomy"):
        real.live("other", dict)
    with pytest.raises(ValueError, match="nothing to store"):
        real.store()


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf; give the path of a GGUF file"):
        real.real_model(tmp_path / "nowhere.gguf")


def test_with_a_model_it_is_measured_and_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = mw.load_model("attn-only-2l")
    monkeypatch.setattr(mw, "load_model", lambda path: stand_in)
    monkeypatch.setattr(real, "STORED", tmp_path / "stored.json")
    assert real.real_model(tmp_path) is stand_in
    assert real.live("pair", lambda: ("a3.h1", 2.0)) == ["a3.h1", 2.0]  # plain JSON, as when it is read
    assert json.loads(real.store().read_text(encoding="utf-8"))["numbers"] == {"pair": ["a3.h1", 2.0]}


def test_every_number_that_the_lesson_asks_for_is_stored() -> None:
    text = next(path for path in sources() if path.name.startswith("09")).read_text(encoding="utf-8")
    stored = json.loads(real.STORED.read_text(encoding="utf-8"))["numbers"]
    assert set(stored) == {part.partition('"')[0] for part in text.split('course.live("')[1:]}


@pytest.mark.slow
@pytest.mark.skipif(real.VARIABLE not in os.environ, reason=f"{real.VARIABLE} names no model")
def test_the_stored_numbers_are_those_of_the_model() -> None:
    source = next(path for path in sources() if path.name.startswith("09"))
    model, names = real.real_model(), {}
    for kind, text in read_cells(source.read_text(encoding="utf-8")):
        if kind == "code" and text.startswith(("import torch", "def look", "def accuracies", "def lens")):
            live = text.partition("course.live")[0] if "def " in text else text.partition("model = ")[0]
            exec("\n".join(live.splitlines()[:-1]) if "def " in text else live, names)
    names["model"] = model
    stored = json.loads(real.STORED.read_text(encoding="utf-8"))["numbers"]
    assert names["look"]() == stored["anatomy"]
    assert names["accuracies"]() == stored["accuracy"]
    assert names["lens"]() == stored["lens"]
