"""Features as they are shipped: weights, what they belong to, a card with how good they are, and a manifest of
sha256.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import bundled
from ..files import write_json
from .concepts import Separability
from .evaluate import FeatureEvaluation
from .feature_set import FeatureSet

CARD = "card.json"


def export_features(
    features: FeatureSet,
    folder: str | Path,
    measured: FeatureEvaluation,
    concepts: Sequence[Separability] = (),
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write features, ``card.json`` and manifest. `measured` and `concepts` should be of the features as stored, on
    text that trained nothing.
    """
    folder = features.save(folder, dtype)
    card = build_card(features, measured, concepts, dtype)
    write_json(folder / CARD, card)
    bundled.write_manifest(folder)
    return folder


def build_card(
    features: FeatureSet, measured: FeatureEvaluation, concepts: Sequence[Separability], dtype: torch.dtype
) -> dict[str, Any]:
    """The card: what was trained on what, how, and how good it is, as JSON values."""
    facts = features.provenance
    return {
        "name": features.name, "model": features.model, "dtype": str(dtype).removeprefix("torch."),
        "recipe": facts.get("recipe", {}), "text": facts.get("text", {}), "steps": facts.get("steps"),
        "tokens": facts.get("tokens"),
        "evaluation": {
            "text": measured.provenance.get("text"), "rows": measured.provenance.get("rows"),
            "positions": int(measured.n_tokens.sum()),
            "model_loss_bits": round(measured.loss("plain")[0], 4), "places": _rows(measured),
        },
        "separability": [
            {"concept": one.concept, "n_held_out": one.n_held_out, "places": _rows(one)}
            for one in concepts
        ],
        "limits": "Trained on the model's own training mixture; on other text reconstructions are extrapolations. "
                  "Features are not named by hand.",
        "versions": facts.get("versions", {}),
    }  # fmt: skip


def _rows(result: FeatureEvaluation | Separability) -> list[dict[str, Any]]:
    """The result's table; what is not a number there is null."""
    rows = result.to_dataframe().round(4).to_dict("records")
    return [{str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
