"""The memory a sweep takes beside the weights, measured tensor by tensor, stays within the budget it was given."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode

from mechwork.errors import InputError
from mechwork.models.load import load_model
from mechwork.patching import patch
from tests.families import build_model, build_task
from tests.gate import fewer


class Meter(TorchDispatchMode):
    """Bytes of all storages that operations have made and that are still alive; `peak` is the most there ever were."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.weights = {tensor.untyped_storage()._cdata for tensor in model.state_dict(keep_vars=True).values()}
        self.weights |= {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.see(tensor.untyped_storage())
        return result

    def see(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.alive or key in self.weights:  # views of weights are no new memory
            return
        self.alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        self.now -= self.alive.pop(key, 0)


@contextmanager
def measured(model: Any) -> Iterator[Meter]:
    with Meter(model) as meter:
        yield meter


def least(model: Any, task: Any, sites: list[str], **settings: Any) -> int:
    with pytest.raises(InputError) as refusal:
        patch(model, task, sites, memory_budget=1, **settings)
    return int(str(refusal.value).split("one pair, ")[1].split(" bytes")[0].replace(",", ""))


def deep_model() -> Any:
    """32 layers, as a plan for a large model has."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        num_hidden_layers=32, num_attention_heads=4, num_key_value_heads=2, hidden_size=64, intermediate_size=192,
        vocab_size=997,
        max_position_embeddings=64,
    )  # fmt: skip
    return load_model(hf.LlamaForCausalLM(config).eval())


METRICS = ("logit_difference", "log_probability")
MODELS = ("gpt2", "gemma2", "32 layers")


@pytest.mark.parametrize(
    ("name", "metric"), fewer([*product(MODELS, METRICS)], [*zip(MODELS[:2], METRICS, strict=True)])
)
def test_the_peak_stays_within_the_budget(name: str, metric: str) -> None:
    model = deep_model() if name == "32 layers" else build_model(name, torch.float32)
    task, metrics = build_task(n=2, n_pos=16), [metric]
    sites = ["mlp_out"] if name == "32 layers" else ["mlp_out", "z"]
    smallest = least(model, task, sites, metrics=metrics)
    patch(model, task[:1], ["mlp_out"], metrics=metrics)  # hashes the weights and finishes the host's own set-up
    peaks = []
    for budget in (smallest, 4 * smallest):
        with measured(model) as meter:
            patch(model, task, sites, metrics=metrics, memory_budget=budget, positions="all")
        assert meter.peak <= budget, f"{meter.peak:,} bytes of a budget of {budget:,}"
        peaks.append(meter.peak)
    assert peaks[1] > 1.5 * peaks[0], "a larger budget is made use of"
