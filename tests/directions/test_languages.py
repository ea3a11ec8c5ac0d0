"""The same statements in several languages: parallel by number, and a probe that is tested on another set of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.directions import LANGUAGES, Examples, language_task, parallel_prompts, study_shift
from mechwork.directions.languages import statements
from mechwork.directions.shift import split_parts
from mechwork.errors import InputError, UnknownNameError
from mechwork.sites import Site


def test_statements_are_parallel_and_all_different() -> None:
    rows = {name: statements(name) for name in LANGUAGES}
    for name, found in rows.items():
        assert len(found) == len({text for text, _, _ in found}) == 320
        assert sum(side for _, side, _ in found) == 160
        assert [row[1:] for row in found] == [row[1:] for row in rows["english"]]
        assert all("{" not in text and text[0].isupper() and text.endswith(".") for text, _, _ in found), name
    assert rows["german"][1][0] == "Am Ende war das Buch wunderbar."
    with pytest.raises(UnknownNameError, match="language"):
        statements("latin")


def test_a_probe_is_tested_on_held_out_words_of_the_other_set(bundled_model: Any) -> None:
    """The other set is the same prompts, so that the rows of both are the same exactly when the groups are."""
    english = parallel_prompts(bundled_model, ["english"])["english"]
    site = Site("resid_post", 2)
    study = study_shift(bundled_model, english, {"again": english}, site, kinds=["linear"], n_controls=1, parallel=True)
    again, own = study.of("linear", "again"), study.of("linear")
    assert again.n_tested == own.n_tested == int(split_parts(english, 0)[2].sum()) == 96
    assert again.area == own.area
    whole = study_shift(bundled_model, english, {"again": english}, site, kinds=["linear"], n_controls=1)
    assert whole.of("linear", "again").n_tested == 320
    elsewhere = Examples(english.tokens, english.labels, english.where, english.groups + 100)
    with pytest.raises(InputError, match="share their groups"):
        study_shift(bundled_model, english, {"far": elsewhere}, site, kinds=["linear"], parallel=True)


def test_pairs_between_languages(bundled_model: Any) -> None:
    task = language_task(bundled_model, "french", n=8, openings=(["I", "Le", "It"], ["The", "It", "We"]))
    said = [
        [bundled_model.tokenizer.decode([i]) for i in side[0].tolist()]
        for side in (task.pairs.correct, task.pairs.incorrect)
    ]
    assert said == [[" I"], [" The", " We"]]
    with pytest.raises(InputError, match="one token of this model"):
        language_task(bundled_model, "french", n=8)
    encode = bundled_model.tokenizer
    for i in range(8):
        text = statements("french")[i * 40][0]
        assert encode.decode(task.pairs.prompt(i)).endswith(text)
        other = statements("english")[i * 40][0]
        assert encode.decode(task.pairs.corrupt_as_host().prompt(i)).endswith(other)
    assert not set(task.pairs.correct[0].tolist()) & set(task.pairs.incorrect[0].tolist())
    examples = Examples.of_task(task)
    assert torch.equal(examples.where.sum(dim=1), torch.ones(16).long())
    with pytest.raises(InputError, match="two languages"):
        language_task(bundled_model, "french", "french")
    with pytest.raises(InputError, match="one language or more"):
        parallel_prompts(bundled_model, [])
