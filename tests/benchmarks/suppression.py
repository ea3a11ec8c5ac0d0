"""A concept taken out by its features, the table of the page on features: ``python -m tests.benchmarks.suppression``.

gpt2-6l with its shipped features: number (plural), by the 20 best features of `resid_post.4` and by the best one of
`resid_post.5`, chosen on 256 pairs of agreement, tested on 256 others, beside as many random features; seed 0.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

import mechwork as mw
from mechwork.features import concept_of_answer, load_features, measure_separability, study_suppression

CHOSEN = (("resid_post.4", 20), ("resid_post.5", 1))


def main() -> None:
    """Print one row per method and place: plural prompts, accuracy, singular prompts, random features: both."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = mw.load_model("gpt2-6l")
    features = load_features(model)
    task = mw.tasks.agreement(model, n=512, seed=0)
    number = concept_of_answer(model, task.train, " are", name="number")
    plural, singular = (_only(model, task.test, answer) for answer in (" are", " is"))
    others = [getattr(mw.tasks, name)(model, n=64, seed=0).test for name in ("ioi", "greater_than", "pronoun")]
    for place, n in CHOSEN:
        found = measure_separability(model, features.only("resid_post"), number, n_top=n)
        study = study_suppression(model, features, place, found[place].top[:n], number, plural, singular, others=others)
        print(f"accuracy on other tasks {study.plain['other_tasks']:.3f}, then {[r.other_tasks for r in study.rows]}")
        own, random = ([row for row in study.rows if row.control is control] for control in (False, True))
        for row, control in zip(own, random, strict=True):
            low, high = row.concept_interval
            label = f"{n} of {place}, {row.method}" + ("" if row.method == "mask" else f", {row.share:g}")
            print(
                f"{label:<36}{row.concept:8.3f} [{low:.3f}, {high:.3f}]{row.concept_accuracy:8.3f}"
                f"{row.other_class:8.3f}   {control.concept:.3f}, {control.other_class:.3f}"
            )


def _only(model: Any, part: mw.Task, answer: str) -> mw.Task:
    token = model.to_single_token(answer)
    return part[[i for i in range(len(part)) if token in part.pairs.correct[i].tolist()]]


if __name__ == "__main__":
    main()
