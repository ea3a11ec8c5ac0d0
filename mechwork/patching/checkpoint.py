"""Checkpoints of a sweep: a folder with the plan as JSON and one safetensors file per finished chunk.

A file that is there is whole, whenever the process was killed (see `mechwork.files`). A folder belongs to one plan, one model
and one task; another's is refused. Chunks are determined by the plan and the recorded runs, so a resumed sweep computes
exactly what the uninterrupted one would have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..artefact import read_artefact, write_artefact
from ..checkpoint import differing
from ..errors import ArtefactError, InputError
from ..files import read_object, reading, write_json
from ..provenance import Provenance, hash_json

FORMAT = 1
CHUNK = "patch chunk"
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
            strangers = sorted(path.name for path in self.folder.iterdir() if path.suffix != ".part")
            if strangers:
                raise ArtefactError(
                    f"{self.folder} is no checkpoint: it has no {PLAN} but {', '.join(strangers[:3])}. Give an empty or a new folder."
                )
            plain = json.loads(json.dumps({"format": FORMAT, **self.identity}, sort_keys=True, default=str))
            write_json(plan, plain)
            return {}
        self._check(plan)
        finished: dict[str, Tensor] = {}
        for path in sorted(self.folder.glob("chunk-*.safetensors")):
            finished.update([self._read(path)])
        return finished

    def write(self, block: int, number: int, key: str, values: Tensor) -> None:
        """Keep one finished chunk."""
        path = self.folder / f"chunk-{block:05d}-{number:06d}.safetensors"
        facts = {"key": key, "sweep": hash_json(self.identity)}
        write_artefact(path, CHUNK, facts, {"metric": values}, version=FORMAT)

    def _check(self, plan: Path) -> None:
        found = read_object(plan)
        changed = differing(found, {"format": FORMAT, **self.identity})
        if changed:
            raise ArtefactError(
                f"the checkpoint in {self.folder} belongs to another sweep: its {', '.join(changed)} differ from this one's. "
                "Give another folder, or repeat the call it was made by."
            )

    def _read(self, path: Path) -> tuple[str, Tensor]:
        found = read_artefact(path, CHUNK, version=FORMAT)
        with reading(path, CHUNK):
            key, sweep, tensor = str(found.facts["key"]), found.facts["sweep"], found.tensors["metric"]
        if sweep != hash_json(self.identity):
            raise ArtefactError(f"{path} belongs to another sweep. Delete it; its cells will be run again.")
        return key, tensor
