"""What goes between the driver and its workers: tensors as safetensors bytes, errors as class and message. No pickled
objects of ours.
"""

from __future__ import annotations

from safetensors.torch import load, save

from .. import errors
from ..errors import MechworkError
from .unit import Tensors


def pack(values: Tensors) -> bytes:
    """Tensors as bytes; the same bytes for the same values."""
    return save({name: tensor.detach().contiguous().cpu() for name, tensor in values.items()})


def unpack(content: bytes) -> Tensors:
    """What `pack` packed."""
    return load(content)


def pack_error(error: Exception) -> tuple[str, str]:
    """The error's class and message."""
    return type(error).__name__, str(error)


def unpack_error(content: tuple[str, str]) -> Exception:
    """An error of mechwork's as itself; any other as `RuntimeError` with its name in front."""
    name, message = content
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, MechworkError)):
        return RuntimeError(f"{name}: {message}")
    error = kind.__new__(kind)
    error.args = (message,)
    return error
