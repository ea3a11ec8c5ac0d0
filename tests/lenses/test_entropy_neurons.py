"""Entropy neurons against hooks on the model itself, and the null space against scipy's."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.linalg
import torch

from mechwork.errors import InputError
from mechwork.lenses import EntropyNeurons, find_entropy_neurons
from mechwork.lenses.entropy_neurons import null_shares
from mechwork.tasks.task import Task
from tests.families import borrowed, build_hard_task, build_model
from tests.reference import literal


def entropy(logits: torch.Tensor) -> torch.Tensor:
    p = logits.double().softmax(dim=-1)
    return -(p * p.log2()).sum(dim=-1)


@pytest.mark.filterwarnings("ignore:A forward hook edited")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_effects_are_those_of_hooked_runs(family: str, tmp_path: Any) -> None:
    model, task = build_model(family), build_hard_task()
    tokens, mask = task.pairs.clean_tokens, task.pairs.mask
    literal.cached(model, tokens)
    with borrowed(model):
        found = find_entropy_neurons(model, task, n=2, n_null=4)
    cache = literal.cached(model, tokens)
    name, scale_name = "blocks.2.mlp.hook_post", "ln_final.hook_scale"
    plain = entropy(cache_logits(model, tokens))[mask]
    for row in found.rows:
        index = int(row.neuron.partition("n")[2])
        mean = cache[name][mask][:, index].mean()

        def put(a: torch.Tensor, hook: Any, index: int = index, mean: Any = mean) -> torch.Tensor:
            a = a.clone()
            a[..., index] = mean
            return a

        with torch.no_grad():
            total = entropy(model.run_with_hooks(tokens, fwd_hooks=[(name, put)]))[mask]
            scale = cache[scale_name]
            frozen = [(name, put), (scale_name, lambda x, hook, s=scale: s)]
            direct = entropy(model.run_with_hooks(tokens, fwd_hooks=frozen))[mask]
        assert row.total == pytest.approx(float((total - plain).abs().mean()), abs=1e-6)
        assert row.direct == pytest.approx(float((direct - plain).abs().mean()), abs=1e-6)
        assert row.total > 1e-6
        w = model.blocks[2].mlp.W_out[index].detach() * model.ln_final.weight.detach()
        if family == "llama":  # an RMS norm: no centring
            cosine = torch.nn.functional.cosine_similarity(w[:, None], model.W_U.detach(), dim=0)
            assert row.logit_variance == pytest.approx(float(cosine.var(unbiased=False)), abs=1e-9)
    assert sum(row.by_lot for row in found.rows) == 2
    assert EntropyNeurons.load(found.save(tmp_path / "entropy")).rows == found.rows
    assert "by lot" in str(found)


def cache_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens)


def test_the_null_space_is_scipys_and_a_planted_neuron_lies_in_it() -> None:
    generator = torch.Generator().manual_seed(0)
    W_U = torch.randn(12, 40, generator=generator, dtype=torch.float64)
    W_U[-3:] = 0
    null = torch.tensor(scipy.linalg.null_space(W_U.T.numpy()))
    w = torch.cat([null.T[:1], torch.randn(5, 12, generator=generator, dtype=torch.float64)])
    share = null_shares(w, W_U, 3)
    expected = (w @ null).pow(2).sum(dim=1) / w.pow(2).sum(dim=1)
    torch.testing.assert_close(share, expected, rtol=0, atol=1e-9)
    assert float(share[0]) == pytest.approx(1)


def test_bad_input_is_refused(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="null directions are 1 to 31"):
        find_entropy_neurons(tiny_gpt2_64, tiny_task, n_null=32)
    with pytest.raises(InputError, match="final norm's scale"):
        find_entropy_neurons(build_model("gemma2"), tiny_task)
