"""What work on a large model would take, on paper: units, time, memory, and how many workers pay. Nothing is loaded.

  mechwork plan --model-shape llama-8b --workers 64
  mechwork plan --model-shape llama-70b --workers 16 --tokens 256 --gpu-memory 141GB

'mechwork discover TASK --plan' counts and times the stages of a discovery on this machine.
"""

from __future__ import annotations

import argparse

from ..errors import InputError
from .console import Console
from .options import MOST_PAIRS, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument(
        "--model-shape", default="llama-8b", metavar="NAME", help="smollm2-135m, llama-1b, llama-8b or llama-70b"
    )
    parser.add_argument("--workers", type=at_least(1, 4096), default=1, metavar="N", help="how many (default: 1)")
    parser.add_argument("--n-pairs", "-n", type=at_least(1, MOST_PAIRS), default=64, metavar="N", help="(default: 64)")
    parser.add_argument("--tokens", type=at_least(1, 2**20), default=24, metavar="N", help="of a prompt (default: 24)")
    parser.add_argument("--gpu-memory", default="80GB", metavar="SIZE", help="of one GPU (default: 80GB)")
    parser.add_argument(
        "--tflops", type=float, default=400.0, metavar="X",
        help="10^12 operations per second that a worker does (default: 400, 40 %% of an H100)",
    )  # fmt: skip
    parser.add_argument(
        "--start", type=float, metavar="SECONDS", help="until a worker has its model (default: from the weights' size)"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Print the table."""
    from ..discovery.scale import find_shape, parse_machine, plan_workers

    if not args.tflops > 0:
        raise InputError(f"--tflops is above 0; got {args.tflops}")
    machine = parse_machine(args.gpu_memory, 1e12 * args.tflops, args.start)
    found = plan_workers(
        find_shape(args.model_shape), n_workers=args.workers, n_pairs=args.n_pairs, n_pos=args.tokens, machine=machine
    )
    console.result(repr(found), {"shape": vars(found.shape), "rows": [vars(row) for row in found.rows]})
