"""Values to JSON and tensors and back, told by the annotations of their classes.

`encode` turns a frozen dataclass into an object of its fields: tensors are put aside under the name of their place,
everything else becomes JSON. `decode` reads it back *by the annotations of the class that is asked for*: a file
says what the values are, never of which class, so nothing is imported or unpickled by its word. Where an annotation
names an interface, the classes that may stand there are those `register`ed under a name. Every value is checked on
the way: JSON types, Literals, lengths of tuples, dtypes and shapes of tensors (an axis has one size throughout an
object), and finiteness: a tensor whose numbers were all finite when it was saved has no NaN when it is read. The
class's own ``__post_init__`` has the last word.

| annotation | in the file |
|---|---|
| ``Float[Tensor, "batch pos"]``, ``Tensor`` | the name of a tensor |
| ``str int float bool None Literal Enum`` | itself |
| ``tuple[X, ...] list[X] tuple[X, Y]`` | a list |
| ``dict[str, X]``, ``Mapping`` | an object; other keys: a list of pairs |
| a dataclass | an object of its fields |
| an interface, ``X | Y`` of several dataclasses | ``{"kind": name, "of": ...}`` of a registered class |
| ``Any``, ``Provenance`` | JSON as it is |
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

import torch
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

from .errors import InputError

_T = TypeVar("_T")
_KINDS: dict[str, type] = {}


def register(cls: type, kind: str = "") -> str:
    """Allow objects of `cls` where an annotation names an interface; returns the name they have in files."""
    name = kind or cls.__name__
    before = _KINDS.setdefault(name, cls)
    if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(
            f"two classes are saved as {name!r}: {before.__qualname__} and {cls.__qualname__}; "
            "name one of them otherwise"
        )
    _KINDS[name] = cls
    return name


class Encoder:
    """Collects the tensors of a value, each once, under the name of the place where it was first met."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def encode(self, value: Any, hint: Any, place: str = "") -> Any:
        """`value` as JSON; raises `InputError` for what cannot be saved."""
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if isinstance(value, Enum):
            return value.value
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int | float):
            return int(value) if isinstance(value, int) else float(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self._object(value, hint, place)
        if isinstance(value, Mapping):
            inner = _arguments(hint, Mapping, 2)
            pairs = [(key, self.encode(item, inner[1], f"{place}/{key}")) for key, item in value.items()]
            if all(isinstance(key, str) for key, _ in pairs) and inner[0] in (str, Any):
                return dict(pairs)
            return [[self.encode(key, inner[0], f"{place}/key"), item] for key, item in pairs]
        if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
            inner = _items(hint, len(value))
            return [
                self.encode(item, one, f"{place}/{i}") for i, (item, one) in enumerate(zip(value, inner, strict=True))
            ]
        number: Any = value
        if hasattr(number, "item") and getattr(number, "ndim", None) == 0:  # of numpy
            return number.item()
        raise InputError(f"{place or 'it'} holds a {type(value).__name__}, which cannot be saved")

    def _object(self, value: Any, hint: Any, place: str) -> Any:
        hints = hints_of(type(value))
        of = {
            f.name: self.encode(getattr(value, f.name), hints[f.name], f"{place}/{f.name}".lstrip("/"))
            for f in dataclasses.fields(value)
            if f.init
        }
        if type(value) in _concrete(hint):
            return of
        kind = next((name for name, cls in _KINDS.items() if cls is type(value)), None)
        if kind is None:
            raise InputError(
                f"{place or 'it'} holds a {type(value).__name__}, which is not saved: "
                f"it stands for {_said(hint)} and was not registered"
            )
        return {"kind": kind, "of": of}

    def _tensor(self, tensor: Tensor, place: str) -> str:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (place,)
        if key not in self._names:
            self._names[key] = place.encode("utf-8", "backslashreplace").decode()
            self.tensors[self._names[key]] = tensor
        return self._names[key]

    def not_finite(self) -> list[str]:
        """Names of the tensors in which NaN or infinity is meant."""
        return [name for name, tensor in self.tensors.items() if not _finite(tensor)]


class Decoder:
    """Builds values from JSON and tensors, by annotation; raises `TypeError` or `ValueError` naming the place."""

    def __init__(self, tensors: Mapping[str, Tensor], not_finite: Iterable[str] = ()) -> None:
        self._tensors, self._not_finite = tensors, frozenset(not_finite)

    def build(self, cls: type[_T], data: Any, place: str = "") -> _T:
        """An object of a dataclass from the object of its fields."""
        hints, shape = hints_of(cls), cast(Any, cls)
        known = [f for f in dataclasses.fields(shape) if f.init]
        names = {f.name for f in known}
        if not isinstance(data, dict):
            raise TypeError(f"{place or cls.__name__} must be an object of {', '.join(names)}; got {data!r:.80}")
        needed = {
            f.name for f in known if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if wrong := sorted((data.keys() - names) | (needed - data.keys())):
            raise TypeError(
                f"{place or cls.__name__} has the fields {', '.join(sorted(names))}; "
                f"extra or missing: {', '.join(wrong)}"
            )
        with jaxtyped("context"):  # an axis has one size in all fields
            found = {name: self.decode(hints[name], item, f"{place}/{name}".lstrip("/")) for name, item in data.items()}
        return cls(**found)

    def decode(self, hint: Any, data: Any, place: str) -> Any:
        """`data` as a value of the annotated type."""
        origin = get_origin(hint)
        if hint is Any:
            return data
        if hint is None or hint is type(None):
            return _expect(data is None, data, "null", place)
        if hint is Tensor or _is_array(hint):
            return self._tensor(hint, data, place)
        if origin in (Union, types.UnionType):
            return self._either(get_args(hint), data, place)
        if origin is Literal:
            return _expect(data in get_args(hint), data, " or ".join(map(repr, get_args(hint))), place)
        if hint in (str, bool, int, float):
            return _plain(hint, data, place)
        if origin in (tuple, list, set, frozenset, Sequence) or hint in (tuple, list):
            _expect(isinstance(data, list), data, "a list", place)
            items = [
                self.decode(one, item, f"{place}/{i}")
                for i, (one, item) in enumerate(zip(_items(hint, len(data)), data, strict=True))
            ]
            return {list: list, set: set, frozenset: frozenset}.get(origin or hint, tuple)(items)
        if origin in (dict, Mapping) or hint is dict:
            return self._mapping(hint, data, place)
        if isinstance(hint, type) and issubclass(hint, Enum):
            return hint(data)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and not _is_kind(data):
            return self.build(hint, data, place)
        return self._registered(hint, data, place)

    def _mapping(self, hint: Any, data: Any, place: str) -> dict[Any, Any]:
        key_hint, item_hint = _arguments(hint, Mapping, 2)
        if key_hint in (str, Any):
            _expect(isinstance(data, dict), data, "an object", place)
            return {key: self.decode(item_hint, item, f"{place}/{key}") for key, item in data.items()}
        _expect(
            isinstance(data, list) and all(isinstance(p, list) and len(p) == 2 for p in data),
            data,
            "a list of pairs",
            place,
        )
        return {
            self.decode(key_hint, key, f"{place}/key"): self.decode(item_hint, item, f"{place}/{key}")
            for key, item in data
        }

    def _either(self, hints: tuple[Any, ...], data: Any, place: str) -> Any:
        if data is None and type(None) in hints:
            return None
        errors = []
        for hint in hints:
            if hint is not type(None):
                try:
                    return self.decode(hint, data, place)
                except (TypeError, ValueError) as error:
                    errors.append(error)
        raise errors[0]

    def _tensor(self, hint: Any, data: Any, place: str) -> Tensor:
        if not isinstance(data, str) or data not in self._tensors:
            raise TypeError(f"{place} must be the name of a tensor; got {data!r:.80}")
        tensor = self._tensors[data]
        if hint is not Tensor and not isinstance(tensor, hint):
            raise TypeError(
                f"{place} must be {_said(hint)}, as the other fields have it; got {tuple(tensor.shape)} {tensor.dtype}"
            )
        if data not in self._not_finite and not _finite(tensor):
            raise ValueError(f"{place} must be finite, as it was when it was saved; it has NaN or infinity")
        return tensor

    def _registered(self, hint: Any, data: Any, place: str) -> Any:
        if not _is_kind(data) or data["kind"] not in _KINDS:
            raise TypeError(f"{place} must be one of the kinds {', '.join(sorted(_KINDS))}; got {data!r:.80}")
        value = self.build(_KINDS[data["kind"]], data["of"], place)
        if isinstance(hint, type) and not getattr(hint, "_is_protocol", False) and not isinstance(value, hint):
            raise TypeError(f"{place} must be {_said(hint)}; got {type(value).__name__}")
        return value


# ---- annotations -----------------------------------------------------------------------------------------------------


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields as types; jaxtyping's axes stay text inside them."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        scope = {**vars(typing), **vars(sys.modules.get(base.__module__, types.ModuleType("")))}
        for name, text in vars(base).get("__annotations__", {}).items():
            found[name] = eval(text, scope) if isinstance(text, str) else text  # noqa: S307 - our source
    return found


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _is_kind(data: Any) -> bool:
    return isinstance(data, dict) and data.keys() == {"kind", "of"}


def _concrete(hint: Any) -> tuple[Any, ...]:
    """The classes an annotation names; several dataclasses cannot be told apart, so none of them."""
    args = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    named = [one for one in args if one is not type(None)]
    return tuple(named) if len(named) == 1 else ()


def _arguments(hint: Any, origin: Any, n: int) -> tuple[Any, ...]:
    """The arguments of a container's annotation, also of ``X | None``; `Any` where there are none."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [one for one in get_args(hint) if get_origin(one) in (dict, Mapping, tuple, list, Sequence)]
        return _arguments(inner[0], origin, n) if inner else (Any,) * n
    return get_args(hint) or (Any,) * n


def _items(hint: Any, n: int) -> list[Any]:
    """The annotation of each of `n` items; raises `TypeError` for a tuple of another length."""
    args = _arguments(hint, Sequence, 1)
    if get_origin(hint) in (Union, types.UnionType):
        hint = next((one for one in get_args(hint) if get_origin(one) in (tuple, list, Sequence)), hint)
    if get_origin(hint) is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        if len(args) != n:
            raise TypeError(f"{len(args)} items were expected; got {n}")
        return list(args)
    return [args[0]] * n


def _plain(hint: type, data: Any, place: str) -> Any:
    fits = isinstance(data, hint) and (hint is bool or not isinstance(data, bool))
    if hint is float:
        fits = isinstance(data, int | float) and not isinstance(data, bool)
        return float(_expect(fits, data, "a number", place))
    return _expect(fits, data, {str: "a text", bool: "true or false", int: "a whole number"}[hint], place)


def _expect(fits: bool, data: Any, what: str, place: str) -> Any:  # noqa: FBT001
    if not fits:
        raise TypeError(f"{place} must be {what}; got {data!r:.80}")
    return data


def _finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(torch.isfinite(tensor).all())


def _said(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint))
