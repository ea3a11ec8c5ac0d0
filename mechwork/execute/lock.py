"""One process at a time in a folder: a lock that the system frees when its process ends, however it ends.

A record lock (``fcntl.lockf``) belongs to the process, not to the open file: workers that it forks do not keep it.
Within one process a table does the same. Where the system has no such locks (Windows), only the table stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO

from ..errors import ArtefactError
from ..files import writing

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None

_held: set[Path] = set()


class FolderLock:
    """Held from its making until `release`. Raises `ArtefactError` when somebody else holds it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder.resolve() / ".lock"
        self._file: IO[bytes] | None = None
        if self.path in _held:
            raise self._refusal()
        with writing(self.path):
            file = self.path.open("ab")
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise self._refusal() from error
        self._file = file
        _held.add(self.path)

    def _refusal(self) -> ArtefactError:
        return ArtefactError(
            f"another process is at work in {self.path.parent}. Wait until it ends, or give another folder."
        )

    def release(self) -> None:
        """Let go; nothing when it was let go before."""
        if self._file is not None:
            self._file.close()
            self._file = None
            _held.discard(self.path)
