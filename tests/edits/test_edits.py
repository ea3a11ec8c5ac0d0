"""Edits of weights: against a module's output changed by hand, undone to the bit, saved, refused by other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.edits import LowRankChange, WeightEdit, apply_edit, find_weight
from mechwork.errors import ArtefactError, InputError, MetricError
from mechwork.interventions import Add, Write, intervene
from mechwork.models.identity import weights_sha256
from mechwork.provenance import hash_weights
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model

PLACES = [
    *((family, "W_O.1") for family in ("gpt2", "neox", "llama", "gemma2", "mixtral")),
    *((family, "W_out.1") for family in ("gpt2", "neox", "llama", "gemma2")),
]


def edit_of(model: Any, weight: str, rank: int = 2, seed: int = 0) -> WeightEdit:
    d_in, d_model = find_weight(model, weight).read().shape
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) / n**0.5 for n in (d_in, d_model))
    return WeightEdit({weight: LowRankChange(left, right.T.contiguous())}, weights_sha256(model), f"test {seed}")


def module_of(model: Any, weight: str) -> Any:
    """The host's own linear module, found by hand."""
    block = model.blocks[1]
    module = block.attn.o if weight.startswith("W_O") else block.mlp.out
    while hasattr(module, "original_component"):
        module = module.original_component
    return module


@pytest.mark.parametrize(("family", "weight"), PLACES, indirect=["family"])
def test_an_edit_equals_the_module_plus_what_it_adds(family_model64: Any, tiny_task: Task, weight: str) -> None:
    tokens = tiny_task.pairs.clean_tokens
    with borrowed(family_model64) as model, torch.no_grad():
        plain, edit = model(tokens), edit_of(model, weight)
        with apply_edit(model, edit.scaled(0.5)):
            mine = model(tokens)
        change = 0.5 * edit.changes[weight].dense()
        handle = module_of(model, weight).register_forward_hook(lambda module, args, out: out + args[0] @ change)
        theirs = model(tokens)
        handle.remove()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)
        assert float((mine - plain).abs().max()) > 1e-2
        assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undone_to_the_bit_also_after_an_exception(dtype: torch.dtype) -> None:
    model = build_model("llama", dtype)
    before = hash_weights(model)
    edit = edit_of(model, "W_out.1") + edit_of(model, "W_O.0", seed=1)
    with pytest.raises(RuntimeError, match="in the middle"), apply_edit(model, edit.scaled(1e3)):
        assert hash_weights(model) != before
        raise RuntimeError("in the middle")
    assert hash_weights(model) == before
    assert weights_sha256(model) == before
    assert not torch.is_inference_mode_enabled()


def test_edits_of_one_base_add_up(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    tokens = tiny_task.pairs.clean_tokens
    one, two = edit_of(tiny_gpt2_64, "W_out.1"), edit_of(tiny_gpt2_64, "W_out.1", seed=1)
    both = one.scaled(2.0) + two
    expected = 2 * one.changes["W_out.1"].dense() + two.changes["W_out.1"].dense()
    torch.testing.assert_close(both.changes["W_out.1"].dense(), expected)
    with torch.no_grad(), apply_edit(tiny_gpt2_64, both):
        once = tiny_gpt2_64(tokens)
        with pytest.raises(InputError, match="add edits of one base up"), apply_edit(tiny_gpt2_64, two):
            pass
    with (
        torch.no_grad(),
        intervene(tiny_gpt2_64, [one.scaled(2.0), two, Write(Site("resid_post", 2), Add(torch.zeros(32)))]),
    ):
        pass
    with torch.no_grad():
        assert float((once - tiny_gpt2_64(tokens)).abs().max()) > 1e-2
    other = WeightEdit(one.changes, "0" * 64)
    with pytest.raises(InputError, match="same weights"):
        _ = one + other


def test_generation_batches_and_caches(tiny_gpt2_64: Any) -> None:
    prompt = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "verbose": False, "stop_at_eos": False}
    with borrowed(tiny_gpt2_64) as model, torch.no_grad():
        edit = edit_of(model, "W_out.1", rank=4).scaled(5.0)
        plain = model.generate(prompt, **settings)
        with apply_edit(model, edit):
            texts: list[Tensor] = [
                model.generate(prompt, use_past_kv_cache=cached, **settings) for cached in (True, False)
            ]
            assert torch.equal(*texts)
            assert torch.equal(model.generate(prompt[:1], **settings)[0], texts[0][0])
            cached, whole = model.run_with_cache(prompt)[0], model(prompt)
            torch.testing.assert_close(cached, whole, rtol=0, atol=1e-12)
            torch.testing.assert_close(model(prompt[1:])[0], whole[1], rtol=0, atol=1e-10)
        assert not torch.equal(texts[0], plain)
        assert torch.equal(model.generate(prompt, **settings), plain)


def test_saved_as_a_delta_and_refused_by_others(
    tiny_gpt2_64: Any, tiny_gpt2: Any, tiny_task: Task, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    edit = (edit_of(tiny_gpt2_64, "W_out.1") + edit_of(tiny_gpt2_64, "W_O.2", seed=1)).scaled(0.7)
    path = edit.save(tmp_path / "delta")
    again = WeightEdit.load(path)
    assert (again.name, again.strength, again.base_sha256) == (edit.name, 0.7, edit.base_sha256)
    outputs = []
    for one in (edit, again):
        with torch.no_grad(), apply_edit(tiny_gpt2_64, one):
            outputs.append(tiny_gpt2_64(tiny_task.pairs.clean_tokens))
    assert torch.equal(*outputs)
    assert path.stat().st_size < 20_000
    for model in (tiny_gpt2, build_model("gpt2", seed=1)):
        with pytest.raises(InputError, match="was made for weights"), apply_edit(model, again):
            pass
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"what": "mechwork direction"})
    for name in ("text", "other", "missing"):
        with pytest.raises(ArtefactError):
            WeightEdit.load(tmp_path / f"{name}.safetensors")


def test_overflow_is_refused_with_the_weight_and_nothing_is_changed() -> None:
    model = build_model("gpt2", torch.float16)
    before = hash_weights(model)
    with (
        pytest.raises(MetricError, match=r"overflows float16 in W_out\.1"),
        apply_edit(model, edit_of(model, "W_out.1").scaled(1e7)),
    ):
        pass
    assert hash_weights(model) == before


def test_contracts(tiny_gpt2_64: Any) -> None:
    nothing = LowRankChange(torch.zeros(128, 1), torch.zeros(1, 32))
    with pytest.raises(InputError, match="changes no weight"):
        WeightEdit({}, "")
    with pytest.raises(InputError, match="named W_O"):
        WeightEdit({"W_E": nothing}, "")
    with pytest.raises(InputError, match="NaN"):
        WeightEdit({"W_out.1": LowRankChange(nothing.left * torch.nan, nothing.right)}, "")
    wrong = WeightEdit({"W_O.1": nothing}, weights_sha256(tiny_gpt2_64))
    with pytest.raises(InputError, match=r"\(32, 32\)"), apply_edit(tiny_gpt2_64, wrong):
        pass
    with pytest.raises(InputError, match="layers of this model"):
        find_weight(tiny_gpt2_64, "W_out.9")
    with pytest.raises(InputError, match="no site"):
        find_weight(build_model("mixtral"), "W_out.1")
