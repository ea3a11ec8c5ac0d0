"""Which model a result belongs to: its name, the weights in use, and the file or revision that they came from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..bundled import model_names
from ..provenance import Provenance, hash_weights
from .anatomy import dtype_of, read_anatomy
from .pulse import beat

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_hashes: WeakKeyDictionary[TransformerBridge, tuple[int, str]] = WeakKeyDictionary()
"""sha256 per model, with the sum of its parameters' version counters: an in-place edit changes the sum."""

_origins: WeakKeyDictionary[TransformerBridge, dict[str, Any]] = WeakKeyDictionary()
"""Where a model's weights came from: sha256 and quantisation of a GGUF file, hub name and commit, `split_kv`."""


def record_origin(model: TransformerBridge, origin: dict[str, Any]) -> None:
    """Remembers where the weights came from; nothing is remembered where the name says it all."""
    if origin:
        _origins[model] = dict(origin)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(model: TransformerBridge) -> str:
    """sha256 of the weights in use, computed once per state of the weights."""
    version = sum(p._version for p in model.parameters())
    cached = _hashes.get(model)
    if cached is None or cached[0] != version:
        cached = (version, hash_weights(model, beat))
        _hashes[model] = cached
    return cached[1]


_sources: WeakKeyDictionary[TransformerBridge, str] = WeakKeyDictionary()
"""Where models were loaded from: a name, or the whole path of a folder or file."""


def remember_source(model: TransformerBridge, source: str | Path) -> None:
    """Keep what `load_model` was given, so that another process can load the same."""
    path, bundled = Path(source).expanduser(), str(source).partition("@")[0] in model_names()
    _sources[model] = str(source) if bundled or not path.exists() else str(path.resolve())


def source_of(model: TransformerBridge) -> str | None:
    """What `load_model` needs to load this model again; None for a module that was given to it."""
    return _sources.get(model)


def revision_of(model: TransformerBridge) -> str | None:
    """The commit of a model that came from the hub."""
    return _origins.get(model, {}).get("revision")


def is_split(model: TransformerBridge) -> bool:
    """Whether it was loaded with a key and a value projection per head (`split_kv`)."""
    return bool(_origins.get(model, {}).get("split_kv"))


def identify_model(model: TransformerBridge) -> Provenance:
    """Name, anatomy, dtype, habit about the beginning-of-sequence token, and sha256 of the weights actually used.

    `origin` where they came from a GGUF file or the hub.
    """
    origin = {"origin": dict(_origins[model])} if model in _origins else {}
    return {
        "name": str(model.cfg.model_name),
        "weights_sha256": weights_sha256(model),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "prepend_bos": bool(model.cfg.default_prepend_bos),
        "anatomy": read_anatomy(model).to_dict(),
        **origin,
    }
