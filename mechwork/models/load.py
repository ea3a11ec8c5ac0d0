"""Load a model as a `TransformerBridge` with raw weights, eager attention, evaluation mode, ready to be analysed.

No code of the model's author is ever run, no pickle is read, and the hub is asked only for a name that is neither
bundled nor a local file or folder. What cannot be used is refused by name before the weights are read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import bundled
from ..arguments import checked
from ..errors import InputError, NotFoundError, nearest
from .anatomy import read_anatomy
from .bos import choose_bos
from .changed import origin_of, read_changes
from .folder import fetch_hub, load_folder
from .identity import record_origin, remember_source
from .placement import check_fits, find_device, find_dtype
from .routers import open_routers
from .split import split_key_values
from .stores import STORES, find_in_store
from .wrap import check_tokenizer, wrap_module

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ModelSource = str | Path | nn.Module


@dataclass(frozen=True)
class Placement:
    """How the weights of a name are loaded; `with_tokenizer`: whether the source's own tokenizer is wanted."""

    dtype: torch.dtype
    device: torch.device | None = None
    device_map: Any = None
    with_tokenizer: bool = True

    def __post_init__(self) -> None:
        if self.device is not None and self.device_map is not None:
            raise InputError(f"give device or device_map, not both; got {self.device} and {self.device_map!r}")


@dataclass(frozen=True)
class Loaded:
    """A module and its tokenizer as a source gave them, and the facts by which the source can be told again."""

    module: nn.Module
    tokenizer: Any
    name: str
    origin: dict[str, Any] = field(default_factory=dict)


@checked
def load_model(
    source: ModelSource,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device_map: Any = None,
    prepend_bos: bool | None = None,
    split_kv: bool = False,
) -> TransformerBridge:
    """A model from where it is, ready to be analysed.

    `source` is one of

    - a bundled name: ``"gpt2-6l"``; ``"attn-only-2l@500"`` as it was after 500 steps of training;
    - a folder in Hugging Face format, or a hub name ``"owner/name"``, at a `revision` (branch, tag or commit), also
      written ``"owner/name@revision"``;
    - a GGUF file: ``"model.gguf"``, ``"lmstudio:PUBLISHER/REPO"``, ``"ollama:NAME:TAG"``; its weights are dequantised;
    - a ready Hugging Face module, wrapped in place, or a ready bridge.

    Weights are raw (nothing folded or centred), attention is eager, the model is in evaluation mode and no parameter
    asks for gradients. `device` defaults to the CPU for names and to where it is for a ready module; `dtype` (torch's
    or its name) defaults to float32, on CUDA to bfloat16. `device_map` is handed to Hugging Face for folders and hub
    names. `tokenizer` goes with a module, or takes the place of a source's own.
    `prepend_bos`: whether prompts begin with the beginning-of-sequence token (default: what the tokenizer itself does;
    bundled models and ready bridges stay as they are).
    `split_kv`: under grouped-query attention every head gets a copy of its group's key and value projection, so that
    graphs have a key and a value reader per head; the same logits, more edges, and somewhat slower passes.

    Raises:
        NotFoundError: no such file or folder, or the hub cannot be reached or does not know the name.
        UnsupportedModelError: an architecture or packed weights that mechwork does not claim.
        ArtefactError: a file that is damaged, or a bundled model whose files do not match their sha256.
        InputError: a device or dtype that is none, weights that do not fit into memory, or arguments that do not go
            together.

    >>> model = load_model("gpt2-6l")
    >>> model.cfg.n_layers
    6
    """
    from transformer_lens.model_bridge import TransformerBridge

    place = find_device(device)
    if dtype is not None:
        find_dtype(dtype, place)
    check_tokenizer(tokenizer)
    if isinstance(source, nn.Module) and (revision is not None or device_map is not None):
        raise InputError("revision and device_map go with a name; a ready module is used as it is. Leave them out.")
    if isinstance(source, TransformerBridge):
        if tokenizer is not None:
            raise InputError("a ready bridge has its tokenizer; give tokenizer= with a Hugging Face module or a name")
        if split_kv:
            raise InputError("a ready bridge is used as it is; give split_kv=True with its name or Hugging Face module")
        model = source
        open_routers(model)
    elif isinstance(source, nn.Module):
        module = split_key_values(source) if split_kv else source
        model = wrap_module(module, tokenizer, type(source).__name__)
    elif isinstance(source, str | Path):
        placement = Placement(find_dtype(dtype, place), place, device_map, with_tokenizer=tokenizer is None)
        loaded = _load_named(source, revision, placement)
        module = split_key_values(loaded.module) if split_kv else loaded.module
        model = wrap_module(module, loaded.tokenizer if tokenizer is None else tokenizer, loaded.name)
        record_origin(model, loaded.origin | ({"split_kv": True} if split_kv else {}))
        dtype = placement.dtype
        remember_source(model, loaded.origin.get("hub", source))
    else:
        raise InputError(
            "load_model takes a name, a file, a folder, a Hugging Face module or a TransformerBridge; got "
            f"{type(source).__name__}"
        )
    _move(model, place, None if dtype is None else find_dtype(dtype, place))
    model.eval()
    model.requires_grad_(False)
    choose_bos(model, prepend_bos=prepend_bos)
    read_anatomy(model)
    return model


