"""mechwork truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechwork.circuits.ground_truth import CASES, equality
from mechwork.circuits.ground_truth.training import EqualityRecipe

from .conftest import Cli


def test_the_table_has_every_case_and_explains_failures(cli: Cli) -> None:
    outcome = cli("truth")
    assert outcome.code == 0
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines() if line[:1].isalpha()}
    assert set(CASES) <= set(rows)
    assert "exact" in outcome.out.splitlines()[0]
    assert "Where an estimate is below 1:" in outcome.out
    assert "- hist (gradient, relp; missed" in outcome.out


def test_some_cases_as_json(cli: Cli) -> None:
    data = cli("truth", "and_gate", "or_gate", "--json").json
    assert list(data["cases"]) == ["and_gate", "or_gate"]
    assert data["cases"]["or_gate"]["direction"] == "denoise"
    assert data["cases"]["and_gate"]["auroc"]["exact"] == 1.0
    assert [note.split(" misses ")[0] for note in data["notes"]] == ["- and_gate: denoising", "- or_gate: noising"]


def test_other_truths(cli: Cli) -> None:
    outcome = cli("truth", "reverse", "--ablation", "zero")
    assert outcome.code == 0
    assert "10/77" in outcome.out
    assert "relp" not in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["revers"], "nearest: reverse"),
        (["--ablation", "zeros"], "nearest: zero"),
        (["equality", "--ablation", "zero"], "states a truth under zero"),
    ],
)
def test_what_is_refused(cli: Cli, arguments: list[str], message: str) -> None:
    outcome = cli("truth", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_training_again(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "RECIPE", EqualityRecipe(steps=3, batch_size=8))
    outcome = cli("truth", "--retrain", "--out", tmp_path / "again", "--json")
    assert outcome.code == 0
    assert outcome.json["recipe"]["steps"] == 3
    assert {f.name for f in (tmp_path / "again").iterdir()} == {
        "model.safetensors",
        "card.json",
        "card.md",
        "manifest.json",
    }
    assert cli("truth", "--retrain", "--out", tmp_path / "again").code == 2
