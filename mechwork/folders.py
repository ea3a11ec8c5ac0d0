"""Folders in which a file is found by being there: rules, tasks, panels, verbs. A new one stands on no list.

Bottom layer: imports nothing of mechwork.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType


def module_names(paths: Iterable[str]) -> list[str]:
    """Names of the modules in a package's folder, sorted; packages and private ones left out."""
    found = pkgutil.iter_modules(list(paths))
    return sorted(one.name for one in found if not one.ispkg and not one.name.startswith("_"))


def import_all(package: str, paths: Iterable[str]) -> dict[str, ModuleType]:
    """Every module of a package's folder by name, imported: ``import_all(__name__, __path__)``."""
    return {name: importlib.import_module(f"{package}.{name}") for name in module_names(paths)}
