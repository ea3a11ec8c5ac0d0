"""Where a model goes and in which numbers: device, dtype, and whether it fits.

Defaults: the CPU in float32; on CUDA bfloat16, the format most weights are published in. The estimate is numbers x
bytes; what an analysis adds is planned by the functions that run it. Raised before any weight is read.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ..errors import InputError

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Names of the dtypes in which a model can be loaded."""


def find_dtype(dtype: torch.dtype | str | None, device: torch.device | None) -> torch.dtype:
    """The torch dtype that is meant; by default bfloat16 on CUDA, float32 elsewhere."""
    if dtype is None:
        return torch.bfloat16 if device is not None and device.type == "cuda" else torch.float32
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise InputError(f"dtype is one of {', '.join(DTYPES)}, as a name or torch's own; got {dtype!r}")
    return found


def find_device(device: torch.device | str | None) -> torch.device | None:
    """The device that is meant, after checking that this machine has it; None stays None."""
    if device is None:
        return None
    known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        known.append("mps")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    full = None if found is None else "cuda:0" if str(found) == "cuda" else str(found)
    if found is None or full not in known:
        raise InputError(f"device is one of this machine's: {', '.join(known)}; got {str(device)!r}")
    return found


def free_memory(device: torch.device | None) -> int | None:
    """Bytes that can still be had on the device; None where the machine does not say."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_fits(name: str, n_parameters: int, dtype: torch.dtype, device: torch.device | None) -> None:
    """Raises `InputError`, with what would do, when the weights alone do not fit."""
    free, needed = free_memory(device), n_parameters * dtype.itemsize
    if free is None or needed <= free:
        return
    smaller = f"dtype='bfloat16' takes {n_parameters * 2 / 1e9:.1f} GB; " if dtype.itemsize > 2 else ""
    raise InputError(
        f"{name} has {n_parameters / 1e9:.2f} billion parameters: {needed / 1e9:.1f} GB in "
        f"{str(dtype).removeprefix('torch.')}, and {device or 'this machine'} has {free / 1e9:.1f} GB free. {smaller}"
        "device_map='auto' spreads a folder or hub model over several devices; or take a smaller model."
    )
