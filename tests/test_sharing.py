"""Which output of a notebook holds the scripts that figures share: rules, and what a kernel is noticed to do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mechwork import sharing
from mechwork.sharing import CellRun, Copies

PAGE = (
    '<p>figure</p><script type="text/plain" data-vendor="plotly" data-key="plotly-1" data-licence="MIT">QUJD</script>'
    '<script type="application/json">{}</script>'
)


class Shell:
    """A kernel's shell as far as it is asked: the request that runs, its events, its hooks."""

    def __init__(self) -> None:
        self.config = {"IPKernelApp": {}}
        self.request: dict[str, Any] = {}
        self.begins: list[Callable[..., None]] = []
        self.hooks: list[Callable[[Any], Any]] = []
        self.n = 0
        self.events = SimpleNamespace(register=lambda _, what: self.begins.append(what))
        self.display_pub: Any = SimpleNamespace(register_hook=self.hooks.append)

    def get_parent(self) -> dict[str, Any]:
        return self.request

    def run(
        self, cell: str | None, code: str = "figure", *, deleted: tuple[str, ...] = (), alone: bool = False
    ) -> None:
        """A cell begins to run."""
        self.n += 1
        self.request = {
            "header": {"msg_id": f"m{self.n}"},
            "content": {"code": code, "allow_stdin": not alone},
            "metadata": {"cellId": cell, "deletedCells": list(deleted)} if cell else {},
        }
        for begin in self.begins:
            begin()


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    made = Shell()
    monkeypatch.setattr(sharing, "kernel_shell", lambda: made)
    monkeypatch.setattr(sharing, "_COPIES", Copies())
    monkeypatch.delenv("MECHWORK_WHOLE_FIGURES", raising=False)
    return made


def holds() -> bool:
    """Whether what is shown now holds the script."""
    page = sharing.lend(PAGE)
    assert page in (PAGE, PAGE.replace("QUJD", ""))
    return page == PAGE


def test_the_first_output_holds_the_script_and_no_other(shell: Shell) -> None:
    found = []
    for turn in range(2):  # the whole notebook, twice
        for cell in ("a", "b", "c"):
            shell.run(cell)
            found.append([turn, cell, holds(), holds()])
    assert [row[2:] for row in found] == [[True, False], [False, False], [False, False]] * 2


def test_a_holder_that_runs_again_holds_again_or_hands_on(shell: Shell) -> None:
    shell.run("a")
    assert holds()
    shell.run("b")
    assert not holds()
    shell.run("a")
    assert holds()
    shell.run("a", "1 + 1")  # shows nothing any more
    shell.run("c")
    assert holds()


def test_a_cell_that_runs_again_unchanged_holds_its_own(shell: Shell) -> None:
    """Outputs were cleared by hand, of which no kernel hears: whoever sees no figure runs its cell once more."""
    shell.run("a")
    assert holds()
    shell.run("b")
    assert not holds()
    shell.run("b", "other")
    assert not holds()
    shell.run("b", "other")
    assert holds()


def test_outputs_that_are_deleted_or_cleared_are_noticed(shell: Shell) -> None:
    shell.run("a")
    assert holds()
    shell.run("b", deleted=("a",))
    assert holds()
    for hook in shell.hooks:
        assert hook({"header": {"msg_type": "display_data"}})
        assert hook({"header": {"msg_type": "clear_output"}})
    assert holds()
    assert not holds()


def test_where_cells_cannot_be_told_apart_every_output_is_whole(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for cell in (None, None, "vscode-notebook-cell:/n.ipynb#W0", "vscode-notebook-cell:/n.ipynb#W1"):
        shell.run(cell)
        assert holds()
    for first in (True, False):  # each runs once, in order
        shell.run(None, alone=True)
        assert holds() == first
    monkeypatch.setenv("MECHWORK_WHOLE_FIGURES", "1")
    shell.run(None, alone=True)
    assert holds()
    monkeypatch.setattr(sharing, "kernel_shell", lambda: None)
    assert holds()


def test_what_is_caught_holds_nothing_for_others(shell: Shell) -> None:
    from IPython.core.displaypub import CapturingDisplayPublisher

    publisher, shell.display_pub = shell.display_pub, CapturingDisplayPublisher()
    shell.run("a")
    assert holds()
    shell.display_pub = publisher
    shell.run("b")
    assert holds()


def test_scripts_are_shared_by_their_very_bytes() -> None:
    copies, now = Copies(), CellRun("a", "x", "1")
    assert not copies.leaves_out("plotly-1", now)
    assert not copies.leaves_out("plotly-2", now)
    assert copies.leaves_out("plotly-1", now)
