"""Shared-out edits and least squares: their formulas in loops, what they promise, and a behaviour of the
bundled model.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.directions import Examples, fit_direction, record_examples, study_steering
from mechwork.edits import apply_edit, edit_from_pairs, find_weight, fit_layer_edit, least_squares, share_out
from mechwork.errors import InputError, MetricError
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed, build_task


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- shared out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"], indirect=True)
@pytest.mark.parametrize("inputs", ["contribution", "contrast"])
def test_the_last_layers_neurons_move_the_prompts_as_predicted(family_model64: Any, inputs: str) -> None:
    """The MLP of the direction's own layer reads nothing that was changed: to first order is exact (post-norms
    apart).
    """
    examples = Examples.of_task(build_task(n=6))
    site = Site("resid_post", 1)
    with borrowed(family_model64) as model:
        direction = fit_direction(model, examples, site)
        found = share_out(model, direction, examples, n_components=5, inputs=inputs, kinds=("W_out",), layers=(1,))
        before = direction.coordinate(record_examples(model, examples, [site])[0])
        with apply_edit(model, found.edit.scaled(0.1)):
            after = direction.coordinate(record_examples(model, examples, [site])[0])
        moved = float((after - before)[~examples.labels].mean())
        exact = model.cfg.architecture != "Gemma2ForCausalLM"
        assert moved == pytest.approx(0.1 * direction.norm, rel=1e-6 if exact else 0.3)
        assert len(found.shares) == 5
        assert sum(row.move for row in found.shares) == pytest.approx(direction.norm)


def test_shares_are_the_formula_in_a_loop(tiny_gpt2_64: Any) -> None:
    examples, site = Examples.of_task(build_task(n=6)), Site("resid_post", 1)
    direction = fit_direction(tiny_gpt2_64, examples, site)
    found = share_out(tiny_gpt2_64, direction, examples, n_components=7)
    v, rows = direction.unit.double(), {}
    cache = tiny_gpt2_64.run_with_cache(examples.tokens)[1]
    for layer in (0, 1):
        weights = {
            "a": find_weight(tiny_gpt2_64, f"W_O.{layer}").read(),
            "m": find_weight(tiny_gpt2_64, f"W_out.{layer}").read(),
        }
        inputs = {"a": cache[f"blocks.{layer}.attn.hook_z"], "m": cache[f"blocks.{layer}.mlp.hook_post"][..., None]}
        for kind, letter in (("a", "h"), ("m", "n")):
            for i in range(inputs[kind].shape[2]):
                size = inputs[kind].shape[3]
                k = weights[kind][i * size : (i + 1) * size] @ v
                k = k / k.norm()
                values = [float(inputs[kind][row, -1, i] @ k) for row in range(len(examples))]
                groups = [
                    [x for x, y in zip(values, examples.labels, strict=True) if bool(y) is side]
                    for side in (False, True)
                ]
                steered, others = (sum(group) / len(group) for group in groups)
                gain = steered - others
                rows[f"{kind}{layer}.{letter}{i}"] = (gain if (gain > 0) is (steered > 0) else 0.0, steered)
    order = sorted(rows, key=lambda node: -abs(rows[node][0]))
    rho = abs(rows[order[7]][0])
    soft = {node: (abs(rows[node][0]) - rho) * (1 if rows[node][0] > 0 else -1) for node in order[:7]}
    scale = direction.norm / sum(soft[node] * rows[node][1] for node in soft)
    mine = {row.node: row.share for row in found.shares}
    assert mine.keys() == soft.keys()
    for node, share in soft.items():
        assert mine[node] == pytest.approx(share * scale, rel=1e-6)


def test_an_edit_steers_as_adding_does_with_smaller_side_effects(bundled_model: Any) -> None:
    task = mw.tasks.pronoun(bundled_model, n=96)
    she = int(bundled_model.tokenizer(" she", add_special_tokens=False).input_ids[0])

    def only(part: Task) -> Task:
        return part[[i for i in range(len(part)) if int(part.pairs.correct[i, 0]) == she]]

    examples = Examples.of_task(only(task.train))
    direction = fit_direction(bundled_model, examples, Site("resid_post", 4))
    edit = share_out(bundled_model, direction, examples, n_components=8).edit
    lot = share_out(bundled_model, direction.random_control(), examples, n_components=8, inputs="contrast").edit
    study = study_steering(
        bundled_model, only(task.test), direction, methods=["add"],
        writes={"edit": edit.scaled, "random edit": lot.scaled},
        strengths=[1.0], others=[mw.tasks.agreement(bundled_model, n=16).test], n_random=0,
    )  # fmt: skip
    add, mine, random = (study.of(name)[0] for name in ("add", "edit", "random edit"))
    assert mine.success > 0.8
    assert mine.accuracy > 0.95
    assert mine.kl < add.kl
    assert mine.success > add.success
    assert random.success < 0.5 * mine.success


# ---- least squares ---------------------------------------------------------------------------------------------------


def test_least_squares_is_the_pseudo_inverse_without_a_ridge() -> None:
    x, y = draw(6, 20), draw(6, 5, seed=1)
    mine = least_squares(x, y, ridge=1e-12).dense()
    torch.testing.assert_close(mine, torch.linalg.pinv(x) @ y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x @ mine, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
def test_least_squares_is_the_minimum_of_what_it_says(rank: int | None) -> None:
    x, y, keep = draw(12, 9), draw(12, 6, seed=1), draw(15, 9, seed=2)
    level = 0.3 * float(x.pow(2).sum(dim=1).mean()) / 9

    def objective(change: Tensor) -> float:
        pairs, kept = (x @ change - y).pow(2).sum(1).mean(), (keep @ change).pow(2).sum(1).mean()
        return float(pairs + 0.5 * kept + level * change.pow(2).sum())

    found = least_squares(x, y, ridge=0.3, rank=rank, keep=keep, keep_weight=0.5)
    assert found.rank == (rank or 6)
    best = objective(found.dense())
    assert best < objective(torch.zeros(9, 6, dtype=torch.float64))
    for seed in range(20):  # no step within the same rank is better
        left, right = (part + 1e-3 * draw(*part.shape, seed=seed) for part in (found.left, found.right))
        assert objective(left @ right) > best
    if rank is not None:  # and no other start leads lower: alternating least squares from random factors
        left = draw(9, rank, seed=3).requires_grad_(True)
        right = draw(rank, 6, seed=4).requires_grad_(True)
        optimizer = torch.optim.LBFGS([left, right], max_iter=300, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            change = left @ right
            value = (x @ change - y).pow(2).sum(1).mean() + 0.5 * (keep @ change).pow(2).sum(1).mean()
            value = value + level * change.pow(2).sum()
            value.backward()
            return value

        optimizer.step(closure)
        assert objective((left @ right).detach()) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"], indirect=True)
def test_an_edited_layer_writes_on_corrupt_prompts_what_it_wrote_on_clean_ones(family_model64: Any) -> None:
    task = build_task(n=3)
    with borrowed(family_model64) as model, torch.no_grad():
        fit = edit_from_pairs(model, task, "W_out.1", ridge=1e-9)
        assert fit.error < 1e-4
        wanted = model.run_with_cache(task.pairs.clean_tokens)[1]["blocks.1.hook_mlp_out"][:, -1]
        plain = model.run_with_cache(task.pairs.corrupt_tokens)[1]["blocks.1.hook_mlp_out"][:, -1]
        with apply_edit(model, fit.edit):
            cache = model.run_with_cache(task.pairs.corrupt_tokens)[1]
            clean = model.run_with_cache(task.pairs.clean_tokens)[1]["blocks.1.hook_mlp_out"][:, -1]
        torch.testing.assert_close(cache["blocks.1.hook_mlp_out"][:, -1], wanted, rtol=0, atol=2e-2)
        torch.testing.assert_close(clean, wanted, rtol=0, atol=2e-2)
        assert float((plain - wanted).abs().max()) > 0.1


def test_experts_have_heads_to_edit(tiny_task: Task) -> None:
    from tests.families import build_model

    model = build_model("mixtral")
    fit = edit_from_pairs(model, tiny_task, "W_O.1", ridge=1e-6, rank=2)
    assert fit.edit.changes["W_O.1"].rank == 2
    examples = Examples.of_task(tiny_task)
    direction = fit_direction(model, examples, Site("resid_post", 1))
    assert {row.node[0] for row in share_out(model, direction, examples, n_components=3).shares} == {"a"}
    with pytest.raises(InputError, match="no site"):
        edit_from_pairs(model, tiny_task, "W_out.1")


def test_contracts(tiny_gpt2_64: Any, tiny_gpt2: Any, tiny_task: Task) -> None:
    examples = Examples.of_task(tiny_task)
    direction = fit_direction(tiny_gpt2_64, examples, Site("resid_post", 1))
    x, y = draw(4, 128), draw(4, 32)
    with pytest.raises(InputError, match="fitted in another model"):
        share_out(tiny_gpt2, direction, examples)
    for settings, message in (
        ({"inputs": "random"}, "inputs is one of"), ({"n_components": 0}, "components are 1 or more"),
        ({"layers": (2,)}, "layers 0 to 1"), ({"layers": ()}, "layers 0 to 1"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            share_out(tiny_gpt2_64, direction, examples, **dict[str, Any](settings))
    inside = fit_direction(tiny_gpt2_64, examples, Site("mlp_post", 1))
    with pytest.raises(InputError, match="in the residual stream"):
        share_out(tiny_gpt2_64, inside, examples)
    for settings in ({"ridge": 0.0}, {"rank": 0}, {"rank": 99}, {"keep_weight": -1.0}):
        with pytest.raises(InputError, match="ridge is above 0"):
            least_squares(x, y, **dict[str, Any](settings))
    with pytest.raises(MetricError, match="NaN"):
        least_squares(x * torch.nan, y)
    with pytest.raises(MetricError, match="no change"):
        least_squares(x, 0 * y)
    with pytest.raises(InputError, match="reads 128 numbers"):
        fit_layer_edit(tiny_gpt2_64, "W_out.1", y, y)
    with pytest.raises(InputError, match="position is END"):
        edit_from_pairs(tiny_gpt2_64, tiny_task, "W_out.1", position="NAME")
