"""The ledger of a work: a folder that says what it is of, holds what is done, and tells what happened.

    plan.json                what the work is (identity, device kind, threads); another work is refused
    results/KEY.safetensors  the result of the unit with that key: written beside, fsynced, renamed; what is there is
    done ledger.jsonl             a line per event (done, failed, lost, given up): for people, never read back
    .lock                    held while a process works here; freed by the system when that process ends, however it
    ends

A process killed at any moment leaves every finished result whole. Files ending in ``.part`` are what it was just
writing.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from safetensors import SafetensorError, safe_open

from ..artefact import save_tensors
from ..errors import ArtefactError, InputError
from ..files import make_folder, write_atomically, writing
from ..provenance import hash_json
from .lock import FolderLock
from .unit import Tensors, Unit

FORMAT = 2
PLAN, RESULTS, EVENTS = "plan.json", "results", "ledger.jsonl"


class Ledger:
    """An open ledger; a context manager that closes it. `identity`: what makes the work this one, as JSON values.

    Raises `InputError` for a file in place of a folder; `ArtefactError` for a folder of another work, of something
    else, or in which another process is at work.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = Path(folder), {"format": FORMAT, **identity}
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"a checkpoint or ledger is a folder, which is made if need be; {self.folder} is a file")
        self._sweep = hash_json(self.identity)
        self._events: IO[str] | None = None
        make_folder(self.folder)
        self._lock = FolderLock(self.folder)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        plan = self.folder / PLAN
        if plan.is_file():
            self._check(plan)
        else:
            own = {PLAN, RESULTS, EVENTS, self._lock.path.name}
            strangers = sorted(p.name for p in self.folder.iterdir() if p.name not in own and p.suffix != ".part")
            if strangers:
                raise ArtefactError(
                    f"{self.folder} is no checkpoint: it has no {PLAN} but {', '.join(strangers[:3])}. Give an empty "
                    "or a new folder."
                )
            content = json.dumps(self.identity, indent=1, sort_keys=True)
            write_atomically(plan, lambda part: part.write_text(content, encoding="utf-8"))
        make_folder(self.folder / RESULTS)
        self._done = {path.stem for path in (self.folder / RESULTS).glob("*.safetensors")}
        with writing(self.folder / EVENTS):
            self._events = (self.folder / EVENTS).open("a", encoding="utf-8")

    def _check(self, plan: Path) -> None:
        try:
            found = json.loads(plan.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"{plan} is damaged: {error}. Delete the folder and start again.") from error
        wanted = json.loads(json.dumps(self.identity))
        if not isinstance(found, dict):
            raise ArtefactError(f"{plan} is damaged: it holds no table. Delete the folder and start again.")
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if differing:
            hint = (
                f" ({found.get('threads')} torch threads there, {wanted.get('threads')} here)"
                if "threads" in differing
                else ""
            )
            raise ArtefactError(
                f"the checkpoint in {self.folder} belongs to another work: its {', '.join(differing)} differ from "
                f"this one's{hint}. "
                "Give another folder, or repeat the call it was made by."
            )

    def __contains__(self, unit: Unit) -> bool:
        return unit.key in self._done

    def __len__(self) -> int:
        return len(self._done)

    def path(self, unit: Unit) -> Path:
        """Where the unit's result is, or will be."""
        return self.folder / RESULTS / f"{unit.key}.safetensors"

    def read(self, unit: Unit) -> Tensors:
        """The result of a finished unit; raises `ArtefactError` when its file is damaged or another work's."""
        path = self.path(unit)
        try:
            with safe_open(str(path), framework="pt") as file:
                header = json.loads((file.metadata() or {})["mechwork"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            whole = header["unit"] == unit.key and header["work"] == self._sweep
        except (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            raise ArtefactError(f"{path} is damaged: {error}. Delete it; its unit will be run again.") from error
        if not whole:
            raise ArtefactError(f"{path} belongs to another work. Delete it; its unit will be run again.")
        return tensors

    def write(self, unit: Unit, values: Tensors) -> None:
        """Keep the result of a unit."""
        # One entry of metadata: several would be written in random order.
        header = {"mechwork": json.dumps({"format": FORMAT, "unit": unit.key, "work": self._sweep}, sort_keys=True)}
        stored = {name: tensor.detach().contiguous().cpu() for name, tensor in values.items()}
        write_atomically(self.path(unit), lambda part: save_tensors(stored, part, header))
        self._done.add(unit.key)

    def note(self, event: str, unit: Unit, **facts: Any) -> None:
        """A line about something that happened."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "unit": unit.key, **facts}
        assert self._events is not None
        with writing(self.folder / EVENTS):
            self._events.write(json.dumps(line) + "\n")
            self._events.flush()

    def close(self) -> None:
        """Let others work in the folder."""
        if self._events is not None:
            self._events.close()
        self._lock.release()

    def __enter__(self) -> Ledger:  # noqa: PYI034 - beartype checks methods outside their class
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
