"""Ablate components and say what breaks, what repairs itself, and what each head does.

  mechwork ablate set ioi --targets a4.h1,m3 --kind zero
  mechwork ablate sweep ioi
  mechwork ablate roles ioi --words induction
  mechwork ablate self-repair ioi --heads a4.h1,a5.h1
  mechwork ablate impairment ioi induction --model llama-6l
  mechwork ablate formation --model attn-only-2l

STUDY is one of
  set           the targets together (with --row: on one pair; means come from all)
  sweep         every head and MLP ablated alone
  cumulative    one after the other: most important first, least important first, at random
  interactions  pairs of the heads of largest effect: redundant or synergistic
  knock-in      each component lost, and each alone
  impairment    which components carry one task and not another (two or more tasks)
  self-repair   direct against total effect, and what repairs it
  suppression   evidence for copy suppression in the heads of most negative direct effect, and in those whose weights
                look most like it (--text FILE: at every position of a text, with intervals)
  roles         what heads attend to and copy, beside null distributions (and on --task's spans IO, S1, END)
  remove        the top heads of a role removed, beside matched random heads
  formation     induction along a bundled model's checkpoints, with clamping
  telemetry     massive activations, sparsity, attention sinks, norms (--checkpoints: along training)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError, UnknownNameError
from .console import Console
from .options import add_executor, add_pairs, add_tasks, at_least, fraction, load, path, task_builder, task_names
from .output import deliver

STUDIES = (
    "set", "sweep", "cumulative", "interactions", "knock-in", "impairment", "self-repair", "suppression", "roles",
    "remove", "formation", "telemetry",
)  # fmt: skip
N_WORDS = 400
"""Prompts of the task of --words whose changing words random lists are drawn from."""
N_INTERACTING = 8
WIDTH = 64
"""Tokens of a window of --text."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "study", metavar="STUDY", help="set, sweep, cumulative, interactions, knock-in, impairment, self-repair, ..."
    )
    add_tasks(parser, "a task's name, or a file of pairs; for impairment several (default: ioi)")
    parser.add_argument(
        "--kind",
        default="mean",
        help="zero, mean, mean_by_position, mean_by_span, resample, corrupt, noise, optimal (default: mean)",
    )
    parser.add_argument(
        "--heads", metavar="HEADS", help="heads, with commas (default: all, or those the study chooses)"
    )
    parser.add_argument(
        "--targets", metavar="PLACES", help="of set: what is ablated, with commas, e.g. a4.h1,m3.n17,a5.h0[END->S1]"
    )
    parser.add_argument("--positions", metavar="WHERE", help="of set: spans or columns, with commas (default: all)")
    parser.add_argument("--row", type=at_least(0), metavar="N", help="of set: of one pair alone (default: all pairs)")
    parser.add_argument(
        "--role", default="induction", help="of remove: whose top heads are removed (default: induction)"
    )
    parser.add_argument(
        "--share",
        type=fraction,
        default=0.02,
        metavar="F",
        help="of remove: share of all heads (default: 0.02, at least one head)",
    )
    parser.add_argument(
        "--words",
        metavar="TASK",
        default="induction",
        help="random lists are drawn from this task's changing words; 'all': from the vocabulary (default: induction)",
    )
    parser.add_argument(
        "--checkpoints", action="store_true", help="of telemetry: on every checkpoint of a bundled model"
    )
    parser.add_argument(
        "--text", type=path, metavar="FILE",
        help="of suppression: at every position of this text (windows of 64 tokens, as many as --n-pairs)",
    )  # fmt: skip
    add_pairs(parser, 64, least=16, what="pairs per task")
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Run the study, print it, and draw it when asked."""
    if args.study not in STUDIES:
        raise UnknownNameError("study", args.study, STUDIES)
    from ..ablation.spec import KINDS

    if args.kind not in KINDS:
        raise UnknownNameError("ablation", args.kind, KINDS)
    names = task_names(args, ("ioi",))
    builders = [task_builder(name) for name in names]
    if (args.study == "impairment") != (len(names) > 1):
        raise InputError(
            f"impairment compares two or more tasks, the other studies take one; got {args.study} of {', '.join(names)}"
        )
    for option in ("targets", "positions", "row"):
        if args.study != "set" and getattr(args, option) is not None:
            raise InputError(f"--{option} belongs to set; got {args.study}. Leave it out.")
    if args.study == "set" and not args.targets:
        raise InputError("set ablates --targets, e.g. --targets a4.h1,m3; got none")
    if args.checkpoints and args.study != "telemetry":
        raise InputError(
            f"--checkpoints belongs to telemetry; got {args.study}. Training is also followed by 'formation'."
        )
    if args.text is not None and args.study != "suppression":
        raise InputError(f"--text belongs to suppression; got {args.study}. Leave it out.")
    if args.study == "formation":
        from ..ablation import study_formation

        with console.step(f"following {args.model}") as progress:
            result: Any = study_formation(args.model, n=args.n_pairs, seed=args.seed, progress=progress)
    elif args.study == "telemetry" and args.checkpoints:
        from ..ablation import telemetry_over_training

        with console.step(f"following {args.model}") as progress:
            result = telemetry_over_training(
                args.model, lambda model: builders[0](model, n=args.n_pairs, seed=args.seed), progress=progress
            )
    else:
        with console.step(f"loading {args.model}"):
            model = load(args)
            tasks = [build(model, n=args.n_pairs, seed=args.seed) for build in builders]
        with console.step(f"{args.study} on {args.model}") as progress:
            result = _study(args, model, tasks, progress)
    rows = result.to_dataframe().to_dict(orient="records")
    data: dict[str, Any] = {
        "study": args.study,
        "model": args.model,
        "tasks": names,
        "kind": args.kind,
        "rows": rows,
        "provenance": result.provenance,
    }
    text = _effects(result) if args.study == "sweep" else str(result)
    deliver(args, console, result, text, data)


def _study(args: argparse.Namespace, model: Any, tasks: list[Any], progress: Any) -> Any:
    """The study's result."""
    from .. import ablation

    task, heads = tasks[0], args.heads.split(",") if args.heads else None
    common = {"kind": args.kind, "seed": args.seed}
    match args.study:
        case "set":
            return _set(args, model, task)
        case "sweep":
            has_mlps = bool(ablation.all_mlps(_anatomy(model)))
            return ablation.sweep_ablations(
                model, task, ["heads", "mlps"] if has_mlps else ["heads"], progress=progress, **common
            )
        case "cumulative":
            return ablation.study_cumulative(model, task, heads, progress=progress, **common)
        case "interactions":
            return ablation.study_interactions(
                model, task, heads or _strongest(model, task, args), progress=progress, **common
            )
        case "knock-in":
            return ablation.study_knock_out_in(model, task, heads, progress=progress, **common)
        case "impairment":
            return ablation.study_impairment(model, tasks, heads, progress=progress, **common)
        case "self-repair":
            return ablation.study_self_repair(model, task, heads, progress=progress, **common)
        case "suppression":
            if args.text is not None:
                tokens = _windows(model, args.text, args.n_pairs)
                return ablation.study_text_suppression(model, tokens, heads, seed=args.seed, progress=progress)
            return ablation.study_copy_suppression(model, task, heads, seed=args.seed)
        case "telemetry":
            return ablation.record_telemetry(model, task)
    prompts = _repeated(args, model)
    table = ablation.measure_roles(model, prompts, seed=args.seed)
    if args.study == "remove":
        return ablation.remove_top_heads(
            model, [task], role=args.role, share=args.share, table=table, prompts=prompts, progress=progress, **common
        )
    if {"IO", "S1", "END"} <= set(task.pairs.spans):
        table = table.with_roles(ablation.measure_span_roles(model, task, seed=args.seed))
    return table


