"""Check a report: are its files, model and data what they were, and (with --rerun) do the numbers come out again?

  mechwork verify reports/ioi/report.html
  mechwork verify reports/ioi --rerun --tolerance 0.001

Exit code 4 when something differs; what cannot be checked (a file that was not kept, a model that is not here) is said and
is no difference. Numbers are compared within --tolerance, relative and absolute.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..discovery.verification import (
    CHANGING,
    Check,
    check_files,
    check_page,
    compare,
    differences,
    read_record,
    recorded,
)
from ..errors import InputError, MechworkError, NotFoundError, VerificationError
from .console import Console, dump_json
from .options import PAIR_FILES, fraction, load

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ..tasks.task import Task

N_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("report", type=Path, metavar="REPORT", help="report.html, or its folder")
    parser.add_argument("--rerun", action="store_true", help="compute everything again and compare the numbers")
    parser.add_argument(
        "--tolerance", type=fraction, default=1e-3, metavar="T", help="of numbers, with --rerun (default: 0.001)"
    )
    parser.add_argument("--files-only", action="store_true", help="hash the files; load no model")
    parser.add_argument("--device", help="for --rerun, e.g. cuda (default: cpu)")


def run(args: argparse.Namespace, console: Console) -> None:
    """All checks, then one table; raises `VerificationError` naming what differs."""
    if args.rerun and args.files_only:
        raise InputError("--rerun needs the model, which --files-only does not load; pass one of the two")
    page = args.report / "report.html" if args.report.is_dir() else args.report
    record = read_record(page)
    checks = [check_page(record), *check_files(page, record)]
    if not args.files_only:
        checks += _check_inputs(args, console, page, record)
    lines = [f"{page}", *(f"  {check}" for check in checks)]
    bad = [check.what for check in checks if check.outcome == "differs"]
    lines.append("verified" if not bad else f"NOT verified: {', '.join(bad)}")
    console.result(
        "\n".join(lines), {"report": str(page), "verified": not bad, "checks": [vars(check) for check in checks]}
    )
    if bad:
        raise VerificationError(
            f"{page} is not what was written: {', '.join(bad)} differ{'s' * (len(bad) == 1)} (see above)"
        )


def _check_inputs(args: argparse.Namespace, console: Console, page: Path, record: dict[str, Any]) -> list[Check]:
    """Model and data by their hashes; with --rerun also the numbers."""
    request = record.get("request")
    if not request:
        return [Check("model, data", "not checked", "this report was not written by 'mechwork discover'")]
    try:
        with console.step(f"loading {request['model']}"):
            model = load(
                argparse.Namespace(model=request["model"], device=args.device, dtype=request["dtype"], threads=None)
            )
            task = build_task(model, request, request["settings"]["seed"])
    except (NotFoundError, OSError) as error:
        return [Check("model, data", "not checked", str(error))]
    from ..models.identity import identify_model

    checks = [
        compare(
            "model's weights", recorded(record, "model", "weights_sha256"), identify_model(model)["weights_sha256"]
        ),
        compare("data (train pairs)", recorded(record, "task", "sha256"), task.train.pairs.fingerprint()),
    ]
    if args.rerun:
        checks += _rerun(args, console, page, request, model, task)
    return checks


def _rerun(
    args: argparse.Namespace,
    console: Console,
    page: Path,
    request: dict[str, Any],
    model: TransformerBridge,
    task: Task,
) -> list[Check]:
    from ..discovery.pipeline import Settings, discover
    from ..discovery.summary import summarise

    summary = page.parent / "report.json"
    if not summary.is_file():
        return [Check("numbers", "missing", "report.json is not beside the report")]
    before = json.loads(summary.read_text(encoding="utf-8"))
    again = None if request["task"].endswith(PAIR_FILES) else (lambda seed: build_task(model, request, seed))
    try:
        found = discover(model, request["model"], task, Settings(**request["settings"]), console, again)
    except MechworkError as error:
        return [Check("numbers", "differs", f"the analysis fails now: {error}")]
    after = json.loads(dump_json(summarise(found)))
    old, new = ({key: value for key, value in data.items() if key not in CHANGING} for data in (before, after))
    places = list(islice(differences(old, new, args.tolerance), N_SHOWN + 1))
    if not places:
        return [Check("numbers", "same", f"within {args.tolerance:g}")]
    more = "; and more" if len(places) > N_SHOWN else ""
    return [Check("numbers", "differs", "; ".join(places[:N_SHOWN]) + more)]


def build_task(model: TransformerBridge, request: dict[str, Any], seed: int) -> Task:
    """The task that a report asked for, made again."""
    from ..tasks import find_task, from_file

    name = request["task"]
    if name.endswith(PAIR_FILES):
        if not Path(name).is_file():
            raise NotFoundError(f"no file of pairs at {name}; run where the report was made")
        return from_file(model, name)
    return find_task(name)(model, n=request["n_pairs"], seed=seed)
