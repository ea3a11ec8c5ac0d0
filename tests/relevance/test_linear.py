"""Rules of linear modules against their definitions, contribution by contribution, and inside models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.errors import InputError
from mechwork.relevance import RELP_AH, AlphaBetaRule, Composite, EpsilonRule, GammaRule, check_conservation
from mechwork.relevance.linear import Linear, read_linear
from mechwork.relevance.targets import find_targets
from mechwork.tasks.task import Task
from tests.families import build_model
from tests.relevance.test_rules import coefficients


def literal(rule: Any, w: Tensor, b: Tensor, x: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of the inputs [i] from that of the outputs [k], dividing it contribution by contribution."""
    result = torch.zeros_like(x)
    for k in range(w.shape[1]):
        parts = [float(x[i] * w[i, k]) for i in range(len(x))]
        y = sum(parts) + float(b[k])
        weights = {}
        if isinstance(rule, EpsilonRule):
            total = y + rule.eps * (1 if y >= 0 else -1)
            weights = {i: part / total for i, part in enumerate(parts)}
        elif isinstance(rule, GammaRule):
            favoured = [p * (1 + rule.gamma) if p * y > 0 else p for p in [*parts, float(b[k])]]
            weights = {i: favoured[i] / sum(favoured) for i in range(len(parts))}
        else:
            every = [*parts, float(b[k])]
            plus, minus = sum(p for p in every if p > 0), sum(p for p in every if p < 0)
            for i, p in enumerate(parts):
                weights[i] = rule.alpha * p / plus if p > 0 else -(rule.alpha - 1) * p / minus if p < 0 else 0.0
        for i, weight in weights.items():
            result[i] += weight * relevance[k]
    return result


@pytest.mark.parametrize(
    "rule", [EpsilonRule(0.0), EpsilonRule(0.3), GammaRule(0.0), GammaRule(0.7), AlphaBetaRule(1.0), AlphaBetaRule(2.0)]
)
def test_shares_follow_the_definition(rule: Any, seed: int) -> None:
    w, b, x = torch.randn(6, 4).double(), torch.randn(4).double(), torch.randn(6).double().requires_grad_(True)
    wanted = torch.tensor([1.0, -1.0, -1.0, 1.0]).double()
    w, b = w * wanted * (x.detach() @ w).sign(), wanted * b.abs()
    linear = Linear(w, b)
    y = linear(x)
    assert torch.equal(y.sign(), wanted), "outputs of both signs: damping follows the sign"
    surrogate = rule.surrogate(linear, x, y)
    coefficient = torch.randn(4).double()
    (found,) = torch.autograd.grad(surrogate, x, coefficient)
    expected = literal(rule, w, b, x.detach(), (coefficient * y).detach())
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(found * x.detach(), expected, rtol=0, atol=1e-12)


def test_every_linear_module_is_read_and_bound(family_model64: Any, tiny_task: Task) -> None:
    """The numbers read from a module give its output, and an eps-rule of 0 everywhere is the gradient, to rounding."""
    everywhere = Composite(
        "eps 0", tuple((name, EpsilonRule(0.0)) for name, of in find_targets(family_model64) if of == "linear")
    )
    binding = everywhere.bind(family_model64, strict=True)
    assert {name for name, of in binding.rules} >= {"blocks.2.attn.q", "blocks.0.attn.o", "unembed"}
    attn = family_model64.blocks[1].attn
    for module in (attn.q, attn.k, attn.v, attn.o, family_model64.unembed):
        linear = read_linear(module.original_component)
        x = torch.randn(2, 3, linear.weight.shape[0]).double()
        with torch.no_grad():
            torch.testing.assert_close(linear(x), module.original_component(x), rtol=0, atol=1e-12)
    _, ruled, _ = coefficients(family_model64, tiny_task, everywhere, ["resid_pre"])
    _, plain, _ = coefficients(family_model64, tiny_task, Composite("none"), ["resid_pre"])
    torch.testing.assert_close(ruled["resid_pre"], plain["resid_pre"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [GammaRule(0.25), AlphaBetaRule(2.0), EpsilonRule(1e-3)])
def test_linear_rules_conserve_as_they_say(rule: Any, family: str, family_model64: Any, tiny_task: Task) -> None:
    dense = "mix" not in family and "moe" not in family
    where = "mlp.*" if dense else "attn.v"
    rules = RELP_AH.prepend((where, rule))
    account = check_conservation(
        family_model64, tiny_task.pairs.clean_tokens, lambda logits: tiny_task.metric(logits, tiny_task.pairs), rules
    )
    if isinstance(rule, EpsilonRule):
        assert not account.expected
        assert "epsilon" in str(account)
        assert not account.holds(1e-6)
    else:
        assert account.holds(1e-4)


def test_experts_have_no_linear_targets_and_say_so() -> None:
    with pytest.raises(InputError, match="inside experts"):
        RELP_AH.prepend(("*", GammaRule())).bind(build_model("mixtral"))


@pytest.mark.parametrize(("rule", "value"), [(EpsilonRule, -1.0), (GammaRule, -0.1), (AlphaBetaRule, 0.5)])
def test_impossible_settings_are_refused(rule: Any, value: float) -> None:
    with pytest.raises(InputError, match=f"at least [01].*{value}"):
        rule(value)
