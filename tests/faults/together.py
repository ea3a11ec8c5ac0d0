"""Two threads on one model, threads on one file, processes in one folder: right numbers or a refusal, never half."""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mechwork.artefact import read_artefact, write_artefact
from mechwork.errors import ArtefactError, BusyError, InputError, MechworkError
from mechwork.files import read_json, write_json
from tests.faults.core import Tally, changes, model_of, small_task, whole_state
from tests.faults.interrupts import PLAIN
from tests.faults.kills import WORKS

SHORT = [name for name in PLAIN if name != "evaluate"]


def numbers_of(result: Any) -> list[Any]:
    """Everything that a result says, as values that can be compared to the bit."""
    if isinstance(result, torch.Tensor):
        return [result.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    if isinstance(result, dict) or hasattr(result, "items"):
        return [part for value in dict(result.items()).values() for part in numbers_of(value)]
    for name in ("per_example", "logits", "mask", "values", "patterns", "terms"):
        if hasattr(result, name):
            return numbers_of(getattr(result, name))
    return [repr(result)]


@cache
def accepted(family: str, name: str) -> bool:
    """Whether a family has what the operation needs (no soft cap, say)."""
    try:
        PLAIN[name](model_of(family), small_task())
    except InputError:
        return False
    return True


def threads(tally: Tally, family: str, one: str, two: str) -> None:
    """Each thread repeats its operation: every result is that of the operation alone, or a refusal."""
    model, task = model_of(family), small_task()
    if not accepted(family, one) or not accepted(family, two):
        two = one = "patch"
    expected = {name: numbers_of(PLAIN[name](model, task)) for name in (one, two)}
    before = whole_state(model)
    barrier, wrong, refused = threading.Barrier(2), [], []

    def work(name: str) -> None:
        barrier.wait()
        for _ in range(3):
            try:
                found = numbers_of(PLAIN[name](model, task))
            except BusyError:
                refused.append(name)
            except Exception as error:  # noqa: BLE001 - counted
                wrong.append(f"{name}: {type(error).__name__} {error}"[:160])
            else:
                if found != expected[name]:
                    wrong.append(f"{name}: wrong numbers")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (one, two)))
    said = "; ".join(wrong[:2]) or changes(before, whole_state(model))
    tally.check(not said, f"{family}: {one} beside {two}: {said}")


def one_file(tally: Tally, n: int = 8, times: int = 12) -> None:
    """Threads write one path while another reads it: every reading is one of the contents, whole."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_json(folder / "it.json", {"by": -1, "of": [-1] * 500})
        write_artefact(folder / "it.safetensors", "thing", {"by": -1}, {"x": torch.full((50,), -1.0)})
        wrong: list[str] = []
        stop = threading.Event()

        def write(number: int) -> None:
            for _ in range(times):
                try:
                    write_json(folder / "it.json", {"by": number, "of": [number] * 500})
                    tensors = {"x": torch.full((50,), float(number))}
                    write_artefact(folder / "it.safetensors", "thing", {"by": number}, tensors)
                except Exception as error:  # noqa: BLE001 - counted
                    wrong.append(f"writing: {type(error).__name__} {error}"[:160])

        def read() -> None:
            while not stop.is_set():
                try:
                    found = read_json(folder / "it.json")
                    kept = read_artefact(folder / "it.safetensors", "thing")
                except MechworkError as error:
                    wrong.append(f"reading: {error}"[:160])
                    continue
                if found["of"] != [found["by"]] * 500 or float(kept.tensors["x"][7]) != kept.facts["by"]:
                    wrong.append("a mixture was read")

        reader = threading.Thread(target=read)
        reader.start()
        with ThreadPoolExecutor(n) as pool:
            list(pool.map(write, range(n)))
        stop.set()
        reader.join()
        left = sorted(path.name for path in folder.iterdir())
        tally.tried += n * times * 2 - 1
        tally.check(not wrong and left == ["it.json", "it.safetensors"], f"one file: {wrong[:2]} {left}")


def processes(tally: Tally, name: str, n: int = 2) -> None:
    """Several processes make the same call in one folder: each ends with the right numbers or a refusal."""
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as other:
        whole = WORKS[name](Path(other))
        pipes = []
        for _ in range(n):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    said = ("done", WORKS[name](Path(place)))
                except (ArtefactError, InputError) as error:
                    said = ("refused", str(error))
                except BaseException as error:  # noqa: BLE001 - counted
                    said = ("raw", f"{type(error).__name__}: {error}"[:200])
                os.write(writer, pickle.dumps(said))
                os._exit(0)
            os.close(writer)
            pipes.append((child, reader))
        ends = []
        for child, reader in pipes:
            with os.fdopen(reader, "rb") as stream:
                ends.append(pickle.loads(stream.read()))
            os.waitpid(child, 0)
        wrong = [text for outcome, text in ends if outcome == "raw" or (outcome == "done" and text != whole)]
        after = WORKS[name](Path(place))
        wrong += [] if after == whole else ["the folder gives other numbers afterwards"]
        tally.check(not wrong, f"{name} in {n} processes: {wrong[:2]}")


def run(tally: Tally) -> None:
    """Pairs of operations, one file, one folder."""
    for _ in range(tally.times(46)):
        draw = tally.draw
        threads(tally, draw.choice(("gpt2", "llama", "gemma2")), draw.choice(SHORT), draw.choice(SHORT))
    for _ in range(tally.times(4)):
        one_file(tally)
    for name in ("sweep", "ablations", "masks", "acdc", "lens", "features", "report"):
        for _ in range(tally.times(2)):
            processes(tally, name, tally.draw.choice((2, 3)))
