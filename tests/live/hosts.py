"""Real notebook hosts for tests: JupyterLab and marimo as programs of their own, from this Python or from the one that
MECHWORK_NOTEBOOKS names (a Python in which jupyterlab, marimo and anywidget are installed beside mechwork's packages).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "for-this-test-alone"
PATIENCE = 90_000
"""Milliseconds that a browser waits for a kernel that loads a model on a busy machine."""


@cache
def host_python(package: str) -> str:
    """A Python that has the package and anywidget; skips where there is none."""
    python = os.environ.get("MECHWORK_NOTEBOOKS") or sys.executable
    found = subprocess.run([python, "-c", f"import {package}, anywidget"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"{package} and anywidget are not installed (MECHWORK_NOTEBOOKS may name a Python that has them)")
    return python


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as found:
        found.settimeout(1)
        return found.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that listens on the port; all that it keeps lies in the folder."""
    own = {
        name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    own |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), "XDG_STATE_HOME": str(folder / "state")}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("wb") as log:
        program = subprocess.Popen(command, cwd=folder, env={**os.environ, **own}, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 90
            while not listens(port):
                assert program.poll() is None, (folder / "log.txt").read_text()[-2000:]
                assert time.monotonic() < end, "the host did not start"
                time.sleep(0.2)
            yield program
        finally:
            program.terminate()
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


@contextmanager
def jupyter_lab(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """JupyterLab on the folder; gives the address of its root, and the program."""
    python, port = host_python("jupyterlab"), free_port()
    command = [python, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
               f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0",
               "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    with running(command, port, folder) as program:
        yield f"http://127.0.0.1:{port}", program


@contextmanager
def marimo(folder: Path, notebook: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """marimo on one notebook of the folder; gives its address, and the program."""
    python, port = host_python("marimo"), free_port()
    command = [python, "-m", "marimo", "-q", "run", notebook, "--headless", "--host", "127.0.0.1", "--port", str(port),
               "--no-token"]  # fmt: skip
    with running(command, port, folder) as program:
        yield f"http://127.0.0.1:{port}", program


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of code cells that were never run."""
    made = [
        {"cell_type": "code", "id": f"cell{i}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for i, text in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
