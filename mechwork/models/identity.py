"""Which model a result belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

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


def identify_model(model: TransformerBridge) -> Provenance:
    """Name, anatomy, dtype, habit about the beginning-of-sequence token, and sha256 of the weights actually used."""
    return {
        "name": str(model.cfg.model_name),
        "weights_sha256": weights_sha256(model),
        "dtype": str(dtype_of(model)).removeprefix("torch."),
        "prepend_bos": bool(model.cfg.default_prepend_bos),
        "anatomy": read_anatomy(model).to_dict(),
    }
