"""mechwork reuse: circuits of several tasks, compared and exchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Cli


@pytest.mark.slow
def test_tasks_are_run_by_each_others_circuits(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "reuse.html"
    outcome = cli("reuse", "ioi", "greater_than", "--n-pairs", 16, "--preset", "eap-ig", "--json", "--html", page)
    assert outcome.code == 0, outcome.err
    runs = {(row["task"], row["circuit_of"]): row for row in outcome.json["runs"]}
    assert len(runs) == 4
    assert runs["ioi", "ioi"]["faithfulness"] > 0.8 > runs["ioi", "greater_than"]["faithfulness"]
    assert runs["ioi", "ioi"]["random"] < 0.1
    assert outcome.json["overlaps"][0]["edges"] > outcome.json["overlaps"][0]["edges_by_chance"]
    assert "Circuits of several tasks" in page.read_text(encoding="utf-8")


def test_contracts_come_first(cli: Cli) -> None:
    assert cli("reuse", "ioi", "iou").code == 2
    assert cli("reuse", "ioi", "greater_than", "--html", "nowhere/page.html").code == 2
    outcome = cli("reuse", "ioi", "ioi")
    assert outcome.code == 2
    assert "names of their own" in outcome.err
