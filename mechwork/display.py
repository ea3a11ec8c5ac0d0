"""How results come to be shown without the lower layers knowing how anything is drawn.

A result class derives from `Displayable`; `render` registers a drawing for it with `draws`, and with `draws_still` what
stands in its place where a host takes frames and scripts away (an untrusted notebook, a viewer on the web). `show()`
opens the drawing in Jupyter or, outside it, in a browser; `_repr_html_` gives Jupyter the same page. Nothing here
imports plotly.
"""

from __future__ import annotations

import functools
import html
import importlib
import tempfile
import warnings
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import MechworkError
from .harmless import visible
from .sharing import kernel_shell, lend

_DRAWINGS: dict[type, Callable[[Any], str]] = {}
_STILLS: dict[type, Callable[[Any], str]] = {}
_ROWS, _LETTERS = 20, 2000
"""How much of a table or of a text stands in for a drawing that has no still form of its own."""
_LINE = 100
"""Letters of one field in an outline."""
_Draw = TypeVar("_Draw", bound=Callable[[Any], str])


def draws(result: type) -> Callable[[_Draw], _Draw]:
    """Decorator: register a function ``result -> HTML`` (one self-contained page) for a result class."""

    def register(draw: _Draw) -> _Draw:
        _DRAWINGS[result] = draw
        return draw

    return register


def draws_still(result: type) -> Callable[[_Draw], _Draw]:
    """Decorator: register a function ``result -> markup`` without frames, scripts and styles: pictures as
    data, tables.
    """

    def register(draw: _Draw) -> _Draw:
        _STILLS[result] = draw
        return draw

    return register


def still(result: object) -> str:
    """What a host shows that strips frames and scripts: the registered markup, else the first rows, else the text."""
    _load_drawings()
    for cls in type(result).__mro__:
        if cls in _STILLS:
            return _STILLS[cls](result)
    rows: Any = getattr(result, "to_dataframe", None)
    if callable(rows):
        frame: Any = rows()
        return str(frame.head(_ROWS).to_html(index=False, border=0, float_format=lambda value: f"{value:.4g}"))
    text = str(result)
    return f"<pre>{html.escape(text[:_LETTERS] + '…' * (len(text) > _LETTERS))}</pre>"


def page(result: object) -> str:
    """The self-contained HTML page of `result`."""
    _load_drawings()
    for cls in type(result).__mro__:
        if cls in _DRAWINGS:
            return _DRAWINGS[cls](result)
    if callable(getattr(result, "to_dataframe", None)):
        title = html.escape(type(result).__name__)
        return (
            '<!doctype html><html lang="en"><meta '
            f'charset="utf-8"><title>{title}</title><h1>{title}</h1>{still(result)}</html>'
        )
    raise MechworkError(f"nothing draws a {type(result).__name__}; drawn: {', '.join(c.__name__ for c in _DRAWINGS)}")


def _load_drawings() -> None:
    """Bring in the layer that registers drawings: by name, since this file lies below it."""
    importlib.import_module(f"{__package__}.render")


def _harmless(say: Callable[[Any], str]) -> Callable[[Any], str]:
    """A ``__str__`` or ``__repr__`` whose text acts on no terminal."""

    @functools.wraps(say)
    def said(self: Any) -> str:
        return visible(say(self))

    return said


class Readable:
    """Mixin for what holds tensors: `repr` and `print` give a few lines, never the numbers.

    A class that writes its own ``__str__`` has it as its ``repr`` too; any other is outlined, field by field. Control
    characters of prompts, tokens and names are escaped in both.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("__str__", "__repr__"):
            if name in vars(cls):
                setattr(cls, name, _harmless(vars(cls)[name]))
        if "__repr__" not in vars(cls):  # set here: a dataclass without one is given one that prints every tensor
            cls.__repr__ = cls.__str__ if "__str__" in vars(cls) else cls.__repr__

    def __repr__(self) -> str:
        return visible(outline(self))


def outline(value: Any) -> str:
    """A dataclass in a line per field: tensors by dtype, shape and range, collections by their size and first
    entries.
    """
    named = {field.name: brief(getattr(value, field.name)) for field in fields(value)}
    width = max(map(len, named), default=0)
    return "\n".join([type(value).__name__, *(f"  {name:<{width}}  {text}" for name, text in named.items())])


def brief(value: Any) -> str:
    """Any value in one line of at most 100 letters."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{str(dtype).removeprefix('torch.')} [{', '.join(map(str, shape))}]{_range(value)}"
    if isinstance(value, str | int | float | None):
        text = repr(value)
    elif isinstance(value, Mapping | tuple | list | frozenset | set):
        names = list(map(_name, value))
        alike = len(names) > 1 and len(set(names)) == 1
        text = f"{len(names)}: {names[0] if alike else ', '.join(names)}{' each' * alike}" if names else "none"
    else:
        text = _name(value)
    return text if len(text) <= _LINE else text[: _LINE - 1] + "…"


def _name(value: Any) -> str:
    """Plain values as they are, everything else by its class."""
    plain = isinstance(value, str | int | float | None)
    if not plain and is_dataclass(value):
        plain = all(isinstance(getattr(value, field.name), str | int | float | None) for field in fields(value))
    return str(value) if plain else type(value).__name__


def _range(tensor: Any) -> str:
    """The least and the largest number, where there are any and they have an order."""
    if not tensor.numel() or tensor.is_complex() or tensor.is_meta or str(tensor.dtype) == "torch.bool":
        return ""
    return f", {float(tensor.min()):.4g} to {float(tensor.max()):.4g}"


class Displayable(Readable):
    """Mixin for result objects: `show()`, `to_html()` and Jupyter's rich representation."""

    def to_html(self) -> str:
        """One self-contained, offline HTML page."""
        return page(self)

    def show(self) -> None:
        """Display in Jupyter; outside it, write the page to a temporary file and open a browser on it (or say where it
        is).
        """
        if kernel_shell() is not None:
            from IPython.display import display

            display(self)
            return
        with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False, encoding="utf-8") as file:
            file.write(self.to_html())
        if webbrowser.open(Path(file.name).as_uri()) is False:
            warnings.warn(f"no browser could be opened here; the page is {file.name}", stacklevel=2)

    def _repr_html_(self) -> str:
        try:
            return frame(self.to_html(), still(self))
        except MechworkError as error:  # a cell's output says what is wrong; a traceback would hide it
            return f"<p><b>{type(self).__name__} cannot be drawn:</b> {html.escape(str(error))}</p>"


def frame(page: str, still: str = "", *, height: int = 640) -> str:
    """`page` in a sandboxed frame of fixed height, the form that survives JupyterLab, VS Code, Colab and nbconvert.

    In a notebook the large scripts of figures stand in one output, and other frames ask it for them (`sharing`).
    `still` lies beneath the frame and comes to light where a host strips the frame. Its box is no stop for the Tab key
    (Chromium makes every scrolling box one), since it is covered wherever the frame is shown.
    """
    box = "position:absolute;top:0;left:0;width:100%;height:100%"
    return (
        f'<div style="position:relative;height:{height}px"><div tabindex="-1" style="{box};overflow:auto">{still}</div>'
        f'<iframe srcdoc="{html.escape(lend(page))}" sandbox="allow-scripts allow-downloads" allow="fullscreen" '
        f'style="{box};border:0;background:#fff" title="mechwork figure"></iframe></div>'
    )
