"""The header of a GGUF file: metadata and the table of tensors, read with every bound checked.

A file is: magic, version, two counts, key/value pairs, tensor table, padding, data (little-endian). Version 2 and 3
differ
in nothing that is read here. Source: the format's specification in the ggml repository (``docs/gguf.md``).
Lengths come from the file, so none is believed: strings and arrays must lie inside the file, counts are bounded by what
the rest of the file could hold, and a tensor's bytes must be there. Cost: one pass over the header, no tensor data.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ArtefactError, NotFoundError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_AXES = 4
ALIGNMENT = 32
"""Tensor data begins at a multiple of this many bytes, unless the file says otherwise."""

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9

WINDOW = 1 << 20
"""Bytes read ahead while the header is parsed."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: torch's order of axes, the name of its quantisation, and where its bytes are."""

    name: str
    shape: tuple[int, ...]
    quantisation: str
    offset: int
    n_bytes: int
    block: tuple[int, int]
    """Numbers and bytes of one quantisation block."""

    def __post_init__(self) -> None:
        if self.shape[-1] % self.block[0]:
            raise ArtefactError(
                f"tensor {self.name!r} has rows of {self.shape[-1]} numbers, which {self.quantisation} blocks of "
                f"{self.block[0]} do not divide. The file is damaged; download it again."
            )


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself. Arrays are lists; `tensors` are in the file's order."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def quantisation(self) -> str:
        """The quantisation that holds most numbers, e.g. ``"Q4_1"``."""
        sizes: dict[str, int] = {}
        for entry in self.tensors.values():
            sizes[entry.quantisation] = sizes.get(entry.quantisation, 0) + prod(entry.shape)
        return max(sizes, key=lambda name: sizes[name])

    def get(self, key: str, default: Any = None) -> Any:
        """Metadata under the architecture's own prefix, e.g. ``"block_count"``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """The same for what the file must say."""
        value = self.get(key)
        if value is None:
            raise ArtefactError(
                f"{self.path.name} has no {self.architecture}.{key} in its metadata; the file is incomplete. "
                "Download it again, or convert the model anew."
            )
        return value


def read_header(path: Path) -> GgufHeader:
    """The header of the file, checked.

    Raises:
        NotFoundError: no such file, or parts of a split file that are missing.
        ArtefactError: not a GGUF file, truncated, or with a header that contradicts itself.
        UnsupportedModelError: a version or a quantisation that cannot be read.
    """
    if not path.is_file():
        raise NotFoundError(f"no GGUF file {path}")
    try:
        with path.open("rb") as file:
            header = _HeaderReader(path, file).header()
    except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ArtefactError(f"{path.name} is not a readable GGUF file ({error}). Download it again.") from error
    _check_whole(header)
    return header


def _check_whole(header: GgufHeader) -> None:
    """Raises `NotFoundError` for one part of a split file: names the parts, and those that are not beside it."""
    count = int(header.metadata.get("split.count", 1) or 1)
    if count <= 1:
        return
    stem, _, _ = header.path.name.rpartition("-of-")
    base = stem.rpartition("-")[0] or header.path.stem
    names = [f"{base}-{part:05d}-of-{count:05d}.gguf" for part in range(1, min(count, 999) + 1)]
    missing = [name for name in names if not (header.path.parent / name).is_file()]
    what = f"missing beside it: {', '.join(missing[:5])}" if missing else "all parts are beside it"
    raise NotFoundError(
        f"{header.path.name} is one of {count} parts of a split GGUF file ({what}). mechwork reads whole files: "
        "join the parts with llama.cpp's `llama-gguf-split --merge FIRST_PART OUT.gguf` and load OUT.gguf."
    )


class _HeaderReader:
    """Reads a header front to back. Every length is compared with the bytes that are left."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.size = path.stat().st_size
        self.buffer, self.start, self.place = b"", 0, 0

    def damaged(self, why: str) -> ArtefactError:
        return ArtefactError(
            f"{self.path.name} is truncated or damaged: {why}. The file has {self.size:,} bytes; download it again."
        )

    def take(self, n: int) -> bytes:
        """The next `n` bytes."""
        if n > self.size - self.start - self.place:
            raise self.damaged(f"its header asks for {n:,} bytes at byte {self.start + self.place:,}")
        if self.place + n > len(self.buffer):
            self.start += self.place
            self.file.seek(self.start)
            self.buffer, self.place = self.file.read(max(n, WINDOW)), 0
        piece = self.buffer[self.place : self.place + n]
        self.place += n
        return piece

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, least: int, what: str) -> int:
        """A count of things that take at least `least` bytes each, bounded by what is left of the file."""
        n = self.number("<Q")
        if n * least > self.size - self.start - self.place:
            raise self.damaged(f"it claims {n:,} {what}")
        return n

    def text(self) -> str:
        return self.take(self.count(1, "letters")).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise self.damaged(f"a value of the unknown type {kind}")
        inner = self.number("<I")
        if inner in SCALARS:
            width = struct.calcsize(SCALARS[inner])
            n = self.count(width, "numbers in an array")
            return list(struct.unpack(f"<{n}{SCALARS[inner][1]}", self.take(n * width)))
        if inner != STRING:
            raise self.damaged(f"an array of the unknown type {inner}")
        return [self.text() for _ in range(self.count(8, "strings in an array"))]

    def header(self) -> GgufHeader:
        if self.size < 24 or self.take(4) != MAGIC:
            raise ArtefactError(
                f"{self.path.name} is not a GGUF file: it does not begin with the letters GGUF. mechwork reads GGUF "
                "files, "
                "and folders in Hugging Face format with safetensors."
            )
        version = self.number("<I")
        if version not in VERSIONS:
            raise UnsupportedModelError(
                f"{self.path.name} is GGUF version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} "
                "(little-endian) are "
                "read. Convert the model with a current llama.cpp."
            )
        n_tensors, n_values = self.count(24, "tensors"), self.count(12, "metadata values")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.text()
            metadata[key] = self.value(self.number("<I"))
        if not isinstance(metadata.get("general.architecture"), str):
            raise self.damaged("its metadata name no general.architecture")
        rows = [self.row() for _ in range(n_tensors)]
        alignment = int(metadata.get("general.alignment", ALIGNMENT))
        if alignment <= 0 or alignment & (alignment - 1):
            raise self.damaged(f"its alignment is {alignment}")
        begin = -(-(self.start + self.place) // alignment) * alignment
        tensors = {name: self.entry(name, shape, kind, begin + offset) for name, shape, kind, offset in rows}
        if len(tensors) != len(rows):
            raise self.damaged("two tensors have one name")
        return GgufHeader(self.path, metadata, tensors)

    def row(self) -> tuple[str, tuple[int, ...], int, int]:
        name, n_axes = self.text(), self.number("<I")
        if not 1 <= n_axes <= MAX_AXES:
            raise self.damaged(f"tensor {name!r} has {n_axes} axes")
        axes = struct.unpack(f"<{n_axes}Q", self.take(8 * n_axes))
        if min(axes) < 1:
            raise self.damaged(f"tensor {name!r} has shape {axes}")
        return name, tuple(reversed(axes)), self.number("<I"), self.number("<Q")

    def entry(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorEntry:
        quantisation, block = find_quantisation(kind, f"tensor {name!r} of {self.path.name}")
        n_bytes = prod(shape) // block[0] * block[1]
        if offset + n_bytes > self.size:
            raise self.damaged(f"tensor {name!r} ends at byte {offset + n_bytes:,}")
        return TensorEntry(name, shape, quantisation, offset, n_bytes, block)


def find_quantisation(kind: int, where: str) -> tuple[str, tuple[int, int]]:
    """Name, and numbers and bytes per block, of a ggml type; refuses by name those that cannot be dequantised."""
    package = import_gguf()
    try:
        known = package.GGMLQuantizationType(kind)
    except ValueError:
        raise UnsupportedModelError(
            f"{where} has the unknown ggml type {kind}. Update the package: pip install -U gguf"
        ) from None
    if known.name not in readable_quantisations():
        raise UnsupportedModelError(
            f"{where} is stored as {known.name}, which cannot be dequantised. "
            f"Readable: {', '.join(readable_quantisations())}. Download or convert the model in one of these, e.g. "
            "Q8_0."
        )
    return known.name, package.GGML_QUANT_SIZES[known]


@cache
def readable_quantisations() -> tuple[str, ...]:
    """Names of the ggml types that the installed `gguf` package dequantises, found by trying one block of each."""
    package = import_gguf()
    names = []
    for kind in package.GGMLQuantizationType:
        block = np.zeros((1, package.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        try:
            package.dequantize(block, kind)
        except NotImplementedError:
            continue
        names.append(kind.name)
    return tuple(names)


def import_gguf() -> Any:
    """The `gguf` package, or the remedy where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise NotFoundError("GGUF files need the package gguf: pip install 'mechwork[gguf]'") from error
    return gguf
