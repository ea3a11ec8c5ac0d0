"""A process that is killed at any rename, or between two, leaves a checkpoint that goes on: the state before or the
state after.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

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
import json, os, signal, sys, tempfile
from pathlib import Path
import torch
from mechwork.checkpoint import Checkpoint

def train(k, when, folder, log):
    calls = 0
    def dying(real):
        def call(*args, **more):
            nonlocal calls
            calls += 1
            if calls == k and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                real(*args, **more)
            finally:
                if calls == k and when == "after":
                    os.kill(os.getpid(), signal.SIGKILL)
        return call
    for name in ("replace", "rename", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    keeper = Checkpoint(folder, {"recipe": {"seed": 1, "betas": [0.9, 0.95]}})
    start = keeper.load()
    for step in range(start[1]["step"] + 1 if start else 1, 5):
        keeper.save({"weights": torch.full((50,), float(step))}, {"step": step})
        os.write(log, bytes([step]))

for line in sys.stdin:
    k, when, folder = json.loads(line)
    read, log = os.pipe()
    child = os.fork()
    if child == 0:
        train(k, when, Path(folder), log)
        os._exit(0)
    os.close(log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, list(os.read(read, 100))]), flush=True)
    os.close(read)
"""


class Children:
    """One process that has imported everything, and forks a training per line that it is told."""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *raised: object) -> None:
        self.process.communicate()

    def train(self, k: int, when: str, folder: Path) -> tuple[int, list[int]]:
        """Exit code, and the steps whose checkpoints were written, of a training that dies at its k-th rename or
        removal.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([k, when, str(folder)]), file=self.process.stdin, flush=True)
        code, steps = json.loads(self.process.stdout.readline())
        return code, steps


def state(folder: Path) -> int:
    """The step that is kept; its numbers belong to it."""
    kept = Checkpoint(folder, IDENTITY).load()
    assert kept is not None
    tensors, facts = kept
    assert torch.equal(tensors["weights"], torch.full((50,), float(facts["step"])))
    return facts["step"]


def test_killed_at_every_rename_the_last_good_state_is_kept(tmp_path: Path) -> None:
    killed = 0
    with Children() as children:
        for k in range(1, 20):
            ended = []
            for when in ("before", "after"):
                folder = tmp_path / f"{when} {k}"
                code, steps = children.train(k, when, folder)
                ended.append(code == 0)
                if code == 0:
                    assert state(folder) == 4
                    continue
                assert code == -signal.SIGKILL
                killed += 1
                last = steps[-1] if steps else 0
                if last or has_checkpoint(folder):
                    assert state(folder) in (last, last + 1)
                assert children.train(0, "never", folder)[0] == 0
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
