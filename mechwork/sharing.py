"""One copy of a large script per notebook: which cell's output holds it, and which may go without.

A page of figures carries the script that draws them (plotly: 1.9 MB). In a notebook the pages of several cells stand
side by side as frames, and a frame without the script asks its neighbours for it (`assets/links.js`); a page's content
policy lets in nothing but that very script. So the first output that needs a script holds it, and later ones leave it
out, until that output is gone: its cell runs again, is deleted, or clears what it shows. A cell that runs again
unchanged holds its own copy, whatever became of the others.

Outputs go without only where the kernel can tell its cells apart (JupyterLab, Jupyter Notebook 7) or each runs once, in
order (nbclient, papermill, ``nbconvert --execute``). Everywhere else, and with MECHWORK_WHOLE_FIGURES=1, every output
holds all that it needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SCRIPT = re.compile(r'(<script type="text/plain" data-vendor="[^"]*" data-key="([^"]+)"[^>]*>)[^<]+(?=</script>)')
"""A packed script of a page; its key names its very bytes."""
CELL = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Ids of cells as notebook files have them; whether frames of hosts with other ids can meet is not known."""


@dataclass(frozen=True)
class CellRun:
    """One run of one cell: which cell, of what text, and which run."""

    cell: str
    code: str
    run: str


@dataclass
class Copies:
    """Per script the run whose output holds it, and the runs since then whose outputs do without."""

    held: dict[str, CellRun] = field(default_factory=dict)
    without: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)

    def leaves_out(self, key: str, now: CellRun) -> bool:
        """Whether an output of this run may leave the script out; if not, it holds it from now on."""
        before = self.without.setdefault(key, {})
        seen, held = before.get((now.cell, now.code), now.run), self.held.get(key)
        if held is not None and (held.run == now.run or (held.cell != now.cell and seen == now.run)):
            before[now.cell, now.code] = now.run
            return True
        self.held[key] = now
        before.clear()
        return False

    def lose(self, *cells: str) -> None:
        """The outputs of these cells are gone."""
        self.held = {key: run for key, run in self.held.items() if run.cell not in cells}


_COPIES = Copies()
_WATCHED: list[Any] = []
"""The shell whose cells are watched, once there is one."""


def lend(page: str) -> str:
    """`page` without the scripts that another output of this notebook holds."""
    shell = kernel_shell()
    now = None if shell is None else running_cell(shell)
    if now is None:
        return page
    _watch(shell)

    def shared(found: re.Match[str]) -> str:
        return found[1] if _COPIES.leaves_out(found[2], now) else found[0]

    return SCRIPT.sub(shared, page)


def kernel_shell() -> Any:
    """The shell of the Jupyter kernel that this is; None elsewhere."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    return shell if shell is not None and "IPKernelApp" in getattr(shell, "config", {}) else None


def running_cell(shell: Any) -> CellRun | None:
    """The cell that runs; None where cells cannot be told apart, or what they show is caught."""
    from IPython.core.displaypub import CapturingDisplayPublisher

    request: Any = shell.get_parent() if hasattr(shell, "get_parent") else {}
    run = str(request.get("header", {}).get("msg_id", ""))
    content, cell = request.get("content", {}), request.get("metadata", {}).get("cellId")
    if not run or isinstance(shell.display_pub, CapturingDisplayPublisher) or os.environ.get("MECHWORK_WHOLE_FIGURES"):
        return None
    if cell is None and content.get("allow_stdin") is False:  # nobody sits there: each cell runs once, in order
        cell = f"run-{run}"[:64]
    if not isinstance(cell, str) or not CELL.fullmatch(cell):
        return None
    return CellRun(cell, str(content.get("code", "")), run)


def _watch(shell: Any) -> None:
    """From now on notice outputs that go: of cells that run again, are deleted, or clear what they show."""
    if shell in _WATCHED:
        return
    _WATCHED.append(shell)

    def begins(*_: Any) -> None:
        now = running_cell(shell)
        gone = shell.get_parent().get("metadata", {}).get("deletedCells") or ()
        _COPIES.lose(*map(str, gone), *([] if now is None else [now.cell]))

    def shows(message: Any) -> Any:
        now = running_cell(shell)
        if now is not None and message.get("header", {}).get("msg_type") == "clear_output":
            _COPIES.lose(now.cell)
        return message

    shell.events.register("pre_run_cell", begins)
    register: Callable[..., None] | None = getattr(shell.display_pub, "register_hook", None)
    if register is not None:
        register(shows)
