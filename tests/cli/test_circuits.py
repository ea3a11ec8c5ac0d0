"""mechwork circuits: what is shipped is what its cards say."""

from __future__ import annotations

from pathlib import Path

import pytest

from mechwork import bundled
from mechwork.circuits import circuit_names, load_circuit
from mechwork.cli.circuits import SHIPPED
from mechwork.errors import ArtefactError, UnknownNameError

from .conftest import Cli


def test_circuits_are_listed_with_their_figures(cli: Cli) -> None:
    outcome = cli("circuits", "--json")
    assert outcome.code == 0, outcome.err
    assert {model: tuple(tasks) for model, tasks in outcome.json["circuits"].items()} == SHIPPED
    for tasks in outcome.json["circuits"].values():
        for row in tasks.values():
            assert row["interval"][0] <= row["faithfulness"] <= row["interval"][1]
            assert row["faithfulness"] > 0.9 > 0.1 > max(row["random"])
    assert "gpt2-6l/ioi: " in cli("circuits").out


@pytest.mark.slow
def test_circuits_are_measured_again(cli: Cli) -> None:
    outcome = cli("circuits", "verify", "--json")
    assert outcome.code == 0, outcome.err
    assert sorted(outcome.json["faithfulness"]) == circuit_names()


def test_build_says_where(cli: Cli) -> None:
    outcome = cli("circuits", "build")
    assert outcome.code == 2
    assert "--out" in outcome.err


def test_circuits_are_loaded_by_name_or_file(tmp_path: Path) -> None:
    circuit = load_circuit("gpt2-6l/ioi")
    assert circuit.n_edges == bundled.load_json("circuits", "gpt2-6l", "card.json")["circuits"]["ioi"]["n_edges"]
    assert load_circuit(circuit.save(tmp_path / "mine.json")).edges == circuit.edges
    with pytest.raises(UnknownNameError, match="nearest: gpt2-6l/ioi"):
        load_circuit("gpt2-6l/iou")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtefactError, match="lacks what, format"):
        load_circuit(tmp_path / "other.json")