def _move(model: TransformerBridge, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """To the device and dtype, where these are asked for and not the case already."""
    current = next(model.parameters())
    changes: dict[str, Any] = {}
    if device is not None:
        changes["device"] = device
        model.cfg.device = str(device)
    if dtype is not None:
        if current.dtype != dtype:
            changes["dtype"] = dtype
        model.cfg.dtype = dtype
    if changes:
        model.to(**changes)


def _load_named(source: str | Path, revision: str | None, placement: Placement) -> Loaded:
    """The source that a name means, in this order: bundled, a store, a file, a folder, the hub."""
    name = str(source)
    base, _, step = name.partition("@")
    if base in bundled.model_names() and (step.isdecimal() or name == base):
        _only_for_hub(name, revision)
        weights = bundled.checkpoint_file(base, int(step)) if step else None
        folder = bundled.verified_model(base)
        return Loaded(*_load_folder(folder, placement, weights), name)
    store, separator, rest = name.partition(":")
    if separator and store in STORES:
        _only_for_hub(name, revision)
        return _load_gguf(find_in_store(store, rest), name, placement)
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf" or path.is_file():
        _only_for_hub(name, revision)
        return _load_gguf(path, path.stem, placement)
    if path.is_dir():
        _only_for_hub(name, revision)
        return Loaded(*_load_folder(path, placement), path.name, origin_of(read_changes(path)))
    looks_local = isinstance(source, Path) or name.startswith((".", "/", "~"))
    if looks_local or "/" not in name:
        known = bundled.model_names()
        raise NotFoundError(
            f"no model {name!r}: not bundled ({', '.join(known)}){nearest(name, known)} and no such file or folder. "
            "Hub models are named 'owner/name', e.g. 'openai-community/gpt2'; GGUF files end in .gguf."
        )
    hub, _, at = name.partition("@")
    if at and revision is not None:
        raise InputError(f"one revision is needed; got {at!r} in {name!r} and revision={revision!r}. Leave one out.")
    folder, commit = fetch_hub(hub, revision or at or None)
    return Loaded(*_load_folder(folder, placement), hub, {"hub": hub, "revision": commit})


def _load_folder(folder: Path, placement: Placement, weights: Path | None = None) -> tuple[nn.Module, Any]:
    return load_folder(
        folder, placement.dtype, placement.device, placement.device_map, weights,
        with_tokenizer=placement.with_tokenizer,
    )  # fmt: skip


def _only_for_hub(name: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"revision goes with a hub name, 'owner/name'; {name!r} is on this machine. Leave it out.")


def _load_gguf(path: Path, name: str, placement: Placement) -> Loaded:
    from math import prod

    from .gguf import load_gguf, read_header
    from .identity import hash_file

    if placement.device_map is not None:
        raise InputError(
            "device_map goes with a folder or hub name; a GGUF file is loaded on one device. Give device='cuda' "
            "instead."
        )
    header = read_header(path)
    n_parameters = sum(prod(entry.shape) for entry in header.tensors.values())
    check_fits(name, n_parameters, placement.dtype, placement.device)
    module, tokenizer, header = load_gguf(path, placement.dtype, with_tokenizer=placement.with_tokenizer)
    return Loaded(module, tokenizer, name, {"gguf_sha256": hash_file(path), "quantisation": header.quantisation})
