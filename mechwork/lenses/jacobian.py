"""The host's Jacobian lens as one of ours: f_l(h) = readout(J_l h), J_l the mean Jacobian of the last stream by the
stream leaving block l.

from transformer_lens.tools.analysis.jacobian_lens import JacobianLens as HostLens
lens = JacobianLens(HostLens.fit(model, prompts, corpus="mine"))
read_lens(model, "The cats", lens)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..display import Readable
from ..errors import ArtefactError, InputError
from ..sites import Site

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class JacobianLens(Readable):
    """`fitted`: the host's `JacobianLens`, with a matrix for every block but the last."""

    fitted: Any
    name: str = "Jacobian lens"
    kinds: tuple[str, ...] = ("resid_post",)

    def __post_init__(self) -> None:
        if not hasattr(self.fitted, "transport") or not hasattr(self.fitted, "source_layers"):
            raise InputError(f"a Jacobian lens wraps the host's fitted JacobianLens; got {type(self.fitted).__name__}")

    def check(self, model: TransformerBridge) -> None:
        """Raises `ArtefactError` where the host finds that it does not fit the model, or lacks a layer."""
        try:
            self.fitted.validate_model(model)
        except ValueError as error:
            raise ArtefactError(f"this Jacobian lens does not fit the model: {error}") from error
        missing = set(range(int(model.cfg.n_layers) - 1)) - set(self.fitted.source_layers)
        if missing:
            raise ArtefactError(
                f"this Jacobian lens has no matrix for layers {', '.join(map(str, sorted(missing)))}; fit them too"
            )

    def translate(self, x: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        """J_l h, in float32, as the host does it."""
        return self.push(x, site)

    def push(self, v: Float[Tensor, "*batch d_model"], site: Site) -> Float[Tensor, "*batch d_model"]:
        if site.kind != "resid_post" or site.layer not in self.fitted.source_layers:
            raise InputError(
                f"this lens reads resid_post at layers {', '.join(map(str, self.fitted.source_layers))}; got {site}"
            )
        return self.fitted.transport(v, site.layer)
