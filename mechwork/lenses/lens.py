"""What a lens is: a map from a state of the residual stream at one place to a state that the readout understands.

    logit lens (nostalgebraist 2020):   f_l(h) = readout(h)
    tuned lens (Belrose et al. 2023):   f_l(h) = readout(A_l h + b_l)
    Jacobian lens (the host's):         f_l(h) = readout(J_l h)

`translate` maps states; `push` maps directions, which are differences of states and so know no bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..sites import Site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@runtime_checkable
class Lens(Protocol):
    """Anything that brings states of some places into the form of the last one."""

    @property
    def name(self) -> str: ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of site whose states it can read."""
        ...

    def check(self, model: TransformerBridge) -> None:
        """Raises `ArtefactError` when the lens belongs to another model."""
        ...

    def translate(self, x: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]: ...

    def push(self, v: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]: ...


@dataclass(frozen=True)
class LogitLens:
    """States as they are. Fits every model and every place."""

    name: str = "logit lens"
    kinds: tuple[str, ...] = ("resid_pre", "resid_mid", "resid_post")

    def check(self, model: TransformerBridge) -> None:
        """Nothing to compare."""

    def translate(self, x: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        return x

    def push(self, v: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        return v


LOGIT_LENS = LogitLens()
