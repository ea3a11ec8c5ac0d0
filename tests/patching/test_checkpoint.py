"""A sweep that is killed and started again: same file, no finished cell repeated; folders of other sweeps refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mechwork.errors import ArtefactError, InputError
from mechwork.execute.ledger import PLAN, RESULTS
from mechwork.patching import Effects, patch
from mechwork.patching.exact import RESULT
from mechwork.tasks.task import Task
from tests.families import build_model, build_task

ROOT = Path(__file__).parents[2]
SETTINGS: dict[str, Any] = {"positions": "each", "metrics": ["logit_difference", "log_probability"]}
SITES = ["resid_pre", "z"]

CHILD = """
import sys, time, torch
from mechwork.patching import patch
from tests.families import build_model, build_task
torch.set_num_threads(1)

seen = {0}

def slowly(done, total, what):
    if done not in seen:  # between them the same is told again, as a sign of life
        seen.add(done)
        print(done, flush=True)
        time.sleep(0.2)

patch(build_model("llama", torch.float32), build_task(n=6), ["resid_pre", "z"], positions="each",
      metrics=["logit_difference", "log_probability"], memory_budget=int(sys.argv[2]), checkpoint=sys.argv[1],
      progress=slowly)
"""


def budget() -> int:
    """The least that is allowed, so that the sweep has many chunks and several blocks of pairs."""
    with pytest.raises(InputError) as refusal:
        patch(build_model("llama", torch.float32), build_task(n=6), SITES, memory_budget=1, **SETTINGS)
    return int(str(refusal.value).split("one pair, ")[1].split(" bytes")[0].replace(",", "")) * 3


def test_killed_and_started_again_gives_the_same_file(tmp_path: Path) -> None:
    least = budget()
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", CHILD, str(killed), str(least)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    for _ in range(6):
        assert child.stdout.readline().strip()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in (killed / RESULTS).iterdir()}
    assert len(finished) >= 4
    assert not (killed / RESULT).exists()
    (killed / RESULTS / "abc.safetensors.part").write_bytes(b"half a file")

    model, task = build_model("llama", torch.float32), build_task(n=6)
    resumed = patch(model, task, SITES, memory_budget=least, checkpoint=killed, **SETTINGS)
    uninterrupted = patch(model, task, SITES, memory_budget=least, checkpoint=whole, **SETTINGS)
    files = [PLAN, RESULT, *(f"{RESULTS}/{path.name}" for path in (whole / RESULTS).iterdir())]
    assert len(files) > len(finished) + 4
    for name in files:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    after = {name: (killed / RESULTS / name).stat().st_mtime_ns for name in finished}
    assert after == finished, "a finished chunk was written again"
    for kind in SITES:
        assert torch.equal(resumed[kind].per_example, uninterrupted[kind].per_example)
        assert float(resumed.under("log_probability")[kind].values.abs().max()) > 1e-3
    stored = Effects.load(whole / RESULT)
    assert torch.equal(
        stored.under("log_probability")["z"].per_example, resumed.under("log_probability")["z"].per_example
    )
    free = patch(model, task, SITES, **SETTINGS)
    torch.testing.assert_close(free["z"].per_example, resumed["z"].per_example, rtol=0, atol=2e-5)


def test_a_finished_sweep_runs_nothing(
    tiny_gpt2: Any, tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = patch(tiny_gpt2, tiny_task, ["resid_pre"], checkpoint=tmp_path / "c")
    monkeypatch.setattr("mechwork.patching.execute._step_through", None)
    again = patch(tiny_gpt2, tiny_task, ["resid_pre"], checkpoint=tmp_path / "c")
    assert torch.equal(first["resid_pre"].per_example, again["resid_pre"].per_example)


def test_folders_of_other_sweeps_are_refused(tiny_gpt2: Any, tiny_task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    patch(tiny_gpt2, tiny_task, ["z"], checkpoint=folder)
    with pytest.raises(ArtefactError, match="its plan differ"):
        patch(tiny_gpt2, tiny_task, ["q"], checkpoint=folder)
    with pytest.raises(ArtefactError, match="its task differ"):
        patch(tiny_gpt2, build_task(seed=3), ["z"], checkpoint=folder)
    with pytest.raises(ArtefactError, match="its model differ"):
        patch(build_model("gpt2", torch.float32, seed=5), tiny_task, ["z"], checkpoint=folder)
    chunk = next((folder / RESULTS).iterdir())
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:40])
    with pytest.raises(ArtefactError, match="damaged"):
        patch(tiny_gpt2, tiny_task, ["z"], checkpoint=folder)
    (folder / PLAN).write_text("{")
    with pytest.raises(ArtefactError, match="damaged"):
        patch(tiny_gpt2, tiny_task, ["z"], checkpoint=folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="no checkpoint"):
        patch(tiny_gpt2, tiny_task, ["z"], checkpoint=tmp_path / "other")
    with pytest.raises(InputError, match="is a file"):
        patch(tiny_gpt2, tiny_task, ["z"], checkpoint=tmp_path / "other" / "thesis.txt")
