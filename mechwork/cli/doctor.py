"""Say what this installation has and lacks: versions, devices, bundled models, and what the browser tests need."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Any

from .. import __version__, bundled
from ..errors import MechworkError
from .console import Console

PACKAGES = ("mechwork", "torch", "transformer-lens", "transformers", "plotly", "circuitsvis", "numpy", "pandas")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no arguments of its own."""


def run(args: argparse.Namespace, console: Console) -> None:
    """Print the findings; what is missing but not needed is no failure."""
    data = {
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "devices": _devices(),
        "models": {name: _state(name) for name in bundled.model_names()},
        "data": str(bundled.root()),
        "browser": next((path for name in BROWSERS if (path := shutil.which(name))), None),
        "offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"},
    }
    console.result(_text(data), data)


def version(package: str) -> str:
    """The installed version, or ``"not installed"``; mechwork's own also in a checkout that is not installed."""
    if package == "mechwork":
        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[dict[str, Any]]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: list[dict[str, Any]] = [{"name": "cpu", "what": f"{cores} cores, {torch.get_num_threads()} torch threads"}]
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        found.append({"name": f"cuda:{i}", "what": f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "what": "Apple GPU"})
    return found


def _state(name: str) -> str:
    try:
        bundled.verified_model(name)
    except MechworkError as error:
        return str(error)
    return "ok"


def _text(data: dict[str, Any]) -> str:
    rows = [("python", f"{data['python']['version']} ({data['python']['executable']})"), ("system", data["system"])]
    rows += list(data["packages"].items())
    rows += [(device["name"], device["what"]) for device in data["devices"]]
    rows += [(f"model {name}", state) for name, state in data["models"].items()] or [("models", "none are bundled")]
    rows.append(("browser", data["browser"] or "none found; only mechwork's own tests need chromium"))
    rows.append(("hub", "offline (HF_HUB_OFFLINE is set)" if data["offline"] else "asked only for names of hub models"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
