"""Checkpoints of a sweep: a folder with the plan as JSON and one safetensors file per finished chunk.

Files are written beside their name and then renamed, so that a file that is there is whole, whenever the process was
killed. A folder belongs to one plan, one model and one task; another's is refused. Chunks are determined by the plan and
the recorded runs, so a resumed sweep computes exactly what the uninterrupted one would have.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ArtefactError, InputError
from ..provenance import Provenance, hash_json

FORMAT = 1
PLAN = "plan.json"
RESULT = "effects.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A folder of finished chunks. `identity`: plan, model and task, as JSON values."""

    folder: Path
    identity: Provenance

    def __post_init__(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"checkpoint is a folder, which is made if need be; {self.folder} is a file")

    def open(self) -> dict[str, Tensor]:
        """The metrics of finished chunks by key; makes the folder when there is none.

        Raises `ArtefactError` when it belongs to another plan, model or task, or a chunk's file is damaged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        plan = self.folder / PLAN
        if not plan.is_file():
            strangers = sorted(path.name for path in self.folder.iterdir())
            if strangers:
                raise ArtefactError(
                    f"{self.folder} is no checkpoint: it has no {PLAN} but {', '.join(strangers[:3])}. Give an empty or a new folder."
                )
            _write(plan, json.dumps({"format": FORMAT, **self.identity}, indent=1, sort_keys=True).encode())
            return {}
        self._check(plan)
        finished: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("chunk-*.safetensors")):
            finished.update([self._read(path)])
        return finished

    def write(self, block: int, number: int, key: str, values: Tensor) -> None:
        """Keep one finished chunk."""
        header = json.dumps({"format": FORMAT, "key": key, "sweep": hash_json(self.identity)}, sort_keys=True)
        path = self.folder / f"chunk-{block:05d}-{number:06d}.safetensors"
        _save({"metric": values.contiguous().cpu()}, path, header)

    def _check(self, plan: Path) -> None:
        try:
            found = json.loads(plan.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtefactError(f"{plan} is damaged: {error}. Delete the folder and start again.") from error
        wanted = json.loads(json.dumps({"format": FORMAT, **self.identity}))
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if differing:
            raise ArtefactError(
                f"the checkpoint in {self.folder} belongs to another sweep: its {', '.join(differing)} differ from this one's. "
                "Give another folder, or repeat the call it was made by."
            )

    def _read(self, path: Path) -> tuple[str, Tensor]:
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {})["mechwork"])
                tensor = file.get_tensor("metric")
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise ArtefactError(f"{path} is damaged: {error}. Delete it; its cells will be run again.") from error
        if header.get("sweep") != hash_json(self.identity):
            raise ArtefactError(f"{path} belongs to another sweep. Delete it; its cells will be run again.")
        return header["key"], tensor


def _save(tensors: dict[str, Tensor], path: Path, header: str) -> None:
    """One safetensors file with one entry of metadata (several would be written in random order), atomically."""
    beside = path.with_name(f".{path.name}.part")
    save_file(tensors, beside, metadata={"mechwork": header})
    _replace(beside, path)


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(content)
    _replace(beside, path)


def _replace(beside: Path, path: Path) -> None:
    with beside.open("rb+") as file:
        os.fsync(file.fileno())
    beside.replace(path)
