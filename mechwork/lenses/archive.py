"""Read the tensors of a PyTorch archive (``params.pt``) without unpickling it.

Such a file is a zip with one pickle (the names, shapes and strides of tensors) and one raw file per storage. Unpickling
can run any code, and `torch.load` is never called on a user's file, not even with its restricted unpickler. Here the
pickle is *parsed* (`pickletools`, which executes nothing) and followed only through opcodes that build literals:
numbers, strings, tuples and dictionaries. The four global names of a plain dictionary of tensors are recognised as
words, never imported; anything else is refused by name. The bytes of the storages are then laid out with numpy.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtefactError, NotFoundError

DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
}  # fmt: skip
ORDERED, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
GLOBALS = {ORDERED, TENSOR, PARAMETER, *(f"torch {name}" for name in DTYPES)}
LARGEST = 2**20
"""Bytes of a pickle that names tensors only; a lens of 100 layers has under 20 kB."""


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    size: int


@dataclass(frozen=True)
class _Plan:
    """A tensor that is yet to be read."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_archive(file: str | Path) -> dict[str, Tensor]:
    """The dictionary of tensors that a zip archive of PyTorch holds.

    Raises `NotFoundError` for a missing file; `ArtefactError`, naming what was found, for anything but a dictionary of
    plain tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise NotFoundError(f"no file {file}")
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1 or archive.getinfo(pickles[0]).file_size > LARGEST:
                raise ArtefactError(f"{file} is no archive of tensors: it holds {', '.join(names[:4])}")
            folder = pickles[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
                raise ArtefactError(f"{file} was written on a big-endian machine; convert it to safetensors there")
            plans = _follow(archive.read(pickles[0]), file)
            return {name: _lay_out(archive, f"{folder}data/", plan, file) for name, plan in plans.items()}
    except (zipfile.BadZipFile, KeyError) as error:
        raise ArtefactError(
            f"{file} is no zip archive of PyTorch 1.6 or later, or lacks a part ({error}). Where you trust it: "
            "python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('params.pt', "
            "weights_only=True), 'params.safetensors')\""
        ) from error


def _lay_out(archive: zipfile.ZipFile, folder: str, plan: _Plan, file: Path) -> Tensor:
    data = bytearray(archive.read(folder + plan.storage.key))
    flat = torch.frombuffer(data, dtype=plan.storage.dtype) if data else torch.empty(0, dtype=plan.storage.dtype)
    last = plan.offset + sum((n - 1) * step for n, step in zip(plan.shape, plan.stride, strict=True))
    if (
        len(flat) != plan.storage.size
        or plan.offset < 0
        or min((0, *plan.stride)) < 0
        or (math.prod(plan.shape) and last >= len(flat))
    ):
        raise ArtefactError(
            f"{file} is damaged: a tensor of shape {plan.shape} does not fit its storage of {len(flat)} numbers"
        )
    return flat.as_strided(plan.shape, plan.stride, plan.offset).clone()


def _follow(pickle: bytes, file: Path) -> dict[str, _Plan]:
    """The literal that a pickle describes, by a machine that knows no opcode but those of literals."""
    machine = _Machine(file)
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            machine.take(opcode.name, argument)
    except (ValueError, IndexError, TypeError, KeyError, AttributeError) as error:
        raise ArtefactError(f"{file} is damaged: its index cannot be read ({error})") from error
    found = machine.result
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, _Plan) for k, v in found.items()):
        raise ArtefactError(f"{file} does not hold a dictionary of tensors")
    return found


class _Mark:
    """Where a tuple or a run of dictionary items begins."""


@dataclass(frozen=True)
class _Word:
    """A global name that is known; never imported."""

    name: str


LITERALS = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "BININT", "BININT1", "BININT2", "INT", "LONG1")
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class _Machine:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def take(self, name: str, argument: Any) -> None:  # noqa: C901 - one opcode after another
        """Follow one opcode; raises `ArtefactError` for any that could do more than build a literal."""
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            n = int(name[-1])
            stack[-n:] = [tuple(stack[-n:])]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = self._since_mark()
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            self._word(argument)
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            self._word(f"{module} {attribute}")
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, word = stack.pop(), stack.pop()
            stack.append(self._build(word, arguments))
        elif name == "BUILD":  # a module's state: torch keeps a dictionary's version there
            stack.pop()
        elif name == "STOP":
            self.result = stack.pop()
        else:
            raise ArtefactError(f"{self.file} is refused: its index uses {name}, which does more than name tensors")

    def _since_mark(self) -> list[Any]:
        found: list[Any] = []
        while not isinstance(self.stack[-1], _Mark):
            found.append(self.stack.pop())
        self.stack.pop()
        return found[::-1]

    def _word(self, name: str) -> None:
        if name not in GLOBALS:
            raise ArtefactError(
                f"{self.file} is refused: its index names {name.replace(' ', '.')}, which is no part of a dictionary "
                "of tensors"
            )
        self.stack.append(_Word(name))

    def _storage(self, identity: Any) -> _Storage:
        kind, word, key, _, size = identity
        name = word.name.removeprefix("torch ")
        if kind != "storage" or name not in DTYPES or not str(key).isdigit():
            raise ArtefactError(
                f"{self.file} is refused: it holds a {name} {key!r}, where tensors of floating-point numbers are read"
            )
        return _Storage(DTYPES[name], str(key), int(size))

    def _build(self, word: Any, arguments: Any) -> Any:
        name = word.name if isinstance(word, _Word) else type(word).__name__
        if name == ORDERED and arguments == ():
            return {}
        if name == TENSOR:
            storage, offset, shape, stride, *_ = arguments
            return _Plan(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))
        if name == PARAMETER:
            return arguments[0]
        raise ArtefactError(f"{self.file} is refused: its index calls {name}")
