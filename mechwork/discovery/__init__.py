"""A discovery: from a model and a task to everything the report shows, planned, kept in a folder, and taken up again.

Owns the stages and their costs (`stages`), the plan (`plan`), the folder (`folder`), the check of the data (`check`),
the size of the circuit (`size`) and what verification compares (`verification`). Takes no console and draws through
`display`. The shell imports a file of this folder before anything heavy, so the names below are fetched when they are
first used.

    found = mw.discover(model, task, out="reports/ioi")
    print(found.circuit, found.curve)
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from .discover import discover as discover
    from .discover import load_discovery as load_discovery
    from .found import Discovery as Discovery

_HOMES = {"discover": "discover", "load_discovery": "discover", "Discovery": "found"}


def __getattr__(name: str) -> _Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(f".{_HOMES[name]}", __name__), name)
