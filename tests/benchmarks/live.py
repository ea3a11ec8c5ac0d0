"""What a gesture of the live workbench takes, how soon a cancel is heard, whether memory stays flat, and how many of
many gestures beside a busy notebook cell are wrong.

    python -m tests.benchmarks.live                              # latencies, gpt2-6l and gpt2-12l
    python -m tests.benchmarks.live --model model.gguf           # another model
    python -m tests.benchmarks.live --cancel [--model ...]       # how long after a cancel a job has ended
    python -m tests.benchmarks.live --soak 10                    # minutes of gestures: resident memory
    python -m tests.benchmarks.live --beside 1000                # gestures beside a cell that runs the model

Latencies are CPU time of one thread in ms (median of three, nothing kept of earlier gestures but the pair's own run)
until the effect is told, and until all is; F is one forward of the prompt. `ioi`, 16 pairs.
"""

from __future__ import annotations

import argparse
import gc
import random
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import mechwork as mw
from mechwork.errors import Cancelled
from mechwork.execute import executor
from mechwork.live import (
    Ablate,
    Attention,
    Attribution,
    ChooseRow,
    KeepEdges,
    Patch,
    PatchEach,
    ReadLens,
    Rescale,
    Restore,
    ScoreEdges,
    Session,
    Steer,
)
from tests.benchmarks.common import cpu
from tests.faults.soak import resident

BUNDLED = ("gpt2-6l", "gpt2-12l")
N = 16


def main() -> None:
    """Print what was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--cancel", action="store_true")
    parser.add_argument("--tries", type=int, default=6, help="of --cancel, per job")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--beside", type=int, metavar="GESTURES")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in args.model or BUNDLED[: 2 if not (args.soak or args.beside) else 1]:
        with opened(name) as session:
            forward = 1000 * cpu(lambda: plain(session), 3)
            print(f"\n{str(session.model.cfg.model_name)[-40:]}: F = {forward:.0f} ms", flush=True)
            if args.cancel:
                cancels(session, args.tries, args.seed)
            elif args.soak:
                soak(session, args.soak, args.seed)
            elif args.beside:
                wrong = beside(session, args.beside)
                print(f"  {args.beside} gestures beside a running cell: {wrong[0]} of them wrong, and {wrong[2]} of "
                      f"{wrong[1]} results of the cell")  # fmt: skip
            else:
                latencies(session)


@contextmanager
def opened(name: str) -> Iterator[Session]:
    """A session on `ioi`."""
    model = mw.load_model(name)
    session = Session(model, mw.tasks.ioi(model, n=N, seed=0))
    try:
        yield session
    finally:
        session.close()


def plain(session: Session) -> None:
    with torch.no_grad():
        session.model(session.desk.pair(session.state.choice).pairs.clean_tokens)


def forget(session: Session) -> None:
    """Keep the pair's own run, as while somebody looks at it, and nothing of earlier gestures."""
    session.do(Restore())
    kept = session.desk._streams
    assert kept is not None
    kept.told.clear()
    kept.bound.clear()


