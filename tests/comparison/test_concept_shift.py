"""Shifts from base to tuned: means of single prompts, and a tuned model that is the base plus a vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.comparison import ConceptShift, fit_concept_shift
from mechwork.errors import InputError, MetricError
from mechwork.sites import Site
from tests.families import borrowed, build_hard_task, build_model, build_task


def pair(family: str) -> tuple[Any, Any, torch.Tensor]:
    """A model, and the same one whose MLP of layer 1 adds a vector everywhere."""
    base, tuned = build_model(family), build_model(family)
    vector = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    module = tuned.blocks[1].mlp.out.original_component
    with torch.no_grad():
        module.bias.add_(vector)
        for model in (base, tuned):
            model(torch.tensor([[1, 2, 3]]))
    return base, tuned, vector


def test_a_planted_shift_is_found_and_takes_the_whole_way(tmp_path: Any) -> None:
    base, tuned, vector = pair("gpt2")
    train, test = build_hard_task(n=4), build_hard_task(n=3, seed=9)
    with borrowed(base), borrowed(tuned):
        found = fit_concept_shift(base, tuned, train, test, [Site("resid_post", i) for i in range(3)])
    torch.testing.assert_close(found.vectors[1], vector.float(), rtol=0, atol=1e-5)
    assert float(found.vectors[0].abs().max()) < 1e-6  # nothing has changed before
    assert found.alike[1] == pytest.approx(1)
    expected = []
    for row in range(len(train)):  # prompt by prompt, without padding
        tokens = train.pairs.prompt(row)
        states: list[torch.Tensor] = []
        for model in (base, tuned):
            hooks = [("blocks.2.hook_resid_post", lambda x, hook, s=states: s.append(x[0, -1]))]
            with torch.no_grad():
                model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=hooks)
        expected.append(states[1] - states[0])
    torch.testing.assert_close(found.vectors[2].double(), torch.stack(expected).mean(dim=0), rtol=0, atol=1e-5)
    host = test.pairs
    with torch.no_grad():
        ends = [float(test.metric(model(host.clean_tokens), host).mean()) for model in (base, tuned)]
        last = torch.arange(host.clean_tokens.shape[1]) == host.lengths[:, None] - 1
        put = [("blocks.1.hook_mlp_out", lambda x, hook: x + last[..., None] * vector)]
        steered = float(test.metric(base.run_with_hooks(host.clean_tokens, fwd_hooks=put), host).mean())
    assert found.ends == pytest.approx(ends)
    assert found.share[1] == pytest.approx((steered - ends[0]) / (ends[1] - ends[0]), abs=1e-4)
    assert found.direction(Site("resid_post", 1)).norm == pytest.approx(float(vector.norm()), rel=1e-5)
    assert ConceptShift.load(found.save(tmp_path / "shift")).share == found.share
    assert "own spread" in str(found)


def test_bad_input_is_refused(tiny_gpt2_64: Any) -> None:
    task = build_task()
    with pytest.raises(MetricError, match="the same metric"):
        fit_concept_shift(tiny_gpt2_64, tiny_gpt2_64, task, task)
    with pytest.raises(InputError, match="one anatomy"):
        fit_concept_shift(tiny_gpt2_64, build_model("llama"), task, task)
    base, tuned, _ = pair("gpt2")
    with pytest.raises(InputError, match="residual stream"):
        fit_concept_shift(base, tuned, task, task, [Site("z", 1)])
    with pytest.raises(InputError, match="two prompts or more"):
        fit_concept_shift(base, tuned, task[:1], task)
