"""Public operations beyond the first ones (`interrupts.PLAIN`), called small: what runs a model must give it back.

A name begins with the function's own. `LACKING` are public functions of a model that no operation runs, with the
reason; a test of `tests/faults/test_small.py` holds that every public one is here, in `interrupts.PLAIN` or there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

import mechwork as mw
from mechwork import ablation, circuits, directions, edits, features, interventions, lenses, patching
from mechwork.ablation import AblationSpec
from mechwork.directions import Direction, Examples
from mechwork.errors import MechworkError
from mechwork.features import FeatureRecipe
from mechwork.lenses import LensRecipe
from mechwork.runs.room import d_mlp_of
from mechwork.sites import Site
from tests.families import build_hard_task, build_task

FOLDERS = (
    "", "ablation", "circuits", "comparison", "directions", "edits", "features", "interventions", "lenses", "live",
    "models", "patching", "relevance", "runs", "tasks",
)  # fmt: skip
Operation = Callable[[Any, Any], Any]
ROWS = torch.randint(97, (40, 12), generator=torch.Generator().manual_seed(4))
LENS = LensRecipe(steps=2, step_tokens=48, ridge_tokens=100, held_out_rows=4, check_every=2, learning_rate=1e-2)
FEATURES = FeatureRecipe(n_features=16, k=4, steps=2, step_tokens=48, scale_tokens=64, held_out_rows=4, dead_tokens=100)
STREAM = Site("resid_post", 1)
EARLY = Site("resid_post", 0)
NEURONS = Site("mlp_post", 1)

_made: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def once(make: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """What an operation starts from, made once for a model."""

    @functools.wraps(make)
    def made(model: Any, task: Any) -> Any:
        kept = _made.setdefault(model, {})
        if make.__name__ not in kept:
            kept[make.__name__] = make(model, task)
        return kept[make.__name__]

    return made


@once
def eight(model: Any, task: Any) -> Any:
    return build_task(n=8)


@once
def both(model: Any, task: Any) -> Any:
    return [build_task(n=8, name="one"), build_task(n=8, seed=1, name="other")]


@once
def hard(model: Any, task: Any) -> Any:
    return build_hard_task()


@once
def scores_of(model: Any, task: Any) -> Any:
    return mw.score_edges(model, task)


@once
def circuit_of(model: Any, task: Any) -> Any:
    return scores_of(model, task).circuit(20)


@once
def direction_of(model: Any, task: Any) -> Direction:
    return Direction(torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(1)), STREAM, high=1.0)


@once
def examples_of(model: Any, task: Any) -> Examples:
    return Examples.of_tokens(ROWS[:16].tolist(), [i % 2 == 0 for i in range(16)])


@once
def coders_of(model: Any, task: Any) -> Any:
    return features.train_features(model, ROWS, [STREAM], FEATURES).features


@once
def lens_of(model: Any, task: Any) -> Any:
    return mw.train_lens(model, ROWS, LENS).lens


@once
def neurons_of(model: Any, task: Any) -> Direction:
    return Direction(torch.randn(d_mlp_of(model), generator=torch.Generator().manual_seed(1)), NEURONS, high=1.0)


@once
def edit_of(model: Any, task: Any) -> Any:
    return edits.edit_from_pairs(model, task, "W_out.1").edit


def plane_of(model: Any, task: Any, site: Site = STREAM) -> Any:
    return patching.leading_differences(model, task, site, position="8", rank=2)


def inside(context: Callable[[Any, Any], Any]) -> Operation:
    """Two forwards within a context of writes."""

    def run(model: Any, task: Any) -> None:
        with context(model, task):
            model(task.pairs.clean_tokens)
            model(task.pairs.clean_tokens[:1])

    return run


def write_of(model: Any, task: Any) -> Any:
    return interventions.Write(STREAM, interventions.Add(direction_of(model, task).vector))


MORE: dict[str, Operation] = {
    # ablation
    "fit_ablation": lambda m, t: ablation.fit_ablation(m, AblationSpec(["a1.h0"], "mean"), eight(m, t)),
    "study_cumulative": lambda m, t: ablation.study_cumulative(m, eight(m, t), n_random=1),
    "study_interactions": lambda m, t: ablation.study_interactions(m, eight(m, t), ["a0.h1", "m1"]),
    "study_knock_out_in": lambda m, t: ablation.study_knock_out_in(m, eight(m, t)),
    "study_impairment": lambda m, t: ablation.study_impairment(m, both(m, t), n_random=2),
    "study_copy_suppression": ablation.study_copy_suppression,
    "study_text_suppression": lambda m, t: ablation.study_text_suppression(m, ROWS[:4]),
    "record_routers": lambda m, t: ablation.record_routers(m, t.pairs.clean_tokens),
    "record_telemetry": ablation.record_telemetry,
    "sweep_experts": ablation.sweep_experts,
    "contrast_experts": lambda m, t: ablation.contrast_experts(m, t, n_random=1),
    "study_position_bias": ablation.study_position_bias,
    "explain_self_repair": lambda m, t: ablation.explain_self_repair(m, t, ["a0.h1"], kind="zero", n_random=1),
    # circuits
    "measure_completeness": lambda m, t: circuits.measure_completeness(m, t, circuit_of(m, t), n_steps=1),
    "measure_minimality": lambda m, t: circuits.measure_minimality(m, t, circuit_of(m, t), n_knockouts=0),
    "complete_with_backups": lambda m, t: circuits.complete_with_backups(m, eight(m, t), circuit_of(m, t)),
    "find_rivals": lambda m, t: circuits.find_rivals(m, eight(m, t), circuit_of(m, t), n=1, n_steps=2),
    "measure_edges": lambda m, t: circuits.measure_edges(m, t[:1]),
    "score_neurons": circuits.score_neurons,
    "score_positions": circuits.score_positions,
    "score_attention_edges": circuits.score_attention_edges,
    "attribute_attention": lambda m, t: circuits.attribute_attention(m, t, "a1.h0"),
    "study_stability": lambda m, t: circuits.study_stability(m, eight(m, t)),
    "study_neurons": lambda m, t: circuits.study_neurons(m, t, positions="all", counts=(3, 9)),
    "study_edges": lambda m, t: circuits.study_edges(m, [t], ["eap"]),
    "verify_edges": lambda m, t: circuits.verify_edges(m, t, scores_of(m, t)),
    "referee": lambda m, t: circuits.referee(m, t, circuit_of(m, t), n_random=19),
    # directions
    "record_examples": lambda m, t: directions.record_examples(m, examples_of(m, t), [STREAM]),
    "fit_direction": lambda m, t: mw.fit_direction(m, examples_of(m, t), STREAM),
    "fit_directions": lambda m, t: directions.fit_directions(m, examples_of(m, t), [EARLY, STREAM]),
    "fit_basis": lambda m, t: directions.fit_basis(m, examples_of(m, t), STREAM),
    "measure_separation": lambda m, t: directions.measure_separation(m, examples_of(m, t), [STREAM]),
    "study_probes": lambda m, t: directions.study_probes(m, examples_of(m, t), [STREAM], ["linear"], n_controls=1),
    "study_steering": lambda m, t: mw.study_steering(
        m, t, direction_of(m, t), text=ROWS[:4], methods=["add"], n_random=1
    ),
    "study_detection": lambda m, t: directions.study_detection(
        m, eight(m, t), direction_of(m, t), strengths=[1.0], n_random=1
    ),
    "study_attention_repair": lambda m, t: directions.study_attention_repair(
        m, t, ["a0.h1"], torch.arange(t.pairs.mask.shape[1]).expand_as(t.pairs.mask) < 2, n_random=1
    ),
    "transport_write": lambda m, t: directions.transport_write(m, examples_of(m, t), STREAM),
    # writes
    "steered_pairs": inside(lambda m, t: mw.steered_pairs(m, t, [write_of(m, t)])),
    # lenses
    "train_lens": lambda m, t: mw.train_lens(m, ROWS, LENS),
    "evaluate_lens": lambda m, t: lenses.evaluate_lens(m, lens_of(m, t), ROWS),
    "extract_causal_basis": lambda m, t: lenses.extract_causal_basis(m, lens_of(m, t), Site("resid_pre", 1), ROWS),
    "fit_future_lens": lambda m, t: lenses.fit_future_lens(m, ROWS),
    "read_neurons": lambda m, t: lenses.read_neurons(m, 1),
    "token_states": lambda m, t: lenses.token_states(m, 1),
    "find_entropy_neurons": lenses.find_entropy_neurons,
    # patching
    "leading_differences": plane_of,
    "mean_difference": lambda m, t: patching.mean_difference(m, t, STREAM, position="8"),
    "patch_subspace": lambda m, t: patching.patch_subspace(m, t, STREAM, plane_of(m, t)),
    "check_illusion": lambda m, t: patching.check_illusion(m, t, NEURONS, plane_of(m, t, NEURONS), n_random=1),
    "check_steering": lambda m, t: patching.check_steering(m, t, neurons_of(m, t), n_random=1),
    "fit_das": lambda m, t: patching.fit_das(m, t, STREAM, position=8, epochs=1),
    "study_agreement": lambda m, t: patching.study_agreement(m, [t]),
    # runs
    "attention_between": lambda m, t: mw.runs.attention_between(m, hard(m, t), [("V", "S")]),
    "study_components": lambda m, t: mw.runs.study_components(m, t, ["a0.h1", "m1"]),
    # edits
    "apply_edit": inside(lambda m, t: edits.apply_edit(m, edit_of(m, t))),
    "edit_from_pairs": lambda m, t: edits.edit_from_pairs(m, t, "W_out.1"),
    "edit_like_patch": lambda m, t: edits.edit_like_patch(m, t, neurons_of(m, t)),
    "compare_with_patch": lambda m, t: edits.compare_with_patch(m, t, neurons_of(m, t), t, n_random=1),
    # features
    "train_features": lambda m, t: features.train_features(m, ROWS, [STREAM], FEATURES),
    "record_features": lambda m, t: features.record_features(m, ROWS[:4], coders_of(m, t).coders),
    "evaluate_features": lambda m, t: features.evaluate_features(m, coders_of(m, t), ROWS),
    "score_features": lambda m, t: features.score_features(m, t, coders_of(m, t)),
    "patch_features": lambda m, t: features.patch_features(
        m, t, coders_of(m, t), ["resid_post.1/f3", "resid_post.1/error"]
    ),
    "record_concept": lambda m, t: features.record_concept(m, coders_of(m, t), examples_of(m, t)),
    "measure_separability": lambda m, t: features.measure_separability(m, coders_of(m, t), examples_of(m, t)),
    # the pipeline
    "check_task": mw.runs.check_task,
}


WORDS = "needs words, a tokenizer or a trained model; what it runs is `record_run`, `ablate` or another one here"
FITS = "fits on what `record_examples` or `record_run` records, which is here"
WEIGHTS = "reads weights or text alone: no hook, no forward"
ALIKE = "runs what others here run: "
LACKING: dict[str, str] = {
    **dict.fromkeys(
        ("measure_roles", "measure_span_roles", "remove_top_heads", "repeated_tokens", "rewire_experts",
         "weigh_suppressors", "rank_attention_heads", "fit_function_vector", "check_function_vector",
         "compare_steering_and_decoding", "study_displacement", "align_stimulus_response", "compare_decoders",
         "identity_prompt", "explore", "discover", "explain"), WORDS,
    ),
    **dict.fromkeys(
        ("choose_layer", "dimension_write", "fit_axes", "fit_classes", "fit_clusters", "fit_curve", "fit_input_gate",
         "fit_joint_transport", "fit_ridge", "fit_concept_trees", "fit_graph",
         "study_separability", "rank_dimensions", "record_positions", "study_cascade", "study_classes",
         "study_flips", "study_shift", "study_spectrum", "sweep_sparse_probe", "train_controller", "study_forgetting",
         "edit_into_subspace", "fit_layer_edit", "share_out"), FITS,
    ),
    **dict.fromkeys(
        ("as_prompts", "open_text", "load_lens", "import_lens", "import_features", "load_features", "read_anatomy",
         "find_weight", "save_model", "neurons", "value_vectors", "token_effects", "cluster_values", "read_directions",
         "find_neurons", "read_head", "read_singular", "singular_directions", "with_noise"), WEIGHTS,
    ),
    **dict.fromkeys(
        ("agreement", "capitals", "colored_objects", "docstring", "from_chat", "from_file", "from_generation",
         "from_prompt", "from_text", "greater_than", "in_context", "induction", "ioi", "pronoun", "language_task",
         "parallel_prompts", "study_behaviour", "study_vector_transfer"), WORDS,
    ),
    "measure_sparsity": ALIKE + "`learn_circuit`", "run_sets": ALIKE + "`study_interactions`",
    "evaluate_spans": ALIKE + "`evaluate`", "run_leaderboard": ALIKE + "`score_edges` and `evaluate`",
    "study_reuse": ALIKE + "`evaluate`", "study_mechanisms": ALIKE + "`study_stability`",
    "study_power": ALIKE + "`evaluate`", "score_neuron_edges": ALIKE + "`score_neurons`",
    "guard_overflow": ALIKE + "`steered_pairs`", "intervene": ALIKE + "`steered_pairs`",
    "intervene_experts": ALIKE + "`sweep_experts`", "watch_experts": ALIKE + "`contrast_experts`",
    "track_columns": ALIKE + "`steered_pairs`", "intervene_features": ALIKE + "`patch_features`",
    **dict.fromkeys(
        ("as_feature_circuit", "concept_of_answer", "evaluate_feature_circuits", "fit_propositions", "fit_signed_shift",
         "measure_feature_circuits", "record_ablated", "study_suppression", "trace_feature"),
        ALIKE + "`patch_features`, `score_features` and `record_concept`",
    ),
}  # fmt: skip


def public() -> dict[str, Callable[..., Any]]:
    """Every public function whose first parameter is a model, by its name."""
    found: dict[str, Callable[..., Any]] = {}
    for folder in FOLDERS:
        module = importlib.import_module(f"mechwork.{folder}" if folder else "mechwork")
        for name in dir(module):
            thing = getattr(module, name)
            if name.startswith("_") or inspect.isclass(thing) or not inspect.isfunction(inspect.unwrap(thing)):
                continue
            if next(iter(inspect.signature(thing).parameters), "") == "model":
                found[name] = thing
    return found


def recorded(model: Any, task: Any) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """The functions of `MORE`, each with the arguments that its operation gives it."""
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {}
    homes = [importlib.import_module(f"mechwork.{folder}" if folder else "mechwork") for folder in FOLDERS]
    for name, operation in MORE.items():
        there = [home for home in homes if hasattr(home, name)]
        real: Any = getattr(there[0], name) if there else None

        def keep(*args: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            found[name] = (real, dict(inspect.signature(real).bind(*args, **more).arguments))
            return real(*args, **more)

        with contextlib.ExitStack() as stack:
            for home in there:
                stack.enter_context(mock.patch.object(home, name, keep))
            with contextlib.suppress(MechworkError):  # experts, of which this model may have none
                operation(model, task)
    return found
