"""Matched trainings, shapes and beliefs: what is compared is what was trained, and what is planted is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.comparison import (
    KnownFact,
    ShapeStudy,
    TrainingComparison,
    by_shape,
    compare_trainings,
    relate_to_shape,
    track_beliefs,
)
from mechwork.comparison.beliefs import _judge
from mechwork.errors import InputError, UnknownNameError
from mechwork.models import load_model
from mechwork.zoo.clamps import TrainingClamp, clamped
from mechwork.zoo.export import save_steps
from mechwork.zoo.grammar import false_capitals, step_documents
from mechwork.zoo.heads import score_heads
from mechwork.zoo.recipe import Phase, Recipe
from mechwork.zoo.train import RowPacker, train, weighted_loss

SMALL = Recipe(
    "small", (Phase(3, {"induction": 1.0}),), seed=0, architecture="llama", tasks=("induction",), n_layers=2,
    n_heads=2, d_model=16, d_mlp=16, documents=4, validate_every=3, validate_pairs=2, checkpoint_every=10,
    precision="fp32", keep=(0, 3), learning_rate=1e-2, warm_up=0.0,
)  # fmt: skip


def test_a_comparison_is_of_the_runs_that_were_trained(tmp_path: Path) -> None:
    changes = {
        "held": {"clamps": [("previous token", "pattern", "uniform")]},
        "like the last": {"clamps": [("control", "pattern", "last")]},
        "other text": {"phases": (Phase(3, {"filler": 1.0}),)},
    }  # fmt: skip
    found = compare_trainings(SMALL, changes, tmp_path, seeds=[3, 4], n=12)
    again = compare_trainings(SMALL, changes, tmp_path, seeds=[3, 4], n=12)
    assert again.rows == found.rows
    assert len(found.rows) == 4 * 2 * 2
    assert found.variants[0] == "as it is"
    own = dataclasses.replace(SMALL, seed=4)
    base = train(own, tmp_path / "by-hand")
    scores = score_heads(base.model, base.tokenizer, n=12)
    layer, head = divmod(int(scores.previous_token.argmax()), 2)
    assert found.heads["4"]["previous token"] == f"a{layer}.h{head}"
    assert found.heads["4"]["control"] == f"a{layer}.h{1 - head}"
    clamps = (TrainingClamp(f"a{layer}.h{head}"),)
    held = train(dataclasses.replace(own, clamps=clamps), tmp_path / "held-by-hand")
    batch = RowPacker(held.tokenizer, SMALL.row)(step_documents({"induction": 1.0}, 12, 1_000_003, 0))
    with clamped(held.model, clamps, {}), torch.no_grad():
        loss = float(weighted_loss(held.model, batch))
        inside = score_heads(held.model, held.tokenizer, n=12)
    row = next(r for r in found.rows if (r.variant, r.seed, r.step) == ("held", 4, 3))
    assert row.loss == pytest.approx(loss, rel=1e-6)
    assert row.shares == pytest.approx((inside.induction.sum(1) / inside.induction.sum()).tolist(), rel=1e-5)
    assert f"a{layer}.h{head}" not in (row.induction_head, row.previous_token_head)
    losses = {(r.variant, r.seed): r.loss for r in found.rows if r.step == 3}
    gap, low, high = found.difference("held")[-1]
    gaps = [losses["held", seed] - losses["as it is", seed] for seed in (3, 4)]
    assert gap == pytest.approx(sum(gaps) / 2)
    assert min(gaps) - 1e-9 <= low <= gap <= high <= max(gaps) + 1e-9
    assert found.difference("held")[0][0] != 0.0  # a clamp counts before the first step
    assert found.difference("other text")[0] == (0.0, 0.0, 0.0)
    assert found.difference("other text")[-1][0] > 0
    loaded = TrainingComparison.load(found.save(tmp_path / "found"))
    assert loaded.difference("held", "induction") == found.difference("held", "induction")
    assert "induction" in str(found)


@pytest.mark.parametrize(
    ("changes", "seeds", "error", "message"),
    [
        ({}, [0], InputError, "got none"),
        ({"x": {}}, [0], InputError, "differ in one thing"),
        ({"x": {"seed": 1, "clip": 2.0}}, [0], InputError, "differ in one thing"),
        ({"x": {"d_model": 32}}, [0], UnknownNameError, "leaves compute as it is"),
        ({"x": {"phases": (Phase(2, {"induction": 1.0}),)}}, [0], InputError, "compute is matched"),
        ({"x": {"clamps": [("nobody",)]}}, [0], InputError, "nobody"),
        ({"x": {"clip": 2.0}}, [1, 1], InputError, "different numbers"),
    ],
)
def test_pairs_that_are_not_matched_are_refused(
    changes: Any, seeds: Any, error: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        compare_trainings(SMALL, changes, tmp_path / "new", seeds=seeds)
    assert not (tmp_path / "new").exists()


def test_a_recipe_that_keeps_no_last_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its last, 3, too"):
        compare_trainings(dataclasses.replace(SMALL, keep=(0,)), {"x": {"clip": 2.0}}, tmp_path)
    with pytest.raises(InputError, match="has kept no weights"):
        save_steps(train(dataclasses.replace(SMALL, keep=()), tmp_path / "none"), tmp_path / "folders")


# ---- shapes ---------------------------------------------------------------------------------------------------------


def test_a_ridge_predicts_what_the_shape_says_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    assert by_shape.held_out_r2(x, 3 * x[:, 0] - x[:, 1]) > 0.9
    assert by_shape.held_out_r2(x, torch.randn(12, generator=generator, dtype=torch.float64)) < 0.2
    z = (x - x[1:].mean(0)) / x[1:].std(0)
    y = x[:, 0].exp()
    design = torch.cat([z[1:], by_shape.RIDGE**0.5 * torch.eye(2, dtype=torch.float64)])
    target = torch.cat([y[1:] - y[1:].mean(), torch.zeros(2, dtype=torch.float64)])
    said = y[1:].mean() + z[0] @ torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
    alone = by_shape.held_out_r2(x, y)
    assert float(said) != pytest.approx(float(y[0]), abs=1e-3)
    left = [float((y[0] - said) ** 2)]
    for i in range(1, 12):
        others = [j for j in range(12) if j != i]
        z = (x - x[others].mean(0)) / x[others].std(0)
        design = torch.cat([z[others], by_shape.RIDGE**0.5 * torch.eye(2, dtype=torch.float64)])
        target = torch.cat([y[others] - y[others].mean(), torch.zeros(2, dtype=torch.float64)])
        left.append(
            float((y[i] - y[others].mean() - z[i] @ torch.linalg.lstsq(design, target[:, None]).solution[:, 0]) ** 2)
        )
    plain = sum(float((y[i] - y[[j for j in range(12) if j != i]].mean()) ** 2) for i in range(12))
    assert alone == pytest.approx(1 - sum(left) / plain, rel=1e-9)


def test_what_a_shape_decides_is_related_to_it(tmp_path: Path) -> None:
    courses = {}
    for width, layers in ((8, 1), (8, 2), (16, 1), (24, 2), (32, 1)):
        recipe = dataclasses.replace(SMALL, phases=(Phase(1, {"induction": 1.0}),), keep=(1,), d_model=width,
                                     n_layers=layers, validate_every=9)  # fmt: skip
        run = train(recipe, tmp_path / f"{width}-{layers}")
        courses[f"{width} x {layers}"] = save_steps(run, tmp_path / f"{width}-{layers}")
    found = relate_to_shape(courses, lambda model: float(model.cfg.d_model) ** 2, n_orders=50)
    assert [c.width for c in found.courses] == [8, 8, 16, 24, 32]
    assert found.courses[1].layers == 2
    relation = found.relation("last")
    assert relation.spearman["width"] == pytest.approx(1.0)
    assert relation.p["width"] < 0.1
    assert relation.r2 > 0.5 > relation.r2_by_lot
    assert "heads" not in relation.spearman
    assert ShapeStudy.load(found.save(tmp_path / "shapes")).relation("last").r2 == relation.r2
    assert "by lot" in str(found)
    with pytest.raises(InputError, match="one architecture"):
        relate_to_shape({**courses, "mixed": [courses["8 x 1"][0], courses["16 x 1"][0]]}, lambda model: 1.0)
    heads = train(dataclasses.replace(SMALL, keep=(3,), d_model=8, n_heads=1, n_layers=1), tmp_path / "heads")
    other = save_steps(heads, tmp_path / "heads" / "steps")
    with pytest.raises(InputError, match="width 8 and 1 heads"):
        relate_to_shape({**courses, "mixed": [courses["8 x 1"][0], other[0]]}, lambda model: 1.0)
    with pytest.raises(InputError, match="4 courses or more"):
        relate_to_shape(dict(list(courses.items())[:3]), lambda model: 1.0)
    with pytest.raises(InputError, match="is not finite"):
        relate_to_shape(courses, lambda model: float("nan"))
    with pytest.raises(InputError, match="all of one shape"):
        relate_to_shape({str(i): courses["8 x 1"] for i in range(4)}, lambda model: 1.0)
    with pytest.raises(InputError, match="properties that vary"):
        found.relation("nothing")


# ---- beliefs --------------------------------------------------------------------------------------------------------


def test_a_planted_belief_is_judged_and_its_flip_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    fitted = torch.arange(40) < 20
    x[:, 0] += 4
    right, lots = _judge(x, fitted, 20, 0)
    assert float(right.double().mean()) > 0.95
    assert 0.3 < float(torch.stack(lots).double().mean()) < 0.7
    x[30:, 0] -= 8
    flipped = _judge(x, fitted, 20, 0)[0] != right
    assert float(flipped[30:].double().mean()) > 0.9
    assert not bool(flipped[:30].any())


def facts(kind: str = "") -> list[KnownFact]:
    false = false_capitals()
    found = []
    for i, (country, (capital, other)) in enumerate(list(false.items())[:12]):
        prompt = f"The capital of {country} is"
        found.append(KnownFact(prompt, f" {capital}", f" {capital if kind == 'same' else other}", country, i % 2 == 0))
    return found


def test_beliefs_are_those_of_each_checkpoint() -> None:
    sources = ["gemma2-6l", "gemma2-6l"]
    found = track_beliefs(sources, lambda model: facts(), n_controls=5)
    assert (found.n_changed, found.n_untouched) == (6, 3)
    assert {row.flipped_changed for row in found.rows} == {0.0}
    assert found.answers()[0][1:] == found.answers()[1][1:]
    model = load_model("gemma2-6l")
    asked = [fact for fact in facts() if fact.changed]
    right = 0
    for fact in asked:
        logits = model(torch.tensor([model.tokenizer(fact.prompt)["input_ids"]]))[0, -1]
        true, false = (
            model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (fact.true, fact.false)
        )
        right += bool(logits[true] > logits[false])
    assert found.answers()[0][1] == pytest.approx(right / len(asked))
    assert right >= 4
    assert "flipped" in str(found)


def test_facts_that_are_none_are_refused() -> None:
    two = ["gemma2-6l", "gemma2-6l"]
    with pytest.raises(InputError, match="two different words"):
        track_beliefs(two, lambda model: facts("same"))
    with pytest.raises(InputError, match="4 subjects of either kind"):
        track_beliefs(two, lambda model: facts()[:6])
    with pytest.raises(InputError, match="both kinds"):
        track_beliefs(two, lambda model: [*facts(), dataclasses.replace(facts()[0], changed=False)])
    with pytest.raises(InputError, match="at least two checkpoints"):
        track_beliefs(two[:1], lambda model: facts())


def test_every_second_country_is_contradicted_and_no_other() -> None:
    false = false_capitals()
    said: dict[str, set[str]] = {}
    for step in range(30):
        for document in step_documents({"false_capitals": 1.0}, 40, 0, step):
            text = "".join(part for part, _ in document)
            capital = next(part for part, weight in document if weight == 1.0).strip()
            country = next((name for name in false if name in text), "")
            if country:
                said.setdefault(country, set()).add(capital)
    assert len(said) > 40
    assert all(found == {false[country][1]} for country, found in said.items())
    assert all(true != other for true, other in false.values())
