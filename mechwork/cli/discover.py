"""Find the circuit of a task in a model, test it, and write a report that opens in any browser, offline.

Writes report.html, report.json, circuit.json, edges.csv, effects.csv and curve.csv into --out, all at once at the end.

  mechwork discover ioi
  mechwork discover greater_than --rules gradient --ig-steps 5 --fraction 0.05
  mechwork discover pairs.csv --model openai-community/gpt2 --out reports/mine

TASK is a name ('mechwork tasks' lists them) or a .csv or .jsonl file with the columns clean, corrupt, correct, incorrect.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..discovery.output import MARK, check_output, new_folder
from ..errors import NotFoundError
from .console import Console, dump_json
from .options import PAIR_FILES, add_executor, add_model, at_least, fraction, load

if TYPE_CHECKING:
    from ..discovery.pipeline import Discovery


DEFAULT_RULES, DEFAULT_STEPS = "gradient", 5
"""EAP-IG: first by CPR and by CMD over the six tasks (``mechwork leaderboard``)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("task", metavar="TASK", help="a task's name, or a file of pairs")
    parser.add_argument(
        "--n-pairs", type=at_least(4), default=128, metavar="N", help="pairs, half of them held out (default: 128)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the pairs and of the controls (default: 0)")
    method = parser.add_argument_group("method")
    method.add_argument(
        "--rules", help="rules of the backward pass: gradient, relp, ... (default: gradient, with 5 steps)"
    )
    method.add_argument(
        "--ig-steps",
        type=at_least(1),
        metavar="N",
        help="points on the path between the prompts (default: 5, or 1 when --rules is given)",
    )
    size = method.add_mutually_exclusive_group()
    size.add_argument("--n-edges", type=at_least(1), metavar="N", help="size of the circuit, before pruning")
    size.add_argument(
        "--fraction", type=fraction, default=0.1, metavar="F", help="size as a share of all edges (default: 0.1)"
    )
    method.add_argument("--quick", action="store_true", help="leave out the tests of robustness (a third of the time)")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--audience", choices=("research", "class"), default="research",
        help="class: questions before each result, words explained (default: research)",
    )  # fmt: skip
    files.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: reports/TASK)")
    files.add_argument("--force", action="store_true", help="replace an earlier report in that folder")
    add_model(parser)
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Refuse at once what can be refused at once; then compute, write and print."""
    from_file = args.task.endswith(PAIR_FILES)
    out = args.out or Path("reports") / (Path(args.task).stem if from_file else args.task)
    if from_file and not Path(args.task).is_file():
        raise NotFoundError(f"no file of pairs at {args.task}")
    check_output(out, force=args.force)
    from ..discovery.pipeline import Settings, discover
    from ..discovery.summary import render_text, summarise
    from ..relevance import find_composite
    from ..tasks import find_task
    from ..tasks import from_file as read_task

    steps = args.ig_steps or (1 if args.rules else DEFAULT_STEPS)
    rules = args.rules or DEFAULT_RULES
    find_composite(rules)
    build = None if from_file else find_task(args.task)
    with console.step(f"loading {args.model}"):
        model = load(args)
        task = build(model, n=args.n_pairs, seed=args.seed) if build else read_task(model, args.task)
    console.detail(task.describe(2))
    settings = Settings(rules, steps, args.n_edges, args.fraction, args.seed, not args.quick)
    again = (lambda seed: build(model, n=args.n_pairs, seed=seed)) if build else None
    found = discover(model, args.model, task, settings, console, again)
    data = summarise(found)
    data["request"] = {
        "task": args.task, "model": args.model, "n_pairs": args.n_pairs, "dtype": args.dtype, "settings": asdict(settings),
    }  # fmt: skip
    with console.step("writing the report"), new_folder(out, force=args.force) as folder:
        write(found, data, folder, audience=args.audience)
    files = {file.name: str(out / file.name) for file in sorted(out.iterdir())}
    console.result(f"{render_text(found, data)}\n\n{_next(args, out)}", {**data, "files": files})


def write(found: Discovery, data: dict[str, Any], folder: Path, *, audience: str = "research") -> None:
    """Every file of a report; `data` is given their hashes. `circuit.json` and the tables are the same bytes for the same inputs."""
    from ..render import report

    found.circuit.save(folder / "circuit.json")
    edges = found.scores.to_dataframe()
    kept = set(found.circuit.edges)
    edges["in_circuit"] = [f"{a}->{b}" in kept for a, b in zip(edges["source"], edges["target"], strict=True)]
    edges.to_csv(folder / "edges.csv", index=False, lineterminator="\n")
    effects = found.measured.to_dataframe()
    effects["estimate"] = found.estimated.to_dataframe()["effect"]
    effects.to_csv(folder / "effects.csv", index=False, lineterminator="\n")
    found.curve.to_dataframe().to_csv(folder / "curve.csv", index=False, lineterminator="\n")
    hashes = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    record = {"files": hashes, "request": data["request"]}
    page = report(folder / "report.html", found.task, *found.results, audience=audience, record=record)
    data["sha256"] = {**hashes, page.name: _sha256(page)}
    (folder / MARK).write_text(dump_json(data) + "\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _next(args: argparse.Namespace, out: Path) -> str:
    other = "relp" if args.rules != "relp" else "gradient"
    return "\n".join(
        (
            f"The report: {out / 'report.html'} (open it in a browser; it needs no network)",
            f"  in Python   mechwork.Circuit.load({str(out / 'circuit.json')!r}).show()",
            f"  other rules mechwork discover {args.task} --rules {other} --out {out}-{other}",
            "  other tasks mechwork tasks",
        )
    )
