"""Writes against hand-written hooks on every family; what is borrowed comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.errors import InputError
from mechwork.interventions import Add, Value, Where, Write, Zero, intervene
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model
from tests.reference import literal


def logits_with(model: Any, tokens: torch.Tensor, writes: list[Write]) -> torch.Tensor:
    with torch.no_grad(), intervene(model, writes):
        return model(tokens)


def by_hand(model: Any, tokens: torch.Tensor, name: str, edit: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.run_with_hooks(tokens, fwd_hooks=[(name, lambda activation, hook: edit(activation.clone()))])


def test_zero_value_and_add_equal_hooks(family_model64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    vector = torch.randn(32).double()

    def zero_head(z: torch.Tensor) -> torch.Tensor:
        z[:, :, 2] = 0
        return z

    def shift(x: torch.Tensor) -> torch.Tensor:
        x[:, 3:5] += 2.5 * vector
        return x

    def constant(x: torch.Tensor) -> torch.Tensor:
        x[:] = vector
        return x

    where = torch.zeros(tokens.shape, dtype=torch.bool)
    where[:, 3:5] = True
    with borrowed(family_model64) as model:
        with torch.no_grad():
            plain = model(tokens)
        for write, name, edit in (
            (Write(Site("z", 1, head=2), Zero()), literal.hook("z", 1), zero_head),
            (Write(Site("resid_pre", 2), Add(vector, 2.5), where), literal.hook("resid_pre", 2), shift),
            (Write(Site("mlp_out", 0), Value(vector)), literal.hook("mlp_out", 0), constant),
        ):
            mine = logits_with(model, tokens, [write])
            torch.testing.assert_close(mine, by_hand(model, tokens, name, edit), rtol=0, atol=1e-12)
            assert float((mine - plain).abs().max()) > 1e-4


def test_writes_compose_in_order(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    site = Site("attn_out", 1)
    both = logits_with(tiny_gpt2_64, tokens, [Write(site, Zero()), Write(site, Add(torch.ones(32)))])
    once = logits_with(tiny_gpt2_64, tokens, [Write(site, Value(torch.ones(32)))])
    torch.testing.assert_close(both, once, rtol=0, atol=1e-12)


def test_where_keeps_the_rest_bit_for_bit(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    mask = torch.zeros(1, 10, 1, dtype=torch.bool)
    mask[:, 4] = True
    x = torch.randn(3, 10, 32).double()
    found = Where(mask, torch.zeros(1))(x)
    assert torch.equal(found[:, :4], x[:, :4])
    assert not found[:, 4].any()
    plain = logits_with(tiny_gpt2_64, tokens, [])
    none = logits_with(tiny_gpt2_64, tokens, [Write(Site("attn_out", 1), Where(mask & False, torch.zeros(1)))])
    assert torch.equal(plain, none)
    with pytest.raises(InputError, match="cannot replace"):
        Where(mask, torch.ones(7))(x)


def test_gone_after_an_exception(tiny_gpt2_64: Any) -> None:
    with borrowed(tiny_gpt2_64) as model, pytest.raises(RuntimeError), intervene(model, [Write(Site("z", 0), Zero())]):
        raise RuntimeError


def test_wrong_shapes_and_places(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    with pytest.raises(InputError, match="cannot replace"):
        logits_with(tiny_gpt2_64, tokens, [Write(Site("mlp_out", 0), Value(torch.ones(7)))])
    with pytest.raises(InputError, match="mask"):
        logits_with(tiny_gpt2_64, tokens, [Write(Site("mlp_out", 0), Zero(), torch.ones(1, 2, dtype=torch.bool))])
    with pytest.raises(InputError, match="limited to positions"):
        logits_with(tiny_gpt2_64, tokens, [Write(Site("pattern", 0), Zero(), torch.ones(3, 10, dtype=torch.bool))])
    with pytest.raises(InputError, match="0 to 2"), intervene(tiny_gpt2_64, [Write(Site("z", 9), Zero())]):
        pass


@pytest.mark.parametrize("name", ["opt", "gptj"])
def test_a_write_that_the_model_would_ignore_is_refused(name: str) -> None:
    model = build_model(name)
    with (
        pytest.raises(InputError, match="can be read there, not written"),
        intervene(model, [Write(Site("pattern", 0), Zero())]),
    ):
        raise AssertionError
