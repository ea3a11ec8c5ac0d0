"""Which directions of a state a lens's reading rests on, and whether the model rests on the same ones.

Causal basis (Belrose et al. 2023, section 4.1): orthonormal v_1, v_2, ... of which each has the greatest influence that
is left,

    influence(v; f) = E_h D(f(h) || f(h + v v^T (mean - h)))        (bits; the direction is set to its mean)

found by L-BFGS on the sphere, started from the singular directions of the translated unembedding.

Stimulus and response (section 4.2): the same ablation is done in the model. The stimulus is the change of the lens's
reading at a position, the response the change of the model's own output there, both as log-probabilities centred under
the weights p (the model's unchanged output): Aitchison geometry. Their cosine, averaged over positions, is the
alignment; 1 = the lens says exactly what the model goes on to do. `influence` on lens and model side by side shows the
same in size; random orthonormal directions of the same place are the control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..interventions import Write, intervene
from ..models.anatomy import ModelAnatomy, final_norm, read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import parse_place
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from ..statistics import kl_nats, pearson
from .lens import Lens
from .prompts import Prompts
from .readout import BITS, Readout
from .states import RESIDUAL, record_states
from .text import TextStream, forward_batches, open_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ITERATIONS = 60


@dataclass(frozen=True, eq=False)
class CausalBasis(Result):
    """Orthonormal columns ``vectors[d_model, k]`` of one place, most influential first; `influence` in bits, through
    the lens.
    """

    place: str
    vectors: Float[Tensor, "d_model k"]
    influence: Float[Tensor, " k"]
    mean: Float[Tensor, " d_model"]
    lens: str
    provenance: Provenance

    def _table(self) -> Table:
        """One row per direction, most influential first."""
        return {"direction": range(len(self.influence)), "influence": self.influence.tolist()}


@dataclass(frozen=True, eq=False)
class StimulusResponse(Result):
    """Per direction: cosine of stimulus and response, influence on the lens and on the model in bits; and for random
    directions.
    """

    place: str
    alignment: Float[Tensor, " k"]
    on_lens: Float[Tensor, " k"]
    on_model: Float[Tensor, " k"]
    random_alignment: Float[Tensor, " k"]
    random_on_lens: Float[Tensor, " k"]
    random_on_model: Float[Tensor, " k"]
    provenance: Provenance

    @property
    def rank_correlation(self) -> float:
        """Spearman correlation of influence on the lens with influence on the model."""
        ranks = [x.argsort().argsort().double() for x in (self.on_lens, self.on_model)]
        return pearson(*ranks)

    def _table(self) -> Table:
        """One row per direction, the random ones last."""
        parts = (
            ("causal", self.alignment, self.on_lens, self.on_model),
            ("random", self.random_alignment, self.random_on_lens, self.random_on_model),
        )
        return [
            {"direction": f"{name} {i + 1}", "alignment": a, "on_lens_bits": x, "on_model_bits": y}
            for name, *columns in parts
            for i, (a, x, y) in enumerate(zip(*(column.tolist() for column in columns), strict=True))
        ]

    def __str__(self) -> str:
        lines = [
            f"{row['direction']:<12}{row['alignment']:10.3f}{row['on_lens_bits']:12.4f}{row['on_model_bits']:12.4f}"
            for row in self.to_dataframe().to_dict("records")
        ]
        return "\n".join([f"{self.place:<12}{'alignment':>10}{'lens, bits':>12}{'model, bits':>12}", *lines])


@dataclass(frozen=True, eq=False)
class _ToMean:
    """A replacement: one direction set to its mean."""

    direction: Float[Tensor, " d_model"]
    mean: Float[Tensor, " d_model"]

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        v, mean = self.direction.to(activation), self.mean.to(activation)
        return activation + ((mean - activation) @ v)[..., None] * v


@borrows
def extract_causal_basis(
    model: TransformerBridge,
    lens: Lens,
    site: Site,
    text: Any,
    *,
    k: int = 8,
    n_rows: int = 32,
    iterations: int = ITERATIONS,
) -> CausalBasis:
    """The `k` most influential directions of `site` for the lens's reading, on the states of `n_rows` rows of `text`.

    Cost: 1 forward, and per direction up to `iterations` readings of all states with their gradients. Raises
    `InputError` for places outside the stream or more directions than the stream has; `ArtefactError` for another
    model's lens.
    """
    anatomy = _check(model, lens, site)
    if not 1 <= k <= anatomy.d_model:
        raise InputError(f"k is 1 to d_model = {anatomy.d_model}; got {k}")
    batches, facts = _batches(model, text, n_rows)
    x = torch.cat([record_states(model, b.tokens, [site])[0][b.mask] for b in batches]).to(
        torch.promote_types(model.W_U.dtype, torch.float32)
    )
    read, mean = _reading(model, lens, site), x.mean(dim=0)
    with torch.no_grad():
        log_p = read(x)
    vectors = _start(model, lens, site, anatomy.d_model).to(x)[:, :k].clone()
    influence = torch.zeros(k, dtype=torch.float64)
    for j in range(k):
        found = vectors[:, :j]
        vectors[:, j], influence[j] = _climb(read, x, mean, log_p, vectors[:, j], found, iterations)
    order = influence.argsort(descending=True)
    provenance = build_provenance(
        method="causal basis", lens=lens.name, place=str(site), text=facts, n_states=len(x), model=identify_model(model)
    )
    return CausalBasis(str(site), vectors[:, order].cpu(), influence[order] * BITS, mean.cpu(), lens.name, provenance)


def _climb(
    read: Callable[[Tensor], Tensor],
    x: Tensor,
    mean: Tensor,
    log_p: Tensor,
    start: Tensor,
    found: Tensor,
    iterations: int,
) -> tuple[Tensor, float]:
    """The direction of greatest influence orthogonal to `found`, in nats, from a start."""

    def unit(v: Tensor) -> Tensor:
        v = v - found @ (found.T @ v)
        v = v - found @ (found.T @ v)  # twice: rounding after one projection would pile up over the basis
        return v / v.norm().clamp(min=torch.finfo(v.dtype).tiny)

    free = unit(start).clone().requires_grad_(True)
    best = [(-1.0, unit(start).detach())]
    optimizer = torch.optim.LBFGS([free], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_change=1e-7)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            v = unit(free)
            moved = read(x + ((mean - x) @ v)[:, None] * v)
            influence = kl_nats(log_p, moved).mean()
            (-influence).backward()
        if float(influence.detach()) > best[-1][0]:
            best.append((float(influence.detach()), v.detach().clone()))
        return -influence.detach()

    optimizer.step(closure)
    return best[-1][1], best[-1][0]


def _start(model: TransformerBridge, lens: Lens, site: Site, d: int) -> Float[Tensor, "d_model d_model"]:
    """Directions by how much they move the logits through translator, gain and unembedding: right singular vectors of
    W_U^T g A.
    """
    weight, norm = model.W_U.detach().double(), final_norm(model)
    through = lens.push(torch.eye(d, dtype=torch.float64, device=weight.device), site).to(weight)
    if norm is not None:
        through = norm.gain.double() * norm.centre(through)
    gram = through @ (weight @ weight.T) @ through.T
    return torch.linalg.eigh(gram).eigenvectors.flip(1)


@borrows
@torch.no_grad()
def align_stimulus_response(
    model: TransformerBridge, lens: Lens, basis: CausalBasis, text: Any, *, n_rows: int = 32, seed: int = 0
) -> StimulusResponse:
    """Ablate every direction of the basis in lens and model, on `n_rows` rows of `text` (others than those it was found
    on, preferably).

    The model is ablated at all positions of the place at once. Cost: ``2 k + 1`` forwards and readings.
    """
    site = parse_place(basis.place).site
    anatomy = _check(model, lens, site)
    batches, facts = _batches(model, text, n_rows)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(anatomy.d_model, basis.vectors.shape[1], generator=generator, dtype=torch.float64)
    random = torch.linalg.qr(noise).Q.to(basis.vectors)
    columns = [
        _one_direction(model, lens, site, anatomy, v, basis.mean, batches) for v in (*basis.vectors.T, *random.T)
    ]
    alignment, on_lens, on_model = torch.tensor(columns, dtype=torch.float64).T
    k = basis.vectors.shape[1]
    provenance = build_provenance(
        method="stimulus-response alignment",
        lens=lens.name,
        place=basis.place,
        text=facts,
        seed=seed,
        model=identify_model(model),
    )
    return StimulusResponse(
        basis.place, alignment[:k], on_lens[:k], on_model[:k], alignment[k:], on_lens[k:], on_model[k:], provenance
    )


def _one_direction(
    model: TransformerBridge,
    lens: Lens,
    site: Site,
    anatomy: ModelAnatomy,
    v: Tensor,
    mean: Tensor,
    batches: list[Prompts],
) -> tuple[float, float, float]:
    """Alignment, influence on the lens and on the model (bits), averaged over positions."""
    last, readout, read = Site("resid_post", anatomy.n_layers - 1), Readout.of(model), _reading(model, lens, site)
    change = _ToMean(v, mean)
    sums, n = torch.zeros(3, dtype=torch.float64), 0
    for batch in batches:
        x, end = (state[batch.mask] for state in record_states(model, batch.tokens, [site, last]))
        with intervene(model, [Write(site, change)]):
            moved_end = record_states(model, batch.tokens, [last])[0][batch.mask]
        for part in readout.chunks(len(x)):
            p, q = readout.log_probabilities(end[part]), readout.log_probabilities(moved_end[part])
            before, after = read(x[part]), read(change(x[part]))
            weights = p.exp()
            stimulus, response = _centred(after - before, weights), _centred(q - p, weights)
            inner = (weights * stimulus * response).sum(dim=-1)
            size = ((weights * stimulus**2).sum(dim=-1) * (weights * response**2).sum(dim=-1)).sqrt()
            cosine = inner / size.clamp(min=torch.finfo(size.dtype).tiny)
            divergences = (kl_nats(a, b) * BITS for a, b in ((before, after), (p, q)))
            sums += torch.stack([value.double().sum().cpu() for value in (cosine, *divergences)])
        n += len(x)
    alignment, on_lens, on_model = (sums / n).tolist()
    return alignment, on_lens, on_model


def _centred(log_ratio: Tensor, weights: Tensor) -> Tensor:
    return log_ratio - (weights * log_ratio).sum(dim=-1, keepdim=True)


def _reading(model: TransformerBridge, lens: Lens, site: Site) -> Callable[[Tensor], Tensor]:
    readout = Readout.of(model)
    return lambda x: readout.log_probabilities(lens.translate(x, site))


def _batches(model: TransformerBridge, text: Any, n_rows: int) -> tuple[list[Prompts], Provenance]:
    stream = text if isinstance(text, TextStream) else open_text(model, text)
    rows = stream.rows(0, n_rows)
    if sum(map(len, rows)) < 2:
        raise InputError("a basis needs the states of two positions or more; the text has fewer")
    return list(forward_batches(rows, 4096)), stream.facts


def _check(model: TransformerBridge, lens: Lens, site: Site) -> ModelAnatomy:
    anatomy = read_anatomy(model)
    if site.kind not in RESIDUAL or site.kind not in lens.kinds:
        raise InputError(f"the {lens.name} reads {', '.join(lens.kinds)}; got {site}")
    anatomy.check_site(site)
    lens.check(model)
    return anatomy
