"""The stability card: selections against a literal form, core edges, the null, sizes, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.circuits import StabilityCard, score_edges, study_stability
from mechwork.circuits.graph.select import select
from mechwork.circuits.testing.card import strongest
from mechwork.circuits.testing.null_task import draw_signs, null_task
from mechwork.errors import InputError, UnknownNameError
from mechwork.statistics import bootstrap_weights
from tests.families import build_task


@pytest.fixture(scope="module")
def card() -> StabilityCard:
    from tests.families import build_model

    model = build_model("gpt2")
    return study_stability(
        model, build_task(n=6), n_edges=20, preset="eap", settings=("clean-corrupt",), ablations=("zero",),
        again=lambda seed: build_task(n=6, seed=seed), n_seeds=2, n_resamples=30,
    )  # fmt: skip


def test_selections_equal_their_literal_form(card: StabilityCard) -> None:
    from tests.families import build_model

    task = build_task(n=6)
    scores = score_edges(build_model("gpt2"), task, preset="eap", keep="pairs")
    assert scores.per_example is not None
    space, whole = scores.space, set(scores.circuit(n_edges=20, prune=False).edges)
    weights = bootstrap_weights(6, 30, 0)
    resamples = [row for row in card.rows if row.axis == "resamples"]
    assert len(resamples) == 30
    for row, w in list(zip(resamples, weights, strict=True))[:4]:
        mean = sum(share * one for share, one in zip(w.tolist(), scores.per_example, strict=True))
        index = select(space, torch.as_tensor(mean), 20).nonzero().tolist()
        names = {space.edge_name(i, j) for i, j in index}
        assert row.edges == pytest.approx(len(names & whole) / len(names | whole))
    assert len({row.edges for row in resamples}) > 3
    assert card.chance == 20 / (2 * space.n_edges - 20)


def test_the_null_is_scores_of_shuffled_answers() -> None:
    from tests.families import build_model

    model, task = build_model("gpt2"), build_task(n=6)
    real, null = (score_edges(model, t, preset="eap", keep="pairs") for t in (task, null_task(task, seed=3)))
    assert real.per_example is not None
    assert null.per_example is not None
    signs = draw_signs(6, 3)[:, None, None]
    torch.testing.assert_close(null.per_example, real.per_example * signs)
    assert float(real.per_example.abs().max()) > 1e-3


def test_core_edges_are_in_every_axis(card: StabilityCard) -> None:
    assert card.axes == ("resamples", "corruptions", "seeds", "settings")
    assert card.inclusion.shape == (4, card.circuit.space.n_edges)
    torch.testing.assert_close(card.inclusion.sum(dim=1), torch.full((4,), 20.0))
    core = card.core
    assert core.n_edges + card.contingent.n_edges >= card.circuit.n_edges
    packed = core.mask[core.space.mask]
    assert bool((card.inclusion[:, packed] >= 0.95).all())
    assert not bool((card.inclusion[:, ~packed] >= 0.95).all(dim=0).any())
    assert "templates" in card.missing
    assert "core edges" in str(card)


def test_a_card_is_kept_and_drawn(card: StabilityCard, tmp_path: Path) -> None:
    again = StabilityCard.load(card.save(tmp_path / "card"))
    assert str(again) == str(card)
    assert set(again.to_dataframe()["axis"]) == set(card.axes)
    assert "Jaccard" in card.to_html()


def test_the_strongest_are_those_that_select_chooses() -> None:
    values = torch.tensor([0.5, -2.0, 1.0, 2.0, 0.0])
    assert strongest(values, 3).tolist() == [False, True, True, True, False]


def test_contracts(tiny_gpt2: Any) -> None:
    task = build_task(n=4)
    with pytest.raises(UnknownNameError, match="preset"):
        study_stability(tiny_gpt2, task, settings=("eapp",))
    with pytest.raises(UnknownNameError, match="ablation"):
        study_stability(tiny_gpt2, task, ablations=("corupt",))
    with pytest.raises(InputError, match="target"):
        study_stability(tiny_gpt2, task, target=1.0)
    with pytest.raises(InputError, match="at least two pairs"):
        study_stability(tiny_gpt2, task[:1])
    with pytest.raises(InputError, match="edges"):
        study_stability(tiny_gpt2, task, n_edges=10**6)
    for name in ("n_resamples", "n_seeds", "n_edges"):
        none: dict[str, Any] = {name: 0}
        with pytest.raises(InputError, match=f"{name} is a whole number, at least 1"):
            study_stability(tiny_gpt2, task, **none)


def test_two_pairs_are_enough_and_progress_is_told(tiny_gpt2: Any) -> None:
    steps: list[tuple[int, int]] = []
    found = study_stability(
        tiny_gpt2, build_task(n=2), n_edges=5, preset="eap", settings=("relp",), ablations=("zero",), n_resamples=2,
        progress=lambda done, total, what: steps.append((done, total)),
    )  # fmt: skip
    assert found.axes == ("resamples", "corruptions", "settings")
    assert [step for step in dict.fromkeys(steps) if step[0]] == [(1, 2), (2, 2)]
