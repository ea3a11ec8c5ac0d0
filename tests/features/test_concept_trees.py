"""Concepts as trees over features: what the rules say is what scikit-learn's tree says; beside labels by lot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.directions import Examples
from mechwork.errors import InputError
from mechwork.features import (
    ConceptTrees,
    concept_of_answer,
    fit_concept_trees,
    fit_propositions,
    load_features,
    record_features,
)

PLACE = "resid_post.4"


def test_a_concept_that_no_sum_says_is_found_and_the_rules_are_the_tree(bundled_model: Any, tmp_path: Any) -> None:
    """The concept holds where one feature is high and another is not: marked by hand on the shipped features."""
    from sklearn.tree import DecisionTreeClassifier

    coders, task = load_features(bundled_model), mw.tasks.ioi(bundled_model, n=160)
    rows = [task.pairs.prompt(i) for i in range(len(task))]
    ends = torch.tensor([len(row) - 1 for row in rows])
    f = record_features(bundled_model, task.pairs.clean_tokens, [coders[PLACE]])[0].features
    f = f[torch.arange(len(rows)), ends].double()
    live = ((f > 0).double().mean(dim=0) - 0.5).abs().argsort()[:24].tolist()
    apart = [(a, b) for a in live for b in live if 0.2 < float(((f[:, a] > 0) & (f[:, b] <= 0)).double().mean()) < 0.3]
    a, b = apart[0]
    labels = (f[:, a] > 0) & (f[:, b] <= 0)
    examples = Examples.of_tokens(rows, labels.tolist())
    concepts = {"it": examples}
    found = fit_concept_trees(bundled_model, coders, PLACE, concepts, depth=2, n_features=coders[PLACE].n_features)
    (tree,) = found.trees
    assert tree.accuracy > 0.95
    assert tree.control < 0.7
    one = fit_propositions(bundled_model, coders, PLACE, concepts, 2).propositions[0]
    assert tree.accuracy > one.accuracy
    # every question and every path, against the library's own prediction on all prompts
    fitted = torch.isin(examples.groups, examples.split(seed=0)[0].groups.unique())
    sides = [f[fitted & side] for side in (labels, ~labels)]
    spread = sides[0].std(dim=0, unbiased=False) + sides[1].std(dim=0, unbiased=False) + 1e-6
    order = ((sides[0].mean(dim=0) - sides[1].mean(dim=0)).abs() / spread).argsort(descending=True, stable=True)
    theirs: Any = DecisionTreeClassifier(max_depth=2, class_weight="balanced", random_state=0)
    theirs.fit(f[fitted][:, order].numpy(), labels[fitted].numpy())
    said = found.reasoner.infer(found.reasoner.held(f))[:, found.reasoner.names.index("it")]
    assert torch.equal(said, torch.as_tensor(theirs.predict(f[:, order].numpy())))
    seen = found.reasoner.detect(bundled_model, coders, task.pairs.clean_tokens, "token")
    assert torch.equal(seen[torch.arange(len(rows)), ends, -1], said)
    again = ConceptTrees.load(found.save(tmp_path / "trees"))
    assert again.reasoner.rules == found.reasoner.rules
    assert " and " in str(found)


def test_refused(bundled_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    coders, task = load_features(bundled_model), mw.tasks.pronoun(bundled_model, n=16)
    concepts = {"she": concept_of_answer(bundled_model, task.train, " she")}
    for wrong, message in (
        ({"concepts": {}}, "trees need concepts"), ({"depth": 5}, "1 to 4"), ({"depth": 0}, "at least 1"),
        ({"n_features": 0}, "features to ask"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            fit_concept_trees(bundled_model, coders, PLACE, **{"concepts": concepts, **wrong})
    monkeypatch.setitem(__import__("sys").modules, "sklearn.tree", None)
    with pytest.raises(InputError, match=r"mechwork\[trees\]"):
        fit_concept_trees(bundled_model, coders, PLACE, concepts)
