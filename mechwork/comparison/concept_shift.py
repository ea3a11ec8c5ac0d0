"""Shift vectors: what tuning moved on some prompts, as one vector per site, and what the base model does with it.

    shift = mean over prompts of (state in the tuned model - state in the base), read at the prompts' last token
    share = (m(base + shift) - m(base)) / (m(tuned) - m(base)),   on prompts that were not fitted

`alike` is the mean cosine of single prompts' differences with the shift: 1 when tuning moved all prompts alike.
Controls beside each site: a random vector as long, and the base's *own* spread, i.e. the mean difference between two
halves of the prompts in the base model, scaled to the same length. Both models must share a basis, i.e. be points of
one training. Cost: 2 forwards of each model per site, and 1 of the base per site and vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Direction
from ..errors import InputError, MetricError
from ..interventions import Add, Chosen, Write, intervene
from ..models.anatomy import device_of
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import metric_of, record_run
from ..runs.writes import at_ends
from ..sites import Site
from ..tasks.task import Task
from .match import check_same

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class ConceptShift(Result, what="concept shift", strongest="share"):
    """Per site: the shift ``[site, d]``, its length as a share of the base's states, how alike the prompts' own shifts
    are, and the share of the tuned model's change of metric that the base reaches with it, with a random vector as
    long, and with the base's own spread.
    """

    sites: tuple[Site, ...]
    vectors: Float[Tensor, "site d_model"]
    length: tuple[float, ...]
    alike: tuple[float, ...]
    share: tuple[float, ...]
    random: tuple[float, ...]
    own_spread: tuple[float, ...]
    ends: tuple[float, float]
    provenance: Provenance = field(default_factory=dict)

    @property
    def best(self) -> int:
        """The number of the site with the largest share."""
        return max(range(len(self.sites)), key=lambda i: self.share[i])

    def direction(self, site: Site | None = None) -> Direction:
        """The shift at a site (default: the best) as a direction."""
        i = self.best if site is None else self.sites.index(site)
        return Direction(self.vectors[i], self.sites[i], name="shift from base to tuned", provenance=self.provenance)

    def _table(self) -> Table:
        """One row per site."""
        return {
            "site": [*map(str, self.sites)], "share": self.share, "random": self.random,
            "own_spread": self.own_spread, "length": self.length, "alike": self.alike,
        }  # fmt: skip

    def __str__(self) -> str:
        i = self.best
        return (
            f"metric {self.ends[0]:.3f} of the base, {self.ends[1]:.3f} of the tuned model; the shift at "
            f"{self.sites[i]} takes the base {self.share[i]:.1%} of the way (random {self.random[i]:.1%}, the base's "
            f"own spread {self.own_spread[i]:.1%}); prompts' own shifts are alike to {self.alike[i]:.2f}"
        )


def fit_concept_shift(
    base: TransformerBridge, tuned: TransformerBridge, train: Task, test: Task, sites: Sequence[Site] | None = None, *,
    strength: float = 1.0, seed: int = 0,
) -> ConceptShift:  # fmt: skip
    """The shift on the clean prompts of `train` at every site (default: after every layer), judged on those of `test`.

    Raises `InputError` for models of different anatomy, sites that are not in the stream, or fewer than two prompts;
    `MetricError` when the two models have the same metric on `test`.

    >>> print(fit_concept_shift(base, tuned, task.train, task.test))
    """
    anatomy = check_same(base, tuned, train)
    check_same(base, tuned, test)
    places = [Site("resid_post", i) for i in range(anatomy.n_layers)] if sites is None else list(sites)
    for place in places:
        anatomy.check_site(place)
        if place.kind not in ("resid_pre", "resid_post", "attn_out", "mlp_out"):
            raise InputError(f"shifts are vectors of the residual stream; got {place}")
    if not places or len(train) < 2:
        raise InputError(f"a shift needs a site and two prompts or more; got {len(places)} and {len(train)}")
    states = [_states(model, train, places) for model in (base, tuned)]
    with torch.no_grad():
        ends = tuple(float(metric_of(model, test).double().mean()) for model in (base, tuned))
    gap = ends[1] - ends[0]
    if not abs(gap) > 1e-6:
        raise MetricError(f"the base and the tuned model have the same metric on {test.name!r}, {ends[0]:.4g}")
    generator = torch.Generator().manual_seed(seed)
    half = torch.randperm(len(train), generator=generator)[: len(train) // 2]
    other = torch.ones(len(train), dtype=torch.bool)
    other[half] = False
    columns: dict[str, list[float]] = {name: [] for name in ("length", "alike", "share", "random", "own_spread")}
    vectors = []
    for place, before, after in zip(places, *states, strict=True):
        difference = after - before
        shift = difference.mean(dim=0)
        draw = torch.randn(len(shift), generator=generator, dtype=torch.float64)
        spread = before[half].mean(dim=0) - before[other].mean(dim=0)
        given = {"share": shift, "random": _as_long(draw, shift), "own_spread": _as_long(spread, shift)}
        for name, vector in given.items():
            columns[name].append((_steered(base, test, place, strength * vector) - ends[0]) / gap)
        columns["length"].append(float(shift.norm() / before.norm(dim=1).mean().clamp(min=1e-30)))
        columns["alike"].append(float(torch.nn.functional.cosine_similarity(difference, shift[None]).mean()))
        vectors.append(shift.float())
    facts = build_provenance(
        method="concept shift", base=identify_model(base), tuned=identify_model(tuned), train=train.provenance(),
        test=test.provenance(), strength=strength, seed=seed,
    )  # fmt: skip
    c = {name: tuple(column) for name, column in columns.items()}
    return ConceptShift(
        tuple(places), torch.stack(vectors), c["length"], c["alike"], c["share"], c["random"], c["own_spread"],
        (ends[0], ends[1]), facts,
    )  # fmt: skip


def _states(model: TransformerBridge, task: Task, sites: Sequence[Site]) -> list[Float[Tensor, "batch d_model"]]:
    """Last-token states at every site, in float64."""
    pairs = task.pairs.to(device_of(model))
    found = []
    for site in sites:
        run = record_run(model, pairs, [site], n_tail=1)
        found.append(at_ends(run.layers[site.kind][0], pairs).double().cpu())
    return found


def _as_long(vector: Float[Tensor, " d_model"], like: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    return vector / vector.norm().clamp(min=1e-30) * like.norm()


@torch.no_grad()
def _steered(model: TransformerBridge, task: Task, site: Site, vector: Float[Tensor, " d_model"]) -> float:
    pairs = task.pairs.to(device_of(model))
    columns = torch.arange(pairs.clean_tokens.shape[1], device=pairs.lengths.device)
    last = columns == pairs.lengths[:, None] - 1
    with intervene(model, [Write(site, Chosen(Add(vector), last))]):
        return float(metric_of(model, task).double().mean())
