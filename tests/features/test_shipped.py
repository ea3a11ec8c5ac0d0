"""The shipped features: whole, small, refused elsewhere, a good code of held-out text, and above chance where a concept
lives.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import mechwork as mw
from mechwork import bundled
from mechwork.errors import ArtefactError, NotFoundError
from mechwork.features import concept_of_answer, evaluate_features, feature_names, load_features, measure_separability
from mechwork.files import read_json
from mechwork.lenses import open_text

NAME = "gpt2-6l"


def test_files_are_whole_small_and_say_what_they_are() -> None:
    folder = bundled.path("features", NAME)
    bundled.verify(folder)
    assert feature_names() == [NAME]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    for file in ("features.json", "card.json"):
        text = (folder / file).read_text(encoding="utf-8")
        assert "/tmp" not in text
        assert "/home" not in text
    card = read_json(folder / "card.json")
    assert card["dtype"] == "float16"
    assert len(card["text"]["rows_sha256"]) == 64
    assert len(card["evaluation"]["places"]) == 19


def test_they_are_a_code_of_held_out_text(bundled_model: Any) -> None:
    features = load_features(bundled_model).only("resid_post")
    measured = evaluate_features(bundled_model, features, open_text(bundled_model, NAME, seed=7), n_rows=24)
    for left, random in zip(measured.unexplained, measured.random_unexplained, strict=True):
        assert left < 0.4 * random
    promised = {row["place"]: row for row in bundled.load_json("features", NAME, "card.json")["evaluation"]["places"]}
    for place, left in zip(measured.places, measured.unexplained, strict=True):
        assert left == pytest.approx(promised[place]["unexplained"], rel=0.25)
    assert measured.recovered[-1] > measured.random_recovered[-1] + 0.05


@pytest.mark.parametrize(("task", "answer", "name"), [("agreement", " are", "number"), ("pronoun", " she", "gender")])
def test_they_tell_a_concept_apart_as_the_card_says(bundled_model: Any, task: str, answer: str, name: str) -> None:
    features = load_features(bundled_model).only("resid_post")
    examples = concept_of_answer(bundled_model, getattr(mw.tasks, task)(bundled_model, n=256), answer)
    found = measure_separability(bundled_model, features, examples, n_permutations=3)
    card = next(
        one for one in bundled.load_json("features", NAME, "card.json")["separability"] if one["concept"] == name
    )
    promised = {row["place"]: row for row in card["places"]}
    for row in found.rows:
        assert row.distance == pytest.approx(promised[row.place]["distance"], abs=0.02)
        assert row.dimension == pytest.approx(promised[row.place]["dimension"], abs=0.02)
    late = found["resid_post.4"]
    assert late.passes
    assert late.distance > 0.95 > 3 * late.chance
    assert found["resid_post.0"].distance < 0.4  # the last token does not know yet


def test_other_models_and_altered_files_are_refused(
    bundled_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArtefactError, match="made for gpt2-6l"):
        load_features(mw.load_model("attn-only-2l"), NAME)
    with pytest.raises(NotFoundError, match="no features are shipped for attn-only-2l"):
        load_features(mw.load_model("attn-only-2l"))
    shutil.copytree(bundled.root() / "features", tmp_path / "features")
    monkeypatch.setattr(bundled, "root", lambda: tmp_path)
    file = tmp_path / "features" / NAME / "features.json"
    file.write_text(file.read_text().replace("resid_post", "resid_past", 1))
    with pytest.raises(ArtefactError, match="altered"):
        load_features(bundled_model)
