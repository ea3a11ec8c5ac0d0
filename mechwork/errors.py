"""The tree of errors. Every message says the contract, what was received, and the remedy.

MechworkError
├── InputError (also ValueError)     the caller's arguments or data break a contract; raised before any forward pass
│   └── UnknownNameError             a name that is not in its table; names the nearest ones
├── NotFoundError                    a model, file or hub that cannot be reached
├── UnsupportedModelError            an architecture or a configuration that mechwork does not claim
├── ArtefactError                    a file that is damaged, altered, or belongs to another model or task
│   └── MissingArtefactError (also NotFoundError)   a file that is not there
├── StorageError (also OSError)      a file that cannot be written: no space, no right, no folder; nothing was changed
├── BusyError                        a model that another thread is using
├── VerificationError                what was recorded and what is found now differ
├── UnitError                        some pieces of distributed work failed every time they were tried
├── Cancelled                        the caller asked for a stop; what was finished is kept
└── MetricError                      a metric that is NaN, or whose clean and corrupt values coincide
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Sequence


class MechworkError(Exception):
    """Root of every error that mechwork raises on purpose."""


class InputError(MechworkError, ValueError):
    """An argument or the data break a contract."""


class UnknownNameError(InputError):
    """A name that is not in its table."""

    def __init__(self, kind: str, name: object, options: Iterable[str]) -> None:
        options = list(options)
        super().__init__(f"unknown {kind} {name!r}{nearest(str(name), options)}; known: {', '.join(options)}")


class NotFoundError(MechworkError):
    """A model, a file or the network that is not there."""


class UnsupportedModelError(MechworkError):
    """A model whose architecture or configuration mechwork does not claim."""


class ArtefactError(MechworkError):
    """A stored file that is damaged, altered, or belongs to something else."""


class MissingArtefactError(ArtefactError, NotFoundError):
    """A stored file that is not there."""


class StorageError(MechworkError, OSError):
    """A file that cannot be written; what stood under its name still does."""


class BusyError(MechworkError, RuntimeError):
    """A model that another thread is using."""


class VerificationError(MechworkError):
    """What was recorded and what is found now differ."""


class UnitError(MechworkError):
    """Pieces of work that failed every time they were tried; all others are finished."""


class Cancelled(MechworkError):  # noqa: N818 - a stop that was asked for, not a fault
    """Work that was stopped because its caller asked for it."""


class MetricError(MechworkError, ValueError):
    """A metric whose values cannot carry the question asked of it."""


def nearest(name: str, options: Iterable[str], n: int = 3) -> str:
    """``"; nearest: a, b"`` for the options closest to `name`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(options), n=n, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""


def check_whole(what: str, value: object, *, least: int | None = None) -> int:
    """`value` as an int. Raises `InputError`, naming `what`, for one that is no whole number, is below `least` or
    has more than 63 bits.
    """
    wanted = "a whole number" + ("" if least is None else f", at least {least}")
    try:
        number = operator.index(value)  # type: ignore[arg-type] - numpy's and torch's whole numbers pass too
    except TypeError:
        number = None
    if number is not None and number >= 2**63:
        wanted += ", below 2**63"
    if number is None or isinstance(value, bool) or not (-(2**63) if least is None else least) <= number < 2**63:
        raise InputError(f"{what} is {wanted}; got {value!r}")
    return number


def some_or_all(what: str, given: Sequence[str] | None, every: Sequence[str]) -> tuple[str, ...]:
    """The names that were given, or every one where None was. Raises `InputError`, naming `what`, for a text or none at
    all.
    """
    if given is None:
        return tuple(every)
    if isinstance(given, str) or not len(given):
        raise InputError(f"{what} is a list, e.g. [{every[0]!r}], or None for all; got {given!r}")
    return tuple(given)


def check_seed(seed: object) -> int:
    """`seed` as an int. Raises `InputError` for what no generator can be seeded with."""
    number = check_whole("seed", seed)
    if not 0 <= number < 2**63:
        raise InputError(f"seed is a whole number from 0 to 2**63 - 1; got {number}")
    return number
