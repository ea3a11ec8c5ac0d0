"""axe-core for the browser tests; the browser itself is in `tests.browser`, one for every folder that looks at
pages.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, if this machine has it: MECHWORK_AXE, or node_modules/axe-core beside the checkout."""
    root = Path(__file__).resolve().parents[2]
    places = [
        os.environ.get("MECHWORK_AXE"),
        root / "node_modules/axe-core/axe.min.js",
        "/usr/lib/node_modules/axe-core/axe.min.js",
        "/usr/local/lib/node_modules/axe-core/axe.min.js",
    ]
    for place in places:
        if place and Path(place).is_file():
            return Path(place).read_text(encoding="utf-8")
    pytest.skip("axe-core is not installed (npm install axe-core, or name its axe.min.js in MECHWORK_AXE)")
