"""The folder of a discovery: it grows, one writer at a time, and is whole whenever the process is killed.

    request.json            what was asked for; a run that asks for something else is refused
    plan.json               stages and predicted costs
    ledger.json             finished stages, with the sha256 of their results and what they took
    results/STAGE.NAME.safetensors
    units/STAGE             pieces of the stage that is running
    report.html, report.json, circuit.json, edges.csv, effects.csv, curve.csv

Every file is written beside its name, synced and renamed. A stage counts as finished once the ledger names it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtefactError, InputError
from ..files import make_folder, read_json, read_object, sha256, write_json
from ..result import Result, load_result
from .output import check_output
from .plan import Plan, Step

REQUEST, PLAN, LEDGER, RESULTS, UNITS = "request.json", "plan.json", "ledger.json", "results", "units"
WRITTEN = ("report.html", "report.json", "circuit.json", "edges.csv", "effects.csv", "curve.csv")
FORMAT = 1
WORDS = ("format", "command")
"""Parts of a request that do not say what is computed: they may change from run to run."""


class Folder:
    """A folder of that path; use `claim` before writing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    # ---- what is there ----

    @property
    def begun(self) -> bool:
        """Whether a discovery was begun here."""
        return (self.path / REQUEST).is_file()

    def request(self) -> dict[str, Any]:
        """What was asked for."""
        if not self.begun:
            raise ArtefactError(
                f"{self.path} is no folder of a discovery: it has no {REQUEST}. Name the folder of --out"
            )
        return read_object(self.path / REQUEST, ("format", "task", "model", "settings"))

    def plan(self) -> Plan | None:
        """The plan, once it was made."""
        if not (self.path / PLAN).is_file():
            return None
        data = read_object(self.path / PLAN, ("stages", "n_train", "n_test", "forward"))
        try:
            rows = tuple(Step(**row) for row in data["stages"])
            n_train, n_size, n_test = (int(data.get(name, 0)) for name in ("n_train", "n_size", "n_test"))
            return Plan(rows, n_train, n_test, float(data["forward"]), n_size)
        except (TypeError, ValueError) as error:
            raise ArtefactError(
                f"{self.path / PLAN} is damaged: {error}. Restore it, or begin again with --force"
            ) from error

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Finished stages: files with their sha256, seconds."""
        file = self.path / LEDGER
        found = read_json(file) if file.is_file() else {}
        if not isinstance(found, dict) or not all(isinstance(v, dict) and "files" in v for v in found.values()):
            raise ArtefactError(f"{file} is damaged. Restore it, or begin again with --force")
        return found

    def results(self, stage: str) -> dict[str, Result]:
        """The results of a finished stage."""
        found = {}
        for name, said in self.ledger()[stage]["files"].items():
            file = self.path / RESULTS / f"{stage}.{Path(name).name}.safetensors"
            if not file.is_file() or sha256(file) != said:
                raise ArtefactError(
                    f"{file} is {'not the file that was written' if file.is_file() else 'missing'}. "
                    "Restore it, or begin again with --force"
                )
            found[name] = load_result(file)
        return found

    # ---- changes ----

    def check(self, request: Mapping[str, Any], *, force: bool) -> None:
        """Refuse, before anything is computed, a folder that belongs to something else or cannot be written."""
        if self.begun and not force:
            differing = sorted(_differences(self.request(), request))
            if differing:
                raise InputError(
                    f"{self.path} holds a discovery of something else ({'; '.join(differing)}). "
                    "Choose another --out, or pass --force to replace it."
                )
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise InputError(f"{self.path} cannot be written to. Choose another --out.")
            return
        self.check_place(force=force)

    def check_place(self, *, force: bool) -> None:
        """Refuse a folder that is not this discovery's and that could not be made or replaced."""
        if not self.begun and not self._bare():
            check_output(self.path, force=force)

    def _bare(self) -> bool:
        """Whether the folder holds nothing but what a run has that was killed before it wrote its request."""
        if not self.path.is_dir() or self.path.is_symlink() or not os.access(self.path, os.W_OK | os.X_OK):
            return False
        names = {entry.name for entry in self.path.iterdir() if not entry.name.endswith(".part")}
        return names <= {RESULTS}

    @contextlib.contextmanager
    def claim(self, request: Mapping[str, Any], *, force: bool) -> Iterator[None]:
        """Hold the folder, made or emptied where need be. Raises `InputError` where another run holds it."""
        make_folder(self.path)
        with self._lock():
            if force:
                self._clear()
            make_folder(self.path / RESULTS)
            for part in (*self.path.glob(".*.part"), *(self.path / RESULTS).glob(".*.part")):
                part.unlink()  # what a killed run was writing
            if not self.begun:
                write_json(self.path / REQUEST, {"format": FORMAT, **request})
            yield

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:  # not on this system: two runs on one folder are not noticed
            yield
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another run is at work in {self.path}. Wait for it, or choose another --out."
                ) from None
            yield
        finally:
            os.close(descriptor)

    def _clear(self) -> None:
        """Remove what mechwork wrote; the request last, so that a folder half emptied is still known as ours."""
        for name in (LEDGER, PLAN, *WRITTEN):
            (self.path / name).unlink(missing_ok=True)
        for name in (RESULTS, UNITS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / REQUEST).unlink(missing_ok=True)

    def keep_plan(self, plan: Plan) -> None:
        stages = [vars(row) for row in plan.rows]
        data = {"stages": stages, **plan.facts()}
        write_json(self.path / PLAN, data)

    def units(self, stage: str) -> Path:
        """Where the running stage keeps finished pieces."""
        place = self.path / UNITS / stage
        return make_folder(place)

    def finish(self, stage: str, results: Mapping[str, Result], seconds: float) -> None:
        """Keep a stage's results, then name it in the ledger."""
        files = {}
        for name, result in results.items():
            files[name] = sha256(result.save(self.path / RESULTS / f"{stage}.{name}.safetensors"))
        write_json(self.path / LEDGER, {**self.ledger(), stage: {"files": files, "seconds": round(seconds, 3)}})
        shutil.rmtree(self.path / UNITS / stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.path / UNITS).rmdir()


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> Iterator[str]:
    plain = json.loads(json.dumps(now, default=str))
    for key in {*before, *plain} - set(WORDS):
        old, new = before.get(key), plain.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{key}.")
        elif old != new:
            yield f"{place}{key}: {old} there, {new} asked for"
