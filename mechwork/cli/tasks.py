"""List the tasks, or show pairs of one side by side, with the tokens in which they differ in [brackets].

mechwork tasks
mechwork tasks ioi -n 3
mechwork tasks pairs.csv --model openai-community/gpt2
"""

from __future__ import annotations

import argparse

from .console import Console
from .options import add_pairs, load, task_builder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "task", metavar="TASK", nargs="?", help="a task's name, or a file of pairs; none lists the tasks"
    )
    add_pairs(parser, 5, least=1, what="how many pairs to show")


def run(args: argparse.Namespace, console: Console) -> None:
    """List, or describe one."""
    if args.task is None:
        _list(console)
        return
    build = task_builder(args.task)
    task = build(load(args), n=2 * args.n_pairs, seed=args.seed)
    pairs = []
    for row in range(min(args.n_pairs, len(task))):
        clean, corrupt = task.prompt_texts(row)
        correct, incorrect = task.answer_texts[row]
        pairs.append({"clean": "".join(clean), "corrupt": "".join(corrupt), "correct": correct, "incorrect": incorrect})
    data = {
        "name": task.name,
        "description": task.description,
        "citation": task.citation,
        "metric": task.metric.name,
        "spans": [name for name in task.pairs.spans if not name.endswith("+") and name != "start"],
        "pairs": pairs,
    }
    citation = f"\nAfter {task.citation}" if task.citation else ""
    console.result(task.describe(args.n_pairs) + citation, data)


def _list(console: Console) -> None:
    from .. import bundled
    from ..tasks import TASKS

    rows = [{"name": name, **_facts(bundled.load_json("tasks", f"{name}.json"))} for name in TASKS]
    lines = [f"{row['name']:<14} {row['description']}\n{'':<14} {row['citation']}" for row in rows]
    lines.append(
        "\nShow pairs of one: mechwork tasks ioi. Your own pairs, as .csv or .jsonl, work wherever a task's name does."
    )
    console.result("\n".join(lines), {"tasks": rows})


def _facts(data: dict[str, str]) -> dict[str, str]:
    return {key: data[key] for key in ("description", "citation")}
