"""Transfer of vectors across templates: against hooks and loops in float64, regressions against formulas."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.directions import Demonstrations, Direction, fit_function_vector
from mechwork.errors import InputError
from mechwork.lenses import TransferRow, VectorTransfer, study_vector_transfer
from mechwork.lenses.transfer_table import r_squared
from mechwork.lenses.vector_transfer import _templates
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import build_hard_task, build_model
from tests.reference import literal

SITE = Site("resid_post", 1)


def two_templates(seed: int) -> Task:
    task = build_hard_task(n=10, seed=seed)
    return replace(task, pairs=replace(task.pairs, templates=("one", "two") * 5))


def last(model: Any, row: list[int], added: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Logits at the last token of one prompt, and the stream there after layers 1 and up, by hooks."""
    seen: list[Tensor] = []

    def put(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        if added is not None:
            x[0, -1] += added
        seen.append(x[0, -1])
        return x

    def keep(x: Tensor, hook: Any) -> None:
        seen.append(x[0, -1])

    hooks = [("blocks.1.hook_resid_post", put), ("blocks.2.hook_resid_post", keep)]
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([row]), fwd_hooks=hooks)[0, -1]
    return logits, seen


@pytest.mark.parametrize("name", ["gpt2", "neox"])
def test_every_row_is_that_of_a_loop(name: str) -> None:
    model = build_model(name)
    tasks = {"a": two_templates(0), "b": two_templates(3)}
    found = study_vector_transfer(model, tasks, sites=[SITE], strength=2.0, n_random=1)
    parts = {name: _templates(name, task, 4, 0) for name, task in tasks.items()}
    rows = iter(found.rows)
    assert len(found.rows) == 12

    def mean(task: Task, side: str) -> Tensor:
        pairs = task.pairs if side == "clean" else task.pairs.corrupt_as_host()
        caches = [literal.cached(model, torch.tensor([pairs.prompt(i)])) for i in range(len(task))]
        return torch.stack([cache["blocks.1.hook_resid_post"][0, -1] for cache in caches]).mean(dim=0)

    vectors = {
        (task, one.text): mean(one.fitted, "clean") - mean(one.fitted, "corrupt")
        for task, templates in parts.items()
        for one in templates
    }

    @cache
    def measured(tested: Task, added: Tensor | None, side: str = "corrupt") -> tuple[float, float]:
        host = tested.pairs if side == "clean" else tested.pairs.corrupt_as_host()
        metric, right = 0.0, 0.0
        for i in range(len(tested)):
            logits = last(model, host.prompt(i), added)[0]
            yes, no = ([int(t) for t in side[i] if t >= 0] for side in (tested.pairs.correct, tested.pairs.incorrect))
            metric += float(logits[yes].mean() - logits[no].mean()) / len(tested)
            right += float(logits[yes].max() > logits[no].max()) / len(tested)
        return metric, right

    for task, templates in parts.items():
        for one in templates:
            v = vectors[task, one.text]
            for target, others in parts.items():
                for there in others if target == task else others[:1]:
                    row = next(rows)
                    assert (row.task, row.fitted_on, row.target, row.applied_to) == (task, one.text, target, there.text)
                    low, high = measured(there.tested, None)[0], measured(there.tested, None, "clean")[0]
                    reached, right = measured(there.tested, 2.0 * v)
                    assert row.success == pytest.approx((reached - low) / (high - low), abs=1e-8)
                    assert row.turned == pytest.approx(right)
                    w = vectors[target, there.text]
                    assert row.cosine == pytest.approx(float(v @ w / v.norm() / w.norm()), abs=1e-9)
                    assert row.norm == pytest.approx(float(v.norm()))
                    lots = [Direction(v, SITE).random_control(i).vector for i in range(1)]
                    assert row.random == pytest.approx(
                        max((measured(there.tested, 2.0 * lot)[0] - low) / (high - low) for lot in lots), abs=1e-8
                    )
                    assert abs(row.success) > 1e-4
    expected = []
    for place in (0, 1):
        ranks = []
        for one in parts["a"]:
            for i in range(len(one.tested)):
                state = last(model, one.host.prompt(i), 2.0 * vectors["a", one.text])[1][place]
                logits = model.ln_final(state[None, None])[0, 0] @ model.W_U + model.b_U
                right = [int(t) for t in one.tested.pairs.correct[i] if t >= 0]
                ranks.append(np.log2(1 + sum(float(x) > float(logits[right].max()) for x in logits)))
        expected.append(float(np.mean(ranks)))
    mine = [row.own for row in found.deltas if row.task == "a"]
    assert [row.site.layer for row in found.deltas if row.task == "a"] == [1, 2]
    assert mine == pytest.approx(expected)
    assert mine != [row.plain for row in found.deltas if row.task == "a"]