def latencies(session: Session) -> None:
    """A table: until the effect, and until the end."""
    layer = session.desk.anatomy.n_layers // 2
    large = session.desk.anatomy.d_vocab * session.desk.anatomy.n_layers > 500_000
    session.do(ScoreEdges("relp"))
    session.do(KeepEdges(100))  # the eight pairs' own runs are kept from here on
    rows: list[tuple[str, Any]] = [
        ("ablate a head of the middle block", Ablate(f"a{layer}.h1")),
        ("patch a head of the middle block", Patch(f"a{layer}.h1")),
        ("patch one place of the stream", Patch(f"resid_pre.{layer}@END")),
        ("steer after the middle block", Steer(layer)),
        ("lens at one token", ReadLens(7)),
        ("lens at every token", ReadLens(-1)),
        ("attention of one head", Attention(f"a{layer}.h1")),
        ("direct shares of all parts", Attribution()),
        ("another circuit on 8 pairs", KeepEdges(120)),
        ("another pair", ChooseRow(1)),
    ]
    print(f"  {'gesture':<36}{'effect':>9}{'all':>9}")
    session.do(Ablate(f"a{layer}.h1"))  # means of the layer are fitted once per session
    for name, gesture in rows:
        times = []
        for _ in range(1 if large and not isinstance(gesture, Ablate | Patch) else 3):
            session.do(ChooseRow(0))
            forget(session)
            told: list[float] = []
            begun = time.process_time()

            def emit(what: str, data: dict[str, Any], told: list[float] = told) -> None:
                if what == "progress":
                    told.append(time.process_time())

            session.do(gesture, emit)
            ends = time.process_time()
            times.append(((told[0] if told else ends) - begun, ends - begun))
        effect, whole = (1000 * sorted(column)[len(column) // 2] for column in zip(*times, strict=True))
        print(f"  {name:<36}{effect:>9.0f}{whole:>9.0f}", flush=True)


def cancels(session: Session, tries: int, seed: int) -> None:
    """A table: a job is begun, cancelled at a random moment, and the time until it has ended."""
    draw = random.Random(seed)
    session.do(ScoreEdges("relp"))
    jobs: list[tuple[str, Any]] = [
        ("patch every part", PatchEach()), ("score edges, relp", ScoreEdges("relp")),
        ("score edges, EAP-IG", ScoreEdges("eap-ig")), ("circuit on 8 pairs", KeepEdges(100)),
        ("lens at every token", ReadLens(-1)), ("ablate with controls", Ablate("a3.h1")),
    ]  # fmt: skip
    print(f"  {'job':<26}{'cancelled':>10}{'median':>10}{'longest':>10}   wall ms, CPU ms of the longest")
    for name, gesture in jobs:
        found: list[tuple[float, float]] = []
        longest = 4.0
        for _ in range(tries):
            session.do(Restore())
            session.circuits.forget()
            wait = draw.uniform(0, longest)
            outcome = cancelled_after(session, gesture, wait)
            if outcome is None:
                longest = max(0.02, wait / 2)  # it had ended by itself
            else:
                found.append(outcome)
        walls = sorted(1000 * wall for wall, _ in found) or [float("nan")]
        slow = max(1000 * used for _, used in found) if found else float("nan")
        print(
            f"  {name:<26}{len(found):>6}/{tries:<3}{walls[len(walls) // 2]:>10.0f}{walls[-1]:>10.0f}{slow:>10.0f}",
            flush=True,
        )


def cancelled_after(session: Session, gesture: Any, wait: float) -> tuple[float, float] | None:
    """Wall and CPU seconds from the cancel to the end; None when it had ended before."""
    stop = threading.Event()
    at: list[tuple[float, float]] = []

    def cancel() -> None:
        at.append((time.monotonic(), time.process_time()))
        stop.set()

    def emit(what: str, data: dict[str, Any]) -> None:
        if stop.is_set():
            raise Cancelled("stopped, as asked")

    timer = threading.Timer(wait, cancel)
    timer.start()
    try:
        with executor("local", cancel=stop.is_set):
            session.do(gesture, emit)
    except Cancelled:
        return time.monotonic() - at[0][0], time.process_time() - at[0][1]
    finally:
        timer.cancel()
        timer.join()
    return None


def soak(session: Session, minutes: float, seed: int) -> None:
    """Random gestures for that long; resident memory of the second and the last quarter."""
    draw = random.Random(seed)
    anatomy = session.desk.anatomy
    rows: list[int] = []
    n, ends = 0, time.monotonic() + 60 * minutes
    session.do(ScoreEdges("relp"))
    while time.monotonic() < ends:
        layer, head = draw.randrange(anatomy.n_layers), draw.randrange(anatomy.n_heads)
        place = f"a{layer}.h{head}{draw.choice(('', '@END', '@3'))}"
        gesture: Any = draw.choice((
            Ablate(place), Patch(place), Rescale(place, draw.uniform(-2, 2)), Steer(layer, draw.uniform(-2, 2)),
            ChooseRow(draw.randrange(N)), Restore(), ReadLens(draw.randrange(10)), Attention(f"a{layer}.h{head}"),
            Attribution(), KeepEdges(draw.randrange(5, 200)),
        ))  # fmt: skip
        session.do(gesture)
        if len(session.state.changes) > 5:
            session.do(Restore())
        n += 1
        if n % 20 == 0:
            gc.collect()
            rows.append(resident())
    quarter = max(1, len(rows) // 4)
    early, late = (sum(part) / len(part) for part in (rows[quarter : 2 * quarter], rows[-quarter:]))
    print(f"  {n} gestures in {minutes:g} minutes: {early / 1e6:.1f} MB in the second quarter, {late / 1e6:.1f} MB in "
          f"the last ({late / early - 1:+.2%}); {threading.active_count()} threads")  # fmt: skip


def beside(session: Session, n: int) -> tuple[int, int, int]:
    """(gestures that were wrong, results of a cell, how many of these were wrong): both run at once, `n` gestures."""
    model, task = session.model, session.task[:4]
    anatomy = session.desk.anatomy
    places = [f"a{layer}.h{head}" for layer in range(anatomy.n_layers) for head in (0, 1)]
    right = {}
    for place in places:
        for gesture in (Ablate(place), Patch(place)):
            right[gesture] = session.do(gesture).data["metric"]
            session.do(Restore())
    with torch.no_grad():
        logits = model(task.pairs.clean_tokens)
    effects = mw.attribute(model, task, ["z"], rules="relp")["z"].values
    done, begun = threading.Event(), threading.Event()
    told = [0, 0]

    def cell() -> None:
        while not done.is_set():
            with torch.no_grad():
                told[1] += not torch.equal(model(task.pairs.clean_tokens), logits)
            if told[0] % 7 == 0:
                found = mw.attribute(model, task, ["z"], rules="relp")["z"].values
                told[1] += not torch.equal(found, effects)
            told[0] += 1
            begun.set()

    thread = threading.Thread(target=cell, name="the cell")
    thread.start()
    begun.wait(120)
    wrong = 0
    try:
        gestures = list(right)
        for i in range(n):
            kept = session.desk._streams
            assert kept is not None
            kept.told.clear()
            kept.bound.clear()  # every answer runs the model
            gesture = gestures[i % len(gestures)]
            wrong += session.do(gesture).data["metric"] != right[gesture]
            session.do(Restore())
    finally:
        done.set()
        thread.join(120)
    return wrong, told[0], told[1]


if __name__ == "__main__":
    main()
