"""Provenance: what a result was made from. A dictionary of plain JSON values that every result carries.

Hashes are sha256. The time and the command line are recorded, but kept out of everything that must be byte-identical
for the same inputs (see `stable`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Provenance = dict[str, Any]

VOLATILE = ("time", "command", "machine")
"""Keys that differ between two runs of the same computation."""

PIECE = 2**25
"""Bytes hashed between two signs of life."""


def hash_tensors(tensors: Mapping[str, Tensor], told: Callable[[], object] | None = None) -> str:
    """sha256 over names, dtypes, shapes and bytes, in name order. `told` is called all along: it may take a second."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        for piece in tensor.flatten().view(torch.uint8).split(PIECE):
            digest.update(piece.numpy().data)
            if told is not None:
                told()
    return digest.hexdigest()


def hash_weights(module: nn.Module, told: Callable[[], object] | None = None) -> str:
    """sha256 of the parameters actually used by `module` (after any folding), tied weights once."""
    return hash_tensors(dict(module.named_parameters()), told)


def hash_json(value: object) -> str:
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()).hexdigest()


_command: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def made_by(command: str) -> Iterator[None]:
    """Inside, provenance names `command` and no time: work that is taken up again gives the bytes of work done
    at once.
    """
    token = _command.set(command)
    try:
        yield
    finally:
        _command.reset(token)


def build_provenance(**facts: Any) -> Provenance:
    """`facts` with versions, machine, time and the command line (see `made_by`)."""
    import torch

    command = _command.get()
    when = {"time": datetime.now(UTC).isoformat(timespec="seconds")} if command is None else {}
    versions = {name: package_version(name) for name in ("mechwork", "transformer-lens", "torch", "transformers")}
    return {
        **facts,
        "versions": {**versions, "python": platform.python_version()},
        "machine": {"platform": platform.platform(), "cuda": torch.cuda.is_available()},
        "command": shlex.join(sys.argv) if command is None else command,
        **when,
    }


def stable(provenance: Provenance) -> Provenance:
    """`provenance` without the keys that change from run to run."""
    return {key: value for key, value in provenance.items() if key not in VOLATILE}


def package_version(package: str) -> str:
    """The installed version of a package, or ``"not installed"``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
