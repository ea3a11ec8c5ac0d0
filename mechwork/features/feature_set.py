"""Coders of one model together: in the order in which the model computes what they write, with their file.

On disk: a folder with ``features.safetensors`` (tensors named ``SITE/NAME``) and ``features.json`` (sites, kinds, the
model they belong to, provenance), the first named in the second by its sha256. Another model, revision or tokenizer is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..artefact import FolderKind, read_folder, wide, write_folder
from ..display import Readable
from ..errors import ArtefactError, InputError
from ..files import reading
from ..lenses.fingerprint import WHAT, fingerprint
from ..models.anatomy import ModelAnatomy, check_ready
from ..provenance import Provenance, stable
from ..sites import SITE_KINDS, Site
from .activations import build_activation
from .coder import SparseCoder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 1
KIND = FolderKind("mechwork features", "features")
FACTS = KIND.facts
_ORDER = (
    "embed", "resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_in", "mlp_pre", "mlp_pre_linear",
    "mlp_post",
    "mlp_out", "resid_post",
)  # fmt: skip
"""Kinds in the order in which a block computes them."""


@dataclass(frozen=True, eq=False)
class FeatureSet(Readable):
    """Sparse coders of one model. `model` is its fingerprint (see `lenses.fingerprint`); empty where it is not known.

    Raises `InputError` for no coders, or two that write the same place.
    """

    coders: tuple[SparseCoder, ...]
    model: Provenance = field(default_factory=dict)
    provenance: Provenance = field(default_factory=dict)
    name: str = "features"

    def __post_init__(self) -> None:
        if not self.coders:
            raise InputError("a set of features has at least one coder; got none")
        ordered = tuple(sorted(self.coders, key=_place))
        object.__setattr__(self, "coders", ordered)
        places = [coder.writes for coder in ordered]
        doubled = sorted({str(place) for place in places if places.count(place) > 1})
        if doubled:
            raise InputError(f"two coders write to {', '.join(doubled)}; put them into sets of their own")

    def __len__(self) -> int:
        return len(self.coders)

    def __iter__(self) -> Iterator[SparseCoder]:
        return iter(self.coders)

    def __getitem__(self, place: int | str | Site) -> SparseCoder:
        """By number, or by the site it writes (``"resid_post.3"``); raises `InputError` naming the sites there are."""
        if isinstance(place, int):
            return self.coders[place]
        for coder in self.coders:
            if str(place) == str(coder.writes):
                return coder
        raise InputError(f"no features are written at {place}; there are some at {', '.join(self.places)}")

    @property
    def places(self) -> tuple[str, ...]:
        """The sites written, as text."""
        return tuple(str(coder.writes) for coder in self.coders)

    @property
    def n_features(self) -> int:
        """Of all coders together."""
        return sum(coder.n_features for coder in self.coders)

    def only(self, *kinds: str) -> FeatureSet:
        """The coders that write sites of these kinds."""
        chosen = tuple(coder for coder in self.coders if coder.writes.kind in kinds)
        if not chosen:
            raise InputError(
                f"no features are written at {', '.join(kinds)}; there are some at {', '.join(self.places)}"
            )
        return FeatureSet(chosen, self.model, self.provenance, self.name)

    def check(self, model: TransformerBridge) -> ModelAnatomy:
        """Raises `ArtefactError` for another model's features, `InputError` for a layer or a width that the model has
        not.
        """
        anatomy = check_ready(model)
        if self.model:
            own = fingerprint(model)
            differs = [text for key, text in WHAT.items() if self.model.get(key) != own[key]]
            if differs:
                raise ArtefactError(
                    f"these features were made for {self.model.get('name')} and this model ({own['name']}) has other "
                    f"{', '.join(differs)}. "
                    "Load that model, or train features of this one: mechwork.features.train_features"
                )
        for coder in self.coders:
            check_coder(model, anatomy, coder)
        return anatomy

    def describe(self) -> dict[str, Any]:
        """Sites, numbers and kinds, and where they come from, for the provenance of results."""
        return {
            "name": self.name,
            "coders": [{"reads": str(c.reads), "writes": str(c.writes), "n": c.n_features,
            "kind": c.activation.name} for c in self.coders],
            "model": self.model.get("name"),
        }  # fmt: skip

    def __str__(self) -> str:
        return f"{self.name}: {self.n_features} features\n" + "\n".join(f"  {coder}" for coder in self.coders)

    # ---- files ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write the two files into `folder`. Raises `InputError` for weights that overflow `dtype`."""
        tensors: dict[str, Tensor] = {}
        for coder in self.coders:
            for name, tensor in coder.tensors().items():
                stored = tensor.detach().cpu().to(dtype).contiguous()
                if not bool(stored.isfinite().all()):
                    raise InputError(
                        f"{name} of the features at {coder.reads} overflows {dtype}; save as torch.float32"
                    )
                tensors[f"{coder.writes}/{name}"] = stored
        facts = {
            "name": self.name, "model": self.model,
            "coders": [
                {**pack_coder(c)[0], "provenance": stable(c.provenance)} for c in self.coders
            ],
            "provenance": stable(self.provenance),
        }  # fmt: skip
        return write_folder(Path(folder), KIND, facts, tensors, version=FORMAT)

    @classmethod
    def load(cls, folder: str | Path) -> FeatureSet:
        """What `save` wrote, in float32.

        Raises `NotFoundError` for a folder without features, `ArtefactError` for altered or newer files.
        """
        found = read_folder(Path(folder), KIND, version=FORMAT)
        with reading(folder, KIND.what):
            tensors = wide(found.tensors)
            coders = tuple(_coder(entry, tensors) for entry in found.facts["coders"])
            return cls(coders, found.facts["model"], found.facts["provenance"], found.facts["name"])


