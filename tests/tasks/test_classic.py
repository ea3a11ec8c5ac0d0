"""The classic tasks on the bundled tokenizer and on one that breaks words up."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mechwork import bundled
from mechwork.errors import InputError
from mechwork.tasks.agreement import agreement
from mechwork.tasks.capitals import capitals
from mechwork.tasks.colored_objects import colored_objects
from mechwork.tasks.docstring import docstring
from mechwork.tasks.greater_than import greater_than
from mechwork.tasks.in_context import in_context
from mechwork.tasks.induction import induction
from mechwork.tasks.ioi import ioi
from mechwork.tasks.pronoun import pronoun
from mechwork.tasks.sampling.examples import SAMPLERS, templates
from mechwork.zoo.tokenizer import build_tokenizer, grammar_vocabulary

TASKS: dict[str, Any] = {
    "ioi": ioi,
    "greater_than": greater_than,
    "pronoun": pronoun,
    "agreement": agreement,
    "docstring": docstring,
    "induction": induction,
    "capitals": capitals,
    "colored_objects": colored_objects,
    "in_context": in_context,
}

WORDS = grammar_vocabulary(tuple(SAMPLERS))


class FakeModel(SimpleNamespace):
    """What the tasks ask of a model: its tokenizer and two settings."""

    def __init__(self, words=None):
        super().__init__(
            tokenizer=build_tokenizer(WORDS if words is None else words),
            cfg=SimpleNamespace(n_ctx=128, default_prepend_bos=True),
        )


@pytest.fixture(scope="module")
def model() -> Any:
    return FakeModel()


@pytest.fixture(scope="module")
def bytes_only() -> Any:
    return FakeModel(words=())


def test_every_sampler_has_its_task():
    assert set(TASKS) == set(SAMPLERS)


@pytest.mark.parametrize("name", list(TASKS))
def test_pairs_are_well_formed(model, name):
    task = TASKS[name](model, n=12, seed=3)
    pairs = task.pairs
    assert len(task) == 12
    assert (len(task.train), len(task.test)) == (6, 6)
    assert task.citation
    assert task.description
    assert bool((pairs.lengths == pairs.corrupt_lengths).all())
    differing = ((pairs.clean_tokens != pairs.corrupt_tokens) & pairs.mask).sum(-1)
    assert bool((differing == (4 if name == "in_context" else 1)).all())
    assert "END" in pairs.spans
    end = pairs.spans["END"]
    assert bool((end.sum(-1) == 1).all())
    assert torch.equal(end.int().argmax(-1), pairs.lengths - 1)


@pytest.mark.parametrize("name", list(TASKS))
def test_pairs_depend_on_the_seed_only(model, name):
    first, again, other = (TASKS[name](model, n=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.pairs.clean_tokens, again.pairs.clean_tokens)
    assert torch.equal(first.pairs.correct, again.pairs.correct)
    assert first.texts != other.texts


@pytest.mark.parametrize("name", list(TASKS))
def test_train_and_test_share_no_template(model, name):
    task = TASKS[name](model, n=40)
    held_out = set(templates(name, "test"))
    assert task.test.pairs.templates
    assert task.train.pairs.templates
    assert set(task.test.pairs.templates) <= held_out
    assert not set(task.train.pairs.templates) & held_out


@pytest.mark.parametrize("name", ["ioi", "pronoun"])
def test_train_and_test_share_no_name(model, name):
    table = bundled.load_json("tasks", "names.json")
    names = {
        split: {f" {n}" for kind in ("female", "male", "invented") for n in table[kind][split]}
        for split in ("train", "test")
    }
    task = TASKS[name](model, n=60)
    for part, own, foreign in ((task.train, "train", "test"), (task.test, "test", "train")):
        tokens = {token for texts in part.texts for text in texts for token in text}
        assert tokens & names[own]
        assert not tokens & names[foreign]


def test_ioi_spans_stand_on_their_names(model):
    task = ioi(model, n=10)
    pairs = task.pairs
    for row in range(len(task)):
        clean, corrupt = task.texts[row]
        places = {name: int(pairs.spans[name][row].int().argmax()) for name in ("IO", "S1", "S2")}
        assert clean[places["S1"]] == clean[places["S2"]]
        assert clean[places["IO"]] == model.tokenizer.decode([int(pairs.correct[row, 0])])
        assert clean[places["S1"]] == model.tokenizer.decode([int(pairs.incorrect[row, 0])])
        assert corrupt[places["S2"]] == clean[places["IO"]]


def test_ioi_repeats_either_name_and_others_stand_in_between(model):
    task = ioi(model, n=60)
    spans = task.pairs.spans
    order = spans["IO"].int().argmax(-1) < spans["S1"].int().argmax(-1)
    assert 10 < int(order.sum()) < 50


def test_ioi_is_about_the_two_that_are_named(model):
    """Always the same indirect object and subject, so that one direction can say who has which role."""
    task = ioi(model, n=20, names=("Mary", "John"))
    for row in range(len(task)):
        clean, corrupt = task.texts[row]
        assert (clean.count(" Mary") + clean.count("Mary"), clean.count(" John") + clean.count("John")) == (1, 2)
        assert (corrupt.count(" Mary") + corrupt.count("Mary"), corrupt.count(" John") + corrupt.count("John")) == (
            2,
            1,
        )
    assert set(task.answer_texts) == {(" Mary", " John")}
    with pytest.raises(InputError, match="two different ones"):
        ioi(model, names=("Mary", "Mary"))


def test_capitals_without_the_question_name_the_same_country(model):
    task = capitals(model, n=20, corruption="mention")
    pairs = task.pairs
    for row in range(len(task)):
        clean, corrupt = task.texts[row]
        places = [int(spans["COUNTRY"][row].int().argmax()) for spans in (pairs.spans, pairs.corrupt_spans)]
        assert clean[places[0]] == corrupt[places[1]]
        assert "capital" in "".join(clean)
        assert "capital" not in "".join(corrupt)


def test_ioi_third_name_is_new(model):
    task = ioi(model, n=20, corruption="third_name")
    for row, (clean, corrupt) in enumerate(task.texts):
        place = int(task.pairs.spans["S2"][row].int().argmax())
        assert corrupt[place] not in clean


def test_ioi_refuses_an_unknown_corruption(model):
    with pytest.raises(InputError, match="corruption of ioi is 'io' or 'third_name'; got 'swap'"):
        inspect.unwrap(ioi)(model, corruption="swap")


def test_greater_than_answers_are_the_later_years(model):
    task = greater_than(model, n=20)
    assert task.metric.name == "probability_difference"
    for row, (clean, corrupt) in enumerate(task.texts):
        place = int(task.pairs.spans["YY"][row].int().argmax())
        year = int(clean[place])
        assert corrupt[place] == "01"
        later = {int(model.tokenizer.decode([i])) for i in task.pairs.correct[row].tolist() if i >= 0}
        earlier = {int(model.tokenizer.decode([i])) for i in task.pairs.incorrect[row].tolist() if i >= 0}
        assert later == set(range(year + 1, 100))
        assert earlier == set(range(year + 1))


def test_induction_answer_follows_the_first_mention(model):
    task = induction(model, n=20, length=6, again=3)
    assert task.pairs.spans["FIRST"].any()
    for row, (clean, _) in enumerate(task.texts):
        first = int(task.pairs.spans["FIRST"][row].int().argmax())
        assert clean[first] == clean[-1]
        assert clean[first + 1] == model.tokenizer.decode([int(task.pairs.correct[row, 0])])


def test_capitals_ask_about_another_country(model):
    table = bundled.load_json("tasks", "capitals.json")["words"]["COUNTRY"]
    capital_of = {country: capital for part in table.values() for country, capital in part}
    task = capitals(model, n=30)
    for row, texts in enumerate(task.texts):
        place = int(task.pairs.spans["COUNTRY"][row].int().argmax())
        right, wrong = (capital_of[text[place].strip()] for text in texts)
        assert (f" {right}", f" {wrong}") == task.answer_texts[row]
        assert texts[1][place] not in texts[0]
    asked = {
        part: {
            texts[0][int(where.int().argmax())].strip()
            for texts, where in zip(t.texts, t.pairs.spans["COUNTRY"], strict=True)
        }
        for part, t in (("train", task.train), ("test", task.test))
    }
    assert asked["train"] <= {country for country, _ in table["train"]}
    assert asked["test"] <= {country for country, _ in table["test"]}


@pytest.mark.parametrize("n_objects", [2, 4])
def test_colored_objects_answer_stands_before_the_thing(model, n_objects):
    task = colored_objects(model, n=20, n_objects=n_objects)
    for row, (clean, corrupt) in enumerate(task.texts):
        places = {name: int(task.pairs.spans[name][row].int().argmax()) for name in ("COLOR", "OBJECT", "ASKED")}
        assert places["OBJECT"] == places["COLOR"] + 1
        assert clean[places["OBJECT"]] == clean[places["ASKED"]]
        assert clean[places["COLOR"]] == task.answer_texts[row][0]
        other = clean.index(corrupt[places["ASKED"]])
        assert clean[other - 1] == task.answer_texts[row][1]
    with pytest.raises(InputError, match="at least 2 things"):
        colored_objects(model, n_objects=1)


@pytest.mark.parametrize("relation", [None, "antonym", "french"])
def test_in_context_examples_show_one_relation(model, relation):
    data = bundled.load_json("tasks", "in_context.json")
    rows = {row[0]: row[1:] for part in data["words"]["WORD"].values() for row in part}
    task = in_context(model, n=20, relation=relation, shots=3)
    shown = set()
    for row, texts in enumerate(task.texts):
        for text, answer in zip(texts, task.answer_texts[row], strict=True):
            places = {
                name: int(task.pairs.spans[name][row].int().argmax()) for name in ("X1", "Y1", "X2", "Y2", "QUERY")
            }
            word = {name: text[place].strip() for name, place in places.items()}
            index = rows[word["X1"]].index(word["Y1"])
            assert rows[word["X2"]].index(word["Y2"]) == index
            assert f" {rows[word['QUERY']][index]}" == answer
            shown.add((text is texts[0], index))
    clean = {index for is_clean, index in shown if is_clean}
    assert clean == ({0, 1, 2} if relation is None else {data["relations"].index(relation)})


def test_in_context_refuses_what_it_cannot_show(model):
    for shots in (0, 5):
        with pytest.raises(InputError, match="1 to 4"):
            in_context(model, shots=shots)
    for template in ("Words: {X},", "{Y} from {X}", "{X} {X} {Y}"):
        with pytest.raises(InputError, match="template"):
            in_context(model, template=template)


@pytest.mark.parametrize(("length", "again"), [(2, None), (6, 6), (6, 0), (None, 9)])
def test_induction_refuses_impossible_lengths(model, length, again):
    with pytest.raises(InputError, match="induction"):
        induction(model, length=length, again=again)
    assert len(induction(model, n=2, length=3)) == 2  # the least that is possible


def test_a_template_of_ones_own(model):
    task = ioi(model, n=6, template="When {IO} and {S1} went to the {place}, {S2} gave a {object} to")
    assert task.pairs.one_length
    with pytest.raises(InputError, match="S2"):
        ioi(model, template="When {IO} and {S1} went home, John gave a drink to")


@pytest.mark.parametrize("name", list(TASKS))
def test_too_few_single_tokens_says_found_and_needed(bytes_only, name):
    with pytest.raises(InputError, match=r"at least \d+ .* has \d+"):
        TASKS[name](bytes_only, n=4)


@pytest.mark.parametrize("name", list(TASKS))
def test_no_pairs_are_refused(model, name):
    with pytest.raises(InputError, match="at least 1"):
        TASKS[name](model, n=0)


def test_one_pair_is_a_training_pair(model):
    assert ioi(model, n=1).splits == ("train",)
