"""Clamps while training: against loops in float64, in every architecture against weights that do the same, resumed to
the bit.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.artefact import read_tensors
from mechwork.errors import ArtefactError, InputError, MechworkError, UnknownNameError
from mechwork.zoo import clamps as clamps_of
from mechwork.zoo import train as training
from mechwork.zoo.architecture import ARCHITECTURES, attention_projections, build_model, split_values, value_makers
from mechwork.zoo.clamps import TrainingClamp, clamped
from mechwork.zoo.grammar import step_documents
from mechwork.zoo.heads import score_heads
from mechwork.zoo.recipe import Phase, Recipe
from mechwork.zoo.tokenizer import build_tokenizer, grammar_vocabulary
from mechwork.zoo.train import KEPT, RowPacker, learning_rate, train, weighted_loss
from tests.reference import training as literal

TEXT = {"induction": 0.5, "filler": 0.5}


def recipe_of(architecture: str = "gpt2", steps: int = 4, **changes: Any) -> Recipe:
    recipe = Recipe(
        "tiny", (Phase(steps, TEXT),), seed=7, architecture=architecture, tasks=("induction",), n_layers=2, n_heads=2,
        d_model=16, d_mlp=16, documents=3, validate_every=4, validate_pairs=4, checkpoint_every=2, precision="fp32",
        keep=(0, 2, 4) if steps == 4 else (), clip=0.3, initial_std=0.3,
    )  # fmt: skip
    return dataclasses.replace(recipe, **changes)


def weights_of(run: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.model.named_parameters()}


def test_two_steps_are_those_of_the_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    donor = train(recipe_of(steps=4, seed=3), tmp_path / "donor")
    file = str(donor.kept[4])
    clamps = (
        TrainingClamp("a0.h0", to="uniform"), TrainingClamp("a0.h1", to="previous"),
        TrainingClamp("a1.h0", "z", "zero"), TrainingClamp("a1.h1", "pattern", file),
    )  # fmt: skip
    recipe = recipe_of(steps=2, clamps=clamps)
    for module in (training, clamps_of):
        monkeypatch.setattr(module, "build_model", lambda *args: build_model(*args).double())
    found = weights_of(train(recipe, tmp_path / "fast"))
    tokenizer = build_tokenizer(grammar_vocabulary(recipe.vocabulary_tasks))
    packer = RowPacker(tokenizer, recipe.row)
    steps = [
        [(ids, torch.tensor(w).tolist()) for ids, w in packer._encode(step_documents(TEXT, 3, recipe.seed, step))]
        for step in range(2)
    ]  # weights are float32, as in a batch
    start = {name: p.detach() for name, p in build_model(recipe, len(tokenizer)).double().named_parameters()}
    held = {place: (c.what, c.to) for c in clamps for place in c.heads(2)}
    donors = {file: {name: value.double() for name, value in read_tensors(file)[1].items()}}
    rates = [learning_rate(recipe, step) for step in range(2)]
    expected = literal.train(start, steps, rates, recipe, held, donors)
    free = literal.train(start, steps, rates, recipe, {}, {})
    gap = max(float((expected[name] - free[name]).abs().max()) for name in expected)
    worst = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    assert gap > 1e-4
    assert worst < 1e-6 * gap
    # the queries and keys of held patterns get no gradient: only their decay and what rounding leaves
    moved = (found["transformer.h.0.attn.c_attn.bias"] - start["transformer.h.0.attn.c_attn.bias"]).abs()
    assert float(moved[:32].max()) == 0.0
    assert float(moved[32:].max()) > 0


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_a_clamp_is_what_weights_that_do_the_same_are(family: str) -> None:
    """Queries of zero look everywhere alike, an output map of zero writes nothing, and the model's own values change
    nothing.
    """
    grouped = {"n_kv_heads": 1} if family in ("llama", "gemma2") else {}
    recipe = recipe_of(family, **grouped)
    tokenizer = build_tokenizer(grammar_vocabulary(recipe.vocabulary_tasks))
    model = build_model(recipe, len(tokenizer)).double().eval()
    batch = RowPacker(tokenizer, 60)(step_documents({"induction": 1.0}, 4, 0, 0))

    def loss(of: Any) -> float:
        with torch.no_grad():
            return float(weighted_loss(of, batch))

    def hooks() -> list[int]:
        return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]

    score_heads(model, tokenizer, n=4)  # Hugging Face adds hooks of its own at the first request for patterns
    plain, before = loss(model), hooks()
    own = tuple(TrainingClamp(f"a{layer}", what, "itself") for layer, what in ((0, "pattern"), (1, "z")))
    with clamped(model, own, {"itself": build_model(recipe, len(tokenizer)).double().eval()}):
        assert loss(model) == pytest.approx(plain, rel=1e-12)
    # Hugging Face takes softmax in float32, so that its 1/n is one to half a unit in the last place
    for clamp, exact in ((TrainingClamp("a0.h1", to="uniform"), 2**-24), (TrainingClamp("a1.h0", "z", "zero"), 1e-12)):
        other = build_model(recipe, len(tokenizer)).double().eval()
        _by_weights(other, family, clamp)
        with clamped(model, (clamp,), {}):
            assert loss(model) == pytest.approx(loss(other), rel=exact)
        assert abs(loss(other) - plain) > 1e-4
    with clamped(model, (TrainingClamp("a0", to="previous"),), {}):
        previous = score_heads(model, tokenizer, n=4)
    assert bool(torch.isfinite(previous.induction).all())
    assert loss(model) == plain
    assert hooks() == before


def _by_weights(model: Any, family: str, clamp: TrainingClamp) -> None:
    (layer, head), size = clamp.heads(2)[0], 8
    rows = slice(head * size, (head + 1) * size)
    output: Any = attention_projections(model)[layer]
    packed: Any = value_makers(model)[layer]
    with torch.no_grad():
        if clamp.what == "z":
            (output.weight if family == "gpt2" else output.weight.T)[rows] = 0  # Conv1D is [in, out]
        elif family == "gpt2":
            packed.weight[:, rows] = 0
            packed.bias[rows] = 0
        elif family == "neox":
            packed.weight.view(2, 3, size, -1)[head, 0] = 0
            packed.bias.view(2, 3, size)[head, 0] = 0
        else:
            model.get_submodule(f"model.layers.{layer}.self_attn.q_proj").weight[rows] = 0


def test_values_are_split_as_the_architecture_packs_them() -> None:
    recipe = recipe_of("llama", n_kv_heads=1)
    model = build_model(recipe, 300)
    output = torch.arange(8.0).expand(1, 3, 8)
    values = split_values(model, output)
    assert values.shape == (1, 3, 2, 8)
    assert torch.equal(values[0, 0, 0], values[0, 0, 1])


def test_stopped_and_resumed_with_clamps_ends_in_the_same_bytes(tmp_path: Path) -> None:
    clamps = (TrainingClamp("a0.h0", to="previous"), TrainingClamp("a1.h1", "z", "zero"))
    recipe = recipe_of("llama", clamps=clamps)
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_after=1)
    train(recipe, tmp_path / "parts", stop_after=2)
    resumed = train(recipe, tmp_path / "parts")
    for name, value in weights_of(whole).items():
        assert torch.equal(value, weights_of(resumed)[name]), name
    assert resumed.history == whole.history
    assert (tmp_path / "parts" / KEPT.format(4)).read_bytes() == (tmp_path / "whole" / KEPT.format(4)).read_bytes()
    free = train(dataclasses.replace(recipe, clamps=()), tmp_path / "free")
    assert any(not torch.equal(value, weights_of(free)[name]) for name, value in weights_of(whole).items())
    with pytest.raises(ArtefactError, match="its recipe differ"):
        train(recipe, tmp_path / "free")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert "clamps" not in recipe_of().to_dict()


def test_another_donor_does_not_resume(tmp_path: Path) -> None:
    file = tmp_path / "donor.safetensors"
    donor = train(recipe_of("llama", seed=2), tmp_path / "donor")
    file.write_bytes(donor.kept[2].read_bytes())
    recipe = recipe_of("llama", clamps=(TrainingClamp("a0.h1", "z", str(file)),))
    train(recipe, tmp_path / "run", stop_after=1)
    file.write_bytes(donor.kept[4].read_bytes())
    with pytest.raises(ArtefactError, match="clamped_to"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("m0",), InputError, "heads"),
        (("a0.h1<q>",), InputError, "heads"),
        (("a0.h1", "v"), UnknownNameError, "known: pattern, z"),
        (("a0.h1", "pattern", "zero"), InputError, "pattern is clamped to uniform, previous"),
        (("a0.h1", "z", "uniform"), InputError, "z is clamped to zero"),
    ],
)
def test_clamps_that_are_none_are_refused(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        TrainingClamp(*arguments)


def test_clamps_that_do_not_fit_the_recipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no a2\.h0"):
        recipe_of(clamps=(TrainingClamp("a2.h0"),))
    with pytest.raises(InputError, match=r"a0\.h1 are more often"):
        recipe_of(clamps=(TrainingClamp("a0"), TrainingClamp("a0.h1", "z", "zero")))
    with pytest.raises(InputError, match="same shape"):
        train(recipe_of(clamps=(TrainingClamp("a0", "z", "attn-only-2l"),)), tmp_path)
    with pytest.raises(MechworkError, match="nowhere"):
        train(recipe_of(clamps=(TrainingClamp("a0", "z", str(tmp_path / "nowhere.safetensors")),)), tmp_path)
