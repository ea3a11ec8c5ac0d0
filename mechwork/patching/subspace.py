"""Subspace patching: exchange an activation along some directions only, and fit the directions.

    patched = host + P (donor - host),   P = B B^T,   B [d, rank] orthonormal

(Geiger et al. 2024, interchange interventions). A `Subspace` comes from vectors of one's own (a probe's weights, the
host's `fit_das`), from neurons, from the mean difference of clean and corrupt activations, or from their leading
singular directions. An effect along a direction does not yet show that the model uses it: see `check_illusion`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Examples, record_examples
from ..display import Readable
from ..errors import InputError
from ..execute import MemoryBudget, Work
from ..execute.unit import Run
from ..models.anatomy import ModelAnatomy, device_of, dtype_of
from ..models.borrow import borrows, run_tail
from ..runs.record import check_task
from ..runs.room import d_mlp_of
from ..sites import SITE_KINDS, Site, hook_name, site_kind
from ..tasks.continuations import require_one_token
from ..tasks.task import Task
from .exact import plan_sweep
from .result import Effect
from .sides import SQUARE, Share
from .units import build as build_sweep

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


OPERATION = "patch.share"


@dataclass(frozen=True, eq=False)
class Subspace(Readable):
    """Directions of an activation: `basis` ``[d, rank]`` orthonormal, and what they are called."""

    basis: Float[Tensor, "d rank"]
    name: str = "subspace"

    def __post_init__(self) -> None:
        rank = self.basis.shape[1]
        object.__setattr__(self, "basis", self.basis.contiguous())  # the same bits after it was sent elsewhere
        gram = self.basis.T @ self.basis
        if rank < 1 or not torch.allclose(gram, torch.eye(rank, dtype=gram.dtype, device=gram.device), atol=1e-4):
            raise InputError(
                "a basis has orthonormal columns [d, rank]; build it with Subspace.of, which makes them so"
            )

    @classmethod
    def of(cls, vectors: Any, name: str = "subspace") -> Subspace:
        """The span of a vector ``[d]``, of columns ``[d, rank]``, or of the host's `LearnedSubspace` or `DASResult`.

        Raises `InputError` for vectors that are not finite, have no length or depend on one another.
        """
        if not isinstance(vectors, Tensor):  # the host's LearnedSubspace, or a result that holds one
            vectors = getattr(getattr(vectors, "subspace", vectors), "basis", vectors)
        if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or not vectors.is_floating_point():
            raise InputError(f"directions are a tensor [d] or [d, rank] of real numbers; got {type(vectors).__name__}")
        columns = vectors.detach().reshape(len(vectors), -1)
        norms = columns.norm(dim=0)
        if not bool(columns.isfinite().all()) or not bool((norms > 0).all()):
            raise InputError("a direction must be finite and of positive length; got zeros, NaN or infinity")
        if columns.shape[1] > len(columns):
            raise InputError(
                f"at most {len(columns)} directions are independent in {len(columns)} dimensions; got "
                f"{columns.shape[1]}"
            )
        unit = (columns / norms).double()
        if float(torch.linalg.svdvals(unit).min()) < 1e-6:
            raise InputError("the directions depend on one another; leave out those that the others span")
        return cls(torch.linalg.qr(unit).Q.to(vectors.dtype), name)

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def project(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The part of `x` inside."""
        basis = self.basis.to(x)
        return (x @ basis) @ basis.T


@dataclass(frozen=True, eq=False)
class SubspaceExchange:
    """The host with the donor's coordinates inside the subspace."""

    subspace: Subspace

    def __call__(self, donor: Tensor, host: Tensor) -> Tensor:
        return host + self.subspace.project(donor - host)


@dataclass(frozen=True, eq=False)
class Across:
    """The donor with the host's coordinates inside the subspace: everything but it is exchanged."""

    subspace: Subspace

    def __call__(self, donor: Tensor, host: Tensor) -> Tensor:
        return donor - self.subspace.project(donor - host)


