"""Writes in doses that an earlier place of the same forward decides, position by position.

    x_l -> x_l + d_l(p) (write_l(x_l) - x_l),   d(p) = dose(activation at `read`, position p)

`Doses` is a small network (weighted activation steering: Hegazy et al. 2025): one gate for all writes, in (0, 1), times
one weight per write, in (0, 2). `Condition` is a threshold along a vector (conditional activation steering: Lee et al.
2024). A position's dose depends on that position's own activation alone, so a key-value cache, a batch and a single
prompt give the same; a controller that read the prompt's last token would have to be told where the prompt ends.

    gated = Dosed(Site("resid_post", 1), Condition(vector, at=2.0), tuple(writes_of_later_layers))
    with intervene(model, [gated]):
        model.generate(prompt)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..models.anatomy import check_ready
from ..sites import Site, hook_name
from .positions import Columns
from .writes import Hook, Write

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ORDER = (
    "embed", "resid_pre", "q", "k", "v", "z", "attn_out", "mlp_in", "mlp_pre", "mlp_pre_linear", "mlp_post", "mlp_out",
    "resid_post", "logits",
)  # fmt: skip
"""Kinds of site with positions, in the order in which a block computes them."""


@runtime_checkable
class Dose(Protocol):
    """Anything that turns an activation into one number per position and write."""

    def __call__(self, activation: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos n_writes"]: ...


@dataclass(frozen=True, eq=False)
class Condition(Readable):
    """1 where x . `vector` is above `at`, 0 elsewhere, for every write alike."""

    vector: Float[Tensor, " d"]
    at: float = 0.0

    def __call__(self, activation: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos 1"]:
        return (activation @ self.vector.to(activation) > self.at).to(activation)[..., None]


@dataclass(frozen=True, eq=False)
class Doses(Readable):
    """gate(x) w_l(x) with h = tanh(`W_in` (x - `mean`) / `spread` + `b_in`), o = `W_out` h + `b_out`, gate =
    sigmoid(o_0), w_l = 2 sigmoid(o_l).
    """

    mean: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]
    W_in: Float[Tensor, "hidden d"]
    b_in: Float[Tensor, " hidden"]
    W_out: Float[Tensor, "n_outputs hidden"]
    b_out: Float[Tensor, " n_outputs"]

    def outputs(self, activation: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n_outputs"]:
        """o: the gate's logit, then one logit per write."""
        x = (activation - self.mean.to(activation)) / self.spread.to(activation)
        hidden = (x @ self.W_in.to(activation).T + self.b_in.to(activation)).tanh()
        return hidden @ self.W_out.to(activation).T + self.b_out.to(activation)

    def __call__(self, activation: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos n_writes"]:
        shares = self.outputs(activation).sigmoid()
        return shares[..., :1] * 2 * shares[..., 1:]


@dataclass(frozen=True, eq=False)
class Dosed(Readable):
    """`writes`, each in the dose that `dose` reads at `read` (times `strength`); raises `InputError` for a write that
    comes before it.

    `read` is a site with one vector per position; the writes are at sites with positions, computed later in the same
    forward.
    """

    read: Site
    dose: Dose
    writes: tuple[Write, ...]
    strength: float = 1.0

    def __post_init__(self) -> None:
        for site in (self.read, *(write.site for write in self.writes)):
            if site.kind not in ORDER:
                raise InputError(f"doses are read and given at sites with positions, other than resid_mid; got {site}")
        late = [str(write.site) for write in self.writes if not comes_before(self.read, write.site)]
        if not self.writes or late or self.read.head is not None:
            raise InputError(
                f"doses are read at a site without a head, before every write; read at {self.read}, too early: "
                f"{', '.join(late) or 'no writes'}"
            )

    def check(self, model: TransformerBridge) -> None:
        """Raises `InputError` when the model has no such places."""
        anatomy = check_ready(model)
        anatomy.check_site(self.read)
        for write in self.writes:
            anatomy.check_writable(write.site)

    def hooks(self, columns: Columns) -> list[Hook]:
        """One hook that reads and one per write."""
        found: list[Tensor] = []

        def keep(activation: Tensor, hook: Any) -> None:
            found[:] = [self.dose(activation) * self.strength]

        def put(i: int, write: Write) -> Any:
            def hook(activation: Tensor, hook: Any) -> Tensor:
                dose = found[0][..., min(i, found[0].shape[-1] - 1)].to(activation)
                dose = dose.reshape(*dose.shape, *[1] * (activation.ndim - 2))
                return activation + dose * (write.apply(activation, columns.start) - activation)

            return hook

        return [(hook_name(self.read), keep), *((hook_name(w.site), put(i, w)) for i, w in enumerate(self.writes))]


def comes_before(first: Site, second: Site) -> bool:
    """Whether the model computes `first` before `second`."""

    def place(site: Site) -> tuple[int, int]:
        layer = {"embed": -1, "logits": 10**9}.get(site.kind, site.layer if site.layer is not None else 0)
        return layer, ORDER.index(site.kind)

    return place(first) < place(second)
