"""tasks, models, doctor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mechwork import bundled
from mechwork.tasks import TASKS

from .conftest import Cli

PAIR = '{"clean": "The cats", "corrupt": "The cat", "correct": " are", "incorrect": " is"}\n'


def test_tasks_are_listed_with_their_sources(cli: Cli) -> None:
    outcome = cli("tasks", "--json")
    assert outcome.code == 0
    assert [row["name"] for row in outcome.json["tasks"]] == list(TASKS)
    assert all(row["description"] and row["citation"] for row in outcome.json["tasks"])
    assert "Wang et al. 2022" in cli("tasks").out


def test_a_task_is_shown_with_differing_tokens_marked(cli: Cli) -> None:
    outcome = cli("tasks", "ioi", "-n", 2)
    assert outcome.code == 0
    assert outcome.out.count("clean ") == 2
    assert "[" in outcome.out
    data = cli("tasks", "ioi", "-n", 2, "--json").json
    assert len(data["pairs"]) == 2
    assert {"IO", "S1", "S2", "END"} <= set(data["spans"])


def test_an_unknown_task_gives_the_nearest(cli: Cli) -> None:
    outcome = cli("tasks", "greater_then")
    assert outcome.code == 2
    assert "nearest: greater_than" in outcome.err


def test_a_missing_file_of_pairs(cli: Cli) -> None:
    outcome = cli("tasks", "nowhere.csv")
    assert outcome.code == 3
    assert "nowhere.csv" in outcome.err


def test_bundled_models_are_listed(cli: Cli) -> None:
    outcome = cli("models", "--json")
    assert outcome.code == 0
    row = next(row for row in outcome.json["models"] if row["name"] == "gpt2-6l")
    assert row["parameters"] > 100_000
    assert {"ioi", "induction"} <= set(row["accuracy"]) <= set(TASKS)
    assert row["layers"] == 6
    assert Path(row["card"]).is_file()
    assert "gpt2-6l" in cli("models").out


def test_verify_finds_whole_and_altered_files(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("models", "verify", "--files-only").code == 0
    shutil.copytree(bundled.root(), tmp_path / "data")
    monkeypatch.setattr(bundled, "root", lambda: tmp_path / "data")
    assert cli("models", "verify", "gpt2-6l", "--files-only", "--json").json == {
        "verified": ["gpt2-6l"],
        "accuracy": {},
    }
    config = tmp_path / "data" / "models" / "gpt2-6l" / "config.json"
    config.write_text(config.read_text().replace("1", "2", 1))
    outcome = cli("models", "verify")
    assert outcome.code == 3
    assert "config.json was altered" in outcome.err
    assert cli("discover", "ioi").code == 3
    config.unlink()
    assert "missing" in cli("models", "verify").err


def test_verify_measures_the_accuracies_again(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = cli("models", "verify", "attn-only-2l", "--json").json["accuracy"]["attn-only-2l"]
    shutil.copytree(bundled.root(), tmp_path / "data")
    monkeypatch.setattr(bundled, "root", lambda: tmp_path / "data")
    folder = tmp_path / "data" / "models" / "attn-only-2l"
    card = json.loads((folder / "card.json").read_text())
    assert accuracy["induction"] == pytest.approx(card["test"]["induction"]["accuracy"], abs=0.01)
    card["test"]["induction"]["accuracy"] -= 0.02
    (folder / "card.json").write_text(json.dumps(card))
    bundled.write_manifest(folder)
    outcome = cli("models", "verify", "attn-only-2l")
    assert outcome.code == 3
    assert "its card says" in outcome.err


def test_verify_of_an_unknown_model(cli: Cli) -> None:
    outcome = cli("models", "verify", "gpt2-6L")
    assert outcome.code == 2
    assert "nearest: gpt2-6l" in outcome.err


def test_doctor_reports_versions_devices_and_models(cli: Cli) -> None:
    data = cli("doctor", "--json").json
    assert data["packages"]["torch"] != "not installed"
    assert data["devices"][0]["name"] == "cpu"
    assert data["models"]["gpt2-6l"] == "ok"
    assert "torch" in cli("doctor").out


def test_doctor_says_which_file_is_damaged(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundled.root(), tmp_path / "data")
    monkeypatch.setattr(bundled, "root", lambda: tmp_path / "data")
    (tmp_path / "data" / "models" / "gpt2-6l" / "tokenizer.json").write_text("{}")
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "tokenizer.json" in outcome.out


def test_agreement_prints_a_column_per_preset(cli: Cli) -> None:
    outcome = cli("agreement", "--task", "pronoun", "--rules", "gradient,relp", "-n", 4)
    assert outcome.code == 0
    assert "gradient" in outcome.out
    assert outcome.out.count("pronoun ") == 4
    data = cli("agreement", "--task", "pronoun", "--rules", "relp", "-n", 4, "--json").json["models"][0]
    assert {row["site"] for row in data["rows"]} == {"resid_pre", "attn_out", "mlp_out", "z"}
    assert all(row["pearson"] > 0.8 for row in data["rows"] if row["site"] == "mlp_out")


def test_agreement_names_what_it_does_not_know(cli: Cli) -> None:
    assert "nearest: relp" in cli("agreement", "--rules", "rellp").err
    assert "nearest: ioi" in cli("agreement", "--task", "io").err
