"""Two devices on paper: tensors live on the CPU, and every operation checks that what it takes lies on one device.

A storage has a tag, the device it is said to lie on; ``tensor.device`` says the tag, ``to`` and ``copy_`` go from one
to another, whatever mixes tags raises `MixedError`, as torch does between GPUs. Scalars may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class MixedError(RuntimeError):
    """Tensors of two devices in one operation."""


class TwoDevices(TorchFunctionMode):
    """Inside, tensors have tags; `moves` counts what went from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[int, tuple[torch.device, Any]] = {}
        self.moves = 0

    def tag(self, tensor: Tensor, device: torch.device) -> None:
        storage: Any = tensor.untyped_storage()
        self.tags[storage._cdata] = (device, storage)  # kept alive, so that no other one gets its address

    def of(self, tensor: Tensor) -> torch.device:
        storage: Any = tensor.untyped_storage()
        return self.tags.get(storage._cdata, (CPU, None))[0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            return self._run(func, getattr(func, "__name__", ""), args, kwargs)

    def _run(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        if name == "__get__":
            found = func(*args, **kwargs)
            if isinstance(found, torch.device):
                return self.of(args[0])
            return self._like(found, args[0])
        if name in ("to", "cpu"):
            return self._move(name, args, kwargs)
        if name in ("copy_", "untyped_storage", "__len__", "dim", "size", "is_floating_point"):
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if name == "__setitem__" and isinstance(args[2], Tensor) and not _has_tensor(args[1]):
            return func(*args, **kwargs)
        if name == "grad":
            found = func(*args, **kwargs)
            for grad, x in zip(found, args[1] if isinstance(args[1], list | tuple) else [args[1]], strict=True):
                if grad is not None:
                    self.tag(grad, self.of(x))
            return found
        if name in ("__getitem__", "__setitem__", "index_copy"):  # indices of the CPU are taken anywhere
            given = [x for x in given if x.dtype.is_floating_point or self.of(x) != CPU]
        tags = {self.of(x) for x in given if x.ndim}
        if len(tags) > 1:
            raise MixedError(f"{name} of tensors on {', '.join(sorted(map(str, tags)))}")
        found = func(*args, **kwargs)
        home = torch.device(device) if device is not None else next(iter(tags), CPU)
        tree_map(lambda x: self.tag(x, home) if isinstance(x, Tensor) else None, found)
        return found

    def _like(self, found: Any, source: Any) -> Any:
        if isinstance(found, Tensor) and isinstance(source, Tensor):
            self.tag(found, self.of(source))
        return found

    def _move(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        source, *rest = args
        home, dtype = (CPU if name == "cpu" else self.of(source)), None
        for value in (*rest, *kwargs.values()):
            if isinstance(value, Tensor):
                home, dtype = self.of(value), value.dtype
            elif isinstance(value, torch.device | str):
                home = torch.device(value)
            elif isinstance(value, torch.dtype):
                dtype = value
        found = source if dtype is None else source.to(dtype)
        if home != self.of(source):
            self.moves += 1
            found = found.clone() if found is source else found
        self.tag(found, home)
        return found


def _has_tensor(index: Any) -> bool:
    return any(isinstance(part, Tensor) for part in (index if isinstance(index, tuple) else (index,)))


@contextmanager
def spread(model: Any) -> Iterator[TwoDevices]:
    """Inside, the first half of the blocks and the embedding lie on one device, the rest on the other, and every module
    takes its inputs to where its weights are, as accelerate's hooks do.
    """
    mode, half, n = TwoDevices(), len(model.blocks) // 2, len(model.blocks)
    tied = {id(parameter) for parameter in model.embed.parameters()}
    later = [*list(model.blocks)[half:], *(getattr(model, part) for part in ("ln_final", "unembed"))]
    for tensor in chain(model.parameters(), model.buffers()):
        mode.tag(tensor, FIRST)
    for part in later:
        if any(id(parameter) in tied for parameter in part.parameters()):
            continue  # an unembedding that is the embedding lies where that does
        for tensor in chain(part.parameters(), part.buffers()):
            mode.tag(tensor, SECOND)
    assert n >= 2

    def take(module: Any, args: Any, kwargs: Any) -> Any:
        own = next(module.parameters(), None)
        if own is None:
            return args, kwargs
        home = mode.of(own)

        def here(x: Any) -> Any:
            return x.to(home) if isinstance(x, Tensor) and x.ndim and mode.of(x) != home else x

        return tree_map(here, args), tree_map(here, kwargs)

    host = model.original_model
    with ExitStack() as stack:
        for module in host.modules():
            direct = list(module.parameters(recurse=False))
            if direct or type(module).__name__.endswith(("Block", "DecoderLayer")):
                stack.callback(module.register_forward_pre_hook(take, with_kwargs=True).remove)
        stack.enter_context(mode)
        yield mode