@dataclass(frozen=True, eq=False)
class SubspaceAsFar:
    """The host moved inside `elsewhere` as far as the exchange along `subspace` would move it: a norm-matched
    control.
    """

    subspace: Subspace
    elsewhere: Subspace

    def __call__(self, donor: Tensor, host: Tensor) -> Tensor:
        change = donor - host
        length = self.subspace.project(change).norm(dim=-1, keepdim=True)
        move = self.elsewhere.project(change)
        return host + move * (length / move.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(move.dtype).tiny))


SHARES = {share.__name__: share for share in (SubspaceExchange, Across, SubspaceAsFar)}
"""What can be sent to another process: the name of the class, and the bases of its subspaces."""


@borrows
def patch_subspace(
    model: TransformerBridge,
    task: Task,
    site: Site,
    subspace: Subspace,
    *,
    direction: str = "denoise",
    positions: str = "all",
    memory_budget: MemoryBudget | None = None,
) -> Effect:
    """The effect of exchanging `subspace` at one site: axes layer (one entry), and pos unless `positions` is ``"all"``.

    Sites of q, k, v and z need a head; mlp_post takes directions over neurons. Cost: 2 forwards and the patched cells.
    Raises `InputError` for a site without such directions, or a subspace of another size than the site's vectors.
    """
    return measure_share(model, task, site, SubspaceExchange(subspace), subspace, direction, positions, memory_budget)


def measure_share(
    model: TransformerBridge,
    task: Task,
    site: Site,
    share: Share,
    subspace: Subspace,
    direction: str,
    positions: str,
    memory_budget: MemoryBudget | None = None,
) -> Effect:
    """The effect of putting in a `share` of the donor at one site. Cost: 2 forwards and the patched cells."""
    check_subspace(model, check_task(model, task), site, subspace)
    job = plan_sweep(model, task, [site], direction=direction, positions=positions, memory_budget=memory_budget)
    sent: dict[str, Any] = {}
    if type(share) in SHARES.values():  # other functions stay in this process
        bases = {name: part.basis for name, part in vars(share).items()}
        sent = {"operation": OPERATION, "settings": {"share": type(share).__name__}, "data": {"share": bases}}
    return replace(job, share=share, **sent).run()[site.kind]


def build(model: TransformerBridge, work: Work) -> Run:
    """What runs the units of a sweep of shares in a process that has the work's data and the model alone."""
    bases = {name: Subspace(basis.to(device_of(model))) for name, basis in work.data["share"].items()}
    return build_sweep(model, work, share=SHARES[work.settings["share"]](**bases))


def check_subspace(model: TransformerBridge, anatomy: ModelAnatomy, site: Site, subspace: Subspace) -> None:
    """Raises `InputError` when `subspace` has no meaning at `site`."""
    anatomy.check_site(site)
    if site.layer is None or site.kind in SQUARE:
        raise InputError(
            f"subspaces are of vectors at a position of a layer; {site} has none. Use e.g. Site('mlp_out', 3)"
        )
    if site_kind(site.kind).per_head and site.head is None:
        raise InputError(
            f"a subspace at {site.kind!r} is of one head's vectors; name the head, Site({site.kind!r}, {site.layer}, 0)"
        )
    size = vector_size(model, anatomy, site.kind)
    if len(subspace.basis) != size:
        raise InputError(
            f"vectors at {site} have {size} numbers; the subspace {subspace.name!r} has {len(subspace.basis)}"
        )


def vector_size(model: TransformerBridge, anatomy: ModelAnatomy, kind: str) -> int:
    """How many numbers one vector at a kind of site has."""
    width = {"d_model": anatomy.d_model, "d_head": anatomy.d_head, "d_mlp": d_mlp_of(model)}
    return width[SITE_KINDS[kind].axes[-1]]


