"""A discovery that is killed goes on, and ends in the bytes of one that was not."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mechwork as mw
from mechwork.discovery.folder import Folder
from mechwork.discovery.settings import Settings
from mechwork.errors import ArtefactError, InputError
from tests.gate import fewer

ROOT = Path(mw.__file__).parents[1]
SAME = ("circuit.json", "edges.csv", "effects.csv", "curve.csv", "report.html", "report.json", "request.json")
KILLED = 6
RUN = """
import json, os, pathlib, random, signal, sys, time
import mechwork as mw
from mechwork.discovery.settings import Settings

place, every, moments = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
SAME = sys.argv[4].split()
model = mw.load_model("attn-only-2l")
task = mw.tasks.induction(model, n=8, seed=0)
rename = pathlib.Path.replace


def live(out, at=0, after=None):
    # A run in a forked process, which spares loading the model again. It dies just before its rename number `at`
    # (negative: just after it), or `after` seconds. Gives (killed, number of renames, seconds).
    begun, reader, writer = time.monotonic(), *os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def counting(self, target):
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            found = rename(self, target)
            if count == -at:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        pathlib.Path.replace = counting
        mw.discover(model, task, out=out, settings=Settings(min_accuracy=0.01), mode="quick")
        os.write(writer, str(count).encode())
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(writer)
    said = os.read(reader, 20)
    os.close(reader)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        sys.exit("a run failed")
    return os.WIFSIGNALED(status), int(said or 0), time.monotonic() - begun


def content(out):
    return {name: (out / name).read_bytes() for name in SAME}


def finished(out):
    ledger = out / "ledger.json"
    return json.loads(ledger.read_text()) if ledger.is_file() else {}


whole = place / "whole"
_, n, seconds = live(whole)
wrong, killed = [], 0
rng = random.Random(0)
deaths = [{"at": at} for at in (*range(1, n + 1), *range(-1, -n - 1, -1))][::every] if every else []
deaths += [{"after": rng.uniform(0, seconds)} for _ in range(moments)]
for number, death in enumerate(deaths):
    out = place / str(number)
    died, *_ = live(out, **death)
    before = finished(out)
    killed += died
    live(out)
    after = finished(out)
    if content(out) != content(whole):
        wrong.append([death, "other bytes", [k for k, v in content(out).items() if v != content(whole)[k]]])
    if any(after[stage] != entry for stage, entry in before.items()):
        wrong.append([death, "a finished stage ran again"])
    if list(out.rglob("*.part")):
        wrong.append([death, "something is left over"])
print(json.dumps({"n": n, "killed": killed, "deaths": len(deaths), "wrong": wrong}))
"""


def live(place: Path, every: int, moments: int) -> dict[str, Any]:
    """What `RUN` found: killed at every so-manieth rename (0: at none), and at so many moments."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(place), str(every), str(moments), " ".join(SAME)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished discovery of a small model."""
    model = mw.load_model("attn-only-2l")
    task = mw.tasks.induction(model, n=8, seed=0)
    out = tmp_path_factory.mktemp("whole") / "out"
    mw.discover(model, task, out=out, settings=Settings(min_accuracy=0.01), mode="quick")
    return out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_random_moments_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    found = live(tmp_path, 0, KILLED)
    assert found["wrong"] == []
    assert found["killed"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_every_rename_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    every = fewer([1], [5])[0]
    found = live(tmp_path, every, 0)
    assert found["wrong"] == []
    assert found["n"] > 10
    assert found["killed"] == found["deaths"] == math.ceil(2 * found["n"] / every)


def test_a_folder_is_read_without_its_model_and_extended_with_it(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    found = mw.load_discovery(copy)
    assert found.finished
    assert found.page == copy / "report.html"
    assert found.circuit.n_edges > 0
    assert len(found.curve.sizes) >= 3
    with pytest.raises(InputError, match="needs its model"):
        found.extend(thorough=True)
    with pytest.raises(InputError, match="other weights"):
        found.extend(mw.load_model("gpt2-6l"), thorough=True)
    before = json.loads((copy / "ledger.json").read_text())
    more = found.extend(mw.load_model("attn-only-2l"), thorough=True)
    after = json.loads((copy / "ledger.json").read_text())
    assert {name: after[name] for name in before} == before  # nothing ran again
    assert {"measure", "curve-all", "heads-all"} <= set(after)
    assert more.finished
    assert more.measured is not None
    assert (more.circuit.mask == found.circuit.mask).all()


def test_two_runs_in_one_folder_are_refused(whole: Path) -> None:
    folder = Folder(whole)
    second = Folder(whole).claim(folder.request(), force=False)
    with folder.claim(folder.request(), force=False), pytest.raises(InputError, match="another run"):
        second.__enter__()


def test_what_is_no_discovery_or_was_changed_is_an_artefact_error(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"request\.json"):
        mw.load_discovery(tmp_path)
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    file = copy / "results" / "scores.scores.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ArtefactError, match="not the file that was written"):
        mw.load_discovery(copy)
    file.unlink()
    with pytest.raises(ArtefactError, match="missing"):
        mw.load_discovery(copy)
