"""The models that ship: made by their recipes, loadable, and as good as their cards say."""

from __future__ import annotations

import json
import time

import pytest
import torch
from transformers import AutoTokenizer

from mechwork import bundled
from mechwork.errors import InputError, UnknownNameError
from mechwork.models import load_model
from mechwork.zoo.export import load_exported
from mechwork.zoo.measure import measure_task
from mechwork.zoo.recipe import RECIPES, Recipe, find_recipe
from mechwork.zoo.tokenizer import build_tokenizer, grammar_vocabulary

NAMES = bundled.model_names()
SIX = ("ioi", "greater_than", "pronoun", "agreement", "docstring", "induction")


def card_of(name: str) -> dict:
    return json.loads((bundled.verified_model(name) / "card.json").read_text())


def test_every_recipe_has_its_model_and_every_model_its_recipe():
    assert set(NAMES) == set(RECIPES)


def test_the_zoo_stays_small():
    files = [file for file in (bundled.root() / "models").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 80e6


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_model_is_its_recipes(name):
    card = card_of(name)
    recipe = find_recipe(name)
    assert Recipe.from_dict(card["recipe"]) == recipe
    tokenizer = AutoTokenizer.from_pretrained(str(bundled.path("models", name)))
    assert tokenizer.get_vocab() == build_tokenizer(grammar_vocabulary(recipe.vocabulary_tasks)).get_vocab()
    assert card["vocabulary"] == len(tokenizer)
    assert set(card["passed"]) == set(card["test"]) == set(card["composition"]) == set(recipe.tasks)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_model_is_as_good_as_its_card_says_on_other_examples(name):
    model, tokenizer, recipe = load_exported(bundled.path("models", name))
    promised = card_of(name)["test"]
    for task in recipe.tasks:
        again = measure_task(model, tokenizer, task, n=60, seed=1)
        assert again.accuracy >= promised[task]["accuracy"] - 0.1, task


@pytest.mark.parametrize("task", SIX)
def test_gpt2_6l_keeps_its_promises(task):
    card = card_of("gpt2-6l")
    assert card["passed"][task]
    assert card["test"][task]["accuracy"] >= 0.96
    assert card["composition"]["ioi"]["passed"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_model_loads_in_two_seconds(name):
    load_model(name)  # the libraries are imported now
    begun = time.process_time()
    model = load_model(name)
    assert time.process_time() - begun <= 2
    logits = model(model.tokenizer("Then Mary", return_tensors="pt")["input_ids"])
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("name", [name for name in NAMES if bundled.checkpoints(name)])
def test_checkpoints_along_training_load_by_their_step(name):
    card = card_of(name)
    steps = bundled.checkpoints(name)
    assert steps == list(find_recipe(name).keep)
    assert [row["name"] for row in card["kept"]] == [f"{name}@{step}" for step in steps]
    first, last, shipped = (load_model(source) for source in (f"{name}@{steps[0]}", f"{name}@{steps[-1]}", name))
    weights = [model.original_model.state_dict() for model in (first, last, shipped)]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    if steps[-1] == card["step"]:
        assert all(torch.equal(weights[1][key], weights[2][key]) for key in weights[1])


def test_a_step_that_was_not_kept_is_refused():
    with pytest.raises(InputError, match="none but the final"):
        load_model("gpt2-6l@7")
    with pytest.raises(UnknownNameError):
        bundled.checkpoints("gpt2-5l")