def _set(args: argparse.Namespace, model: Any, task: Any) -> Any:
    """The targets ablated together."""
    from ..ablation import AblationSpec, ablate
    from ..ablation.spec import NEEDS_REFERENCE

    at = [int(word) if word.isdecimal() else word for word in (args.positions or "").split(",") if word]
    spec = AblationSpec(args.targets.split(","), kind=args.kind, positions=at or None, seed=args.seed)
    if args.row is not None and args.row >= len(task):
        raise InputError(f"rows of this task are 0 to {len(task) - 1}; got --row {args.row}")
    pairs = task if args.row is None else task[args.row : args.row + 1]
    return ablate(model, pairs, spec, reference=task if args.kind in NEEDS_REFERENCE else None)


def _windows(model: Any, file: Path, n: int) -> Any:
    """Windows of a text, whole ones."""
    import torch

    from ..lenses import open_text

    width = min(WIDTH, int(model.cfg.n_ctx))
    rows = open_text(model, file, width=width, packing="concatenate").rows(0, n)
    return torch.tensor([row for row in rows if len(row) == len(rows[0])])


def _repeated(args: argparse.Namespace, model: Any) -> Any:
    from ..ablation import repeated_tokens
    from ..tasks import find_task

    like = None if args.words == "all" else find_task(args.words)(model, n=N_WORDS, seed=args.seed)
    return repeated_tokens(model, args.n_pairs, like=like, seed=args.seed)


def _anatomy(model: Any) -> Any:
    from ..models.anatomy import read_anatomy

    return read_anatomy(model)


def _strongest(model: Any, task: Any, args: argparse.Namespace) -> list[str]:
    """The heads of largest effect alone."""
    from ..ablation import all_heads, sweep_ablations

    effects = sweep_ablations(model, task, ["heads"], kind=args.kind, seed=args.seed)["z"].values.flatten()
    names = all_heads(_anatomy(model))
    return [names[i] for i in effects.abs().argsort(descending=True)[:N_INTERACTING].tolist()]


def _effects(effects: Any) -> str:
    """The strongest places of every kind, with standard errors."""
    lines = []
    for effect in effects.values():
        measured = ~effect.values.isnan()
        errors = effect.standard_error().flatten()
        lines += [
            f"  {place:<28} {value:+9.3f} ± {float(errors[i]):.3f}" for place, value, i in effect.ranked(measured)[:10]
        ]
    base = effects.baseline
    return "\n".join(
        [f"{effects.metrics[0]} {base.clean:.3f} intact; effect of ablating each alone (positive: it helps)", *lines]
    )