def planted(gain: float, noise: float, seed: int = 0) -> VectorTransfer:
    """Three tasks of four templates; success is 1 + log norm + `gain` times the cosine, and noise."""
    draw, rows = np.random.default_rng(seed), []
    for task in "abc":
        for one in range(4):
            norm = float(draw.uniform(1, 5))
            for other in range(4):
                cosine = 1.0 if one == other else float(draw.uniform(-1, 1))
                success = 1 + float(np.log(norm)) + gain * cosine + noise * float(draw.normal())
                rows.append(TransferRow(task, str(one), task, str(other), cosine, norm, success, 1, 0, 0, 5))
    return VectorTransfer(tuple(rows), (), dict.fromkeys("abc", SITE), 1.0, {})


def test_what_the_cosine_adds_is_found_where_it_was_planted() -> None:
    exact, none = planted(1.0, 0.0).explained(), planted(0.0, 0.01).explained()
    assert exact.n == 36
    assert exact.norm + exact.cosine_beyond_norm == pytest.approx(1)
    assert exact.cosine_beyond_norm > 0.3 > 3 * exact.by_lot_beyond_norm
    assert none.norm > 0.99
    assert none.cosine_beyond_norm < 0.01
    assert exact.cosine_beyond_task > 0.3 > none.cosine_beyond_task
    rows = [row for row in planted(0.5, 0.3).rows if row.kind == "other template"]
    y, cosine = np.array([row.success for row in rows]), np.array([row.cosine for row in rows])
    norm = np.log([row.norm for row in rows])
    found = planted(0.5, 0.3).explained()
    assert found.r_cosine == pytest.approx(np.corrcoef(y, cosine)[0, 1])
    assert found.norm == pytest.approx(np.corrcoef(y, norm)[0, 1] ** 2)
    x = np.stack([np.ones(36), norm, cosine], axis=1)
    left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert found.norm + found.cosine_beyond_norm == pytest.approx(1 - left @ left / ((y - y.mean()) ** 2).sum())
    within = sum(((y[i : i + 12] - y[i : i + 12].mean()) ** 2).sum() for i in (0, 12, 24))
    assert found.task == pytest.approx(1 - within / ((y - y.mean()) ** 2).sum())
    assert np.isnan(r_squared(torch.ones(4), torch.arange(4.0)[:, None]))
    assert "the cosine adds" in str(planted(1.0, 0.1))


def test_todds_vectors_of_one_wording_bring_french_in_another() -> None:
    """Heads' mean writes in gemma2-6l, two wordings of the lists; after the corrupt lists the other relation stands."""
    model = mw.load_model("gemma2-6l")
    task = mw.tasks.in_context(model, n=48, relation="french")

    def todd(part: Task, site: Site) -> Direction:
        shown = Demonstrations.of_task(part)
        return fit_function_vector(model, shown, shown.bare(), n_heads=4, site=site).direction

    found = study_vector_transfer(
        model, {"french": task}, sites=[Site("resid_post", 0)], fit=todd, lenses={}, strength=2.0, n_templates=2,
        n_random=1,
    )  # fmt: skip
    for row in found.of("french", "other template"):
        assert row.success > row.random + 0.2
        assert row.cosine > 0.5


def test_contracts(tiny_gpt2_64: Any) -> None:
    task = two_templates(0)
    with pytest.raises(InputError, match="two templates with 4 pairs"):
        study_vector_transfer(tiny_gpt2_64, {"a": build_hard_task(n=6)})
    with pytest.raises(InputError, match="after blocks"):
        study_vector_transfer(tiny_gpt2_64, {"a": task}, sites=[Site("mlp_out", 1)])
    with pytest.raises(InputError, match="one random vector"):
        study_vector_transfer(tiny_gpt2_64, {"a": task}, n_random=0)
    with pytest.raises(InputError, match="other than 0"):
        study_vector_transfer(tiny_gpt2_64, {"a": task}, strength=0.0)
    elsewhere = Direction(torch.ones(32, dtype=torch.float64), Site("resid_post", 0))
    with pytest.raises(InputError, match="it gave one of resid_post"):
        study_vector_transfer(tiny_gpt2_64, {"a": task}, sites=[SITE], fit=lambda part, site: elsewhere)
    with pytest.raises(InputError, match="six pairs"):
        study_vector_transfer(tiny_gpt2_64, {"a": task}, sites=[SITE], lenses={}).explained()
