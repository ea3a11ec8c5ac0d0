"""Interventions in files: what was written where, so that somebody else can write it again.

One safetensors file: the tensors, and in its header a JSON tree of what they belong to, with the provenance and the sha256 of the
weights they were fitted in. Only the classes of this package are read back, by name; nothing is ever executed.

    save_writes("gender", writes, build_provenance(model=identify_model(model)))
    with intervene(model, load_writes("gender.safetensors", model)):
        ...
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ArtefactError, InputError, UnknownNameError
from ..models.identity import weights_sha256
from ..provenance import Provenance, stable
from ..sites import Site
from . import attention, curve, dosed, replacements, routing, steering
from .writes import Intervention, Write

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 1
WHAT = "mechwork interventions"


def _values() -> dict[str, type]:
    """Name -> class of everything that is a value: the frozen dataclasses of these modules."""
    modules = (replacements, steering, attention, curve, dosed, routing)
    found = {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__
    }
    return {**found, "Site": Site, "Write": Write}


def save_writes(path: str | Path, writes: Sequence[Intervention], provenance: Provenance | None = None) -> Path:
    """Write one ``.safetensors`` file; returns its path.

    Raises `InputError` for an intervention that holds something else than this package's values (a function of one's own).
    """
    path = Path(path).with_suffix(".safetensors")
    tensors: dict[str, Tensor] = {}
    known = _values()

    def pack(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"t{len(tensors)}"
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if known.get(type(value).__name__) is type(value):
            return {"value": type(value).__name__, "of": {f.name: pack(getattr(value, f.name)) for f in fields(value)}}
        if isinstance(value, tuple | list):
            return {"list": [pack(item) for item in value]}
        if isinstance(value, Mapping):
            return {"map": [[pack(key), pack(item)] for key, item in value.items()]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"plain": value}
        raise InputError(
            f"interventions are saved when they are made of {', '.join(sorted(known))}; a {type(value).__name__} is not one"
        )

    tree = [pack(write) for write in writes]
    facts = {"writes": tree, "provenance": stable(provenance or {})}
    header = {"what": WHAT, "format": str(FORMAT), "facts": json.dumps(facts)}
    save_file(tensors, path, metadata=header)
    return path


def load_writes(path: str | Path, model: TransformerBridge | None = None) -> list[Intervention]:
    """What `save_writes` wrote; with `model`, only where the weights are those it was saved for.

    Raises:
        ArtefactError: another kind of file, a newer format, or a class that this version does not know.
        InputError: the file names other weights than the model's.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in set(file.keys())} if header.get("what") == WHAT else {}
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{path} is no safetensors file of interventions: {error}") from error
    if header.get("what") != WHAT or int(header["format"]) > FORMAT:
        raise ArtefactError(
            f"{path} holds no interventions of format <= {FORMAT}; it says {header.get('what')}, {header.get('format')}"
        )
    facts = json.loads(header["facts"])
    mine = facts["provenance"].get("model", {}).get("weights_sha256")
    if model is not None and mine is not None and mine != weights_sha256(model):
        raise InputError(
            f"{path} belongs to another model: weights sha256 {mine[:12]}..., this model has {weights_sha256(model)[:12]}.... "
            "Load it without a model to use it all the same"
        )
    known = _values()

    def unpack(tree: Any) -> Any:
        (kind,) = set(tree) & {"tensor", "value", "list", "map", "plain"}
        if kind == "tensor":
            return tensors[tree["tensor"]]
        if kind == "list":
            return tuple(unpack(item) for item in tree["list"])
        if kind == "map":
            return {unpack(key): unpack(item) for key, item in tree["map"]}
        if kind == "plain":
            return tree["plain"]
        if tree["value"] not in known:
            raise UnknownNameError("kind of intervention", tree["value"], known)
        return known[tree["value"]](**{name: unpack(item) for name, item in tree["of"].items()})

    try:
        return [unpack(tree) for tree in facts["writes"]]
    except (KeyError, TypeError, ValueError, UnknownNameError) as error:
        raise ArtefactError(f"{path} cannot be read back: {error}") from error
