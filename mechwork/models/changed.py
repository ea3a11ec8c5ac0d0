"""Folders of changed models: what was changed, in a list beside the weights, and whether these are still the ones.

``changes.json`` stands in a folder in Hugging Face format that `edits.save_model` wrote. It has the model that was
changed, every change in words, every tensor that differs with its sha256 before and after, and the sha256 of the
weights' file. `load_model` checks that hash and keeps the list as the model's origin, so that every result of the
model says what was done to it. Cost: one read of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import ArtefactError
from ..files import read_object, sha256

CHANGES = "changes.json"
WHAT = "mechwork changed model"
WEIGHTS = "model.safetensors"
KEYS = ("what", "format", "base", "changes", "tensors", "weights_file_sha256")


def read_changes(folder: Path) -> dict[str, Any]:
    """The list of a folder's changes; empty for a folder without one.

    Raises `ArtefactError` for a list that cannot be read, and for weights that are not those it was written for.
    """
    file = folder / CHANGES
    if not file.is_file():
        return {}
    found = read_object(file, KEYS)
    if found["what"] != WHAT or found["format"] != 1:
        raise ArtefactError(f"{file} is no list of changes that this version reads (a {WHAT}, format 1)")
    said = found["changes"]
    words = isinstance(said, list) and all(isinstance(one, str) for one in said)
    if not words or not isinstance(found["base"], dict):
        raise ArtefactError(f"{file} is damaged: it lists changes in words and names the model that was changed")
    weights = folder / WEIGHTS
    if not weights.is_file() or sha256(weights) != found["weights_file_sha256"]:
        raise ArtefactError(
            f"the weights in {folder} are not those that {CHANGES} was written for: they were changed or replaced "
            f"after saving. Save the model again; or delete {CHANGES}, to load a model of which nothing is known"
        )
    return found


def origin_of(found: dict[str, Any]) -> dict[str, Any]:
    """What the provenance of a changed model says."""
    if not found:
        return {}
    base = found["base"]
    return {
        "changed": list(found["changes"]),
        "base": str(base.get("name", "")),
        "base_sha256": str(base.get("weights_sha256", "")),
    }
