"""Find where two models of one anatomy come apart on a task, and what the second's activations carry into the first.

mechwork diverge attn-only-2l@500 attn-only-2l induction
mechwork diverge gpt2-6l ./my-tuned-gpt2-6l pronoun --across resid_post mlp_out --html diverge.html
"""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from .console import Console
from .options import add_pairs, add_tasks, at_least, load_named, task_builder, task_names
from .output import deliver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "model_a", metavar="MODEL_A", help="the base: a bundled name (NAME@STEP: in training), folder or hub name"
    )
    parser.add_argument("model_b", metavar="MODEL_B", help="the model that is compared with it")
    add_tasks(parser, "a task's name, or a file of pairs: its prompts are run in both models")
    parser.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="sites to compare (default: resid_post, attn_out, mlp_out)"
    )
    parser.add_argument(
        "--across", nargs="*", metavar="KIND",
        help="also patch MODEL_B's activations into MODEL_A, at these kinds of site (default: resid_post, attn_out, "
             "mlp_out)",
    )  # fmt: skip
    add_pairs(parser, 128, least=2, what="pairs, half of them held out and used")
    parser.add_argument(
        "--n-null", type=at_least(1), default=5, metavar="N", help="draws of noise in the weights (default: 5)"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Check names; run both models; print."""
    from ..comparison import find_divergence, patch_across
    from ..sites import site_kind

    names = task_names(args, ())
    if len(names) != 1:
        raise InputError(f"two models are compared on one task; got {', '.join(names) or 'none'}. See: mechwork tasks")
    build = task_builder(names[0])
    for kind in (*(args.kinds or ()), *(args.across or ())):
        site_kind(kind)
    models: list[Any] = []
    for name in (args.model_a, args.model_b):
        with console.step(f"loading {name}"):
            models.append(
                load_named(
                    name,
                    device=args.device,
                    dtype=args.dtype,
                    threads=args.threads,
                    bos=args.bos,
                    split_kv=args.split_kv,
                )
            )
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
    text, across, page = str(found), None, None
    if args.across is not None:
        kinds = args.across or ("resid_post", "attn_out", "mlp_out")
        with console.step("patching across"):
            across = patch_across(models[0], models[1], task, kinds, seed=args.seed)
        data["across"] = across.to_dataframe().to_dict("records")
        text = f"{text}\n\npatched from {args.model_b} into {args.model_a}\n{across}"
    if args.html is not None:
        from ..render import render_divergence

        page = render_divergence(found, across)
    deliver(args, console, found, text, data, page=page)
