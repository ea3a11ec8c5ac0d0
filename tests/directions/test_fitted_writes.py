"""What is fitted to be written: transport end to end, single dimensions, curves, controllers, heads; each against its
definition.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.directions import (
    Examples,
    dimension_write,
    fit_curve,
    fit_directions,
    fit_joint_transport,
    rank_attention_heads,
    record_examples,
    separating_dimensions,
    study_attention_repair,
    study_steering,
    train_controller,
    transport_write,
    wasserstein,
)
from mechwork.errors import InputError, MetricError
from mechwork.interventions import Slide, Stretch, Write, intervene, load_writes, save_writes
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed, build_task
from tests.reference import literal

SITES = [Site("resid_post", layer) for layer in (0, 1)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- joint transport -------------------------------------------------------------------------------------------------


def best_matching(x: list[float], y: list[float]) -> float:
    """The definition: the cheapest way to pair the samples, by trying all of them."""
    from itertools import permutations

    return min(sum((a - b) ** 2 for a, b in zip(x, order, strict=True)) / len(x) for order in permutations(y))


def test_wasserstein_is_the_cheapest_matching() -> None:
    x, y = draw(5, 3), 2 * draw(5, 3, seed=1) + 1
    expected = [best_matching(x[:, d].tolist(), y[:, d].tolist()) for d in range(3)]
    torch.testing.assert_close(wasserstein(x, y), torch.tensor(expected, dtype=torch.float64))
    assert min(expected) > 0.1
    torch.testing.assert_close(wasserstein(x.repeat(2, 1), y), wasserstein(x, y), rtol=0.3, atol=0.1)
    assert wasserstein(x, x[[2, 0, 1, 4, 3]]).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("family", ["gpt2", "gemma2"], indirect=True)
def test_maps_fitted_together_leave_less_than_maps_fitted_one_by_one(family_model64: Any) -> None:
    """Layer by layer, the second map is fitted to what the first one has not yet moved; end to end it knows."""
    examples = Examples.of_task(build_task(n=8))
    with borrowed(family_model64) as model:
        joint = fit_joint_transport(model, examples, SITES, steps=50, learning_rate=0.01)
        known = record_examples(model, examples, SITES).double()

        def loss(writes: list[Write]) -> float:
            with intervene(model, writes):
                moved = record_examples(model, replace_labels(examples), SITES)
            total = 0.0
            for i in range(2):
                spread = known[i].std(dim=0)
                spread = spread.clamp(min=1e-3 * float(spread.max()))
                x = moved[i][~examples.labels].sort(dim=0).values
                y = known[i][examples.labels].sort(dim=0).values
                total += float((((x - y) / spread) ** 2).mean(dim=0).sum()) / 2
            return total

        one_by_one = [Write(site, transport_write(model, examples, site)(1.0)) for site in SITES]
        assert loss([]) == pytest.approx(joint.losses[0], rel=1e-9)
        assert loss(joint.writes()) < joint.losses[-1] * 1.05
        assert loss(joint.writes()) < loss([])
        assert loss(joint.writes()) < loss(one_by_one)
        assert loss(joint.writes(0.0)) == pytest.approx(loss([]))


def replace_labels(examples: Examples) -> Examples:
    """The same prompts: labels say nothing to recording."""
    return replace(examples, name="moved")


def test_penalties_leave_dimensions_and_whole_places_alone(tiny_gpt2_64: Any) -> None:
    examples = Examples.of_task(build_task(n=6))
    free = fit_joint_transport(tiny_gpt2_64, examples, SITES, steps=30)
    assert list(free.active.values()) == [32, 32]
    sparse = fit_joint_transport(tiny_gpt2_64, examples, SITES, steps=30, penalty=1.0)
    assert 0 < sum(sparse.active.values()) < 60
    grouped = fit_joint_transport(tiny_gpt2_64, examples, SITES, steps=30, group_penalty=1e3)
    assert list(grouped.active.values()) == [0, 0]
    assert grouped.writes() == []
    x = draw(2, 3, 32)
    assert torch.equal(grouped.maps[0](x), x)


# ---- dimensions ------------------------------------------------------------------------------------------------------


def test_the_most_telling_dimensions_move_and_no_others(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    examples, site = Examples.of_task(tiny_task), Site("mlp_post", 1)
    x = record_examples(tiny_gpt2_64, examples, [site])[0]
    up, down = x[examples.labels], x[~examples.labels]
    scores = []
    for d in range(x.shape[1]):
        a, b = up[:, d].tolist(), down[:, d].tolist()
        means = sum(a) / len(a), sum(b) / len(b)
        variances = [sum((v - m) ** 2 for v in part) / (len(part) - 1) for part, m in zip((a, b), means, strict=True)]
        scores.append(abs(means[0] - means[1]) / math.sqrt(sum(variances) / 2))
    order = sorted(range(len(scores)), key=lambda d: -scores[d])[:5]
    assert separating_dimensions(x, examples.labels, 5).tolist() == order
    put = dimension_write(tiny_gpt2_64, examples, site, 5)(2.0)
    assert isinstance(put, Stretch)
    expected = torch.zeros_like(x[0])
    expected[order] = 2 * (up.mean(dim=0) - down.mean(dim=0))[order]
    torch.testing.assert_close(put(x) - x, expected.expand_as(x))
    lot = dimension_write(tiny_gpt2_64, examples, site, 5, control_seed=1)(1.0)
    assert isinstance(lot, Stretch)
    assert int((lot.shift != 0).sum()) == 5
    with torch.no_grad():
        plain = tiny_gpt2_64(tiny_task.pairs.clean_tokens)
        with intervene(tiny_gpt2_64, [Write(site, put)]):
            mine = tiny_gpt2_64(tiny_task.pairs.clean_tokens)
        name = "blocks.1.mlp.hook_post"
        theirs = tiny_gpt2_64.run_with_hooks(
            tiny_task.pairs.clean_tokens, fwd_hooks=[(name, lambda x, hook: x + expected)]
        )
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    assert float((mine - plain).abs().max()) > 1e-3


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_a_curve_goes_through_the_means_of_its_values(tiny_gpt2_64: Any) -> None:
    tokens = torch.randint(97, (40, 5), generator=torch.Generator().manual_seed(0))
    values = torch.arange(40).remainder(5).float()
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[:, -1] = True
    site = Site("resid_post", 1)
    fit = fit_curve(tiny_gpt2_64, tokens, where, values, site, n_components=6, held_out=0.0)
    x = tiny_gpt2_64.run_with_cache(tokens)[1][literal.hook("resid_post", 1)][:, -1]
    torch.testing.assert_close(fit.curve.centre.double(), x.mean(dim=0), rtol=1e-5, atol=1e-5)
    basis = fit.curve.basis.double()
    for knot, point in zip(fit.curve.knots, fit.curve.points, strict=True):
        mean = (x[values == knot] - x.mean(dim=0)).mean(dim=0)
        torch.testing.assert_close(basis @ mean, point.double(), rtol=1e-4, atol=1e-4)
    inside = ((x - x.mean(dim=0)) @ basis.T).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()
    assert fit.explained == pytest.approx(float(inside), rel=1e-5)
    assert math.isnan(fit.correlation)
    binned = fit_curve(tiny_gpt2_64, tokens, where, values, site, n_components=3, n_knots=2)
    assert len(binned.curve.knots) == 2
    assert binned.n_tested == 12
    assert "correlation" in str(binned)


def test_years_lie_on_a_curve_not_on_a_line_and_moving_along_it_moves_the_year(bundled_model: Any) -> None:
    task = mw.tasks.greater_than(bundled_model, n=192)
    pairs = task.train.pairs
    tokens = pairs.clean_tokens[pairs.spans["YY"]].tolist()
    years = torch.tensor([float(bundled_model.tokenizer.decode([token])) for token in tokens])
    where = torch.zeros_like(pairs.mask)
    where[torch.arange(len(pairs)), pairs.lengths - 1] = True
    site = Site("resid_post", 1)
    line, curve = (
        fit_curve(bundled_model, pairs.clean_tokens, where, years, site, n_components=n, n_knots=8) for n in (1, 3)
    )
    assert curve.correlation > 0.97
    assert curve.correlation > line.correlation + 0.1
    prompts = Examples(pairs.clean_tokens, torch.arange(len(pairs)) == 0, where, torch.arange(len(pairs)))
    x = record_examples(bundled_model, prompts, [site])[0]
    moved = curve.curve.position(Slide(curve.curve, to=80.0)(x))
    assert float((moved - 80).abs().mean()) < 8
    assert float((curve.curve.position(x) - 80).abs().mean()) > 20


# ---- controllers and heads -------------------------------------------------------------------------------------------


def test_a_controller_steers_what_it_was_trained_to_and_leaves_the_rest(bundled_model: Any, tmp_path: Any) -> None:
    task = mw.tasks.pronoun(bundled_model, n=64)
    she = int(bundled_model.tokenizer(" she", add_special_tokens=False).input_ids[0])

    def only(part: Task) -> Task:
        return part[[i for i in range(len(part)) if int(part.pairs.correct[i, 0]) == she]]

    train, other = only(task.train), mw.tasks.agreement(bundled_model, n=16)
    directions = fit_directions(bundled_model, Examples.of_task(train), [Site("resid_post", layer) for layer in (3, 4)])
    controller = train_controller(
        bundled_model, train, directions, Site("resid_post", 1), leave_alone=[other.train], steps=16, learning_rate=0.04
    )
    assert controller.losses[-1] < 0.2 * controller.losses[0]
    assert controller.gate[0] > 0.9 > 0.1 > controller.gate[1]
    study = study_steering(
        bundled_model, only(task.test), directions[1], methods=["add"], writes={"controller": controller.writes},
        strengths=[0.0, 1.0], others=[other.test], n_random=0,
    )  # fmt: skip
    nothing, mine = study.of("controller")
    assert abs(nothing.success) < 1e-6
    assert mine.success > 0.8
    path = save_writes(tmp_path / "controller", controller.writes(), controller.provenance)
    with torch.no_grad():
        outputs = []
        for writes in (controller.writes(), load_writes(path, bundled_model)):
            with intervene(bundled_model, writes):
                outputs.append(bundled_model(train.pairs.corrupt_tokens[:2]))
    assert torch.equal(*outputs)
    assert "gate" in str(controller)


def test_heads_are_ranked_by_what_looking_gains(tiny_gpt2_64: Any) -> None:
    tokens = torch.randint(97, (3, 6), generator=torch.Generator().manual_seed(1))
    corrupt = tokens.clone()
    corrupt[:, 1] = (corrupt[:, 1] + 3) % 97
    spans = [{"NOUN": (2,)}] * 3
    task = Task.from_tokens(tokens, corrupt, [5, 6, 7], [8, 9, 10], spans=spans, corrupt_spans=spans)
    with borrowed(tiny_gpt2_64) as model, torch.no_grad():
        found = rank_attention_heads(model, task, "NOUN", factor=10.0)
        assert len(found) == 12
        assert [row.gain for row in found] == sorted((row.gain for row in found), reverse=True)
        host = task.pairs.corrupt_as_host()
        best = found[0]
        layer, head = (int(part[1:]) for part in best.head.split("."))

        def put(x: Tensor, hook: Any) -> Tensor:
            new = x.clone()
            new[:, head, :, 2] *= 10
            new[:, head] = new[:, head] / new[:, head].sum(-1, keepdim=True)
            return new

        moved = model.run_with_hooks(host.clean_tokens, fwd_hooks=[(literal.hook("pattern", layer), put)])
        gain = task.measure(moved, host) - task.measure(model(host.clean_tokens), host)
        assert best.gain == pytest.approx(float(gain.mean()), abs=1e-4)
        assert abs(best.gain) > 1e-3
        with pytest.raises(InputError, match="has the spans"):
            rank_attention_heads(model, task, "VERB")


def test_heads_that_look_elsewhere_are_repaired_beside_their_controls(tiny_gpt2_64: Any) -> None:
    tokens = torch.randint(97, (3, 6), generator=torch.Generator().manual_seed(1))
    tokens[:, 2] = torch.tensor([5, 6, 7])
    corrupt = tokens.clone()
    corrupt[:, 1] = (corrupt[:, 1] + 3) % 97
    spans = [{"NOUN": (2,)}] * 3
    task = Task.from_tokens(tokens, corrupt, [5, 6, 7], [98 % 97, 9, 10], spans=spans, corrupt_spans=spans)
    heads = ["a0.h1", "a1.h2"]

    def look(x: Tensor, hook: Any) -> Tensor:
        new = x.clone()
        head = 1 if hook.name.startswith("blocks.0") else 2
        new[:, head, -1] = 0
        new[:, head, -1, 2] = 1
        return new

    with borrowed(tiny_gpt2_64) as model, torch.no_grad():
        found = study_attention_repair(model, task, heads, "NOUN", n_random=3)
        same = study_attention_repair(model, task, heads, "correct", n_random=3)
        given = study_attention_repair(model, task, heads, task.pairs.spans["NOUN"], n_random=3)
        names = [literal.hook("pattern", layer) for layer in (0, 1)]
        for values, hooks in ((found.repaired, names), (found.alone[0], names[:1]), (found.alone[1], names[1:])):
            moved = model.run_with_hooks(task.pairs.clean_tokens, fwd_hooks=[(name, look) for name in hooks])
            torch.testing.assert_close(values, task.measure(moved), rtol=0, atol=1e-6)
        torch.testing.assert_close(found.plain, task.measure(model(task.pairs.clean_tokens)), rtol=0, atol=1e-6)
        for other in (same, given):
            assert torch.equal(other.repaired, found.repaired)
            assert torch.equal(other.other_keys, found.other_keys)
        best = rank_attention_heads(model, task, "NOUN", factor=None, corrupt=False, heads=heads)
        gains = dict(zip(heads, (found.alone - found.plain).mean(dim=1).tolist(), strict=True))
        assert [row.gain for row in best] == pytest.approx([gains[row.head] for row in best], abs=1e-6)
    assert float((found.repaired - found.plain).abs().max()) > 1e-3
    assert float((found.other_heads - found.plain).abs().max()) > 1e-3
    assert not torch.allclose(found.other_keys, found.repaired.expand(3, -1))
    frame = found.to_dataframe()
    assert list(frame["way"])[:2] == ["plain", "repaired"]
    assert frame["accuracy"].between(0, 1).all()
    for wrong, message in (
        ({"heads": []}, "every one once"), ({"heads": ["a9.h9"]}, "every one once"), ({"keys": "VERB"}, "has the keys"),
        ({"keys": torch.zeros(3, 6, dtype=torch.bool)}, "some of every prompt"), ({"n_random": 0}, "at least 1"),
        ({"keys": torch.ones(2, 2, dtype=torch.bool)}, "its shape"), ({"keys": "incorrect"}, "some of every prompt"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            study_attention_repair(tiny_gpt2_64, task, **{"heads": heads, "keys": "NOUN", **wrong})


def test_contracts(tiny_gpt2_64: Any, tiny_gpt2: Any, tiny_task: Task) -> None:
    examples = Examples.of_task(tiny_task)
    with pytest.raises(InputError, match="each once"):
        fit_joint_transport(tiny_gpt2_64, examples, [SITES[0], SITES[0]])
    with pytest.raises(InputError, match="penalties of at least 0"):
        fit_joint_transport(tiny_gpt2_64, examples, SITES, penalty=-1.0)
    with pytest.raises(InputError, match="two prompts of each class"):
        fit_joint_transport(tiny_gpt2_64, examples[torch.tensor([0, 1, 3])], SITES)
    with pytest.raises(MetricError, match="smaller learning_rate"):
        fit_joint_transport(tiny_gpt2_64, examples, SITES, learning_rate=1e200, steps=5)
    for n in (0, 33):
        with pytest.raises(InputError, match="dimensions are 1 to 32"):
            dimension_write(tiny_gpt2_64, examples, SITES[0], n)
    tokens, where = tiny_task.pairs.clean_tokens, torch.zeros_like(tiny_task.pairs.clean_tokens, dtype=torch.bool)
    where[:, -1] = True
    with pytest.raises(InputError, match="two values or more"):
        fit_curve(tiny_gpt2_64, tokens, where, torch.ones(3), SITES[0])
    with pytest.raises(InputError, match="axes are 1 to 2"):
        fit_curve(tiny_gpt2_64, tokens, where, torch.arange(3.0), SITES[0], n_components=8)
    with pytest.raises(InputError, match="finite value"):
        fit_curve(tiny_gpt2_64, tokens, where, torch.tensor([0.0, 1.0, math.nan]), SITES[0])
    directions = fit_directions(tiny_gpt2_64, examples, SITES)
    with pytest.raises(InputError, match="too early: resid_post"):
        train_controller(tiny_gpt2_64, tiny_task, directions, SITES[0])
    with pytest.raises(InputError, match="got none"):
        train_controller(tiny_gpt2_64, tiny_task, [], SITES[0])
    with pytest.raises(InputError, match="fitted in another model"):
        train_controller(tiny_gpt2, tiny_task, directions[1:], SITES[0])
    with pytest.raises(InputError, match="steps are 1 or more"):
        train_controller(tiny_gpt2_64, tiny_task, directions[1:], SITES[0], steps=0)
