"""AtP*: GradDrop and the query/key fix, against forward passes with one thing changed at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import mechwork as mw
from mechwork.errors import UnsupportedModelError
from mechwork.relevance import ATP_STAR, Composite
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model
from tests.reference.literal import cached, gradient_at, hook

GRAD_DROP = Composite("grad drop", grad_drop=True)
FIX = Composite("query/key fix", query_key_fix=True)


def dropped_gradient(model: Any, tokens: Tensor, site: str, layer: int, metric: Any, dropped: int) -> Tensor:
    """The gradient at a place when the writes of one layer are constants."""
    hooks = [(f"blocks.{dropped}.hook_{write}", lambda x, hook: x.detach()) for write in ("attn_out", "mlp_out")]
    with model.hooks(fwd_hooks=hooks):
        return gradient_at(model, tokens, site, layer, metric)


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_grad_drop_is_a_mean_of_magnitudes(family_model64: Any, tiny_task: Task, site: str) -> None:
    model, pairs = family_model64, tiny_task.pairs
    found = mw.attribute(model, tiny_task, [site], rules=GRAD_DROP)[site].per_example
    clean, corrupt = cached(model, pairs.clean_tokens), cached(model, pairs.corrupt_tokens)
    metric = lambda logits: tiny_task.metric(logits, pairs)  # noqa: E731
    for layer in range(3):
        delta = clean[hook(site, layer)] - corrupt[hook(site, layer)]
        terms = []
        for dropped in range(3):
            if site == "z" and dropped == layer:
                continue
            if site == "resid_pre" or dropped != layer:
                grad = dropped_gradient(model, pairs.corrupt_tokens, site, layer, metric, dropped)
                product = (delta * grad).sum(-1)
                terms.append(product.sum(1) if site == "z" else product)
        stacked = torch.stack(terms)
        expected = stacked.sum(0).sign() * stacked.abs().mean(0)
        assert float(expected.abs().max()) > 1e-6
        torch.testing.assert_close(found[:, layer], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family_name", ["gpt2", "llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("kind", ["q", "k"])
@pytest.mark.parametrize("positions", ["each", "all"])
def test_queries_and_keys_go_through_the_softmax(family_name: str, kind: str, positions: str, tiny_task: Task) -> None:
    model, pairs = build_model(family_name), tiny_task.pairs
    with torch.no_grad():
        model(pairs.clean_tokens)
    with borrowed(model):
        found = mw.attribute(model, tiny_task, [kind], rules=FIX, positions=positions)[kind].per_example
    clean, corrupt = cached(model, pairs.clean_tokens), cached(model, pairs.corrupt_tokens)
    metric = lambda logits: tiny_task.metric(logits, pairs)  # noqa: E731
    layer, head = 1, 1
    places = range(10) if positions == "each" else [slice(None)]
    grad = gradient_at(model, pairs.corrupt_tokens, "pattern", layer, metric)
    for index, place in enumerate(places):

        def put(activation: Tensor, hook: Any, place: Any = place) -> Tensor:
            new = activation.clone()
            new[:, place, head] = clean[f"blocks.{layer}.attn.hook_{kind}"][:, place, head]
            return new

        with torch.no_grad(), model.hooks(fwd_hooks=[(hook(kind, layer), put)]):
            patched = model.run_with_cache(pairs.corrupt_tokens)[1][hook("pattern", layer)]
        expected = ((patched - corrupt[hook("pattern", layer)]) * grad).sum(dim=(1, 2, 3))
        got = found[:, layer, index, head] if positions == "each" else found[:, layer, head]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert float(found.abs().max()) > 1e-4


def test_a_saturated_query_has_an_effect_only_after_the_fix(tiny_task: Task) -> None:
    """Scores scaled up twentyfold: the softmax's gradient is next to nothing, the pattern's change is not."""
    model = build_model("gpt2")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q.original_component.weight.mul_(20)
    last = mw.patch(model, tiny_task, ["q"], positions="each")["q"].per_example[:, -1]

    def error(rules: Any) -> float:
        estimate = mw.attribute(model, tiny_task, ["q"], rules=rules, positions="each")["q"].per_example[:, -1]
        return float((estimate - last).norm() / last.norm())

    assert error("gradient") > 0.8
    assert error(FIX) < 0.2


def test_atp_star_is_both_and_needs_open_attention(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    both = mw.attribute(tiny_gpt2_64, tiny_task, ["q", "mlp_out"], rules="atp_star")
    assert both.provenance["rules"] == ATP_STAR.to_json()
    drop = mw.attribute(tiny_gpt2_64, tiny_task, ["q", "mlp_out"], rules=GRAD_DROP)
    torch.testing.assert_close(both["mlp_out"].values, drop["mlp_out"].values)
    assert not torch.allclose(both["q"].values, drop["q"].values)
    with pytest.raises(UnsupportedModelError, match="inside the wrapped module"):
        mw.attribute(build_model("opt"), tiny_task, ["q"], rules="atp_star")
