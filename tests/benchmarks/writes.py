"""Every kind of write on one question, and the tables of the pages on edits and writes:

    python -m tests.benchmarks.writes edits
    python -m tests.benchmarks.writes writes

gpt2-6l, seed 0: the pronoun task's pairs whose answer is "she" (256 drawn, half of them held out); the mean difference
after layer 4; side effects on IOI, greater-than and agreement; strengths .25 to 4, two random directions as long. A row
has the largest success (corrupt 0, clean 1) whose KL elsewhere is at most .01, .1 and 1 nats, then success and KL at
strength 1.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

import mechwork as mw
from mechwork.directions import (
    Examples,
    SteeringStudy,
    dimension_write,
    fit_direction,
    fit_directions,
    fit_joint_transport,
    study_steering,
    train_controller,
    transport_write,
)  # fmt: skip
from mechwork.edits import edit_from_pairs, find_weight, fit_layer_edit, share_out
from mechwork.edits.least_squares import ends, inputs_of
from mechwork.interventions import Write

LIMITS = (0.01, 0.1, 1.0)
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SITE = mw.Site("resid_post", 4)
Strengths = Callable[[float], Any]


class Bench:
    """The model, the pairs, the direction, and the tasks on which nothing should change."""

    def __init__(self) -> None:
        self.model = mw.load_model("gpt2-6l")
        task = mw.tasks.pronoun(self.model, n=256, seed=0)
        she = self.model.to_single_token(" she")
        self.train, self.test = (
            part[[i for i in range(len(part)) if int(part.pairs.correct[i, 0]) == she]]
            for part in (task.train, task.test)
        )
        self.others = [
            getattr(mw.tasks, name)(self.model, n=64, seed=0) for name in ("ioi", "greater_than", "agreement")
        ]
        self.examples = Examples.of_task(self.train)
        self.direction = fit_direction(self.model, self.examples, SITE)

    def rows(self, methods: list[str], writes: Mapping[str, Strengths], n_random: int = 0) -> SteeringStudy:
        return study_steering(
            self.model, self.test, self.direction, methods=methods, writes=writes, strengths=STRENGTHS,
            others=[task.test for task in self.others], n_random=n_random, seed=0,
        )  # fmt: skip


def row(label: str, study: SteeringStudy, method: str, control: str = "") -> str:
    """A line of the table: `method` as it is, or under one of its controls."""
    one = next(r for r in study.of(method, control) if r.strength == 1.0)
    best = "".join(f"{study.best(method, control, max_kl=kl):8.3f}" for kl in LIMITS)
    return f"{label:<66}{best}   {one.success:.3f}, {one.kl:.3f}"


def plain(bench: Bench, methods: list[str]) -> list[str]:
    """Adding, its best random direction, and the other named methods."""
    study = bench.rows(methods, {}, n_random=2)
    best = max(study.controls, key=lambda control: study.best("add", control, max_kl=1.0))
    lines = [row("add", study, "add"), row("add, best random direction", study, "add", best)]
    return [*lines, *(row(method, study, method) for method in methods if method != "add")]


def edits(bench: Bench) -> list[str]:
    """Weights changed instead."""
    model, direction, examples = bench.model, bench.direction, bench.examples
    random, keep = direction.random_control(0), (bench.others[-1].train,)
    least = edit_from_pairs(model, bench.train, "W_out.0", position="NAME", keep=keep)
    ways: dict[str, Strengths] = {
        f"shared-out edit, 8 components, {inputs}": share_out(
            model, direction, examples, n_components=8, inputs=inputs
        ).edit.scaled
        for inputs in ("contribution", "contrast")
    }
    ways["shared-out edit of a random direction"] = share_out(model, random, examples, n_components=8).edit.scaled
    ways["least squares, W_out.0 at the name, rank 4"] = edit_from_pairs(
        model, bench.train, "W_out.0", position="NAME", rank=4, keep=keep
    ).edit.scaled
    ways["the same, full rank"] = least.edit.scaled
    ways["the same, rank 4, outputs by lot"] = by_lot(bench, keep)
    study = bench.rows([], ways)
    return [*plain(bench, ["add", "mirror_below"]), *(row(name, study, name) for name in ways)]


def by_lot(bench: Bench, keep: tuple[mw.Task, ...]) -> Strengths:
    """Least squares towards the changes that other pairs need."""
    model, pairs, host = bench.model, bench.train.pairs, bench.train.pairs.corrupt_as_host()
    site, weight = mw.Site("mlp_post", 0), find_weight(bench.model, "W_out.0").read().double()
    here, there = inputs_of(model, host, site), inputs_of(model, pairs, site)
    chosen, clean = ends(host, "NAME"), ends(pairs, "NAME")
    y = (there[clean] - here[chosen]).double() @ weight
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    kept = torch.cat([there[clean], *(inputs_of(model, task.pairs, site)[task.pairs.mask] for task in keep)])
    return fit_layer_edit(model, "W_out.0", here[chosen], y, ridge=1e-2, rank=4, keep=kept).edit.scaled


def writes(bench: Bench) -> list[str]:
    """Activations written instead, with what is fitted for it."""
    model, examples = bench.model, bench.examples
    sites = [mw.Site("resid_post", layer) for layer in range(5)]
    joint = {
        "joint transport, layers 0 to 4": fit_joint_transport(model, examples, sites),
        "joint transport, penalty 3": fit_joint_transport(model, examples, sites, penalty=3.0),
        "joint transport, penalty 3, group 10": fit_joint_transport(
            model, examples, sites, penalty=3.0, group_penalty=10.0
        ),
    }
    for name, found in joint.items():
        print(f"{name}: {found}", file=sys.stderr)
    neurons = mw.Site("mlp_post", 4)

    def at_neurons(**settings: int) -> Strengths:
        move = dimension_write(model, examples, neurons, 32, **settings)
        return lambda strength: [Write(neurons, move(strength))]

    along = fit_directions(model, examples, sites[2:])
    ways: dict[str, Strengths] = {"transport at one layer": transport_write(model, examples, SITE)}
    ways |= {name: found.writes for name, found in joint.items()}
    ways |= {
        "32 dimensions of 128": dimension_write(model, examples, SITE, 32),
        "32 dimensions by lot": dimension_write(model, examples, SITE, 32, control_seed=0),
        "32 neurons of layer 4": at_neurons(),
        "32 neurons by lot": at_neurons(control_seed=0),
    }
    for name, alone in (
        ("controller over layers 2 to 4, agreement left alone in training", bench.others[-1:]),
        ("the same, all three left alone in training", bench.others),
    ):
        trained = train_controller(
            model, bench.train, along, mw.Site("resid_post", 1), leave_alone=[task.train for task in alone]
        )
        ways[name] = trained.writes
    study = bench.rows([], ways)
    return [*plain(bench, ["add"]), *(row(name, study, name) for name in ways)]


TABLES = {"edits": edits, "writes": writes}


def main(name: str) -> None:
    """Print one table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bench = Bench()
    print(f"{len(bench.train)} pairs to fit on, {len(bench.test)} held out; KL elsewhere at most .01, .1, 1; at 1")
    print("\n".join(TABLES[name](bench)))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "edits")
