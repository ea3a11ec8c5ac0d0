"""Damaged, hostile and foreign files of every kind: an `ArtefactError`, or an object that is sound; nothing else.

Bytes: flipped, cut, doubled, replaced, of another kind. Files with a header: facts and tensors changed and sealed anew,
as somebody with bad intent would. A file with a sha256 whose bytes were changed must be refused.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from mechwork.errors import ArtefactError, MechworkError
from tests.artefacts.test_fuzz import DEEP, KINDS, Kind, _at, _open, _places, _put, _tensors, _with
from tests.faults.core import Tally

SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    3,
    10**30,
    -1.5,
    1e308,
    "",
    "a1.h0",
    "é\x1b[2J",
    "../../x",
    "\ud800",
)
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64, torch.int8)


def junk(draw: random.Random, depth: int = 0) -> Any:
    """Some JSON value."""
    if depth > 3 or draw.random() < 0.5:
        return draw.choice(SCALARS)
    if draw.random() < 0.5:
        return [junk(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(("a", "what", "format", "space", "value", "0")): junk(draw, depth + 1) for _ in range(2)}


def read(tally: Tally, kind: Kind, file: Path, what: str, *, must_refuse: bool = False) -> None:
    try:
        found = kind.read(file)
    except ArtefactError as error:
        tally.check(len(str(error)) > 20, f"{what}: says only {error}")
    except MechworkError as error:
        tally.check(False, f"{what}: {type(error).__name__}, not an ArtefactError: {str(error)[:160]}")
    except Exception as error:  # noqa: BLE001 - counted
        tally.check(False, f"{what}: {type(error).__name__}: {str(error)[:160]}")
    else:
        tally.check(not must_refuse and found is not None, f"{what}: read as {type(found).__name__}")


def bytes_changed(draw: random.Random, whole: bytes, other: bytes) -> bytes:
    at = draw.randrange(len(whole))
    return draw.choice(
        (
            whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :],
            whole[:at],
            whole[:at] + draw.randbytes(draw.randrange(1, 9)) + whole[at:],
            whole[:at] + whole[at + draw.randrange(1, 9) :],
            draw.randbytes(draw.randrange(0, 64)),
            other,
            other[: len(other) // 2] + whole[len(whole) // 2 :],
            whole + whole,
            draw.choice((b"", b"null", b"{}", b"[]", DEEP.encode(), b"\xff\xfe\x00{", b"\x80\x04K\x01.")),
        )
    )


def tensor_changed(draw: random.Random, tensor: torch.Tensor) -> torch.Tensor | None:
    choice = draw.randrange(6)
    if choice == 0:
        return None
    if choice == 1:
        return tensor.to(draw.choice(DTYPES))
    if choice == 2:
        return tensor.new_zeros([draw.randrange(4) for _ in range(draw.randrange(4))])
    if choice == 3 and tensor.numel():
        flat = tensor.flatten().clone()
        new = draw.choice((-1, 10**6, 0)) if not tensor.is_floating_point() else draw.choice((float("nan"), 1e30))
        flat[draw.randrange(len(flat))] = bool(new) if tensor.dtype == torch.bool else new
        return flat.view_as(tensor)
    if choice == 4 and tensor.ndim:
        return tensor[: draw.randrange(len(tensor) + 1)]
    return tensor[None]


def run(tally: Tally) -> None:
    """About 10,000 files at scale 1."""
    with tempfile.TemporaryDirectory() as place:
        whole: dict[str, tuple[Path, bytes]] = {}
        for name, kind in KINDS.items():
            folder = Path(place) / f"{len(whole)}"
            folder.mkdir()
            file = kind.write(folder)
            whole[name] = file, file.read_bytes()
        for _ in range(tally.times(6_000)):
            draw = tally.draw
            name = draw.choice(list(KINDS))
            file, content = whole[name]
            new = bytes_changed(draw, content, whole[draw.choice(list(KINDS))][1])
            file.write_bytes(new)
            sealed = file.suffix == ".safetensors" and new != content
            read(tally, KINDS[name], file, f"{name}: bytes", must_refuse=sealed)
            file.write_bytes(content)
        changeable = [name for name in KINDS if name not in ("circuit of EAP-IG", "attribution graph")]
        for _ in range(tally.times(4_000)):
            draw = tally.draw
            name = draw.choice(changeable)
            _resealed(tally, draw, name, whole[name][0], Path(place))


def _resealed(tally: Tally, draw: random.Random, name: str, file: Path, place: Path) -> None:
    """One fact or tensor changed, the hash made to fit."""
    kept = place / "kept"
    shutil.copytree(file.parent, kept, dirs_exist_ok=True)
    try:
        header = _open(file)
        tensors = (
            _tensors(file) if (file.suffix == ".safetensors" or file.with_suffix(".safetensors").is_file()) else {}
        )
        what = ""
        if tensors and draw.random() < 0.4:
            key = draw.choice(list(tensors))
            new = tensor_changed(draw, tensors[key])
            what = f"tensor {key} -> {None if new is None else (str(new.dtype), tuple(new.shape))}"
            _put(file, header, {k: v for k, v in {**tensors, key: new}.items() if v is not None})
        else:
            places = [path for path in _places(header["facts"]) if path]
            path = draw.choice(places) if places else ()
            value = junk(draw)
            if path:
                what = f"fact {path} {_at(header['facts'], path)!r:.30} -> {value!r:.60}"
                header = {**header, "facts": _with(header["facts"], path, value)}
            else:
                what, header = f"facts -> {value!r:.60}", {**header, "facts": value}
            try:
                _put(file, header, tensors or None)
            except (UnicodeError, TypeError, ValueError, AttributeError, OverflowError):
                return  # no file can hold that
        read(tally, KINDS[name], file, f"{name}: {what}")
    finally:
        shutil.rmtree(file.parent)
        shutil.copytree(kept, file.parent)
        shutil.rmtree(kept)
