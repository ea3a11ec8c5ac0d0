"""Writing features: what a change of some features does to the place their coder writes.

    y' = y + (f' - f) W_dec        f = encode(x), f' = what the replacement makes of f

Everything the coder does not explain (the error) stays as it is, so a write that changes no feature changes nothing.
`f` is live: with several coders, later ones read what earlier writes have changed.

    clamp = FeatureWrite(coder, Entries(Constant(5.0), (17,)))       # a feature held at 5 everywhere: steering
    off = FeatureWrite(coder, Entries(Zero(), (17, 40)))             # ablation
    put = FeatureWrite(coder, Value(other_run_features))             # patching
    with intervene_features(model, [clamp]):
        logits = model(tokens)

A vector that stops being finite is refused by the name of its place: a strength overflows half precision at 65504.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..interventions import Columns, Positional, Replacement, Write, intervene, replace_at
from ..interventions.writes import Hook
from ..models.anatomy import check_ready
from ..models.borrow import hooked
from ..shapes import PositionMask
from ..sites import Site, hook_name
from .coder import Coder, SparseCoder, as_vectors, working
from .feature_set import check_coder

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class FeatureWrite(Readable):
    """`replacement` acts on the coder's features ``[batch, pos, feature]``, where `where` is True (None: everywhere).

    Replacements are those of `interventions`: `Entries(Zero(), (17,))` for some features, `Value` for another run's.
    """

    coder: Coder
    replacement: Replacement | Positional
    where: PositionMask | None = None

    def change(self, x: Float[Tensor, "batch pos ..."], start: int = 0) -> Float[Tensor, "batch pos d_out"]:
        """(f' - f) W_dec for what was read, in the coder's working type."""
        f = self.coder.encode(as_vectors(x))
        return self.coder.write(replace_at(self.replacement, f, start) - f)

    def check(self, model: TransformerBridge) -> None:
        """Raises `InputError` for a layer or width that the model has not."""
        anatomy = check_ready(model)
        if isinstance(self.coder, SparseCoder):
            check_coder(model, anatomy, self.coder)
        anatomy.check_writable(self.coder.writes)

    def hooks(self, columns: Columns) -> list[Hook]:
        """Beside other interventions, in `intervene`; `intervene_features` reads every place before anything is
        written.
        """
        read: list[Tensor] = []
        hooks = Write(self.coder.writes, AddChange(self, read), self.where).hooks(columns)
        if self.coder.reads == self.coder.writes:
            return hooks
        return [(hook_name(self.coder.reads), _keep(read, self.coder.reads)), *hooks]


@dataclass(frozen=True, eq=False)
class AddChange:
    """The activation plus the change a `FeatureWrite` makes for `read` (None: for the activation itself)."""

    feature_write: FeatureWrite
    read: list[Tensor]
    """Filled by a hook at the place read, before this replacement runs; empty where the coder reads what it writes."""

    def place(self, activation: Float[Tensor, "batch pos ..."], start: int) -> Float[Tensor, "batch pos ..."]:
        read = self.read[0] if self.read else activation
        change = self.feature_write.change(read, start)
        new = (working(activation) + change.reshape(activation.shape)).to(activation.dtype)
        check_finite(new, activation, self.feature_write.coder.writes)
        return new


@contextmanager
def intervene_features(model: TransformerBridge, writes: Sequence[FeatureWrite]) -> Iterator[None]:
    """Inside, the model runs with `writes`, in the order given; on exit, also after an exception, they are gone.

    Raises `InputError` for a layer or width that the model has not; inside, for a vector that overflows the model's
    dtype.
    """
    anatomy = check_ready(model)
    for write in writes:
        if isinstance(write.coder, SparseCoder):
            check_coder(model, anatomy, write.coder)
    installed, reads = [], []
    for write in writes:
        read: list[Tensor] = []
        if write.coder.reads != write.coder.writes:
            reads.append((hook_name(write.coder.reads), _keep(read, write.coder.reads)))
        installed.append(Write(write.coder.writes, AddChange(write, read), write.where))
    with hooked(model, reads), intervene(model, installed):
        yield


def _keep(read: list[Tensor], site: Site) -> Any:
    def hook(activation: Tensor, hook: Any) -> None:
        read[:] = [activation if site.head is None else activation[:, :, site.head]]

    return hook


def check_finite(new: Tensor, old: Tensor, site: Site) -> None:
    """Raises `InputError` when a write made a finite activation overflow."""
    if bool(new.isfinite().all()) or not bool(old.isfinite().all()):
        return
    raise InputError(
        f"a write overflows at {site}: {new.dtype} ends at {torch.finfo(new.dtype).max:.4g}. Lower its strength, or "
        "load the model in float32."
    )
