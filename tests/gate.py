"""The whole gate in one command: ``python -m tests.gate``. Steps run in order and the first failure stops.

``python -m tests.gate lint types`` runs only the named steps. The tests come last, so that pytest's own summary is the
last thing on the screen.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent

STEPS: dict[str, tuple[str, list[str]]] = {
    "format": ("the code is formatted", [sys.executable, "-m", "ruff", "format", "--check", "."]),
    "lint": ("the linter finds nothing", [sys.executable, "-m", "ruff", "check", "."]),
    "types": ("types agree", [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]),
    "layers": ("modules import only downward", [str(TOOLS / "lint-imports")]),
    "tests": (
        "tests and notebooks pass",
        [sys.executable, "-m", "pytest", "-rs", "-n", "auto", "--nbmake", "--nbmake-timeout=300", "tests", "notebooks"],
    ),
}


def main(wanted: list[str]) -> int:
    """Run the steps; returns the exit status of the first that fails."""
    if unknown := [name for name in wanted if name not in STEPS]:
        sys.exit(f"unknown step {', '.join(unknown)}; steps are {', '.join(STEPS)}")
    for name, (what, command) in STEPS.items():
        if wanted and name not in wanted:
            continue
        print(f"== {name}: {what}", flush=True)
        begun = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status or name != "tests":
            print(f"== {name}: {'FAILED' if status else 'ok'} in {time.monotonic() - begun:.0f} s", flush=True)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
