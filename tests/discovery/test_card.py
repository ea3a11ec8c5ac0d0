"""A discovery with a referee's card: planned only when asked for, in the report, in the folder's results."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import mechwork as mw
from mechwork.circuits import find_rivals
from mechwork.circuits.scoring.methods import PRESETS
from mechwork.discovery import card
from mechwork.discovery.plan import make_plan
from mechwork.discovery.settings import Settings
from mechwork.discovery.stages import CARD
from mechwork.discovery.work import StageWork


def test_the_card_is_planned_when_asked_for_and_within_a_budget_last() -> None:
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=64, seed=0)
    plan = partial(make_plan, model, task, Settings(), seconds=1.0)
    for mode in ("quick", "default", "thorough"):
        assert not set(CARD) & set(plan(mode=mode).stages)
        assert plan(mode=mode, card=True).stages == (*plan(mode=mode).stages, *CARD)
    assert not set(CARD) & set(plan(budget=100, card=True).stages)
    some = plan(budget=900, card=True)
    assert set(CARD) & set(some.stages)
    assert some.seconds <= 900


def test_rules_and_steps_have_the_presets_name() -> None:
    assert card.preset_of(Settings()) == "eap-ig"
    assert card.preset_of(Settings(rules="gradient", ig_steps=1)) == "eap"
    assert card.preset_of(Settings(rules="relp", ig_steps=1)) == "relp"
    assert card.preset_of(Settings(rules="cp_lrp", ig_steps=3)) == "eap-ig" in PRESETS


def test_a_finished_discovery_gets_the_card_and_nothing_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("N_RANDOM", 3), ("N_RANDOM_EDGES", 3), ("MAX_EDGES", 3), ("N_SEEDS", 1), ("N_BACKED", 1)):
        monkeypatch.setattr(card, name, value)
    monkeypatch.setattr(card, "find_rivals", partial(find_rivals, n_steps=3))
    model = mw.load_model("attn-only-2l")
    task = mw.tasks.induction(model, n=16, seed=0)
    found = mw.discover(model, task, out=tmp_path, settings=Settings(min_accuracy=0.01), mode="quick")
    before = (tmp_path / "results" / "scores.scores.safetensors").read_bytes()
    found = mw.load_discovery(tmp_path).extend(model, card=True)
    assert found.finished
    assert set(CARD) <= set(found.done)
    assert (tmp_path / "results" / "scores.scores.safetensors").read_bytes() == before
    assert found["referee"].verdict in ("pass", "fail", "inconclusive")
    assert found["referee"].n_pairs <= len(found.task.test)
    assert {row.axis for row in found["card"].rows} >= {"resamples", "settings"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"Mechanisms: {found['mechanisms'].verdict}" in page
    assert {"rivals", "backups"} <= set(found.named)


def test_what_cannot_be_asked_is_left_out() -> None:
    """Backups are told from chance on six pairs or more."""
    model = mw.load_model("attn-only-2l")
    task = mw.tasks.induction(model, n=8, seed=0)
    circuit = mw.score_edges(model, task.train, preset="eap").circuit(10)
    assert card.find_backups(StageWork(model, task, Settings(), {"circuit": circuit})) == {}
