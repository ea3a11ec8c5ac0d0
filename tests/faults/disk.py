"""No space, no right, I/O errors, a limit on file sizes: one clear error, nothing lost, and the call can be repeated.

Errors are injected at the k-th call that opens, syncs, renames or makes something under the work's folder; a limit on
the size of files (RLIMIT_FSIZE) also stops writers that are not Python; a child that gave up root meets real folders
that it may not write to.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechwork.errors import MechworkError
from tests.faults.core import Tally, answered
from tests.faults.kills import QUICK, WORKS

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT, errno.EROFS)
NOBODY = 65534


class Layer:
    """Counts calls of the file layer under a folder, and raises at the k-th."""

    def __init__(self, folder: Path, k: int = 0, number: int = errno.ENOSPC) -> None:
        self.folder, self.k, self.number, self.n = str(folder), k, number, 0

    def meet(self, path: object) -> None:
        if isinstance(path, int) or str(path).startswith(self.folder):
            self.n += 1
            if self.n == self.k:
                raise OSError(self.number, os.strerror(self.number), str(path))

    @contextmanager
    def inside(self) -> Iterator[None]:
        kept = [(io, "open", io.open), *((os, name, getattr(os, name)) for name in ("fsync", "replace", "mkdir"))]

        def wrap(real: Callable[..., Any], *, writes: bool) -> Callable[..., Any]:
            def call(path: Any, *args: Any, **more: Any) -> Any:
                mode = str(args[0]) if args else str(more.get("mode", "r"))
                if not writes or set(mode) & set("wax+"):
                    self.meet(path)
                return real(path, *args, **more)

            return call

        try:
            for module, name, real in kept:
                setattr(module, name, wrap(real, writes=name == "open"))
            yield
        finally:
            for module, name, real in kept:
                setattr(module, name, real)


def attack(tally: Tally, name: str, whole: str, k: int, number: int) -> bool:
    """One error at the k-th call; False when there are fewer."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        layer = Layer(folder, k, number)
        with layer.inside():
            outcome, said = answered(lambda: WORKS[name](folder))
        if layer.n < k:
            return False
        again, digest = _again(name, folder)
        wrong = said if outcome == "raw" else "" if digest == whole else f"then {again}"
        if outcome == "refused" and os.strerror(number) not in said:
            wrong = f"the reason is not said: {said[:160]}"
        tally.check(not wrong, f"{name}: {errno.errorcode[number]} at call {k}: {wrong}")
    return True


def _again(name: str, folder: Path) -> tuple[str, str]:
    try:
        return "done", WORKS[name](folder)
    except Exception as error:  # noqa: BLE001 - reported by the caller
        return f"{type(error).__name__}: {error}"[:200], ""


def limited(tally: Tally, name: str, whole: str, size: int) -> None:
    """Files may not grow beyond `size` bytes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            outcome, said = answered(lambda: WORKS[name](folder))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        again, digest = _again(name, folder)
        wrong = said if outcome == "raw" else "" if digest == whole else f"then {again}"
        tally.check(not wrong, f"{name}: files of at most {size} bytes: {wrong}")


def without_right(tally: Tally, name: str) -> None:
    """In a child that is not root: a folder that may be read and not written to."""
    if os.getuid() != 0:
        return
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o555)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            said: tuple[str, str] = ("raw", "the child ended early")
            try:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                said = answered(lambda: WORKS[name](Path(place)))
            finally:
                os.write(writer, pickle.dumps(said))
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            outcome, said = pickle.load(stream)
        os.waitpid(child, 0)
        Path(place).chmod(0o755)
        tally.check(outcome == "refused", f"{name} in a folder of others: {outcome} {said[:200]}")


def kept_whole(tally: Tally, number: int, k: int) -> None:
    """A result that exists is saved again and fails: the old one is still there."""
    from mechwork.files import read_json, write_json

    with tempfile.TemporaryDirectory() as place:
        file = write_json(Path(place) / "it.json", {"old": True})
        layer = Layer(Path(place), k, number)
        try:
            with layer.inside():
                write_json(file, {"new": list(range(2000))})
        except MechworkError as error:
            said = str(error)
            held = read_json(file) == {"old": True} and "it.json" in said
            # once the rename is done the new content stands
            held = held or (k > 3 and "new" in read_json(file))
            tally.check(held and len(list(Path(place).iterdir())) == 1, f"{errno.errorcode[number]} at {k}: {said}")
        else:
            tally.check(layer.n < k or "new" in read_json(file), f"{errno.errorcode[number]} at {k} went unseen")


def run(tally: Tally) -> None:
    """Every k-th call of the works, sizes from nothing on, and a folder of others."""
    names = QUICK if tally.scale < 0.5 else [name for name in WORKS if name != "discover"]
    for number in ERRORS:
        for k in range(1, 6):
            kept_whole(tally, number, k)
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            layer = Layer(Path(place))
            with layer.inside():
                whole = WORKS[name](Path(place))
        every = range(1, layer.n + 1)
        most = tally.times(24)
        for k in every if layer.n <= most else tally.draw.sample(list(every), most):
            attack(tally, name, whole, k, tally.draw.choice(ERRORS))
        for size in tally.draw.sample((0, 100, 1000, 4000, 16_000, 60_000), tally.times(5)):
            limited(tally, name, whole, size)
        without_right(tally, name)
