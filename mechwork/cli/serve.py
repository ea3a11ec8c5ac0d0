"""Open the live workbench in a browser: ask a model from its picture, with a random control beside every effect.

  mechwork serve
  mechwork serve gpt2-12l --task greater_than --row 3
  mechwork serve reports/ioi
  mechwork serve model.gguf --task pairs.csv --port 8080 --no-browser
  mechwork serve gpt2-6l --features features/mine

MODEL is whatever --model takes elsewhere; a folder of `mechwork discover` brings its task, scores and circuit. The
address that is printed works once, on this machine alone. Ctrl+C ends it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .console import Console
from .options import add_pairs, at_least, load, task_builder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("what", metavar="MODEL", nargs="?", help="a model, or the folder of a discovery")
    parser.add_argument(
        "--task", default="ioi", metavar="TASK", help="a task's name, or a file of pairs (default: ioi)"
    )
    parser.add_argument("--row", type=at_least(0), default=0, metavar="N", help="pair to begin with (default: 0)")
    parser.add_argument("--features", metavar="SOURCE", help="a folder of sparse features (default: shipped ones)")
    parser.add_argument("--port", type=at_least(0, 65535), default=0, metavar="N", help="(default: any free one)")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    add_pairs(parser, 64, least=8, what="pairs of the task, from which means are taken")


def run(args: argparse.Namespace, console: Console) -> None:
    """Load, print the address, serve."""
    from ..live.serve import listen, require_serve, serve

    require_serve()
    if args.what is not None and not args.what.strip():
        raise InputError(f"MODEL is a name, a file or a folder; got {args.what!r}. Leave it out for {args.model}.")
    listen(args.port).close()  # a taken port is said before anything is loaded
    session = open_session(args, console)
    from ..live import Worker
    from ..live.page import live_page

    def say(address: str) -> None:
        console.say("The workbench is at this address, which works once, on this machine alone. Ctrl+C ends it.")
        console.result(address, {"address": address, "model": args.model})

    serve(Worker(session), live_page, port=args.port, browser=not args.no_browser, say=say)


def open_session(args: argparse.Namespace, console: Console) -> Any:
    """The session that the options describe."""
    from ..live import Origin, Session

    folder = Path(args.what) if args.what else None
    if folder is not None and (folder / "request.json").is_file():
        from ..discovery.discover import load_discovery

        found = load_discovery(folder)
        args.model = found.model_name
        with console.step(f"loading {args.model}"):
            model = load(args)
        from ..models.identity import weights_sha256

        if weights_sha256(model) != found.request["weights"]:
            raise InputError(f"{folder} is of a model with other weights than {args.model} has here")
        circuit = found.circuit if "circuit" in found.named else None
        return Session(
            model, found.task, row=args.row, circuit=circuit, scores=found.named.get("scores"),
            features=_features(args, model), origin=Origin(folder=str(folder)),
        )  # fmt: skip
    args.model = args.what or args.model
    build = task_builder(args.task)
    with console.step(f"loading {args.model}"):
        model = load(args)
        task = build(model, n=args.n_pairs, seed=args.seed)
    named = not args.task.endswith((".csv", ".jsonl", ".ndjson"))
    origin = Origin(args.task if named else "", args.n_pairs, args.seed)
    return Session(model, task, row=args.row, features=_features(args, model), origin=origin)


def _features(args: argparse.Namespace, model: Any) -> Any:
    """The features named by --features, else those shipped with the model, else none."""
    from ..features import feature_names, load_features

    named = getattr(args, "features", None)
    if named is None and str(model.cfg.model_name) not in feature_names():
        return None
    return load_features(model, named)
