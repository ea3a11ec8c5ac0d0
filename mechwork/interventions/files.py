"""Interventions in files: what was written where, so that somebody else can write it again.

One safetensors file: the tensors, and in its header a JSON tree of what they belong to, with the provenance and the
sha256 of the weights they were fitted in. Only the classes of this package are read back, by name; nothing is ever
executed.

    save_writes("gender", writes, build_provenance(model=identify_model(model)))
    with intervene(model, load_writes("gender.safetensors", model)):
        ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..artefact import read_artefact, write_artefact
from ..encoding import Decoder, Encoder, register
from ..errors import InputError, UnknownNameError
from ..files import reading
from ..models.identity import weights_sha256
from ..provenance import Provenance, stable
from ..sites import Site
from . import attention, curve, dosed, gates, replacements, routing, steering
from .writes import Intervention, Write

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 2
WHAT = "mechwork interventions"


@cache
def _known() -> dict[str, type]:
    """Name -> class of everything that is a value: the frozen dataclasses of these modules, allowed in files."""
    modules = (replacements, steering, attention, curve, dosed, gates, routing)
    found = {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__
    }
    for name, value in (*found.items(), ("Write", Write), ("Site", Site)):
        register(value, name)
    return {**found, "Write": Write, "Site": Site}


def save_writes(path: str | Path, writes: Sequence[Intervention], provenance: Provenance | None = None) -> Path:
    """Write one ``.safetensors`` file; returns its path.

    Raises `InputError` for an intervention that holds something else than this package's values (a function of one's
    own).
    """
    tree, tensors, not_finite = encode_writes(writes)
    facts = {"writes": tree, "not_finite": not_finite, "provenance": stable(provenance or {})}
    return write_artefact(Path(path).with_suffix(".safetensors"), WHAT, facts, tensors, version=FORMAT)


def encode_writes(writes: Sequence[Intervention]) -> tuple[Any, dict[str, Tensor], list[str]]:
    """Interventions as JSON values, tensors, and which of these are not finite; raises `InputError` as `save_writes`
    does.
    """
    known, encoder = _known(), Encoder()
    for write in writes:
        if type(write) not in known.values():
            raise InputError(
                f"interventions are saved when they are made of {', '.join(sorted(known))}; a {type(write).__name__} "
                "is not one"
            )
    tree = encoder.encode(list(writes), list[Intervention])
    return tree, dict(encoder.tensors), encoder.not_finite()


def load_writes(path: str | Path, model: TransformerBridge | None = None) -> list[Intervention]:
    """What `save_writes` wrote; with `model`, only where the weights are those it was saved for.

    Raises:
        ArtefactError: another kind of file, a newer format, or a class that this version does not know.
        InputError: the file names other weights than the model's.
    """
    known = _known()
    found = read_artefact(path, WHAT, version=FORMAT)
    with reading(path, WHAT):
        mine = found.facts["provenance"].get("model", {}).get("weights_sha256")
        if found.version == 1:
            writes = [_old(tree, found.tensors, known) for tree in found.facts["writes"]]
        else:
            decoder = Decoder(found.tensors, found.facts["not_finite"])
            writes = decoder.decode(list[Intervention], found.facts["writes"], "writes")
    if model is not None and mine is not None and mine != weights_sha256(model):
        raise InputError(
            f"{path} belongs to another model: weights sha256 {mine[:12]}..., this model has "
            f"{weights_sha256(model)[:12]}.... "
            "Load it without a model to use it all the same"
        )
    return writes


def _old(tree: Any, tensors: dict[str, Tensor], known: dict[str, type]) -> Any:
    """A value in a file of release 0.1."""
    (kind,) = set(tree) & {"tensor", "value", "list", "map", "plain"}
    if kind == "tensor":
        return tensors[tree["tensor"]]
    if kind == "list":
        return tuple(_old(item, tensors, known) for item in tree["list"])
    if kind == "map":
        return {_old(key, tensors, known): _old(item, tensors, known) for key, item in tree["map"]}
    if kind == "plain":
        return tree["plain"]
    if tree["value"] not in known:
        raise UnknownNameError("kind of intervention", tree["value"], known)
    return known[tree["value"]](**{name: _old(item, tensors, known) for name, item in tree["of"].items()})
