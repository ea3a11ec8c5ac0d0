"""mechwork leaderboard: a table on stdout, the same as JSON, and refusals before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest

from .conftest import Cli

ARGUMENTS = ("leaderboard", "ioi", "--n-pairs", 16, "--presets", "eap", "relp")


@pytest.mark.slow
def test_methods_are_compared_beside_random_circuits(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*ARGUMENTS, "--json", "--csv", tmp_path / "board.csv")
    assert outcome.code == 0, outcome.err
    board = outcome.json["boards"][0]
    assert (board["n_train"], board["n_test"]) == (8, 8)
    assert {row["method"] for row in board["standings"]} == {"eap", "relp"}
    for row in board["standings"]:
        low, high = row["cmd_interval"]
        assert low <= high
        assert row["cmd"] < board["random"]["cmd"]
    assert set(outcome.json["mean_ranks"]) == {"eap", "relp"}
    assert list(pandas.read_csv(tmp_path / "board.csv")["method"]) == [row["method"] for row in board["standings"]]


def test_names_are_checked_first(cli: Cli) -> None:
    outcome = cli("leaderboard", "ioi", "--presets", "eapp")
    assert outcome.code == 2
    assert "nearest: eap" in outcome.err
    assert cli("leaderboard", "iou").code == 2
    assert cli("leaderboard", "ioi", "--out", "nowhere/board.csv").code == 2
