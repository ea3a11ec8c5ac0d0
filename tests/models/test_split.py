"""Keys and values of a group given to each of its heads: the same function, one reader per head."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.circuits.graph.space import EdgeSpace
from mechwork.errors import InputError, UnsupportedModelError
from mechwork.execute.unit import ModelRef
from mechwork.models.anatomy import read_anatomy
from mechwork.models.identity import identify_model
from mechwork.models.split import split_key_values
from tests.families import build_module, build_task

TOKENS = torch.tensor([[3, 5, 2, 9, 4], [1, 7, 7, 2, 6]])
REFUSED = {"falcon": "in one matrix", "phi3": "in one matrix", "olmo2": "all heads", "olmoe": "all heads"}


def test_a_split_model_is_the_same_function(family: str, family_model64: Any) -> None:
    module = build_module(family)
    if family in REFUSED:
        with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
            mw.load_model(module, split_kv=True)
        return
    split = mw.load_model(module, dtype="float64", split_kv=True)
    torch.testing.assert_close(split(TOKENS), family_model64(TOKENS), rtol=1e-12, atol=1e-12)
    assert read_anatomy(split).n_kv_heads == read_anatomy(family_model64).n_heads


def test_weights_but_keys_and_values_are_shared() -> None:
    module: Any = build_module("llama")
    key, embedding = module.model.layers[0].self_attn.k_proj, module.get_input_embeddings().weight
    config = module.config
    split: Any = split_key_values(module)
    assert split.get_input_embeddings().weight is embedding
    assert module.model.layers[0].self_attn.k_proj is key
    repeated = split.model.layers[0].self_attn.k_proj.weight
    torch.testing.assert_close(repeated.view(2, 2, 8, -1), key.weight.view(2, 1, 8, -1).expand(2, 2, 8, -1))
    assert (config.num_key_value_heads, split.config.num_key_value_heads) == (2, 4)
    assert split_key_values(split) is split


def test_edges_of_a_group_are_the_sums_of_its_heads_edges() -> None:
    whole, split = (
        mw.load_model(build_module("llama"), dtype="float64", split_kv=split_kv) for split_kv in (False, True)
    )
    task = build_task()
    few, many = (mw.score_edges(model, task, rules="gradient") for model in (whole, split))
    a, b = EdgeSpace.of(read_anatomy(whole)), EdgeSpace.of(read_anatomy(split))
    group = a.n_heads // a.n_kv_heads
    assert (a.n_kv_heads, b.n_kv_heads, group > 1) == (2, 4, True)
    for layer in range(a.n_layers):
        torch.testing.assert_close(
            many.values[:, b.attention_readers(layer, "q")], few.values[:, a.attention_readers(layer, "q")]
        )
        for kind in "kv":
            summed = many.values[:, b.attention_readers(layer, kind)].unflatten(1, (-1, group)).sum(dim=-1)
            torch.testing.assert_close(summed, few.values[:, a.attention_readers(layer, kind)])


def test_by_name_it_is_said_and_found_again() -> None:
    model = mw.load_model("llama-6l", split_kv=True)
    assert identify_model(model)["origin"] == {"split_kv": True}
    reference = ModelRef.of(model)
    assert reference.split_kv
    again = reference.load()
    assert read_anatomy(again).n_kv_heads == read_anatomy(again).n_heads


def test_a_ready_bridge_is_not_split(tiny_gpt2: Any) -> None:
    with pytest.raises(InputError, match="ready bridge is used as it is"):
        mw.load_model(tiny_gpt2, split_kv=True)