def _coder(entry: dict[str, Any], tensors: dict[str, Tensor]) -> SparseCoder:
    """One coder of a folder, in float32."""
    writes = str(Site(*entry["writes"]))
    return unpack_coder(entry, {n.partition("/")[2]: t for n, t in tensors.items() if n.partition("/")[0] == writes})


def working_copy(coder: SparseCoder) -> SparseCoder:
    """The coder with its numbers in rows: the same bits wherever it is sent."""
    facts, tensors = pack_coder(coder)
    return unpack_coder(facts, tensors)


def pack_coder(coder: SparseCoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON values and tensors from which `unpack_coder` makes it, without its provenance."""
    reads, writes = ([site.kind, site.layer, site.head] for site in (coder.reads, coder.writes))
    facts = {
        "reads": reads, "writes": writes, "activation": coder.activation.name, "settings": coder.activation.settings(),
    }  # fmt: skip
    return facts, {
        name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in coder.tensors().items()
    }  # some share memory, which files do not


def unpack_coder(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> SparseCoder:
    """The coder that `pack_coder` packed."""
    own = dict(tensors)
    parts = {name: own.pop(name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "b_in", "W_skip") if name in own}
    activation = build_activation(facts["activation"], own, facts["settings"])
    return SparseCoder(
        Site(*facts["reads"]),
        Site(*facts["writes"]),
        activation=activation,
        **parts,
        provenance=facts.get("provenance", {}),
    )


def check_coder(model: TransformerBridge, anatomy: ModelAnatomy, coder: SparseCoder) -> None:
    """Raises `InputError` for a layer or a width that the model has not."""
    for site, d in ((coder.reads, coder.d_in), (coder.writes, coder.d_out)):
        anatomy.check_writable(site)
        width = site_width(model, anatomy, site)
        if width is not None and d != width:
            raise InputError(
                f"the features at {site} are for vectors of {d} numbers; this model has {width} there. Is it the "
                "model they were made for?"
            )


def site_width(model: TransformerBridge, anatomy: ModelAnatomy, site: Site) -> int | None:
    """How many numbers a position has at the site (heads taken together unless one is named); None where it is not
    known.
    """
    heads = 1 if site.head is not None else anatomy.n_kv_heads if site.kind in ("k", "v") else anatomy.n_heads
    axis = SITE_KINDS[site.kind].axes[-1]
    if axis == "d_mlp":
        return int(model.cfg.d_mlp) if model.cfg.d_mlp else None
    return {"d_model": anatomy.d_model, "d_head": heads * anatomy.d_head}.get(axis)


def _place(coder: SparseCoder) -> tuple[int, int, int]:
    site = coder.writes
    return (-1 if site.layer is None else site.layer, _ORDER.index(site.kind), -1 if site.head is None else site.head)
