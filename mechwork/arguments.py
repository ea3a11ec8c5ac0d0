"""Why a call failed: an error of Python's own whose cause is an argument of the wrong type becomes an `InputError`.

    @checked
    def search(task: Task, threshold: float) -> Circuit: ...

    search(task, ["x"])      InputError: threshold of search is float; got ['x']

Before a call only its plain numbers are looked at (hints ``int`` and ``float``, also with ``| None``): 1.5 or infinity
is no count, and NaN no number. The rest is looked at when a call has failed, and what functions check themselves comes
first, with better words. Hints that cannot be read, or that say more than a type, are taken to fit. Bottom layer:
imports only `errors`.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import inspect
import operator
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from .errors import InputError, MechworkError

P = ParamSpec("P")
R = TypeVar("R")
RAW = (TypeError, AttributeError, ValueError, LookupError, ArithmeticError, RuntimeError, AssertionError, StopIteration)
"""What a wrong argument causes somewhere inside."""
MOST = 1000
"""Entries of a sequence that are looked at."""
LATE = {"TransformerBridge": "transformer_lens.model_bridge"}
"""Names in hints that only type checkers import, and where they are once something else has loaded that."""
MOST_FLOAT = 1e18
"""A number that makes a call fail and is as large as this is the cause."""
PLAIN = {"int": int, "int | None": int, "float": float, "float | None": float}
"""Hints of parameters that are looked at before a call."""
LEAST = dict.fromkeys(("batch_size", "checkpoint_every", "stop_after", "n_copies", "n_tail"), 1) | {
    "n_knockouts": 0, "n_neurons": 0, "n_rows": 0, "n_generated": 0, "seed": 0,
}  # fmt: skip
"""The least value of parameters that mean the same wherever they are taken; of the others functions say more."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function; raises `InputError` for plain numbers that are none (see above), and in place of an error of `RAW`
    where an argument does not have its hint's type.
    """
    code = inspect.unwrap(function).__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    hints = [(i, name, PLAIN.get(str(function.__annotations__.get(name)))) for i, name in enumerate(names)]
    plain = [(i if i < code.co_argcount else sys.maxsize, name, hint) for i, name, hint in hints if hint is not None]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for i, name, hint in plain:
            value = kwargs[name] if name in kwargs else args[i] if i < len(args) else None
            if value is not None and (said := no_number(value, hint, name)):
                raise InputError(f"{name} of {function.__name__} is {said}; got {value!r:.80}")
        try:
            return function(*args, **kwargs)
        except MechworkError:
            raise
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise InputError(f"no file has so long a name; give {function.__name__} a shorter one") from error
        except RAW as error:
            if said := misfit(function, args, kwargs):
                raise InputError(said) from error
            raise

    return call


def no_number(value: Any, hint: type, name: str) -> str:
    """What a parameter of the hint ``int`` or ``float`` is, where the value cannot be it; nothing where it can."""
    if hint is float:
        return "a number, not NaN" if isinstance(value, float) and value != value else ""
    least = LEAST.get(name)
    beyond = isinstance(value, int) and not (-(2**63) if least is None else least) <= value < 2**63
    if hint is int and (beyond or isinstance(value, float)):
        return "a whole number below 2**63" if least is None else f"a whole number from {least} to 2**63 - 1"
    return ""


def misfit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The first argument that is not what its hint says, in words; nothing where all are, or nobody can tell."""
    plain = inspect.unwrap(function)
    late = {name: vars(sys.modules[place])[name] for name, place in LATE.items() if place in sys.modules}
    try:
        given = inspect.signature(plain).bind(*args, **kwargs).arguments
    except TypeError:
        return ""
    for name, value in given.items():
        text = plain.__annotations__.get(name)
        if text is None:
            continue
        try:
            hint = eval(text, plain.__globals__, late) if isinstance(text, str) else text  # noqa: S307 - our own source
        except Exception:  # noqa: BLE001, S112 - names that only type checkers import
            continue
        if hint is float and fits(value, hint) and not abs(float(value)) < MOST_FLOAT:
            return f"{name} of {plain.__name__} is a finite number; got {value!r:.80}"
        if not fits(value, hint):
            return f"{name} of {plain.__name__} is {text if isinstance(text, str) else hint}; got {value!r:.80}"
    return ""


def fits(value: Any, hint: Any, *, deep: bool = True) -> bool:
    """Whether the value may be of that type (`deep`: and what a sequence holds); what is not understood fits.

    Of a tensor only that it is one: functions say more about shapes.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, one, deep=deep) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if hint in (int, float):
        return not isinstance(value, bool) and _is_number(value, hint)
    container: Any = origin if origin is not None else hint
    if container is Callable or container is types.FunctionType:
        return callable(value)
    if getattr(container, "_is_protocol", False):
        named = {name for cls in container.__mro__ if getattr(cls, "_is_protocol", False) for name in _members(cls)}
        return all(hasattr(value, name) for name in named)
    if isinstance(container, type) and issubclass(container, Mapping):
        held = value.values() if deep and isinstance(value, Mapping) and len(inner) == 2 else ()
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in held)
    if container in (Sequence, Iterable, list, tuple):
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__") or getattr(value, "ndim", 1) == 0:
            return False
        if deep and hasattr(value, "ndim") and container is not Iterable:
            return False  # an array is no sequence: it has no truth value
        alike = deep and inner and container is not tuple and hasattr(value, "__len__") and len(value) <= MOST
        return not alike or all(fits(one, inner[0]) for one in value)
    if container is Path:
        return isinstance(value, os.PathLike)
    try:
        return isinstance(value, getattr(container, "array_type", container))
    except TypeError:
        return True


def _members(protocol: type) -> set[str]:
    """What a class of the protocol must have."""
    named = {*vars(protocol), *vars(protocol).get("__annotations__", ())}
    return {name for name in named if not name.startswith("_") or name == "__call__"}


def _is_number(value: Any, hint: type) -> bool:
    try:
        operator.index(value) if hint is int else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    return not isinstance(value, str | bytes)


def check_fields(value: Any) -> None:
    """Of a dataclass, at the top of its ``__post_init__``: raises `InputError` for a field of a wrong type."""
    cls = type(value)
    there = vars(sys.modules[cls.__module__])
    for field in dataclasses.fields(value):
        try:
            hint = eval(field.type, there) if isinstance(field.type, str) else field.type  # noqa: S307 - our own source
        except Exception:  # noqa: BLE001, S112 - names that only type checkers import
            continue
        found = getattr(value, field.name)
        if said := no_number(found, PLAIN.get(str(field.type), object), field.name):
            raise InputError(f"{field.name} of {cls.__name__} is {said}; got {found!r:.80}")
        if not fits(found, hint, deep=False):
            raise InputError(f"{field.name} of {cls.__name__} is {field.type}; got {found!r:.80}")
