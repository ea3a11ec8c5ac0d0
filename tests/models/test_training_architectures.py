"""Every architecture that a recipe can ask for: training resumes exactly, packing changes nothing, ablation finds its
place.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from mechwork import bundled
from mechwork.errors import InputError, UnknownNameError
from mechwork.models import load_model
from mechwork.tasks.sampling.examples import SAMPLERS
from mechwork.zoo.architecture import (
    ARCHITECTURES,
    WINDOW,
    attention_projections,
    attention_writers,
    build_model,
    document_mask,
)
from mechwork.zoo.export import export, load_exported
from mechwork.zoo.grammar import KINDS, step_documents
from mechwork.zoo.heads import find_induction_heads, score_heads
from mechwork.zoo.measure import draw_examples, encode, measure_composition
from mechwork.zoo.recipe import Phase, Recipe
from mechwork.zoo.tokenizer import build_tokenizer, grammar_vocabulary
from mechwork.zoo.train import KEPT, RowPacker, train, weighted_loss

MIXTURE = dict.fromkeys(KINDS, 1.0)


def recipe_of(family: str, **changes: Any) -> Recipe:
    recipe = Recipe(
        "tiny",
        (Phase(4, MIXTURE),),
        seed=7,
        architecture=family,
        tasks=("ioi", "induction", "capitals", "in_context", "colored_objects"),
        n_layers=2,
        n_heads=4,
        n_kv_heads=2 if family in ("llama", "gemma2") else None,
        d_model=16,
        d_mlp=16,
        documents=8,
        validate_every=4,
        validate_pairs=4,
        checkpoint_every=2,
        precision="fp32",
        keep=(0, 2, 4),
    )
    return dataclasses.replace(recipe, **changes)


@pytest.fixture(params=list(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(grammar_vocabulary(tuple(SAMPLERS)))


def build(architecture: str, tokenizer: Any) -> Any:
    return build_model(recipe_of(architecture, initial_std=0.3), len(tokenizer)).eval()


def test_stopped_and_resumed_equals_uninterrupted(architecture, tmp_path):
    recipe = recipe_of(architecture)
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_after=3)
    resumed = train(recipe, tmp_path / "parts")
    assert resumed.history == whole.history
    pairs = zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True)
    for (name, one), (_, other) in pairs:
        assert torch.equal(one, other), name
    assert any(bool(p.any()) for p in whole.model.parameters())
    for step in recipe.keep:
        first, second = ((tmp_path / part / KEPT.format(step)).read_bytes() for part in ("whole", "parts"))
        assert first == second


def test_a_document_alone_is_seen_as_the_model_itself_sees_it(architecture, tokenizer):
    model = build(architecture, tokenizer).double()
    batch = RowPacker(tokenizer, 96)([[("Words:" + " lamp river" * 15 + ".", 1.0)]])
    assert batch.tokens.shape[1] > WINDOW + 10
    logits = model(batch.tokens).logits[0, :-1]
    expected = nn.functional.cross_entropy(logits, batch.tokens[0, 1:])
    assert weighted_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_packed_rows_give_the_loss_of_the_documents_alone(architecture, tokenizer):
    model = build(architecture, tokenizer).double()
    documents = step_documents(MIXTURE, 12, 0, 0)
    encode_rows = RowPacker(tokenizer, 96)
    packed = encode_rows(documents)
    assert packed.tokens.shape[0] < len(documents)
    alone = [encode_rows([document]) for document in documents]
    mass = [float(batch.weights[:, 1:].sum()) for batch in alone]
    losses = [weighted_loss(model, batch).item() for batch in alone]
    expected = sum(m * loss for m, loss in zip(mass, losses, strict=True)) / sum(mass)
    assert weighted_loss(model, packed).item() == pytest.approx(expected, rel=1e-6)


def _end_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits[:, -1]


@pytest.mark.parametrize("place", ["writers", "projections"])
def test_without_attention_the_last_token_decides_alone(architecture, tokenizer, place):
    """Zero at the named modules cuts every path between positions; at any other place it would not."""
    model = build(architecture, tokenizer)
    tokens = torch.tensor([[0, 300, 301, 302, 400], [0, 500, 501, 502, 400]])
    intact = _end_logits(model, tokens)
    assert not torch.allclose(intact[0], intact[1])

    def silence_output(_module: object, _inputs: object, output: Any) -> Any:
        return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

    def silence_input(_module: object, inputs: Any) -> Any:
        return (inputs[0] * 0, *inputs[1:])

    with ExitStack() as stack:
        if place == "writers":
            handles = [module.register_forward_hook(silence_output) for module in attention_writers(model)]
        else:
            handles = [module.register_forward_pre_hook(silence_input) for module in attention_projections(model)]
        for handle in handles:
            stack.callback(handle.remove)
        silent = _end_logits(model, tokens)
    assert torch.allclose(silent[0], silent[1])
    assert not torch.allclose(silent[0], intact[0])


def hooks_of(model: Any) -> list[Any]:
    tables = [(module._forward_hooks, module._forward_pre_hooks) for module in model.modules()]
    return [hook for pair in tables for table in pair for hook in table.values()]


def test_measuring_leaves_no_hooks(architecture, tokenizer):
    model = build(architecture, tokenizer)
    found = measure_composition(model, tokenizer, n=20)
    assert found.intact != found.above_all
    assert not hooks_of(model)
    heads = find_induction_heads(model, tokenizer, n=20)
    assert heads.intact != heads.induction.ablated
    assert all(hook.__module__.startswith("transformers.") for hook in hooks_of(model))  # the library's own recorders


def test_head_scores_are_those_of_the_patterns_read_one_by_one(architecture, tokenizer):
    model = build(architecture, tokenizer)
    found = score_heads(model, tokenizer, n=5)
    examples = draw_examples("induction", "test", 5, 0)
    previous, induction, queries = torch.zeros(2, 4), torch.zeros(2, 4), 0
    for example in examples:
        tokens, _ = encode(tokenizer, [example.clean.text])
        row = tokens[0].tolist()
        with torch.no_grad():
            patterns = model(tokens, output_attentions=True).attentions
        first = row.index(row[-1])
        for layer in range(2):
            for head in range(4):
                pattern = patterns[layer][0, head]
                previous[layer, head] += sum(float(pattern[q, q - 1]) for q in range(2, first + 2))
                induction[layer, head] += float(pattern[-1, first + 1])
        queries += first
    torch.testing.assert_close(found.previous_token, previous / queries)
    torch.testing.assert_close(found.induction, induction / len(examples))
    assert bool(found.induction.any())


def test_exported_models_load_here_and_as_a_bridge(architecture, tmp_path):
    run = train(recipe_of(architecture), tmp_path / "run")
    card = export(run, tmp_path / "tiny", n=6)
    bundled.verify(tmp_path / "tiny")
    assert [row["name"] for row in card["kept"]] == ["tiny@0", "tiny@2", "tiny@4"]
    module, tokenizer, recipe = load_exported(tmp_path / "tiny")
    assert recipe == run.recipe
    tokens = tokenizer("Then Mary and John went", return_tensors="pt")["input_ids"]
    bridge = load_model(tmp_path / "tiny")
    with torch.no_grad():
        expected = run.model(tokens).logits
        torch.testing.assert_close(module(tokens).logits, expected, atol=2e-2, rtol=1e-2)
        torch.testing.assert_close(bridge(tokens), module(tokens).logits, atol=1e-4, rtol=1e-4)


def test_attention_only_models_have_silent_mlps_that_training_leaves_alone(tmp_path):
    run = train(recipe_of("attn-only"), tmp_path)
    mlps = [p for name, p in run.model.named_parameters() if ".mlp." in name]
    assert mlps
    assert not any(bool(p.any()) for p in mlps)


def test_sliding_layers_see_their_window_only(tokenizer):
    model = build("gemma2", tokenizer)
    masks = document_mask(model, torch.zeros(1, 30, dtype=torch.long))
    seen = (masks["sliding_attention"] == 0).sum(-1).flatten()
    assert seen.tolist() == [min(i + 1, WINDOW) for i in range(30)]
    assert (masks["full_attention"] == 0).sum(-1).flatten().tolist() == list(range(1, 31))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"architecture": "gpt3"}, UnknownNameError, "nearest: gpt2"),
        ({"n_kv_heads": 3}, InputError, "n_kv_heads"),
        ({"tasks": ()}, InputError, "at least one task"),
        ({"tasks": ("iol",)}, UnknownNameError, "nearest: ioi"),
        ({"tasks": ("ioi",)}, InputError, "capitals, colored_objects, in_context"),
        ({"keep": (2, 1)}, InputError, "kept steps"),
        ({"keep": (5,)}, InputError, "kept steps"),
    ],
)
def test_bad_recipes_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        recipe_of("llama", **change)


def test_a_recipe_survives_its_dictionary_and_older_ones_take_defaults():
    recipe = recipe_of("llama")
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    old = {key: value for key, value in recipe_of("gpt2").to_dict().items() if key not in ("architecture", "keep")}
    assert Recipe.from_dict(old) == recipe_of("gpt2", keep=())
