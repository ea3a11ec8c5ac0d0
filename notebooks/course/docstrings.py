"""Examples in docstrings, for the site: a run of ``>>>`` lines is code. An extension of griffe, named in
.mkdocs.yml.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

RUN = re.compile(r"(?:^>>>.*\n?)(?:^(?!\n).+\n?)*", re.MULTILINE)


def fence(text: str) -> str:
    """`text` with every run of example lines, up to the next empty line, in a fenced block."""
    return RUN.sub(lambda run: f"```pycon\n{run[0].rstrip()}\n```\n", text)


class Examples(griffe.Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fence(obj.docstring.value)
