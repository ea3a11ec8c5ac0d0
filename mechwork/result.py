"""What every public result can do, from one declaration: its fields are what is saved, its `_table` is what is shown.

    @dataclass(frozen=True, eq=False)
    class Likeness(Result, strongest="cosine"):
        places: tuple[str, ...]
        cosine: Float[Tensor, " place"]
        provenance: Provenance

        def _table(self) -> Table:
            "One row per place."
            return {"place": self.places, "cosine": self.cosine.tolist()}

It has ``save(path)`` and ``load(path)`` (one safetensors file, see `artefact` and `encoding`), `to_dataframe`, a
`repr` that names the strongest rows, ``show()`` and Jupyter's view (the drawing that `render` registers, else the
table). A class with a tuple `rows` of flat dataclasses needs no `_table`.

Old files: a class that release 0.1 saved in another form has a higher `version` and reads them in `_from_old`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from .artefact import Artefact, read_artefact, read_kind, write_artefact
from .display import Displayable
from .encoding import Decoder, Encoder
from .errors import ArtefactError, InputError
from .files import reading

if TYPE_CHECKING:
    from typing import Self

    import pandas

Table = Any
"""Whatever pandas makes a frame of: columns by name, or rows as dictionaries."""
TOP = 8
"""Rows of a `repr`."""
_FACTS = ("metric_name", "method", "rules", "direction", "ablation", "kind")
"""Fields that a `repr` names after the class."""
_CLASSES: dict[str, type[Result]] = {}


class Result(Displayable):
    """Mixin of frozen dataclasses. Class arguments: `what` (default: the class name in words), `version`, `strongest`.

    `strongest` names a column, by whose absolute value the table is ordered.
    """

    _what: ClassVar[str] = ""
    _version: ClassVar[int] = 1
    _strongest: ClassVar[str] = ""

    def __init_subclass__(cls, *, what: str = "", version: int = 1, strongest: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._what = what or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
        cls._version, cls._strongest = version, strongest
        before = _CLASSES.setdefault(cls._what, cls)
        if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(
                f"{before.__qualname__} and {cls.__qualname__} are both saved as {cls._what!r}; give one another `what`"
            )
        _CLASSES[cls._what] = cls

    # ---- table -------------------------------------------------------------------------------------------------------

    def _table(self) -> Table:
        """One row per entry of `rows`."""
        rows: Any = getattr(self, "rows", None)
        if rows is None:
            raise NotImplementedError(f"{type(self).__name__} declares no columns: give it a _table")
        return table_rows(rows)

    def to_dataframe(self) -> pandas.DataFrame:
        """The result as a table: one row per place, edge, head, size or whatever it is about."""
        import pandas

        frame = pandas.DataFrame(self._table())
        if self._strongest and len(frame):
            frame = frame.sort_values(self._strongest, key=abs, ascending=False, kind="stable", ignore_index=True)
        return frame

    def __repr__(self) -> str:
        return summary(self)

    # ---- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: numbers as tensors, everything else as JSON in its header. Returns the path."""
        path = Path(path).with_suffix(".safetensors")
        encoder = Encoder()
        facts = {"value": encoder.encode(self, type(self)), "not_finite": encoder.not_finite()}
        return write_artefact(path, self._what, facts, encoder.tensors, version=self._version)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; raises `ArtefactError` for a missing, damaged, altered, newer or foreign file."""
        found = read_artefact(path, cls._what, version=cls._version)
        with reading(path, cls._what):
            if "value" not in found.facts:
                return cls._from_old(found)
            return Decoder(found.tensors, found.facts["not_finite"]).build(cls, found.facts["value"])

    @classmethod
    def _from_old(cls, found: Artefact) -> Self:  # noqa: ARG003 - for those that have an old form
        """The result in a file that release 0.1 wrote."""
        raise ArtefactError(f"the file has no value of {cls.__name__}")


def load_result(path: str | Path) -> Any:
    """Any saved result, as the class that its file names; raises `ArtefactError` for a kind that is not known.

    >>> load_result(scores.save("scores"))
    """
    what = read_kind(path)
    if what not in _CLASSES:
        raise ArtefactError(
            f"{path} holds {what or 'nothing of mechwork'!r}; results are {', '.join(sorted(_CLASSES))}"
        )
    return _CLASSES[what].load(path)


def table_rows(rows: Iterable[Any], *properties: str, **fixed: Any) -> list[dict[str, Any]]:
    """Flat dataclasses as rows: `fixed` first, their fields, and these properties of theirs.

    An interval becomes the columns ``low`` and ``high``, a place its name; dictionaries are left out.
    """
    found = []
    for row in rows:
        cells, ends = dict(fixed), {}
        for field in dataclasses.fields(row):
            value = getattr(row, field.name)
            if field.name.endswith("interval"):
                ends = dict(zip(("low", "high"), value, strict=True))
            elif not isinstance(value, dict):
                cells[field.name] = str(value) if dataclasses.is_dataclass(value) else value
        found.append({**cells, **ends, **{name: getattr(row, name) for name in properties}})
    return found


def summary(result: Any) -> str:
    """The class, what its numbers mean, and its strongest places, a line each."""
    facts = [str(value) for name in _FACTS if isinstance(value := getattr(result, name, None), str)]
    head = f"{type(result).__name__}: {', '.join(facts)}" if facts else type(result).__name__
    top: Any = getattr(result, "top", None)
    if callable(top):
        places: Sequence[tuple[Any, ...]] = top(TOP)  # pyright: ignore[reportAssignmentType]
        width = max((len(str(place[0])) for place in places), default=0)
        return "\n".join([head, *(f"  {place[0]!s:<{width}}  {_cells(place[1:])}" for place in places)])
    frame = result.to_dataframe()
    lines = (
        frame.head(TOP).to_string(index=False, max_cols=8, max_colwidth=24, float_format="{:.4g}".format).splitlines()
    )
    more = [f"  ... {len(frame)} rows in all; to_dataframe() has them"] if len(frame) > TOP else []
    return "\n".join([head, *(f"  {line:.200}" for line in lines), *more])


def _cells(values: Sequence[Any]) -> str:
    return "  ".join(f"{value:+.4g}" if isinstance(value, float) else str(value) for value in values)
