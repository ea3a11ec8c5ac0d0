"""Which model a result belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ..bundled import model_names
from ..provenance import Provenance, hash_weights
from .anatomy import dtype_of, read_anatomy

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_hashes: WeakKeyDictionary[TransformerBridge, tuple[int, str]] = WeakKeyDictionary()
"""sha256 per model, with the sum of its parameters' version counters: an in-place edit changes the sum."""


def weights_sha256(model: TransformerBridge) -> str:
    """sha256 of the weights in use, computed once per state of the weights."""
    version = sum(p._version for p in model.parameters())
    cached = _hashes.get(model)
    if cached is None or cached[0] != version:
        cached = (version, hash_weights(model))
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


def identify_model(model: TransformerBridge) -> Provenance:
    """Name, anatomy, dtype and sha256 of the weights actually used."""
    return {
        "name": str(model.cfg.model_name),
        "weights_sha256": weights_sha256(model),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "anatomy": read_anatomy(model).to_dict(),
    }
