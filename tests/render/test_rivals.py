"""Rivals and backups: the sentence, the figure and the table say the same, in a page and in a report."""

from __future__ import annotations

import re

import pytest

from mechwork.circuits.testing.backups import BackupCompletion, Reaction, TakeOver
from mechwork.circuits.testing.rivals import RivalRow, Rivals
from mechwork.render import render_report
from mechwork.render.panels.rivals import backups_figure, rivals_figure
from tests.render import synthetic


@pytest.fixture
def rivals() -> Rivals:
    circuit = synthetic.circuit()
    kept = {"given": (0.97, 0.4), "rival 1": (0.95, 0.1), "rival 2": (0.6, -0.2)}
    rows = [
        RivalRow(name, ablation, pairs, 16, value, value - 0.06, value + 0.05)
        for name, values in kept.items()
        for ablation, value in zip(("corrupt", "mean"), values, strict=True)
        for pairs in ("all", "When A and B")
    ]
    shares = {"rival 1": 0.21, "rival 2": 0.34}
    return Rivals(dict.fromkeys(kept, circuit), shares, dict.fromkeys(shares, 0.05), tuple(rows), {})


@pytest.fixture
def backups() -> BackupCompletion:
    circuit = synthetic.circuit()
    rows = (TakeOver("a4.h1", "a5.h0", 0.22, (0.1, 0.3), 0.001, 0.01),)
    reactions = (Reaction("a3.h2", 0.1, 0.2, 0.1, 0.09), Reaction("a4.h1", 0.1, 0.5, 0.4, 0.08))
    return BackupCompletion(rows, reactions, circuit, circuit, (0.9, 0.98), 40, {})


def test_rivals_are_marks_with_intervals_beside_the_given_circuit(rivals: Rivals) -> None:
    figure = rivals_figure(rivals).to_dict()
    corrupt = next(trace for trace in figure["data"] if trace["name"].endswith("corrupt"))
    assert list(corrupt["x"]) == [0.97, 0.95, 0.6]
    assert list(corrupt["error_x"]["array"]) == pytest.approx([0.05] * 3)
    assert ["0.21 shared" in text for text in figure["layout"]["yaxis"]["ticktext"]] == [False, True, False]
    page = re.sub(r"<[^>]*>", "", rivals.to_html())
    assert "1 rival of 2 as faithful as the given circuit" in page
    assert "rival 2 shares 0.34 of the edges (chance 0.05)" in page


def test_backups_are_drawn_from_before_to_after_least_alike_first(backups: BackupCompletion) -> None:
    figure = backups_figure(backups).to_dict()
    traces = {trace["name"]: trace for trace in figure["data"] if "name" in trace}
    was, now = traces["the circuit as it was"], traces["with the backups"]
    assert (list(was["x"]), list(now["x"])) == ([0.4, 0.1], [0.08, 0.09])
    assert "a5.h0" in figure["layout"]["yaxis"]["ticktext"][0]
    assert "faithfulness of 0.98 instead of 0.90" in re.sub(r"<[^>]*>", "", backups.to_html())


def test_both_stand_in_the_reports_robustness(rivals: Rivals, backups: BackupCompletion) -> None:
    page = render_report(synthetic.task(), synthetic.circuit(), rivals, backups)
    section = page[page.index('id="robustness"') : page.index('id="limits"')]
    assert section.index("Do other edges do the same?") < section.index("What takes over when a head is gone?")
