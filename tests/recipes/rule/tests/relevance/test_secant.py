"""The rule is found by its name, leaves forwards as they are, and its derivative is the bounded secant."""

from __future__ import annotations

from typing import Any

import torch

from mechwork.relevance import RELP, find_composite
from mechwork.relevance.composite import RULES


def test_its_derivative_is_the_definition() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(RULES["SecantRule"]().surrogate(x, torch.nn.functional.gelu).sum(), x)
    literal = [max(float(torch.nn.functional.gelu(v) / v) if v else 0.5, 0.1) for v in x.detach()]
    assert torch.allclose(found, torch.tensor(literal, dtype=torch.float64), atol=1e-6)


def test_it_binds_by_name_and_forwards_stay(tiny_gpt2: Any) -> None:
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    mine = RELP.prepend(("mlp", RULES["SecantRule"](floor=0.2)), name="with a floor")
    plain = tiny_gpt2(tokens)
    for composite in (mine, find_composite(["SecantRule"])):
        assert "SecantRule" in composite.bind(tiny_gpt2, strict=True).report()
        with composite.context(tiny_gpt2):
            assert torch.equal(tiny_gpt2(tokens), plain)
