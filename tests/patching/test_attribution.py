"""Attribution against a literal leaf per place; the grid rules x steps against what must hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError, MetricError, UnknownNameError
from mechwork.models.anatomy import read_anatomy
from mechwork.patching import attribute, patch
from mechwork.tasks.task import Task
from tests.reference import literal


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_equals_the_gradient_at_a_leaf(family_model64: Any, tiny_task: Task, direction: str) -> None:
    model, pairs = family_model64, tiny_task.pairs
    host, donor = (
        (pairs.corrupt_tokens, pairs.clean_tokens)
        if direction == "denoise"
        else (pairs.clean_tokens, pairs.corrupt_tokens)
    )
    given, own = literal.cached(model, donor), literal.cached(model, host)
    kinds = ["resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z"]
    kinds = [kind for kind in kinds if read_anatomy(model).has_site(kind)]
    scores = attribute(model, tiny_task, kinds, rules="gradient", direction=direction)
    for kind in kinds:
        assert float(scores[kind].values.abs().max()) > 1e-4
        for layer in range(3):
            name = literal.hook(kind, layer)
            gradient = literal.gradient_at(model, host, kind, layer, lambda x: tiny_task.metric(x, pairs))
            product = (given[name] - own[name]) * gradient
            expected = product.sum(dim=-1) if product.ndim == 3 else product.sum(dim=(1, 3))
            expected = expected if direction == "denoise" else -expected
            torch.testing.assert_close(scores[kind].per_example[:, layer], expected, rtol=0, atol=1e-9)


def test_one_step_is_plain_and_many_steps_reach_the_exact_gap(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    """Completeness of integrated gradients: at the embedding the scores add up to m(clean) - m(corrupt)."""
    plain = attribute(tiny_gpt2_64, tiny_task, ["resid_pre"], rules="gradient", ig_steps=1)["resid_pre"]
    default = attribute(tiny_gpt2_64, tiny_task, ["resid_pre"], rules="gradient")["resid_pre"]
    torch.testing.assert_close(plain.per_example, default.per_example, rtol=0, atol=0)
    fine = attribute(tiny_gpt2_64, tiny_task, ["resid_pre"], rules="gradient", ig_steps=128)["resid_pre"]
    gap = fine.baseline.clean_per_example - fine.baseline.corrupt_per_example
    error = (fine.per_example[:, 0].sum(dim=-1) - gap).abs().max()
    assert float(error) < 0.02 * float(gap.abs().max())
    assert float((plain.per_example[:, 0].sum(dim=-1) - gap).abs().max()) > 10 * float(error)


def test_agreement_of_an_effect_with_itself(tiny_gpt2: Any, tiny_task: Task) -> None:
    exact = patch(tiny_gpt2, tiny_task, ["resid_pre", "z"])
    for row in exact.agreement(exact).values():
        assert row.pearson == pytest.approx(1.0)
        assert row.spearman == pytest.approx(1.0)
        assert row.relative_error == 0
    approx = attribute(tiny_gpt2, tiny_task, exact.sites)
    assert approx.sites == exact.sites
    assert approx["z"].estimated
    with pytest.raises(InputError, match="direction"):
        attribute(tiny_gpt2, tiny_task, exact.sites, direction="noise").agreement(exact)


def test_unknown_rules_and_steps(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(UnknownNameError, match="nearest: relp"):
        attribute(tiny_gpt2, tiny_task, ["z"], rules="relpp")
    with pytest.raises(InputError, match="at least 1"):
        attribute(tiny_gpt2, tiny_task, ["z"], ig_steps=0)


def test_coefficients_that_are_not_finite_are_an_error(tiny_gpt2: Any, tiny_task: Task) -> None:
    """A finite metric can have an infinite slope, and half precision overflows: neither becomes a number."""

    def edge(logits: Any, pairs: Any) -> Any:
        final = pairs.final(logits)[:, 0]
        return final - (final - final.detach()).abs().sqrt()

    with pytest.raises(MetricError, match="coefficients at resid_pre of layer 0 are not finite"):
        attribute(tiny_gpt2, tiny_task.with_metric(edge), ["resid_pre"], rules="gradient")
