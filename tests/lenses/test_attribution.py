"""Direct logit attribution adds up to the model's own logits on raw weights of every architecture, term by
term right.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.lenses import as_prompts, attribute_logits
from tests.families import D_VOCAB, N_POS, NATIVE, build_native, build_task
from tests.reference.attribution import literal_attribution


def own_difference(model: Any, task: mw.Task, pos: int = -1) -> torch.Tensor:
    """The model's logit difference, its soft cap undone."""
    with torch.no_grad():
        logits = model(task.pairs.clean_tokens)[:, pos].double()
    cap = model.cfg.output_logits_soft_cap
    if cap is not None and cap > 0:
        logits = cap * (logits / cap).atanh()
    rows = torch.arange(len(task))
    return logits[rows, task.pairs.correct[:, 0]] - logits[rows, task.pairs.incorrect[:, 0]]


def test_terms_add_up_to_the_models_own_difference(family_model: Any, tiny_task: mw.Task) -> None:
    """1e-5 of the difference, or of one logit, in float32 (the cap's inverse loses digits where it bends)."""
    shares = attribute_logits(family_model, tiny_task)
    difference = own_difference(family_model, tiny_task)
    assert float(difference.abs().min()) > 0.05
    slack = 1e-3 if shares.before_cap else 0.0
    assert float(((shares.total - difference) / difference.abs().clamp(min=1)).abs().max()) <= 1e-5 + slack
    assert float((shares.remainder / shares.total).abs().max()) <= 1e-5


def test_what_is_missed_is_rounding_of_the_terms(family_model: Any) -> None:
    """Where terms cancel to a small difference the model's own float32 rounding shows; it stays at 1e-6 of the terms'
    size.
    """
    shares = attribute_logits(family_model, build_task(16))
    assert bool((shares.remainder.abs() <= 1e-6 * shares.per_example.abs().sum(dim=1)).all())


def test_every_term_is_the_literal_one(family: str, family_model64: Any, tiny_task: mw.Task) -> None:
    pairs = tiny_task.pairs[:1]
    u = torch.zeros(D_VOCAB, dtype=torch.float64)
    u[pairs.correct[0, 0]], u[pairs.incorrect[0, 0]] = 1.0, -1.0
    has_neurons = not family_model64.cfg.num_experts
    shares = attribute_logits(family_model64, tiny_task[:1], neurons=has_neurons)
    literal = literal_attribution(family_model64, pairs.clean_tokens, u, N_POS - 1)
    assert {term for term in literal if ".n" not in term} == {
        t for t in shares.terms if not (has_neurons and t.startswith("m") and t[1:].isdigit())
    }
    for name, value in literal.items():
        if ".n" in name:
            assert shares.neurons is not None
            layer, neuron = map(int, name[1:].split(".n"))
            torch.testing.assert_close(shares.neurons[:, layer, neuron], value, rtol=1e-6, atol=1e-9)
        else:
            torch.testing.assert_close(shares[name], value, rtol=1e-6, atol=1e-9)
    assert sum(float(value.abs().max()) > 1e-3 for value in literal.values()) > 10


def test_sources_add_up_to_heads(family_model64: Any, tiny_task: mw.Task) -> None:
    shares = attribute_logits(family_model64, tiny_task, sources=True)
    assert shares.sources is not None
    slack = 1e-5 if family_model64.cfg.architecture == "GPTJForCausalLM" else 1e-9
    torch.testing.assert_close(shares.sources.sum(dim=-1).mean(dim=0), shares.heads, rtol=slack, atol=slack)
    assert float(shares.sources.std()) > 1e-3


@pytest.mark.parametrize("name", NATIVE)
def test_native_models_add_up(name: str) -> None:
    """The native RMS norm computes in float32 inside."""
    model, task = build_native(name), build_task()
    shares, bound = attribute_logits(model, task), 1e-6 if name == "gated" else 1e-9
    torch.testing.assert_close(shares.per_example.sum(dim=1), own_difference(model, task), rtol=bound, atol=bound)


def test_single_logits_other_positions_and_spans(bundled_model: Any) -> None:
    task = mw.tasks.ioi(bundled_model, n=40)
    shares = attribute_logits(bundled_model, task)
    assert float((shares.total - task.measure(bundled_model(task.pairs.clean_tokens), task.pairs)).abs().max()) < 1e-3
    assert shares.top(1)[0][1] > 1
    low, high = shares.interval()
    assert bool((low <= shares.values + 1e-12).all() and (shares.values <= high + 1e-12).all())
    end = attribute_logits(bundled_model, task, position="END")
    torch.testing.assert_close(end.per_example, shares.per_example)
    prompt = "When Mary and John went to the shop, John gave a drink to"
    one = attribute_logits(bundled_model, prompt, " Mary", neurons=True, sources=True)
    with torch.no_grad():
        logits = bundled_model(torch.tensor([as_prompts(bundled_model, prompt).tokens[0].tolist()]))
    torch.testing.assert_close(
        float(one.total),
        float(logits[0, -1, bundled_model.tokenizer(" Mary", add_special_tokens=False)["input_ids"][0]]),
        rtol=1e-5,
        atol=1e-4,
    )
    assert one.quantity == "logit"
    assert len(one.top_neurons(3)) == 3
    assert {token for _, _, token, _ in one.top_sources(k=3)} & {" Mary", " John"}
    assert "terms miss at most" in str(one)
    assert len(one.to_dataframe()) == len(one.terms)


def test_refusals(bundled_model: Any, tiny_task: mw.Task) -> None:
    with pytest.raises(mw.errors.InputError, match="single token"):
        attribute_logits(bundled_model, "The cat", " unbelievableness")
    with pytest.raises(mw.errors.InputError, match="correct answer"):
        attribute_logits(bundled_model, "The cat")
    with pytest.raises(mw.errors.InputError, match="positions common"):
        attribute_logits(bundled_model, "The cat", " sat", position=40)
    with pytest.raises(mw.errors.InputError, match="brings its own answers"):
        attribute_logits(bundled_model, tiny_task, " Mary")
    with pytest.raises(mw.errors.InputError, match="a span"):
        attribute_logits(bundled_model, "The cat", " Mary", position="S2")
    with pytest.raises(mw.errors.InputError, match="one per prompt"):
        attribute_logits(bundled_model, "The cat", [" Mary", " John"])
    with pytest.raises(mw.errors.InputError, match="terms are embed"):
        attribute_logits(bundled_model, "The cat", " Mary")["a99.h0"]


def test_experts_have_no_neurons(tiny_task: mw.Task) -> None:
    from tests.families import build_model

    model = build_model("mixtral")
    with pytest.raises(mw.errors.InputError, match="experts"):
        attribute_logits(model, tiny_task, neurons=True)
