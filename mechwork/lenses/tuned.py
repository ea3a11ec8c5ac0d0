"""The tuned lens: one translator per place, stored with what it belongs to, and refused by every other model.

    f_l(h) = readout(h + W_l h + b_l)        (Belrose et al. 2023, equation 6, with A_l = I + W_l)

A lens is a folder: ``lens.safetensors`` (the translators) and ``lens.json`` (form, places, the fingerprint of the
model, how it was trained, sha256 of the tensors).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .. import bundled
from ..artefact import FolderKind, read_folder, wide, write_folder
from ..display import Readable
from ..errors import InputError, NotFoundError
from ..files import reading
from ..models.borrow import borrows
from ..provenance import Provenance, stable
from ..sites import Site
from .fingerprint import fingerprint, require_same
from .translators import Form, Parts, find_form, translate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 1
WHAT = FolderKind("tuned lens", "lens")


@dataclass(frozen=True, eq=False)
class TunedLens(Readable):
    """Translators of one kind of residual site. `parts`: the form's numbers with a leading place axis; `model`: a
    fingerprint.
    """

    form: Form
    kind: str
    parts: Parts
    model: Provenance
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = self.form.shapes(int(self.model["d_model"]))
        wanted = {name: (self.n_places, *shape) for name, shape in shapes.items()}
        found = {name: tuple(part.shape) for name, part in self.parts.items()}
        if found != wanted:
            raise InputError(f"a {self.form.name} lens of this model has parts of shapes {wanted}; got {found}")
        bad = [name for name, part in self.parts.items() if not bool(torch.isfinite(part).all())]
        if bad:
            raise InputError(f"a lens has finite numbers; these parts have others: {', '.join(bad)}")

    @property
    def name(self) -> str:
        return f"tuned lens ({self.form.name})"

    @property
    def kinds(self) -> tuple[str, ...]:
        return (self.kind,)

    @property
    def n_places(self) -> int:
        return n_places(self.kind, int(self.model["n_layers"]))

    def check(self, model: TransformerBridge) -> None:
        """Raises `ArtefactError` for another model, revision, unembedding or tokenizer."""
        require_same(self.model, model, f"this {self.name}")

    def at(self, site: Site, like: Tensor) -> Parts:
        """The numbers of one place, in the states' dtype (float32 at least) and on their device."""
        if site.kind != self.kind or site.layer is None or site.layer >= self.n_places:
            raise InputError(
                f"this lens has translators at {self.kind}.0 to {self.kind}.{self.n_places - 1}; got {site}"
            )
        dtype = torch.promote_types(like.dtype, torch.float32)
        return {name: part[site.layer].to(like.device, dtype) for name, part in self.parts.items()}

    def translate(self, x: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        """h' of states at `site`, in at least float32."""
        parts = self.at(site, x)
        return translate(self.form, parts, x.to(parts["bias"].dtype))

    def push(self, v: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        """What a direction at `site` becomes: (I + W) v."""
        parts = self.at(site, v)
        x = v.to(parts["bias"].dtype)
        return x + self.form.change(parts, x)

    def matrix(self, site: Site) -> Float[Tensor, "d_model d_model"]:
        """A = I + W of one place."""
        return self.push(torch.eye(int(self.model["d_model"])), site).T

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write the lens into `folder`, its numbers as `dtype`. Returns the folder."""
        tensors = {name: part.to(dtype) for name, part in self.parts.items()}
        facts = {
            "form": self.form.name, "kind": self.kind, "model": self.model, "provenance": stable(self.provenance),
        }  # fmt: skip
        return write_folder(Path(folder), WHAT, facts, tensors, version=FORMAT)

    @classmethod
    def load(cls, folder: str | Path, model: TransformerBridge | None = None) -> TunedLens:
        """Read what `save` wrote, and compare with `model` when given.

        Raises `NotFoundError` where there is no lens; `ArtefactError` for damaged files or a lens of another model.
        """
        found = read_folder(Path(folder), WHAT, version=FORMAT)
        with reading(folder, WHAT.what):
            facts = found.facts
            parts = wide(found.tensors)
            lens = cls(find_form(facts["form"]), facts["kind"], parts, facts["model"], facts["provenance"])
        if model is not None:
            lens.check(model)
        return lens


def n_places(kind: str, n_layers: int) -> int:
    """Places of a kind that need a translator: all but the stream leaving the last block."""
    return n_layers - 1 if kind == "resid_post" else n_layers


@borrows
def load_lens(model: TransformerBridge, source: str | Path | None = None) -> TunedLens:
    """The lens shipped with a bundled model, or the one in the folder `source`.

    Raises `NotFoundError` when there is none, `ArtefactError` when its files are altered or it belongs to another
    model.

    >>> from mechwork import load_model
    >>> lens = load_lens(load_model("gpt2-6l"))
    """
    if source is not None and Path(source).is_dir():
        return TunedLens.load(source, model)
    name = str(source if source is not None else fingerprint(model)["name"])
    folder = bundled.root() / "lenses" / name
    if name in ("", ".", "..") or "/" in name or "\\" in name or not folder.is_dir():
        there = sorted(f.name for f in (bundled.root() / "lenses").glob("*") if f.is_dir())
        raise NotFoundError(
            f"no lens is shipped for {name!r} (there are: {', '.join(there) or 'none'}) and no such folder exists. "
            "Train one: "
            f"mechwork lens train --model {name}"
        )
    bundled.verify(folder)
    return TunedLens.load(folder, model)
