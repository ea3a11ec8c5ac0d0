"""Which model a lens belongs to: sha256 of its weights, of what reads its last state, and of its tokenizer.

Weights are hashed as float32, so that a lens fits the same model loaded in float64, and not one rounded to less.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from ..errors import ArtefactError
from ..provenance import Provenance, hash_json, hash_tensors
from ..sites import FINAL_NORM, UNEMBED

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_known: WeakKeyDictionary[TransformerBridge, tuple[int, Provenance]] = WeakKeyDictionary()

WHAT = {
    "weights": "weights (another model, revision or precision)",
    "unembedding": "unembedding",
    "tokenizer": "tokenizer",
}


def fingerprint(model: TransformerBridge) -> Provenance:
    """Three hashes, the name and the sizes; computed once per state of the weights."""
    version = sum(p._version for p in model.parameters())
    known = _known.get(model)
    if known is None or known[0] != version:
        known = (version, _fingerprint(model))
        _known[model] = known
    return known[1]


def _fingerprint(model: TransformerBridge) -> Provenance:
    weights, reading = hashlib.sha256(), hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest = hash_tensors({name: parameter.detach().to(torch.float32)}).encode()
        weights.update(digest)
        if name.split(".")[0] in (FINAL_NORM, UNEMBED):
            reading.update(digest)
    tokenizer = model.tokenizer
    return {
        "name": str(model.cfg.model_name),
        "n_layers": int(model.cfg.n_layers),
        "d_model": int(model.cfg.d_model),
        "weights": weights.hexdigest(),
        "unembedding": reading.hexdigest(),
        "tokenizer": "none" if tokenizer is None else hash_json(sorted(tokenizer.get_vocab().items())),
    }


def require_same(recorded: Provenance, model: TransformerBridge, what: str) -> None:
    """Raises `ArtefactError`, naming what differs, unless `recorded` is the fingerprint of `model`."""
    own = fingerprint(model)
    differs = [text for key, text in WHAT.items() if recorded.get(key) != own[key]]
    if differs:
        raise ArtefactError(
            f"{what} was made for {recorded.get('name')} and this model ({own['name']}) has other "
            f"{', '.join(differs)}. "
            "Train a lens for this model: mechwork.lenses.train_lens, or 'mechwork lens train'."
        )
