"""Every way to score edges against its literal form, and what does not depend on how the work is cut up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import EdgeSpace, score_edges, verify_edges
from mechwork.circuits.graph.writers import record_writers, writer_kinds
from mechwork.circuits.scoring.methods import PRESETS, find_method
from mechwork.errors import InputError, UnknownNameError
from mechwork.models.anatomy import read_anatomy
from mechwork.runs import record_run
from mechwork.tasks.task import Task
from tests.circuits.test_edges import tolerance
from tests.families import build_task, crossed
from tests.reference.edges import activation_path_scores, exact_effects, information_flow, scores_against_constants


def close(mine: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    scale = float(expected.abs().max())
    assert scale > 1e-3
    assert float((mine - expected).abs().max()) <= bound * max(scale, 1)


@pytest.mark.parametrize(("family", "direction"), crossed(["denoise", "noise"], ["denoise"]))
def test_exact_effects_equal_one_forward_per_edge(family_model64: Any, tiny_task: Task, direction: str) -> None:
    pairs = tiny_task.pairs
    scores = score_edges(family_model64, tiny_task, preset="exact", direction=direction)
    index = scores.space.mask.nonzero()[::9].tolist()
    edges = [(scores.space.writers[i], scores.space.readers[j]) for i, j in index]
    ends = (pairs.corrupt_tokens, pairs.clean_tokens)
    host, donor = ends if direction == "denoise" else ends[::-1]
    change = exact_effects(family_model64, host, donor, lambda x: tiny_task.metric(x, pairs), edges)
    expected = change if direction == "denoise" else -change
    rows, columns = torch.tensor(index).T
    close(scores.require_pairs()[:, rows, columns].T, expected, tolerance(family_model64))


def test_activation_paths_equal_components_moved_one_by_one(family_model64: Any, tiny_task: Task) -> None:
    pairs = tiny_task.pairs
    scores = score_edges(family_model64, tiny_task, rules="gradient", ig_steps=2, path="activations")
    expected = activation_path_scores(
        family_model64, pairs.corrupt_tokens, pairs.clean_tokens, lambda x: tiny_task.metric(x, pairs),
        scores.space.readers, scores.space.writers, 2,
    )  # fmt: skip
    close(scores.require_pairs(), expected * scores.space.mask, tolerance(family_model64))


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean_by_position"])
def test_scores_against_constants_at_the_clean_run(family_model64: Any, ablation: str) -> None:
    task = build_task(n=8)
    scores = score_edges(family_model64, task, rules="gradient", ablation=ablation)
    space, pairs = scores.space, task.pairs
    writes = record_writers(family_model64, space, record_run(family_model64, pairs, writer_kinds(space)))
    mean = {"zero": torch.zeros_like(writes), "mean": writes.mean(dim=(1, 2), keepdim=True)}.get(
        ablation, writes.mean(dim=1, keepdim=True)
    )
    constants = {name: mean[i] for i, name in enumerate(space.writers)}
    expected = scores_against_constants(
        family_model64, pairs.clean_tokens, constants, lambda x: task.metric(x, pairs), space.readers, space.writers
    )
    assert scores.direction == "noise"
    close(scores.require_pairs(), expected * space.mask, tolerance(family_model64))


def test_information_flow(family_model64: Any, tiny_task: Task) -> None:
    task = tiny_task[:2]
    scores = score_edges(family_model64, task, preset="information-flow")
    expected = information_flow(family_model64, task.pairs.clean_tokens, scores.space.readers, scores.space.writers)
    close(scores.require_pairs(), expected, tolerance(family_model64))
    sums = scores.values.sum(dim=0)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-5)


def test_integrated_gradients_add_up_to_the_gap(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    """Completeness: scores of the edges out of the input converge to m(clean) - m(corrupt) along the input path."""
    gaps = []
    for steps in (1, 8, 64):
        scores = score_edges(tiny_gpt2_64, tiny_task, rules="gradient", ig_steps=steps)
        gaps.append(abs(float(scores.values[0].sum()) - scores.baseline.gap))
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.02 * abs(scores.baseline.gap)


@pytest.mark.parametrize(("family", "preset"), crossed(["relp-ig", "clean-corrupt"], ["relp-ig"]))
def test_micro_batches_and_position_chunks_change_nothing(family_model64: Any, tiny_task: Task, preset: str) -> None:
    whole = score_edges(family_model64, tiny_task, preset=preset)
    small = score_edges(family_model64, tiny_task, preset=preset, memory_budget="64KB")
    torch.testing.assert_close(small.per_example, whole.per_example, rtol=0, atol=tolerance(family_model64))
    assert float(whole.values.abs().max()) > 1e-3


def test_streamed_scores_are_the_kept_ones_summed_up(tiny_gpt2_64: Any) -> None:
    task = build_task(n=10)
    kept = score_edges(tiny_gpt2_64, task, rules="gradient", keep="pairs")
    streamed = score_edges(tiny_gpt2_64, task, rules="gradient", keep="moments", batch_size=3)
    assert streamed.per_example is None
    assert streamed.n_pairs == kept.n_pairs == 10
    torch.testing.assert_close(streamed.values, kept.values, rtol=0, atol=1e-9)
    torch.testing.assert_close(streamed.standard_error(), kept.standard_error(), rtol=0, atol=1e-9)
    for mine, theirs in zip(streamed.interval(), kept.interval(n_resamples=200), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)
    assert torch.equal(streamed.inclusion(20), kept.inclusion(20))
    assert streamed.stability(20).jaccards == kept.stability(20).jaccards
    assert 0.2 < kept.stability(20).mean < 1


def test_streamed_scores_survive_a_file(tiny_gpt2: Any, tiny_task: Task, tmp_path: Any) -> None:
    scores = score_edges(tiny_gpt2, tiny_task, rules="gradient", keep="moments")
    loaded = type(scores).load(scores.save(tmp_path / "s"))
    assert torch.equal(loaded.values, scores.values)
    assert loaded.stability(10).jaccards == scores.stability(10).jaccards
    assert loaded.provenance["rules"]["name"] == "gradient"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_scores(tiny_gpt2: Any, tiny_task: Task, name: str) -> None:
    scores = score_edges(tiny_gpt2, tiny_task, preset=name)
    assert float(scores.values.abs().max()) > 1e-4
    assert float(scores.values[~scores.space.mask].abs().max()) == 0
    assert scores.provenance["preset"] == name


def test_what_is_said_is_what_is_meant() -> None:
    assert (find_method().name, find_method().ig_steps, find_method().rules.name) == ("eap-ig", 5, "gradient")
    assert (find_method(rules="relp").ig_steps, find_method(rules="relp").name) == (1, "")
    assert find_method(ig_steps=3).rules.name == "gradient"
    assert find_method(ablation="mean").direction == "noise"
    assert find_method("clean-corrupt").fractions == (0.0, 1.0)
    assert find_method("eap-ig").fractions == pytest.approx((0.1, 0.3, 0.5, 0.7, 0.9))


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(InputError, match="one or the other"):
        find_method("eap", rules="relp")
    with pytest.raises(UnknownNameError, match="eap-ig"):
        find_method("eapig")
    with pytest.raises(InputError, match="noise"):
        find_method(rules="gradient", ablation="mean", direction="denoise")
    with pytest.raises(InputError, match="two ends"):
        find_method(rules="gradient", path="clean-corrupt", ig_steps=5)
    with pytest.raises(UnknownNameError, match="ablation"):
        find_method(ablation="noise")
    with pytest.raises(UnknownNameError, match="path"):
        find_method(path="straight")


def test_a_mean_over_few_prompts_is_refused(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="at least 8 prompts"):
        score_edges(tiny_gpt2, tiny_task, rules="gradient", ablation="mean")


def test_streamed_scores_have_no_pairs(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="keep='pairs'"):
        score_edges(tiny_gpt2, tiny_task, rules="gradient", keep="moments").require_pairs()
    with pytest.raises(InputError, match="keep is"):
        score_edges(tiny_gpt2, tiny_task, rules="gradient", keep="some")


def test_memory_budgets_that_are_none(tiny_gpt2: Any, tiny_task: Task) -> None:
    for budget in ("lots", 0, "-1GB"):
        with pytest.raises(InputError, match="memory_budget"):
            score_edges(tiny_gpt2, tiny_task, memory_budget=budget)


def test_verification_measures_what_exact_scores_are(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    scores = score_edges(tiny_gpt2_64, tiny_task, rules="gradient")
    exact = score_edges(tiny_gpt2_64, tiny_task, preset="exact")
    found = verify_edges(tiny_gpt2_64, tiny_task, scores, 20, n_others=10)
    cells = [scores.space.edge_index(edge) for edge in found.edges]
    expected = torch.stack([exact.values[cell] for cell in cells])
    torch.testing.assert_close(found.measured, expected, rtol=0, atol=1e-12)
    assert list(found.edges[:20]) == [name for name, _ in scores.top(20)]
    assert len(set(found.edges)) == 30
    assert -1 <= found.pearson <= 1
    assert found.missed == float(expected[20:].abs().max())
    assert "random others" in repr(found)
    same = verify_edges(tiny_gpt2_64, tiny_task, exact, 5, n_others=0)
    assert same.relative_error < 1e-12
    with pytest.raises(InputError, match="2 to 262"):
        verify_edges(tiny_gpt2_64, tiny_task, scores, 1)


def test_the_ends_of_exact_effects_are_measured_on_their_own_prompts(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    """A metric that reads the prompt's own tokens gets those of the run that it measures."""
    from mechwork.circuits.scoring.exact import ExactEffects

    def own_token(logits: torch.Tensor, pairs: Any) -> torch.Tensor:
        return pairs.final(logits).gather(1, pairs.clean_tokens[:, -2:-1])[:, 0]

    pairs = tiny_task.pairs
    changed = pairs.corrupt_tokens.clone()
    changed[:, -2] = (pairs.clean_tokens[:, -2] + 1) % 97
    task = Task.from_tokens(pairs.clean_tokens, changed, [1, 2, 3], [4, 5, 6], metric=own_token)
    space = EdgeSpace.of(read_anatomy(tiny_gpt2_64))
    for direction in ("denoise", "noise"):
        method = find_method(rules="gradient", direction=direction)
        ends = ExactEffects(tiny_gpt2_64, task, space, method, mask=space.mask & False)(task).baseline
        found = ends.clean_per_example, ends.corrupt_per_example
        for tokens, value in zip((task.pairs.clean_tokens, changed), found, strict=True):
            with torch.no_grad():
                last = tiny_gpt2_64(tokens)[:, -1]
            torch.testing.assert_close(value, last.gather(1, tokens[:, -2:-1])[:, 0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_fit", [1, 2, 3, 4, 7, 10, 50])
def test_batches_are_as_few_and_as_even_as_they_can_be(
    tiny_gpt2: Any, n_fit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechwork.circuits.graph.budget import Fit
    from mechwork.circuits.scoring import score

    monkeypatch.setattr(score, "fit", lambda *_, **__: Fit(n_fit, 4))
    task, space = build_task(n=10), EdgeSpace.of(read_anatomy(tiny_gpt2))
    plan = score.plan_batches(tiny_gpt2, task, space, find_method("eap"), "1GB", None)
    passes = {n: len(range(0, 10, n)) for n in range(1, 11)}
    least = min(passes[n] for n in passes if n <= n_fit)
    assert plan.n_pairs == min(n for n in passes if passes[n] == least)
    assert score.plan_batches(tiny_gpt2, task, space, find_method("eap"), "1GB", 3).n_pairs == 3
