"""The examples in docstrings run, and give what they say they give."""

from __future__ import annotations

import doctest
import importlib
import io
import pkgutil
import time
import webbrowser
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork import (
    ablation,
    circuits,
    comparison,
    directions,
    edits,
    features,
    interventions,
    lenses,
    patching,
    relevance,
    render,
    runs,
    tasks,
)
from mechwork.circuits import ground_truth
from mechwork.render.findings import EXTENSIONS

SLOW = {
    "mechwork.directions.controller.train_controller",
    "mechwork.directions.joint_transport.fit_joint_transport",
    "mechwork.features.evaluate.evaluate_features",
    "mechwork.ablation.removal.remove_top_heads",
    "mechwork.ablation.repair.study_self_repair",
    "mechwork.ablation.roles.measure_roles",
    "mechwork.ablation.telemetry_training.telemetry_over_training",
    "mechwork.circuits.search.acdc.find_acdc",
    "mechwork.circuits.graph.compare.compare_circuits",
    "mechwork.circuits.scoring.ensemble.ensemble",
    "mechwork.circuits.testing.evaluate.evaluate",
    "mechwork.circuits.scoring.exact_edges.measure_edges",
    "mechwork.circuits.search.learned.learn_circuit",
    "mechwork.ablation.text_suppression.study_text_suppression",
    "mechwork.circuits.testing.backups.complete_with_backups",
    "mechwork.circuits.testing.card.study_stability",
    "mechwork.circuits.ground_truth.planted.plant_circuit",
    "mechwork.circuits.testing.mechanisms.study_mechanisms",
    "mechwork.circuits.testing.neuron_edges.score_neuron_edges",
    "mechwork.circuits.testing.neurons.study_neurons",
    "mechwork.circuits.testing.power.study_power",
    "mechwork.circuits.testing.referee.referee",
    "mechwork.circuits.testing.rivals.find_rivals",
    "mechwork.circuits.testing.reuse.study_reuse",
    "mechwork.circuits.testing.small.study_edges",
    "mechwork.circuits.scoring.stability.compare_selections",
    "mechwork.circuits.scoring.verify.verify_edges",
    "mechwork.ablation.telemetry_training.sparsity_over_training",
    "mechwork.comparison.beliefs.track_beliefs",
    "mechwork.comparison.by_shape.relate_to_shape",
    "mechwork.comparison.trainings.compare_trainings",
    "mechwork.comparison.over_training.divergence_over_training",
    "mechwork.comparison.over_training.separation_over_training",
    "mechwork.patching.study.study_agreement",
    "mechwork.render.graph.pages.render_positions",
    "mechwork.ablation.expert_effects.sweep_experts",
    "mechwork.ablation.rewiring.rewire_experts",
    "mechwork.directions.axes.fit_axes",
    "mechwork.directions.graph_manifold.fit_graph",
    "mechwork.directions.separability.study_separability",
    "mechwork.directions.behaviour.study_behaviour",
    "mechwork.lenses.vector_transfer.study_vector_transfer",
}
"""Examples of more than a second at the size at which they are of use, or of a model or data that is not here; pages
call these functions at a smaller one.
"""

FOLDERS = sorted({info.name for info in pkgutil.iter_modules(mw.__path__)} - {"cli"})


class OnlyWhatIsPromised(doctest.OutputChecker):
    """Output that an example does not show is not looked at."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What the examples take for granted: imports, the bundled model, small tasks, and what is found on them."""
    names: dict[str, Any] = {}
    for module in (
        mw,
        runs,
        interventions,
        directions,
        relevance,
        patching,
        ablation,
        lenses,
        circuits,
        ground_truth,
        edits,
        features,
        comparison,
        render,
    ):
        names |= {name: value for name, value in vars(module).items() if not name.startswith("_")}
    model = mw.load_model("gpt2-6l")
    task, other = tasks.ioi(model, n=16), tasks.greater_than(model, n=8)
    scores = mw.score_edges(model, task.train, preset="eap")
    she = tasks.pronoun(model, n=16).train
    site, examples = mw.Site("resid_post", 2), directions.Examples.of_task(she)
    direction = mw.fit_direction(model, examples, site)
    tuned, found = mw.load_model("gpt2-6l"), features.load_features(model).only("resid_post")
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter *= 1.01
    return names | {
        "mw": mw, "load_model": mw.load_model, "Path": Path, "model": model,
        "task": task, "ioi": task, "greater_than": other,
        "colored_objects": tasks.pronoun(model, n=8),
        "colours": other, "task_a": task[:8], "task_b": task[8:], "task_c": task, "scores": scores,
        "circuit": scores.circuit(60),
        "exact": mw.patch(model, task, ["mlp_out"]), "she": she, "direction": direction,
        "site": site, "examples": examples, "vector": direction.vector, "agreement": tasks.agreement(model, n=16),
        "base": model, "tuned": tuned,
        "small": model, "large": tuned, "other_site": site, "texts_small": examples, "texts_large": examples,
        "features": found, "edit": edits.share_out(model, direction, examples, n_components=2).edit,
        "relp": features.score_features(model, task.train, found, rules="relp"),
        "ig": features.score_features(model, task.train, found, ig_steps=2),
        "tokens": task.pairs.clean_tokens, "prompt": task.pairs.clean_tokens[:1],
        "LensReading": type("LensReading", (), {}),
    }  # fmt: skip


def examples(folder: str) -> list[doctest.DocTest]:
    """Of a top-level module, or of all modules of a subpackage."""
    top = importlib.import_module(f"mechwork.{folder}")
    below = pkgutil.walk_packages(top.__path__, f"{top.__name__}.") if hasattr(top, "__path__") else ()
    modules = [top, *(importlib.import_module(info.name) for info in below)]
    return [test for module in modules for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("folder", FOLDERS)
def test_examples_run(folder: str, known: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(webbrowser, "open", lambda url: True)
    registered = dict(EXTENSIONS)
    for test in examples(folder):
        if test.name in SLOW:
            continue
        test.globs = {**known, **{name: value for name, value in test.globs.items() if name not in known}}
        report, begun = io.StringIO(), time.process_time()
        failed = doctest.DocTestRunner(checker=OnlyWhatIsPromised(), verbose=False).run(test, out=report.write).failed
        assert not failed, f"{test.name}\n{report.getvalue()}"
        print(f"{time.process_time() - begun:.1f} s  {test.name}")
    EXTENSIONS.clear()
    EXTENSIONS.update(registered)


def test_slow_examples_are_there() -> None:
    found = {test.name for folder in FOLDERS for test in examples(folder)}
    assert len(found) > 40
    assert found >= SLOW
