"""Sparsity of a whole model: tail errors neuron by neuron, and the largest common one, against loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import ModelSparsity, measure_sparsity, sparsity, sparsity_over_training
from mechwork.ablation.sparsity import CutByLot, perplexity_of
from mechwork.errors import InputError, UnknownNameError
from mechwork.interventions import intervene
from mechwork.models import load_model
from tests.families import borrowed, build_model
from tests.reference import literal


def windows(seed: int, n: int = 4) -> torch.Tensor:
    return torch.randint(97, (n, 10), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("family", "rule"), [("gpt2", "magnitude"), ("gemma2", "channel")])
def test_the_cut_is_the_largest_that_the_text_allows(family: str, rule: str, tmp_path: Any) -> None:
    model, text, held_out = build_model(family), windows(0), windows(1)
    literal.cached(model, text)
    with borrowed(model):
        found = measure_sparsity(model, text, held_out, rise=0.05, rule=rule)
    cache = literal.cached(model, text)

    def size(layer: int, a: torch.Tensor) -> torch.Tensor:
        return a.abs() * (model.blocks[layer].mlp.W_out.norm(dim=1) if rule == "channel" else 1)

    def hooks(levels: Any) -> Any:
        return [
            (f"blocks.{layer}.mlp.hook_post", lambda a, hook, layer=layer, t=t: a * (size(layer, a) > t))
            for layer, t in enumerate(levels)
        ]

    for layer in range(3):
        a, weight = cache[f"blocks.{layer}.mlp.hook_post"].flatten(0, 1), model.blocks[layer].mlp.W_out
        small = size(layer, a) <= found.thresholds[layer]
        errors = []
        for token, dropped in zip(a, small, strict=True):
            tail = sum((token[i] * weight[i] for i in dropped.nonzero().flatten().tolist()), torch.zeros(32))
            errors.append(float(tail.norm() / (token @ weight).norm()))
        assert found.errors[layer] == pytest.approx(sum(errors) / len(errors), abs=1e-9)
        assert found.shares[layer] == pytest.approx(float(small.double().mean()), abs=1e-3)
        assert found.errors[layer] <= found.tail_error
    with torch.no_grad():
        plain = model(text)[:, :-1].log_softmax(-1).gather(-1, text[:, 1:, None]).mean().neg().exp()
        cut = model.run_with_hooks(text, fwd_hooks=hooks(found.thresholds))
        cut = cut[:, :-1].log_softmax(-1).gather(-1, text[:, 1:, None]).mean().neg().exp()
    assert float(cut / plain) <= 1.05
    with intervene(model, found.writes(model)):
        assert perplexity_of(model, text) == pytest.approx(float(cut), rel=1e-6)
        assert perplexity_of(model, held_out) == pytest.approx(found.cut_perplexity, rel=1e-9)
    assert 0 < found.share < 1
    assert ModelSparsity.load(found.save(tmp_path / "sparsity")).thresholds == found.thresholds
    assert "by lot" in str(found)


def test_the_control_drops_as_many() -> None:
    dropped = CutByLot(0.3, 1)(torch.ones(200, 50))
    assert float((dropped == 0).double().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(dropped, CutByLot(0.3, 1)(torch.ones(200, 50)))


def test_the_draws_do_not_depend_on_the_batch(tiny_gpt2_64: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"rise": 0.2, "seed": 3}
    whole = measure_sparsity(tiny_gpt2_64, windows(0), windows(1), **settings)
    assert whole.lot_perplexity != whole.perplexity
    for size in (1, 3):
        monkeypatch.setattr(sparsity, "rows_that_fit", lambda *args, size=size, **more: size)
        again = measure_sparsity(tiny_gpt2_64, windows(0), windows(1), **settings)
        assert again.lot_perplexity == pytest.approx(whole.lot_perplexity, rel=1e-12)
        assert again.shares == whole.shares


def test_bad_input_is_refused_first(tiny_gpt2_64: Any) -> None:
    text = windows(0)

    def refused(words: str, *args: Any, error: Any = InputError, **settings: Any) -> None:
        with pytest.raises(error, match=words):
            measure_sparsity(tiny_gpt2_64, *args, **settings)

    refused("text itself", text, text.clone())
    refused("above 0", text, windows(1), rise=0)
    refused("at least two token ids", text[:, :1], windows(1))
    refused("text itself", text[:, :2], text[:, :2])  # two are enough
    refused("rule of a cut", text, windows(1), rule="largest", error=UnknownNameError)
    with pytest.raises(InputError):
        measure_sparsity(build_model("mixtral"), text, windows(1))


def test_over_checkpoints_it_is_each_ones_own() -> None:
    text, held_out = torch.randint(300, 2000, (2, 4, 8), generator=torch.Generator().manual_seed(0))
    found = sparsity_over_training("llama-3l", lambda model: (text, held_out), [0, 6000], rise=0.05)
    alone = measure_sparsity(load_model("llama-3l@6000"), text, held_out, rise=0.05)
    assert found.found[1].thresholds == alone.thresholds
    assert found.shares == [found.found[0].share, alone.share]
    assert 0 < found.shares[1] < 1
    assert list(found.to_dataframe()["step"]) == [0, 6000]
    assert "by lot" in str(found)
