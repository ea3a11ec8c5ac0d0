"""What `mechwork steer --show` prints beside the curves: decodability, stability, transfer, the illusion check, the
places through which it works, the function vector's test.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .console import Console
from .options import load_named
from .steering import TEXT_WIDTH, Fitted, narrow

if TYPE_CHECKING:
    from ..tasks.task import Task

Builder = Callable[..., "Task"]
Outcome = tuple[str, list[dict[str, Any]]]
"""Text for people, rows for programs."""


def show_decodable(
    model: Any, train: Task, test: Task, fitted: Fitted, others: list[Task], args: argparse.Namespace, console: Console
) -> Outcome:
    """Steering success at every layer beside what lenses and probes read there."""
    from ..lenses import (
        LOGIT_LENS,
        LensRecipe,
        compare_steering_and_decoding,
        load_lens,
        open_text,
        train_lens,
    )
    from ..zoo.recipe import RECIPES

    lenses: dict[str, Any] = {LOGIT_LENS.name: LOGIT_LENS}
    name = args.model.partition("@")[0]
    if name in RECIPES:
        with console.step("training a diagonal lens"):
            recipe = LensRecipe(
                form="diagonal", steps=25, step_tokens=1024, ridge_tokens=10_000, held_out_rows=64, learning_rate=4e-3
            )
            lenses["diagonal lens"] = train_lens(model, open_text(model, name, width=64), recipe).lens
        lenses["full lens"] = load_lens(model)
    methods = ["add"] if fitted.vector is not None else args.methods or ["add", "mirror_below"]
    with console.step("steering at every layer") as line:
        table = compare_steering_and_decoding(
            model, train, test, lenses=lenses, directions=fitted.at_every_layer(model, args.fit), others=others,
            methods=methods, seed=args.seed, progress=line,
        )  # fmt: skip
    return str(table), table.to_dataframe().to_dict("records")


def show_stability(model: Any, train: Task, fitted: Fitted, args: argparse.Namespace) -> Outcome:
    """How the direction moves under resampling, relabelling and paraphrase."""
    from ..directions import study_stability, templates_of

    if fitted.vector is not None:
        return "stability is studied of directions fitted from labels, not of function vectors", []
    study = study_stability(
        model, fitted.examples, fitted.direction.site, args.fit, templates=templates_of(train), seed=args.seed
    )
    return str(study), study.to_dataframe().to_dict("records")


def show_places(model: Any, test: Task, fitted: Fitted, args: argparse.Namespace) -> Outcome:
    """Through which heads and MLPs adding the direction at the end of corrupt prompts works; a random one beside."""
    from ..interventions import Add, Write, steered_pairs
    from ..patching import patch
    from ..tasks.pairs import END

    rows: list[dict[str, Any]] = []
    lines = [f"through which heads and MLPs adding at {fitted.direction.site} works: metric, largest effects"]
    some = test[:16]
    position = END if END in some.pairs.corrupt_spans else "all"
    for name, one in (("fitted", fitted.direction), ("random", fitted.direction.random_control(args.seed))):
        writes = [Write(one.site, Add(one.vector))]
        with steered_pairs(model, some, writes, prompts="corrupt", positions=position) as pairs:
            effects = patch(model, pairs, ["z", "mlp_out"], positions="all")
        ends, top = effects["z"].baseline, effects.top(6)
        said = ", ".join(f"{place} {value:+.2f}" for place, value in top)
        lines.append(f"  {name}: {ends.corrupt:.2f} to {ends.clean:.2f};  {said}")
        rows += [
            {"direction": name, "without": ends.corrupt, "with": ends.clean, "place": place, "effect": value}
            for place, value in top
        ]
    return "\n".join(lines), rows


def show_illusion(model: Any, train: Task, test: Task, fitted: Fitted, args: argparse.Namespace) -> Outcome:
    """The illusion check of a direction fitted at the MLP's neurons of the same layer."""
    from ..directions import FITS, fit_direction
    from ..patching import check_steering
    from ..sites import Site

    how = args.fit if args.fit in FITS else "mean_difference"
    site = Site("mlp_post", fitted.direction.site.layer)
    found = check_steering(model, test, fit_direction(model, fitted.examples, site, how), seed=args.seed)
    rows = [
        {"site": str(site), "part": part, "success": value, "null_share": found.check.null_share}
        for part, value in found.added.items()
    ]
    return str(found), rows


