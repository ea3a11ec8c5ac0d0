"""How results come to be shown without the lower layers knowing how anything is drawn.

A result class derives from `Displayable`; `render` registers a drawing for it with `draws`. `show()` opens the drawing
in Jupyter or, outside it, in a browser; `_repr_html_` gives Jupyter the same page. Nothing here imports plotly.
"""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from .errors import MechworkError

_DRAWINGS: dict[type, Callable[[Any], str]] = {}
_Draw = TypeVar("_Draw", bound=Callable[[Any], str])


def draws(result: type) -> Callable[[_Draw], _Draw]:
    """Decorator: register a function ``result -> HTML`` (one self-contained page) for a result class."""

    def register(draw: _Draw) -> _Draw:
        _DRAWINGS[result] = draw
        return draw

    return register


def page(result: object) -> str:
    """The self-contained HTML page of `result`."""
    for cls in type(result).__mro__:
        if cls in _DRAWINGS:
            return _DRAWINGS[cls](result)
    raise MechworkError(f"nothing draws a {type(result).__name__}; drawn: {', '.join(c.__name__ for c in _DRAWINGS)}")


class Displayable:
    """Mixin for result objects: `show()`, `to_html()` and Jupyter's rich representation."""

    def to_html(self) -> str:
        """One self-contained, offline HTML page."""
        return page(self)

    def show(self) -> None:
        """Display in Jupyter; outside it, write the page to a temporary file and open a browser on it."""
        if _in_notebook():
            from IPython.display import display

            display(self)
            return
        with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False, encoding="utf-8") as file:
            file.write(self.to_html())
        webbrowser.open(Path(file.name).as_uri())

    def _repr_html_(self) -> str:
        return frame(self.to_html())


def frame(html: str, height: int = 640) -> str:
    """`html` in a sandboxed frame of fixed height, the form that survives JupyterLab, VS Code, Colab and nbconvert."""
    quoted = html.replace("&", "&amp;").replace('"', "&quot;")
    return (
        f'<iframe srcdoc="{quoted}" sandbox="allow-scripts allow-downloads" allow="fullscreen" '
        f'style="width:100%;height:{height}px;border:0" title="mechwork figure"></iframe>'
    )


def _in_notebook() -> bool:
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})
