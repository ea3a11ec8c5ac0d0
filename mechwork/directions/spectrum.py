"""The spectrum of what changes between the two sides of pairs, per site: how many directions, how stable, where.

    D ``[pair, d]``: positive - negative state of every group;   D = U S V^T
    effective rank = exp(H(p)), p = s^2 / sum s^2          gap = the i with the largest s_i / s_(i+1)
    r = min(effective rank rounded up, gap, `r_max`)       mass = share of sum s^2 in the first r
    stability = median over pairs of bootstraps of  tr(P_a P_b) / tr(P_a),  P the projector on the first r axes

and the window of layers: the neighbouring sites with the largest sum of mass * stability. These are the second stage of
Neural FOXP2 (Saha et al. 2026). Control: differences between prompts of *one* side, paired by lot, at the same rank:
what any two prompts differ by is low-rank and stable too where a few directions are loud. Cost: 1 forward of all
prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, MetricError, check_whole
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..sites import Site
from .clusters import differences_by_group
from .examples import Examples, record_examples

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

R_MAX = 12
N_BOOTSTRAP = 20


@dataclass(frozen=True)
class SpectrumRow:
    """One site; `mass_within` and `stability_within` are of differences inside one side, at this rank."""

    site: Site
    effective_rank: float
    gap: int
    rank: int
    mass: float
    stability: float
    mass_within: float
    stability_within: float

    @property
    def score(self) -> float:
        """mass * stability."""
        return self.mass * self.stability


@dataclass(frozen=True, eq=False)
class SpectrumStudy(Result, what="spectrum of differences"):
    """A row per site; `sizes` are the singular values, `axes` the leading right vectors ``[site, r_max, d]``."""

    rows: tuple[SpectrumRow, ...]
    sizes: tuple[tuple[float, ...], ...]
    axes: Float[Tensor, "site r d"]
    n_pairs: int
    provenance: Provenance = field(default_factory=dict)

    def window(self, shortest: int = 1, longest: int = 3) -> tuple[Site, ...]:
        """The neighbouring sites, in the order given, with the largest sum of scores; raises `InputError` for lengths
        that no window has.
        """
        n = len(self.rows)
        if not 1 <= shortest <= longest or shortest > n:
            raise InputError(f"a window has 1 to {n} sites, shortest <= longest; got {shortest} to {longest}")
        spans = [(i, j) for i in range(n) for j in range(i + shortest, min(i + longest, n) + 1)]
        best = max(spans, key=lambda span: sum(row.score for row in self.rows[span[0] : span[1]]))
        return tuple(row.site for row in self.rows[best[0] : best[1]])

    def basis(self, site: Site) -> Float[Tensor, "rank d"]:
        """The axes that `rank` keeps at a site; raises `InputError` for another site."""
        for i, row in enumerate(self.rows):
            if row.site == site:
                return self.axes[i, : row.rank]
        raise InputError(f"there is no spectrum of {site}; there are {', '.join(str(row.site) for row in self.rows)}")

    def __str__(self) -> str:
        lines = [
            f"{row.site}: rank {row.rank} (effective {row.effective_rank:.1f}, gap after {row.gap}), mass "
            f"{row.mass:.2f} (within one side {row.mass_within:.2f}), stability {row.stability:.2f} "
            f"({row.stability_within:.2f})"
            for row in self.rows
        ]
        return "\n".join([f"differences of {self.n_pairs} pairs; window {', '.join(map(str, self.window()))}", *lines])


@borrows
def study_spectrum(
    model: TransformerBridge,
    examples: Examples,
    sites: Sequence[Site] | None = None,
    *,
    r_max: int = R_MAX,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> SpectrumStudy:
    """The spectrum of the differences within groups at every site (default: after every layer).

    Raises `InputError` for no sites, fewer than 3 groups with both classes, or a rank or number of bootstraps below 1
    (2); `MetricError` for states that are not finite or do not differ.

    >>> found = study_spectrum(model, Examples.of_task(task.train))
    >>> found.window(1, 3)
    """
    if sites is None:
        sites = [Site("resid_post", layer) for layer in range(int(model.cfg.n_layers))]
    if not sites or check_whole("r_max", r_max) < 1 or check_whole("n_bootstrap", n_bootstrap) < 2:
        raise InputError(
            f"a spectrum has sites, r_max of at least 1 and two bootstraps or more; got {len(sites)} sites, "
            f"r_max={r_max}, n_bootstrap={n_bootstrap}"
        )
    rows, sizes, axes = [], [], []
    n_pairs = 0
    for site, states in zip(sites, record_examples(model, examples, sites), strict=True):
        x = states.double()
        if not bool(x.isfinite().all()):
            raise MetricError(f"activations at {site} are not finite; nothing can be decomposed")
        generator = torch.Generator().manual_seed(seed)
        differences = differences_by_group(x, examples)[0]
        n_pairs = len(differences)
        if n_pairs < 3:
            raise InputError(f"a spectrum is of 3 groups or more with both classes; got {n_pairs}")
        if not float(differences.norm()) > 1e-9 * float(x.norm()):
            raise MetricError(f"the two sides are the same at {site}: nothing before it tells them apart there")
        one = x[examples.labels]
        within = one - one[torch.randperm(len(one), generator=generator).roll(1)]
        s, effective, gap, rank, v = spectrum_of(differences, r_max)
        mine = stability_of(differences, r_max, n_bootstrap, generator)
        other = stability_of(within, r_max, n_bootstrap, generator, rank)
        mass, mass_within = (_mass(sizes_of, rank) for sizes_of in (s, spectrum_of(within, r_max)[0]))
        rows.append(SpectrumRow(site, effective, gap, rank, mass, mine, mass_within, other))
        sizes.append(tuple(s.tolist()))
        kept = torch.zeros(r_max, x.shape[1], dtype=x.dtype)
        kept[: min(r_max, len(v))] = v[:r_max]
        axes.append(kept)
    facts = build_provenance(
        method="spectrum of differences", model=identify_model(model), seed=seed, r_max=r_max, n_bootstrap=n_bootstrap,
        examples={"name": examples.name, "sha256": examples.sha256()},
    )  # fmt: skip
    return SpectrumStudy(tuple(rows), tuple(sizes), torch.stack(axes), n_pairs, facts)


def spectrum_of(
    rows: Float[Tensor, "n d"], r_max: int = R_MAX
) -> tuple[Float[Tensor, " k"], float, int, int, Float[Tensor, "k d"]]:
    """(singular values, effective rank, gap, rank kept, right vectors) of a matrix of differences."""
    _, s, v = torch.linalg.svd(rows.double(), full_matrices=False)
    p = s.pow(2) / s.pow(2).sum().clamp(min=1e-30)
    effective = float((-(p * p.clamp(min=1e-30).log()).sum()).exp())
    ratios = (s[:-1] / s[1:].clamp(min=1e-10))[:r_max]
    gap = int(ratios.argmax()) + 1 if len(ratios) else 1
    return s, effective, gap, max(1, min(int(-(-effective // 1)), r_max, gap)), v


def stability_of(
    rows: Float[Tensor, "n d"], r_max: int, n_bootstrap: int, generator: torch.Generator, rank: int | None = None
) -> float:
    """Median overlap of the kept subspaces of resampled rows; 1 is the same subspace each time. `rank` fixes theirs."""
    found = []
    for _ in range(n_bootstrap):
        picked = torch.randint(len(rows), (len(rows),), generator=generator)
        *_, kept, v = spectrum_of(rows[picked], r_max)
        found.append(v[: kept if rank is None else rank])
    overlaps = [
        float((a @ b.T).pow(2).sum()) / len(a) for i, a in enumerate(found) for b in found[i + 1 :]
    ]  # fmt: skip
    return float(torch.tensor(overlaps, dtype=torch.float64).median())


def _mass(s: Float[Tensor, " k"], rank: int) -> float:
    return float(s[:rank].pow(2).sum() / s.pow(2).sum().clamp(min=1e-30))
