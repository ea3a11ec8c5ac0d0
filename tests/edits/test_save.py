"""Changed models as folders: the folder's logits are those of the model with the same writes, in float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.cli.entry import main
from mechwork.directions import Direction
from mechwork.edits import LowRankChange, WeightEdit, find_weight, save_model
from mechwork.errors import ArtefactError, InputError, UnsupportedModelError
from mechwork.files import read_json, write_json
from mechwork.interventions import Add, Along, Entries, Gated, Turn, Value, Write, Zero, intervene, save_writes
from mechwork.interventions.steering import Boundary
from mechwork.models.changed import CHANGES, WEIGHTS
from mechwork.models.identity import identify_model, weights_sha256
from mechwork.models.load import load_model
from mechwork.sites import Site
from tests.families import UNLIKE, borrowed, build_model, build_native, build_task

TOKENS = build_task().pairs.clean_tokens


@cache
def ready(family: str) -> Any:
    """A model that has run once, as the tests' fixtures lend them."""
    model = build_model(family)
    logits(model)
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def logits(model: Any, writes: Any = ()) -> Tensor:
    with torch.no_grad(), intervene(model, list(writes)):
        return model(TOKENS)


def saved(model: Any, folder: Path, changes: Any) -> Tensor:
    """The logits of the folder, loaded anew."""
    with borrowed(model):
        save_model(model, folder, changes)
    return logits(load_model(folder, dtype="float64"))


def edit_of(model: Any, weight: str) -> WeightEdit:
    d_in, d_model = find_weight(model, weight).read().shape
    change = LowRankChange(draw(d_in, 2) / d_in**0.5, draw(2, d_model, seed=1))
    return WeightEdit({weight: change}, weights_sha256(model), "test").scaled(0.5)


def off(kind: str, layer: int, head: int | None = None) -> Write:
    return Write(Site(kind, layer, head), Zero())


@pytest.mark.parametrize("family", [*UNLIKE, "llama"])
def test_a_folder_computes_what_the_changed_model_does(family: str, tmp_path: Path) -> None:
    model = ready(family)
    plain, edit, experts = logits(model), edit_of(model, "W_O.2"), family == "mixtral"
    changes: list[Any] = ["a1.h2", "a0", edit, *([] if experts else ["m1", "m2.n3+5"])]
    writes: list[Any] = [edit, off("z", 1, 2), off("attn_out", 0)]
    if not experts:
        gone = Write(Site("mlp_post", 2), Entries(Zero(), (3, 5)))
        writes += [off("mlp_out", 1), gone]
    found, expected = saved(model, tmp_path / "changed", changes), logits(model, writes)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert float((expected - plain).abs().max()) > 1e-2
    torch.testing.assert_close(saved(model, tmp_path / "same", []), plain, rtol=0, atol=2e-5)
    assert weights_sha256(load_model(tmp_path / "same", dtype="float64")) == weights_sha256(model)
    said = identify_model(load_model(tmp_path / "changed", dtype="float64"))["origin"]
    assert said["changed"][0] == "a1.h2 switched off"
    assert said["base_sha256"] == weights_sha256(model)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_constants_become_biases_and_directions_go(family: str, tmp_path: Path) -> None:
    model = ready(family)
    steer = [Write(Site("resid_post", 1), Add(draw(32), 1.5)), Write(Site("resid_pre", 1), Add(draw(32, seed=1)))]
    if family != "llama":  # whose attention has no bias
        steer += [Write(Site("z", 1, 3), Value(draw(8))), Write(Site("z", 2, 0), Add(draw(8, seed=2)))]
    torch.testing.assert_close(saved(model, tmp_path / "steer", steer), logits(model, steer), rtol=0, atol=2e-5)
    direction = Direction(draw(32, seed=3), Site("resid_post", 1))
    put = Along(direction.unit[None], Zero())
    without = [Write(Site("resid_pre", 0), put)]
    without += [Write(Site(kind, layer), put) for layer in range(3) for kind in ("attn_out", "mlp_out")]
    expected = logits(model, without)
    torch.testing.assert_close(saved(model, tmp_path / "gone", [direction]), expected, rtol=0, atol=2e-5)
    assert float((expected - logits(model)).abs().max()) > 1e-2


def test_the_list_is_checked_against_the_weights(tmp_path: Path, capsys: Any) -> None:
    model = ready("gpt2")
    folder = save_model(model, tmp_path / "one", ["a1.h2"])
    found = read_json(folder / CHANGES)
    (name,) = found["tensors"]
    assert found["changes"] == ["a1.h2 switched off"]
    assert "c_proj" in name
    assert 0 < found["tensors"][name]["share_changed"] < 1
    with pytest.raises(InputError, match="not overwritten"):
        save_model(model, folder, ["a1.h1"])
    weights = (folder / WEIGHTS).read_bytes()
    save_model(model, folder, ["a1.h1"], force=True)
    other = (folder / WEIGHTS).read_bytes()
    assert other != weights
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ArtefactError, match="not those that"):
        load_model(folder)
    (folder / WEIGHTS).write_bytes(other)
    for damage in ({"what": "else"}, {"changes": [1]}, {"base": []}):
        write_json(folder / CHANGES, found | damage)
        with pytest.raises(ArtefactError):
            load_model(folder)
    assert not list(tmp_path.glob(".*"))
    writes = save_writes(tmp_path / "writes", [Write(Site("z", 0, 1), Zero())])
    out = tmp_path / "two"
    words = ["save", str(out), "--model", "attn-only-2l", "--ablate", "a1.h0", "--writes", str(writes), "--json"]
    assert main(words) == 0
    assert "a1.h0 switched off" in capsys.readouterr().out
    assert main(["save", str(tmp_path / "none"), "--model", "attn-only-2l"]) == 2


def test_what_is_no_change_of_weights_is_refused(tmp_path: Path) -> None:
    model, gemma = ready("gpt2"), ready("gemma2")
    unit = torch.nn.functional.normalize(draw(32), dim=0)
    steer = Write(Site("resid_post", 1), Add(draw(32)))

    def refused(words: str, change: Any, of: Any = model, error: Any = InputError) -> None:
        with pytest.raises(error, match=words):
            save_model(of, tmp_path / "no", [change])
        assert not list(tmp_path.iterdir())

    refused("same on every prompt", Write(Site("resid_post", 1), Gated(Add(draw(32)), Boundary(unit, 0.0))))
    refused("same on every prompt", Write(Site("z", 1, 2), Turn(0.5)))
    refused("same on every prompt", Write(Site("z", 1, 2), Zero(), torch.ones(1, 3, dtype=torch.bool)))
    refused("32 numbers", Write(Site("resid_post", 1), Add(draw(31))))
    refused("switched off for good", "a1.h2<q>")
    refused("heads of this model", "a1.h9")
    refused("layers of this model", "m7")
    refused("neurons of this layer", "m1.n999")
    refused("changes", 3, error=(InputError, TypeError))  # the second by the tests' own type checker
    refused("other weights|was made for weights", edit_of(build_model("gpt2", seed=1), "W_O.1"))
    refused("norm stands between", steer, gemma)
    refused("norm stands between", Direction(unit, Site("resid_post", 1)), gemma)
    refused("adds nothing behind", Write(Site("z", 1, 2), Value(draw(8))), ready("llama"))
    refused("native", "a1.h2", build_native("gated"), UnsupportedModelError)
    refused("one MLP", Direction(unit, Site("resid_post", 1)), ready("mixtral"), UnsupportedModelError)
    with pytest.raises(InputError, match="is a list"):
        save_model(model, tmp_path / "no", "a1.h2")