def show_function_vector(model: Any, test: Task, fitted: Fitted) -> Outcome:
    """The function vector on held-out queries: without demonstrations, and with another relation's."""
    from ..directions import Demonstrations, check_function_vector

    if fitted.vector is None:
        return "no function vector was fitted; ask for one with --fit function_vector", []
    shown = Demonstrations.of_task(test)
    prompts = {"bare": shown.bare(), "another relation": Demonstrations.of_task(test, corrupt=True)}
    found = check_function_vector(model, fitted.vector, prompts)
    return f"{fitted.vector}\n{found}", found.to_dataframe().to_dict("records")


def show_carried(
    model: Any, build: Builder, fitted: Fitted, builders: list[Builder], args: argparse.Namespace,
    settings: dict[str, Any]
) -> Outcome:  # fmt: skip
    """The direction carried into another model by maps fitted on the other tasks' prompts, beside that model's own
    direction.
    """
    from ..directions import MAPS, Examples, choose_layer, fit_direction, fit_stream_map, study_steering

    there = load_named(args.carry_to, device=args.device, dtype=args.dtype, threads=args.threads)
    task = build(there, n=args.n_pairs, seed=args.seed, **settings)
    train, test = (narrow(there, part, args.answer, args.order) for part in (task.train, task.test))
    examples = Examples.of_task(train, args.position)
    site = choose_layer(there, examples, how="mean_difference", criterion=args.criterion, seed=args.seed).site
    own = fit_direction(there, examples, site)
    here, away = (
        Examples.of_task(_joined([make(m, n=128, seed=args.seed) for make in builders]), "all") for m in (model, there)
    )
    others = [make(there, n=64, seed=args.seed).test for make in builders]
    fits = {kind: fit_stream_map(model, there, here, away, fitted.direction.site, site, kind).carry for kind in MAPS}
    candidates = {"its own": own, **{f"carried, {kind}": carry(fitted.direction) for kind, carry in fits.items()}}
    candidates |= {
        f"random, carried, {kind}": carry(fitted.direction.random_control(args.seed)) for kind, carry in fits.items()
    }
    lines = [f"from {args.model} at {fitted.direction.site} to {args.carry_to} at {site}; success, KL at most 1"]
    lines.append(f"{'direction':<34}{'cosine with its own':>20}{'add':>10}{'mirror_below':>14}")
    rows: list[dict[str, Any]] = []
    for name, direction in candidates.items():
        study = study_steering(
            there, test, direction, methods=["add", "mirror_below"], strengths=[0.5, 1, 2], others=others, n_random=0
        )
        best = {method: study.best(method, max_kl=1.0) for method in study.methods}
        rows.append({"direction": name, "cosine": direction.cosine(own), **best})
        lines.append(f"{name:<34}{direction.cosine(own):>20.3f}{best['add']:>10.3f}{best['mirror_below']:>14.3f}")
    return "\n".join(lines), rows


def _joined(tasks: list[Task]) -> Task:
    """The prompts of several tasks as one task, for texts that a map between streams is fitted on."""
    from ..tasks.task import Task

    clean, corrupt, correct, incorrect = [], [], [], []
    for task in tasks:
        pairs = task.pairs
        for i in range(len(task)):
            size = min(int(pairs.lengths[i]), int(pairs.corrupt_lengths[i]), 4 * TEXT_WIDTH)
            if pairs.clean_tokens[i, :size].equal(pairs.corrupt_tokens[i, :size]):
                continue
            clean.append(pairs.clean_tokens[i, :size].tolist())
            corrupt.append(pairs.corrupt_tokens[i, :size].tolist())
            correct.append(int(pairs.correct[i, 0]))
            incorrect.append(int(pairs.incorrect[i, 0]))
    return Task.from_tokens(clean, corrupt, correct, incorrect, name=", ".join(task.name for task in tasks))