@borrows
def neurons(model: TransformerBridge, indices: Sequence[int]) -> Subspace:
    """The span of single neurons, for ``mlp_post``."""
    size = d_mlp_of(model)
    if not indices or not all(0 <= index < size for index in indices) or len(set(indices)) != len(indices):
        raise InputError(f"neurons of this model are 0 to {size - 1}, each once; got {list(indices)}")
    basis = torch.zeros(size, len(indices), dtype=dtype_of(model), device=device_of(model))
    basis[list(indices), range(len(indices))] = 1.0
    return Subspace(basis, f"neurons {', '.join(map(str, indices))}")


@borrows
def mean_difference(model: TransformerBridge, task: Task, site: Site, position: str = "END") -> Subspace:
    """The direction of mean(clean) - mean(corrupt) at one span or token position. Cost: 2 forwards."""
    differences = site_differences(model, task, site, position)
    return Subspace.of(differences.mean(dim=0), f"mean difference at {site}, {position}")


@borrows
def leading_differences(
    model: TransformerBridge, task: Task, site: Site, position: str = "END", rank: int = 1
) -> Subspace:
    """The `rank` leading singular directions of clean - corrupt over pairs (not centred). Cost: 2 forwards."""
    differences = site_differences(model, task, site, position)
    most = min(differences.shape)
    if not 1 <= rank <= most:
        raise InputError(f"rank is 1 to {most} for {len(differences)} pairs; got {rank}")
    right = torch.linalg.svd(differences.double(), full_matrices=False).Vh[:rank].T
    return Subspace.of(right.to(differences.dtype), f"{rank} leading differences at {site}, {position}")


def site_differences(model: TransformerBridge, task: Task, site: Site, position: str) -> Float[Tensor, "batch d"]:
    """clean - corrupt vectors of every pair at one span (averaged over its positions) or token position."""
    found = record_examples(model, Examples.of_task(task, position), [site])[0].to(device_of(model))
    return found[: len(task)] - found[len(task) :]


@borrows
def fit_das(
    model: TransformerBridge,
    task: Task,
    site: Site,
    position: int,
    rank: int = 1,
    *,
    epochs: int = 20,
    lr: float = 1e-2,
    seed: int = 0,
) -> Subspace:
    """The subspace whose exchange (clean into corrupt, at one token position) best brings out the correct answer.

    The host's distributed alignment search (Geiger et al. 2024): cross-entropy on the first correct token over the
    vocabulary. Cost: `epochs` forwards and backwards over all pairs.
    """
    from transformer_lens.tools.analysis.interchange import fit_das as host_fit_das

    anatomy = check_task(model, task)
    anatomy.check_site(site)
    if SITE_KINDS[site.kind].axes not in (("batch", "pos", "d_model"), ("batch", "pos", "d_mlp")):
        raise InputError(f"the host's search runs at sites without heads; got {site}")
    pairs, width = task.pairs, d_mlp_of(model) if "d_mlp" in SITE_KINDS[site.kind].axes else int(model.cfg.d_model)
    if not 1 <= rank <= width:
        raise InputError(f"rank is 1 to {width} at {site}; got {rank}")
    if not 0 < lr < math.inf:
        raise InputError(f"a learning rate is a finite number above 0; got lr={lr}")
    require_one_token(pairs.continuations, "the host's search")
    if not pairs.one_length or not 0 <= position < int(pairs.lengths[0]):
        raise InputError(f"the search needs prompts of one length and a position in them; got position {position}")
    device = device_of(model)
    places = torch.full((len(task),), position)
    fitted = host_fit_das(
        model,
        hook_name(site),
        pairs.corrupt_tokens.to(device),
        pairs.clean_tokens.to(device),
        pairs.correct[:, 0],
        lambda tokens: run_tail(model, tokens, 1)[:, -1],
        rank=rank,
        base_positions=places,
        source_positions=places,
        epochs=epochs,
        lr=lr,
        seed=seed,
    )
    return Subspace.of(
        fitted.subspace.basis.detach().to(dtype_of(model)), f"DAS of rank {rank} at {site}, position {position}"
    )
