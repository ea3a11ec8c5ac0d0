"""Score models whose circuit is known by several methods, and say how well each ranks the true edges (AUROC).

mechwork truth
mechwork truth hist induction
mechwork truth --ablation zero
mechwork truth --methods all
mechwork truth --planted 3 --methods all
mechwork truth lookup
mechwork truth --retrain --out runs/equality
mechwork truth lookup --retrain --out runs/lookup
"""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from .console import Console
from .options import add_executor, at_least, path, set_threads
from .output import check_out, check_training_folder, deliver, refuse_unused


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("cases", metavar="CASE", nargs="*", help="which known circuits (default: all)")
    parser.add_argument(
        "--ablation", default="corrupt", metavar="KIND", help="corrupt, zero or mean: which truth (default: corrupt)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="exact, a preset of edge scores, acdc, learned; or all (default: exact gradient relp eap-ig)",
    )
    parser.add_argument(
        "--planted", type=at_least(1), metavar="N",
        help="score N semi-synthetic models instead, trained now with circuits drawn by seed (about 20 s each)",
    )  # fmt: skip
    parser.add_argument(
        "--plant-from", type=at_least(0), default=0, metavar="SEED", help="of the first planted model (default: 0)"
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="train the case 'equality' (or 'lookup', when it is named) again from its seed into --out, and stop",
    )
    parser.add_argument(
        "--out", type=path, metavar="PATH",
        help="keep the table: .safetensors (mechwork.result.load_result reads it) or .csv; with --retrain a folder",
    )  # fmt: skip
    parser.set_defaults(keeps=False)
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Print the table, or train."""
    if args.retrain:
        refuse_unused(args, "truth --retrain", "html")
        _retrain(args, console)
        return
    check_out(args)
    set_threads(args)
    from ..circuits.ground_truth import CASES, available_methods, build_table, find_case

    methods = available_methods(args.ablation) if args.methods == ["all"] else args.methods
    cases = [find_case(name) for name in args.cases] or list(CASES.values())
    if args.planted is not None:
        if args.cases or args.ablation != "corrupt":
            raise InputError("--planted trains its own cases, with a truth under corrupt ablation; leave CASE out")
        cases = _plant(args, console)
    with console.step("scoring known circuits") as line:
        table = build_table(cases, ablation=args.ablation, methods=methods, progress=line)
    if not table.auroc:
        raise InputError(
            f"none of {', '.join(case.name for case in cases)} states a truth under {args.ablation} ablation"
        )
    rows = {
        name: {
            "auroc": dict(row),
            "intervals": {m: list(ends) for m, ends in table.intervals.get(name, {}).items()},
            "direction": _direction(cases, name, args.ablation),
        }
        for name, row in table.auroc.items()
    }
    data: dict[str, Any] = {"ablation": table.ablation, "cases": rows, "notes": [*table.notes(), *table.hidden_notes()]}
    lines = [f"{case.name:<12} {case.description}" for case in cases if case.name in table.auroc]
    deliver(args, console, table, "\n".join([str(table), "", *lines]), data)


def _plant(args: argparse.Namespace, console: Console) -> list[Any]:
    """The planted models; a seed whose model did not learn its circuit is said, and left out."""
    from ..circuits.ground_truth import plant_circuit
    from ..errors import MetricError

    found = []
    for seed in range(args.plant_from, args.plant_from + args.planted):
        try:
            with console.step(f"training planted {seed}") as line:
                found.append(plant_circuit(seed, progress=line))
        except MetricError as error:
            console.say(f"left out: {error}")
    if not found:
        raise MetricError("no planted model learned its circuit; choose another --plant-from")
    return found


def _direction(cases: list[Any], name: str, ablation: str) -> str:
    return next(case.direction for case in cases if case.name == name) if ablation == "corrupt" else "noise"


def _retrain(args: argparse.Namespace, console: Console) -> None:
    import torch

    from ..circuits.ground_truth import equality, lookup

    if args.cases not in ([], ["equality"], ["lookup"]):
        raise InputError(f"trained cases are equality and lookup, one at a time; got {' '.join(args.cases)}")
    name = args.cases[0] if args.cases else "equality"
    if args.out is None:
        raise InputError("--retrain writes into --out DIR; name the folder, e.g. --out runs/equality")
    check_training_folder(args.out, "", resume=False)
    torch.set_num_threads(1)
    with console.step(f"training {name}") as line:
        if name == "lookup":
            card = lookup.train_lookup(args.out, progress=line)
        else:
            card = equality.train_equality(args.out, equality.RECIPE, line)
    console.result(
        f"accuracy {card['accuracy on all prompts']:.3f}, effects inside the circuit at least "
        f"{card['smallest effect inside']:.3f}, outside at most {card['largest effect outside']:.3f}: {args.out}",
        card,
    )
