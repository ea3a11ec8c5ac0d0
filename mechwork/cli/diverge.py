"""Find where two models of one anatomy come apart on a task, and what the second's activations carry into the first.

mechwork diverge attn-only-2l@500 attn-only-2l --task induction
mechwork diverge gpt2-6l ./my-tuned-gpt2-6l --task pronoun --across resid_post mlp_out --out diverge.html
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import InputError
from .console import Console
from .options import DTYPES, at_least, load_named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "model_a", metavar="MODEL_A", help="the base: a bundled name (NAME@STEP: in training), folder or hub name"
    )
    parser.add_argument("model_b", metavar="MODEL_B", help="the model that is compared with it")
    parser.add_argument(
        "--task", required=True, metavar="TASK", help="a task's name: its prompts are run in both models"
    )
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="sites to compare (default: resid_post, attn_out, mlp_out)"
    )
    parser.add_argument(
        "--across", nargs="*", metavar="KIND",
        help="also patch MODEL_B's activations into MODEL_A, at these kinds of site (default: resid_post, attn_out, mlp_out)",
    )  # fmt: skip
    parser.add_argument(
        "--n-pairs",
        type=at_least(2),
        default=128,
        metavar="N",
        help="pairs, half of them held out and used (default: 128)",
    )
    parser.add_argument(
        "--n-null", type=at_least(1), default=5, metavar="N", help="draws of noise in the weights (default: 5)"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the pairs and of the noise (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the plots and the tables as one HTML page")
    group = parser.add_argument_group("models")
    group.add_argument("--device", help="e.g. cpu, cuda, cuda:1, mps (default: cpu)")
    group.add_argument("--dtype", default="float32", choices=DTYPES, help="of the weights (default: %(default)s)")
    group.add_argument("--threads", type=at_least(1), metavar="N", help="torch threads (default: 1 for small models)")
    group.add_argument("--offline", action="store_true", help="never ask the hub, whatever the models' names")


def run(args: argparse.Namespace, console: Console) -> None:
    """Check names; run both models; print."""
    from ..comparison import find_divergence, patch_across
    from ..sites import site_kind
    from ..tasks import find_task

    build = find_task(args.task)
    for kind in (*(args.kinds or ()), *(args.across or ())):
        site_kind(kind)
    if args.out is not None and not args.out.absolute().parent.is_dir():
        raise InputError(f"--out names a file in a folder that exists; got {args.out}")
    models: list[Any] = []
    for name in (args.model_a, args.model_b):
        with console.step(f"loading {name}"):
            models.append(load_named(name, device=args.device, dtype=args.dtype, threads=args.threads))
    task = build(models[0], n=args.n_pairs, seed=args.seed).test
    with console.step("comparing"):
        found = find_divergence(
            models[0],
            models[1],
            task,
            kinds=args.kinds,
            n_null=args.n_null,
            names=(args.model_a, args.model_b),
            seed=args.seed,
        )
    data: dict[str, Any] = {
        "task": task.name, "models": list(found.names), "metric": list(found.metric), "output_kl": found.output_kl,
        "first_layer_over_null": found.first_layer, "first_reading_over_null": found.first_read,
        "rows": found.to_dataframe().to_dict("records"),
    }  # fmt: skip
    text, across = str(found), None
    if args.across is not None:
        kinds = args.across or ("resid_post", "attn_out", "mlp_out")
        with console.step("patching across"):
            across = patch_across(models[0], models[1], task, kinds, seed=args.seed)
        data["across"] = across.to_dataframe().to_dict("records")
        text = f"{text}\n\npatched from {args.model_b} into {args.model_a}\n{across}"
    if args.out is not None:
        from ..render import render_divergence

        args.out.write_text(render_divergence(found, across), encoding="utf-8")
    console.result(text, data)
