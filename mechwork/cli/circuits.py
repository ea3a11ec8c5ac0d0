"""List the circuits that come with the bundled models, test them again, or find them again and write their pages.

mechwork circuits
mechwork circuits verify
mechwork circuits build --out data/circuits
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .. import bundled
from ..errors import ArtefactError, InputError
from ..files import make_folder, write_text
from .console import Console, dump_json
from .discover import Lines
from .options import add_executor, load_named, path

if TYPE_CHECKING:
    from ..ablation import RoleTable
    from ..discovery.found import Discovery

SHIPPED = {"gpt2-6l": ("ioi", "induction"), "llama-6l": ("ioi", "induction")}
"""Model -> the tasks whose circuits are shipped."""

N_PAIRS, SEED, FRACTION = 128, 0, 0.1
TOLERANCE = 0.01
"""How far a faithfulness measured again may be from the card's."""

N_WORDS = 400
"""Lists of the induction task that random words are drawn from, as `mechwork ablate roles` does."""

N_HEADS = 12
"""How many heads a page describes, largest effect first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "action", nargs="?", default="list", choices=("list", "verify", "build"), help="(default: list)"
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="where build writes, e.g. data/circuits")
    parser.set_defaults(keeps=False)
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """List, verify or build."""
    if args.action == "build":
        if args.out is None:
            raise InputError("build writes into --out DIR; name the folder, e.g. data/circuits")
        _build(args, console)
    elif args.action == "verify":
        _verify(args, console)
    else:
        _list(console)


def _cards() -> dict[str, dict[str, Any]]:
    """Model -> card, hashes verified."""
    from ..circuits.graph.shipped import CARD, circuit_names

    models = sorted({name.split("/")[0] for name in circuit_names()})
    if not models:
        raise ArtefactError("this installation has no bundled circuits; reinstall mechwork")
    for model in models:
        bundled.verify(bundled.path("circuits", model))
    return {model: bundled.load_json("circuits", model, CARD)["circuits"] for model in models}


def _list(console: Console) -> None:
    cards = _cards()
    lines = [
        f"{model}/{task}: {row['n_edges']} of {row['n_edges_of_graph']} edges, faithfulness {row['faithfulness']:.3f} "
        f"[{row['interval'][0]:.3f}, {row['interval'][1]:.3f}] on held-out pairs"
        for model, tasks in cards.items()
        for task, row in tasks.items()
    ]
    lines += [f"page: {bundled.path('circuits', model, 'README.md')}" for model in cards]
    console.result("\n".join(lines), {"circuits": cards})


def _verify(args: argparse.Namespace, console: Console) -> None:
    from ..circuits import evaluate
    from ..circuits.graph.shipped import load_circuit
    from ..tasks import find_task

    found: dict[str, float] = {}
    for name, tasks in _cards().items():
        model = load_named(name, device=args.device, dtype=args.dtype, threads=args.threads)
        for task_name, row in tasks.items():
            task = find_task(task_name)(model, n=row["n_pairs"], seed=row["seed"])
            with console.step(f"testing {name}/{task_name}"):
                evaluation = evaluate(model, task.test, load_circuit(f"{name}/{task_name}"), n_random=0)
            found[f"{name}/{task_name}"] = evaluation.faithfulness
            if abs(evaluation.faithfulness - row["faithfulness"]) > TOLERANCE:
                raise ArtefactError(
                    f"{name}/{task_name} has faithfulness {evaluation.faithfulness:.3f} where its card says "
                    f"{row['faithfulness']:.3f}; the libraries here compute something else, or the card is wrong"
                )
    console.result(f"verified: {', '.join(found)}", {"faithfulness": found})


def _build(args: argparse.Namespace, console: Console) -> None:
    """Discover every shipped circuit, and write circuits, cards and pages."""
    from ..ablation import measure_roles, measure_span_roles, repeated_tokens
    from ..circuits.graph.shipped import CARD
    from ..discovery.discover import discover
    from ..discovery.settings import Settings
    from ..tasks import find_task

    for name, tasks in SHIPPED.items():
        model = load_named(name, device=args.device, dtype=args.dtype, threads=args.threads)
        settings, observer = Settings(fraction=FRACTION, seed=SEED), Lines(console)
        found = {
            task: discover(model, find_task(task)(model, n=N_PAIRS, seed=SEED), settings=settings, observer=observer)
            for task in tasks
        }
        with console.step("measuring roles"):
            words = find_task("induction")(model, n=N_WORDS, seed=SEED)
            roles = measure_roles(model, repeated_tokens(model, 64, like=words, seed=SEED), seed=SEED)
            if "ioi" in found:
                roles = roles.with_roles(measure_span_roles(model, found["ioi"].task.test))
        folder = args.out / name
        make_folder(folder)
        for task, discovery in found.items():
            discovery.circuit.save(folder / f"{task}.json")
        card = {"model": name, "circuits": {task: _figures(discovery) for task, discovery in found.items()}}
        write_text(folder / CARD, dump_json(card) + "\n")
        write_text(folder / "README.md", _page(name, found, roles))
        bundled.write_manifest(folder)
    console.result(f"circuits of {', '.join(SHIPPED)}: {args.out}", {"out": str(args.out)})


def _figures(found: Discovery) -> dict[str, Any]:
    evaluation = found.evaluation
    return {
        "n_pairs": N_PAIRS,
        "seed": SEED,
        "rules": found.settings.rules,
        "ig_steps": found.settings.ig_steps,
        "n_edges": found.circuit.n_edges,
        "n_edges_of_graph": found.circuit.space.n_edges,
        "faithfulness": evaluation.faithfulness,
        "interval": list(evaluation.interval()),
        "random": list(evaluation.random),
        "accuracy": evaluation.accuracy,
        "model_accuracy": evaluation.model_accuracy,
        "cpr": found.curve.cpr,
        "cmd": found.curve.cmd,
        "roles": found.circuit.roles,
    }


def _page(model: str, found: dict[str, Discovery], roles: RoleTable) -> str:
    """The page of one model: Markdown, numbers only where something was measured."""
    parts = [
        f"# Circuits of {model}\n",
        (
            f"Found by EAP-IG with 5 steps on {N_PAIRS // 2} pairs and tested on {N_PAIRS // 2} others, whose words "
            "and templates are "
            "not those of training. `mechwork circuits build` writes this page, `mechwork circuits verify` tests the "
            "circuits again, "
            f'`mw.load_circuit("{model}/ioi")` loads one.\n'
        ),
    ]
    for task, discovery in found.items():
        parts += [f"## {task}\n", discovery.task.description, "", _tested(discovery), *_heads(discovery)]
    return "\n".join([*parts, *_roles(roles, found)]).rstrip() + "\n"


def _roles(roles: RoleTable, found: dict[str, Discovery]) -> list[str]:
    """Every head that some role is given to, with all its scores, and the circuits that it is in."""
    names = list(roles.scores)
    header = ["head", "in the circuit of", *names, "role"]
    lines = [
        "## What the heads do\n",
        (
            "Scores on random words said again and on the spans of IOI, 1 at most; a role is given where the score is "
            "at least 0.3 and "
            "beats its null distribution (p < 0.05, corrected for the number of heads). `mechwork ablate roles` "
            "measures them.\n"
        ),
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for i, head in enumerate(roles.heads):
        if given := roles.roles_of(head):
            inside = [task for task, discovery in found.items() if head in discovery.circuit.nodes]
            scores = [f"{float(roles.scores[name][i]):.2f}" for name in names]
            lines.append("| " + " | ".join([head, ", ".join(inside), *scores, ", ".join(given)]) + " |")
    chance = [f"{float(roles.null_mean[name].mean()):.2f}" for name in names]
    lines.append("| " + " | ".join(["chance", "", *chance, ""]) + " |")
    without = [name for name in names if all(name not in roles.roles_of(head) for head in roles.heads)]
    if without:
        lines += ["", f"No head is given the role {', '.join(without)}."]
    return [*lines, "", *roles.notes]


def _tested(found: Discovery) -> str:
    evaluation, circuit = found.evaluation, found.circuit
    low, high = evaluation.interval()
    chance = max(evaluation.random)
    return (
        f"{circuit.n_edges} of {circuit.space.n_edges} edges, {len(circuit.nodes) - 2} heads and MLPs. Faithfulness "
        f"{evaluation.faithfulness:.3f} [{low:.3f}, {high:.3f}] under {evaluation.ablation} ablation, random circuits "
        "of that "
        f"size at most {chance:.3f}; accuracy {evaluation.accuracy:.3f}, the whole model's "
        f"{evaluation.model_accuracy:.3f}. "
        f"Over all sizes: CPR {found.curve.cpr:.3f}, CMD {found.curve.cmd:.3f}.\n"
    )


def _heads(found: Discovery) -> list[str]:
    """The heads of largest effect: what ablating each costs, what it writes into the answer, where it looks."""
    rows = found["study"].rows[:N_HEADS]
    looks = sorted({name for row in rows for name, value in row.attention.items() if value >= 0.1})
    inside = set(found.circuit.nodes)
    header = ["head", "in the circuit", "effect", "direct effect", *looks, "role"]
    lines = [
        (
            f"The {len(rows)} heads of largest effect (mean ablation at the same span, in units of the logit "
            "difference; direct: "
            "written into the answer; then mean attention). A role is a rule over these numbers, and empty where no "
            "rule fits.\n"
        ),
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
    ]
    for row in rows:
        direct = "" if row.direct_effect is None else f"{row.direct_effect:.2f}"
        cells = [
            row.head,
            "yes" if row.head in inside else "no",
            f"{row.effect:.2f} ± {row.standard_error:.2f}",
            direct,
        ]
        cells += [f"{row.attention.get(name, 0.0):.2f}" for name in looks]
        lines.append("| " + " | ".join([*cells, row.role]) + " |")
    return [*lines, ""]
