"""Attention rollout by position against paths summed one by one, and the mask alone against its closed form."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from mechwork.ablation import PositionBias, study_position_bias
from mechwork.errors import InputError
from mechwork.tasks.task import Task
from tests.families import borrowed, build_hard_task, build_model, build_native
from tests.reference import literal


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_shares_are_sums_over_paths(family: str, tmp_path: Any) -> None:
    model, task = build_model(family), build_hard_task(n=3)
    literal.cached(model, task.pairs.clean_tokens)
    with borrowed(model):
        found = study_position_bias(model, task, n_bins=3)
    cache = literal.cached(model, task.pairs.clean_tokens)
    shares, first = torch.zeros(3), 0.0
    for row in range(len(task)):
        n = int(task.pairs.lengths[row])
        heads = [cache[f"blocks.{layer}.attn.hook_pattern"][row].mean(dim=0) for layer in range(3)]

        def weight(layer: int, to: int, source: int, heads: Any = heads) -> float:
            return float(heads[layer][to, source]) / 2 + (to == source) / 2

        reach = [0.0] * n
        for a, b, c in product(range(n), repeat=3):  # the last token, down the three layers
            reach[c] += weight(2, n - 1, a) * weight(1, a, b) * weight(0, b, c)
        assert sum(reach) == pytest.approx(1, abs=1e-6)
        for position, share in enumerate(reach):
            shares[position * 3 // n] += share / len(task)
        first += reach[0] / len(task)
    torch.testing.assert_close(found.model[-1], shares.double(), rtol=0, atol=1e-6)
    assert float(found.first[-1]) == pytest.approx(first, abs=1e-6)
    assert PositionBias.load(found.save(tmp_path / "bias")).n_prompts == 3
    assert "mask alone" in str(found)


def test_the_mask_alone_drifts_to_the_first_position(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    found = study_position_bias(tiny_gpt2_64, tiny_task, n_bins=2)
    assert float(found.first_of_mask[0]) == pytest.approx(1 / 2 / 10)  # ten tokens, half of it stays
    assert found.first_of_mask.tolist() == sorted(found.first_of_mask.tolist())
    assert found.decay[1] > 0
    torch.testing.assert_close(found.mask.sum(dim=1), torch.ones(3, dtype=torch.float64))


def test_bad_input_is_refused(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="bins are 1 to 10"):
        study_position_bias(tiny_gpt2_64, tiny_task, n_bins=11)
    with pytest.raises(InputError, match="not causal"):
        study_position_bias(build_native("bidirectional"), tiny_task)
