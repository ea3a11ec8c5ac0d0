"""Check a report: are its files, model and data what they were, and (with --rerun) do the numbers come out again?

  mechwork verify reports/ioi/report.html
  mechwork verify reports/ioi --rerun --tolerance 0.001
  mechwork verify reports/mine --model ./my-model
  mechwork verify reports/ioi --sign key.pem     mechwork verify reports/ioi --key pub.pem

Says "verified", "changed: WHAT" (exit code 4) or "not checked: WHAT"; never "verified" where something was not
checked. Only files in the report's own folder are opened, and only a bundled model is loaded by the report's word:
name any other with --model. Hashes show what changed by accident or by one hand. Who rewrites page, report.json and
ledger alike is noticed when the numbers are computed again, or when the folder was signed (--sign, with your own
Ed25519 key) and the public key is given (--key).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..discovery.signing import check_signature, sign
from ..discovery.verification import (
    CHANGING,
    Check,
    check_files,
    check_page,
    compare,
    conclusion,
    differences,
    read_record,
    recorded,
)
from ..errors import InputError, MechworkError, VerificationError
from .console import Console, dump_json
from .options import PAIR_FILES, add_executor, fraction, load_named

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("report", type=Path, metavar="REPORT", help="report.html, or its folder")
    parser.add_argument("--rerun", action="store_true", help="compute everything again and compare the numbers")
    parser.add_argument(
        "--tolerance", type=fraction, default=1e-3, metavar="T", help="of numbers, with --rerun (default: 0.001)"
    )
    parser.add_argument("--files-only", action="store_true", help="hash the files; load no model")
    parser.add_argument("--model", help="the model to check against (default: the report's, if it is bundled)")
    parser.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign the folder with this private key, if nothing changed"
    )
    parser.add_argument("--key", type=Path, metavar="PUB", help="check the folder's signature with this public key")
    add_executor(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """All checks, then one table; raises `VerificationError` naming what differs."""
    if args.rerun and args.files_only:
        raise InputError("--rerun needs the model, which --files-only does not load; pass one of the two")
    if args.sign is not None and args.key is not None:
        raise InputError("--sign makes a signature and --key checks one; pass one of the two")
    page = args.report / "report.html" if args.report.is_dir() else args.report
    record = read_record(page)
    checks = [check_page(record), *check_files(page, record)]
    if args.sign is None:
        checks += check_signature(page.parent, args.key)
    if not args.files_only:
        checks += _check_inputs(args, console, page, record)
    said = conclusion(checks)
    console.result(
        "\n".join([f"{page}", *(f"  {check}" for check in checks), said]),
        {"report": str(page), "verified": said == "verified", "conclusion": said, "checks": [vars(c) for c in checks]},
    )
    bad = [check.what for check in checks if check.outcome == "differs"]
    if bad:
        raise VerificationError(
            f"{page} is not what was written: {', '.join(bad)} differ{'s' * (len(bad) == 1)} (see above)"
        )
    if args.sign is not None:
        console.say(f"signed: {sign(page.parent, args.sign)}")


def _check_inputs(args: argparse.Namespace, console: Console, page: Path, record: dict[str, Any]) -> list[Check]:
    """Model and data by their hashes; with --rerun also the numbers."""
    from .. import bundled

    what = "model, data" + ", numbers" * args.rerun
    request = record.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("model"), str):
        return [Check(what, "not checked", "this report was not written by 'mechwork discover'")]
    name = args.model or request["model"]
    if args.model is None and name.partition("@")[0] not in bundled.model_names():
        return [Check(what, "not checked", f"{name[:80]!r} is not bundled; name the model to load with --model")]
    dtype, bos, split_kv = request.get("dtype"), request.get("prepend_bos"), request.get("split_kv", False)
    try:
        with console.step(f"loading {name}"):
            model = load_named(
                name, device=args.device, dtype=dtype, threads=args.threads, bos=bos, split_kv=bool(split_kv)
            )
    except (MechworkError, OSError, AttributeError) as error:
        return [Check(what, "not checked", str(error))]
    from ..models.identity import identify_model

    known = recorded(record, "model", "weights_sha256") or request.get("weights")
    checks = [compare("model's weights", known, identify_model(model)["weights_sha256"])]
    try:
        return [*checks, *_check_data(args, console, page, record, request, model)]
    except (MechworkError, KeyError, TypeError) as error:
        return [*checks, Check("data" + ", numbers" * args.rerun, "not checked", str(error))]


def _check_data(
    args: argparse.Namespace, console: Console, page: Path, record: dict[str, Any], request: dict[str, Any],
    model: TransformerBridge,
) -> list[Check]:  # fmt: skip
    """The pairs: those of a named task are drawn again, those of a file are the ones that the folder keeps."""
    from ..discovery.discover import load_discovery
    from ..tasks import find_task

    before = load_discovery(page.parent)
    task = before.task
    if not str(request["task"]).endswith(PAIR_FILES) and "n_pairs" in request:
        build = find_task(request["task"])
        task = before.plan.cut(build(model, n=int(request["n_pairs"]), seed=before.settings.seed))
    found = task.train.pairs.fingerprint()
    checks = [compare("data (train pairs)", recorded(record, "task", "sha256"), found)]
    return [*checks, *(_rerun(args, console, request, model, before) if args.rerun else [])]


def _build_again(build: Callable[..., Any], model: TransformerBridge, n: int, seed: int) -> Any:
    return build(model, n=n, seed=seed)


def _rerun(
    args: argparse.Namespace, console: Console, request: dict[str, Any], model: TransformerBridge, before: Any
) -> list[Check]:
    from ..discovery.discover import discover, load_discovery
    from ..discovery.folder import PLAN, REQUEST
    from ..discovery.summary import summarise
    from ..files import read_object, write_json
    from ..tasks import find_task
    from .discover import Lines

    name, again, task = str(request["task"]), None, before.task
    if not name.endswith(PAIR_FILES) and "n_pairs" in request:
        again = partial(_build_again, find_task(name), model, int(request["n_pairs"]))
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "again"
        out.mkdir()
        for file in (PLAN, REQUEST):  # the same stages on the same pairs
            write_json(out / file, read_object(before.folder / file))
        try:
            asked = {key: request[key] for key in request if key != "format"}
            task = before.task if again is None else again(before.settings.seed)
            discover(
                model, task, out=out, settings=before.settings, audience=before.audience, again=again, request=asked,
                observer=Lines(console),
            )  # fmt: skip
            found = load_discovery(out)
        except MechworkError as error:
            return [Check("numbers", "differs", f"the analysis fails now: {error}")]
    summary = before.folder / "report.json"
    if not summary.is_file():
        return [Check("numbers", "not checked", "report.json is not beside the report")]
    old = {key: value for key, value in read_object(summary).items() if key not in CHANGING}
    after = json.loads(dump_json(summarise(found)))
    new = {key: value for key, value in after.items() if key not in CHANGING}
    places = list(islice(differences(old, new, args.tolerance), N_SHOWN + 1))
    if not places:
        return [Check("numbers", "same", f"within {args.tolerance:g}")]
    more = "; and more" if len(places) > N_SHOWN else ""
    return [Check("numbers", "differs", "; ".join(places[:N_SHOWN]) + more)]
