"""``python -m tests.faults [--part NAME ...] [--seed N] [--scale X]``: attack, and print tried / held / failures.

``--scale 1`` (default) takes about 25 minutes of one core (CONTRIBUTING has the seconds of each part), ``.05`` what the
gate runs. Exit status 1 when something did not hold. ``--list`` names the parts.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

PARTS = {
    "interrupts": "exceptions and interrupts at module calls, lines and times of every operation",
    "state": "1,000 faults one after another on the same models: state at the end against the beginning",
    "gim": "the same under gim, whose rules replace forwards and softmaxes, on every family",
    "kills": "SIGKILL, SIGTERM and SIGINT at every rename and at random times, then resume",
    "workers": "Ray: workers killed, drivers killed and stopped, then taken up again (where Ray is installed)",
    "disk": "no space, no right, I/O errors at any write",
    "together": "two threads on one model, threads and processes on one file or folder",
    "loaders": "damaged, hostile and foreign files of every kind",
    "calls": "wrong arguments to the public functions, by their signatures",
    "commands": "wrong arguments to the command line, by its parsers",
    "strings": "hostile text through pages, terminal, CSV and JSON",
    "tampering": "changes in any region of a report's files, against verify",
    "halves": "bfloat16 and float16 models",
    "soak": "the same work again and again: memory and open files",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--part", action="append", choices=PARTS, help="one part; may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=3.0, help="of the soak")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args(arguments)
    if args.list:
        print("\n".join(f"{name:<12} {what}" for name, what in PARTS.items()))
        return 0
    import torch

    from tests.faults.core import HEADER, Tally

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(HEADER, flush=True)
    bad = 0
    for name in args.part or [part for part in PARTS if part != "soak"]:
        module = importlib.import_module(f"tests.faults.{name}")
        tally = Tally(name, args.seed, args.scale)
        if name == "soak":
            module.run(tally, minutes=args.minutes)
        else:
            module.run(tally)
        print(tally.report(), flush=True)
        bad += len(tally.failures)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
