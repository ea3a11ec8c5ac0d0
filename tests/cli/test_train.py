"""mechwork train: a recipe from start to a model that loads, with interruption and resumption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from mechwork.checkpoint import has_checkpoint
from mechwork.models import load_model
from mechwork.tasks.sampling.examples import SAMPLERS
from mechwork.zoo import export, recipe, train
from mechwork.zoo.grammar import KINDS

from .conftest import Cli


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of four small steps, measured on few examples."""
    value = recipe.Recipe(
        "tiny",
        (recipe.Phase(4, dict.fromkeys(KINDS, 1.0)),),
        seed=1,
        tasks=tuple(SAMPLERS),
        n_layers=1,
        n_heads=2,
        d_model=16,
        d_mlp=16,
        documents=4,
        validate_every=4,
        validate_pairs=2,
        checkpoint_every=2,
    )
    monkeypatch.setattr(recipe, "RECIPES", MappingProxyType({"tiny": value}))
    whole: Callable[..., Any] = export.measure_weights
    measure: Callable[..., Any] = export.measure
    monkeypatch.setattr(
        export, "measure_weights", lambda model, tokenizer, recipe, n: whole(model, tokenizer, recipe, 2)
    )
    monkeypatch.setattr(
        export, "measure", lambda model, tokenizer, split, n, tasks: measure(model, tokenizer, split, 2, tasks=tasks)
    )


def test_training_ends_in_a_model_that_loads(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("train", "tiny", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["finished"]
    assert outcome.json["model"] == str(Path("runs") / "tiny" / "model")
    assert load_model(tmp_path / "runs" / "tiny" / "model").cfg.n_layers == 1


def test_stop_and_resume(cli: Cli) -> None:
    outcome = cli("train", "tiny", "--out", "here", "--stop-after", 2)
    assert outcome.code == 0
    assert "step 2 of 4" in outcome.out
    refused = cli("train", "tiny", "--out", "here")
    assert refused.code == 2
    assert "--resume" in refused.err
    assert cli("train", "tiny", "--out", "here", "--resume", "--json").json["step"] == 4


def test_an_interruption_leaves_a_checkpoint_and_says_how_to_go_on(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loop = train._loop

    def interrupted(run: train.TrainingRun, optimizer: Any, folder: Path, end: int, progress: Any) -> None:
        loop(run, optimizer, folder, 1, progress)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_loop", interrupted)
    outcome = cli("train", "tiny", "--out", "here")
    assert outcome.code == 130
    assert "mechwork train tiny --out here --resume" in outcome.err
    assert has_checkpoint(tmp_path / "here")
    assert not (tmp_path / "here" / "model").exists()


def test_bad_arguments(cli: Cli, tmp_path: Path) -> None:
    unknown = cli("train", "tiney")
    assert unknown.code == 2
    assert "nearest: tiny" in unknown.err
    nothing = cli("train", "tiny", "--resume")
    assert nothing.code == 2
    assert "has none" in nothing.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    assert cli("train", "tiny", "--out", "full").code == 2
