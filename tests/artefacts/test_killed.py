"""A process that is killed at any rename, or between two, leaves a checkpoint that goes on: the state before or the state after."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mechwork.artefact import sha256
from mechwork.checkpoint import Checkpoint, has_checkpoint
from mechwork.errors import ArtefactError
from mechwork.provenance import hash_json

ROOT = Path(__file__).parents[2]
IDENTITY = {"recipe": {"seed": 1, "betas": (0.9, 0.95)}}
CHILD = """
import os, signal, sys
from pathlib import Path
import torch
from mechwork.checkpoint import Checkpoint
k, when, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
calls = 0
def dying(real):
    def call(*args, **more):
        global calls
        calls += 1
        if calls == k and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **more)
        if calls == k and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
    return call
for name in ("replace", "rename", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
keeper = Checkpoint(folder, {"recipe": {"seed": 1, "betas": [0.9, 0.95]}})
start = keeper.load()
step = start[1]["step"] if start else 0
while step < 4:
    step += 1
    keeper.save({"weights": torch.full((50,), float(step))}, {"step": step})
    print(step, flush=True)
"""


def child(k: int, when: str, folder: Path) -> tuple[int, list[int]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(k), when, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, [int(line) for line in done.stdout.split()]


def state(folder: Path) -> int:
    """The step that is kept; its numbers belong to it."""
    kept = Checkpoint(folder, IDENTITY).load()
    assert kept is not None
    tensors, facts = kept
    assert torch.equal(tensors["weights"], torch.full((50,), float(facts["step"])))
    return facts["step"]


def test_killed_at_every_rename_the_last_good_state_is_kept(tmp_path: Path) -> None:
    killed = 0
    for k in range(1, 20):
        ended = []
        for when in ("before", "after"):
            folder = tmp_path / f"{when} {k}"
            code, printed = child(k, when, folder)
            ended.append(code == 0)
            last = printed[-1] if printed else 0
            if code == 0:
                assert state(folder) == 4
                continue
            assert code == -signal.SIGKILL
            killed += 1
            if last:
                assert state(folder) in (last, last + 1)
            else:
                assert not has_checkpoint(folder) or state(folder) == 1
            assert child(0, "never", folder)[0] == 0
            assert state(folder) == 4
        if all(ended):
            break
    assert killed >= 8, "the child was killed at fewer renames than it makes"


def test_checkpoints_of_the_first_release_go_on_and_become_one_file(tmp_path: Path) -> None:
    save_file({"weights": torch.full((50,), 2.0)}, tmp_path / "checkpoint.safetensors")
    old = {"identity": hash_json(IDENTITY), "sha256": sha256(tmp_path / "checkpoint.safetensors"), "step": 2}
    (tmp_path / "checkpoint.json").write_text(json.dumps(old))
    assert state(tmp_path) == 2
    with pytest.raises(ArtefactError, match="another run"):
        Checkpoint(tmp_path, {"recipe": 2}).load()
    Checkpoint(tmp_path, IDENTITY).save({"weights": torch.full((50,), 3.0)}, {"step": 3})
    assert state(tmp_path) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    with pytest.raises(ArtefactError, match="another run: its recipe differ"):
        Checkpoint(tmp_path, {"recipe": 2}).load()
