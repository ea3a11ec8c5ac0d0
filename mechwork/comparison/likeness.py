"""Directions and lenses of two models side by side, as vectors.

Two models that were trained from one start keep one basis, and their directions can be compared as they are; models
trained apart cannot, and a cosine near 0 then says nothing (fit a map between their streams first). `chance`: the
|cosine| that 95 % of random pairs of vectors of this width stay below, 1.96 / sqrt(d).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Examples, fit_directions, record_examples
from ..display import Readable
from ..errors import InputError
from ..lenses import LOGIT_LENS, Lens, Readout, TunedLens
from ..models.anatomy import device_of
from ..runs.record import record_run
from ..sites import Site
from ..statistics import kl_nats
from ..tasks.task import Task
from .match import check_same

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class DirectionLikeness(Readable):
    """One site. `accuracy`: (A's direction in A, A's direction and boundary in B, B's own in B), on held-out groups."""

    site: Site
    cosine: float
    chance: float
    lengths: tuple[float, float]
    accuracy: tuple[float, float, float]


def compare_directions(
    model_a: TransformerBridge,
    model_b: TransformerBridge,
    examples: Examples,
    sites: Sequence[Site],
    how: str = "mean_difference",
    *,
    seed: int = 0,
) -> list[DirectionLikeness]:
    """The same direction fitted in both models at every site (on 70 % of the groups), and how A's serves in B. Cost: 2
    forwards of each model.

    Raises `InputError` for models of different anatomy, and what `fit_directions` raises.

    >>> compare_directions(base, tuned, examples, [Site("resid_post", layer) for layer in range(6)])[3].cosine
    """
    check_same(model_a, model_b)
    fitted, tested = examples.split(seed=seed)
    pairs = zip(fit_directions(model_a, fitted, sites, how), fit_directions(model_b, fitted, sites, how), strict=True)
    states = [record_examples(model, tested, sites) for model in (model_a, model_b)]
    rows = []
    for i, (a, b) in enumerate(pairs):
        in_a, over, in_b = (
            float(((d.coordinate(states[k][i]) > d.boundary).cpu() == tested.labels).double().mean())
            for d, k in ((a, 0), (a, 1), (b, 1))
        )
        chance = 1.96 / len(a.vector) ** 0.5
        rows.append(DirectionLikeness(sites[i], a.cosine(b), chance, (a.norm, b.norm), (in_a, over, in_b)))
    return rows


@dataclass(frozen=True)
class LensLikeness(Readable):
    """One place. KL in nats at the prompts' last tokens.

    `kl`: lens A in model A || lens B in model B. `swapped`: lens A in model A || lens B in model A: what exchanging the
    lens alone does.
    `cosine`: of the two translators' changes A_l - I as vectors, None for lenses without translators (or without a
    change).
    """

    site: Site
    kl: float
    swapped: float
    cosine: float | None


def compare_lenses(
    model_a: TransformerBridge,
    model_b: TransformerBridge,
    task: Task,
    lens_a: Lens = LOGIT_LENS,
    lens_b: Lens = LOGIT_LENS,
) -> list[LensLikeness]:
    """What the two models' lenses read on the task's clean prompts, place by place. Cost: 1 forward of each model.

    Raises `InputError` for models of different anatomy or lenses that read different places, `ArtefactError` for a lens
    of another model.

    >>> compare_lenses(base, tuned, task)[3].kl
    """
    anatomy = check_same(model_a, model_b, task)
    lens_a.check(model_a)
    lens_b.check(model_b)
    common = [kind for kind in lens_a.kinds if kind in lens_b.kinds]
    if not common:
        raise InputError(f"the lenses read different places: {', '.join(lens_a.kinds)} and {', '.join(lens_b.kinds)}")
    kind = "resid_post" if "resid_post" in common else common[0]
    runs = [record_run(model, task.pairs.to(device_of(model)), [kind], n_tail=1) for model in (model_a, model_b)]
    readouts = [Readout.of(model) for model in (model_a, model_b)]
    rows = []
    for layer in range(anatomy.n_layers):
        if kind == "resid_post" and layer == anatomy.n_layers - 1 and isinstance(lens_a, TunedLens):
            continue  # the last stream needs no translator
        site = Site(kind, layer)
        x, y = (_at_end(run.layers[kind][layer], task) for run in runs)
        with torch.no_grad():
            mine = readouts[0].log_probabilities(lens_a.translate(x, site))
            theirs = readouts[1].log_probabilities(lens_b.translate(y, site))
            swapped = readouts[0].log_probabilities(lens_b.translate(x, site))
        rows.append(LensLikeness(site, _kl(mine, theirs), _kl(mine, swapped), _cosine(lens_a, lens_b, site)))
    return rows


def _at_end(x: Float[Tensor, "batch pos d_model"], task: Task) -> Float[Tensor, "batch d_model"]:
    return x[torch.arange(len(x)), task.pairs.lengths - 1]


def _kl(log_p: Float[Tensor, "batch d_vocab"], log_q: Float[Tensor, "batch d_vocab"]) -> float:
    log_p, log_q = log_p.cpu().double(), log_q.cpu().double()
    return float(kl_nats(log_p, log_q).mean().clamp(min=0))


def _cosine(lens_a: Lens, lens_b: Lens, site: Site) -> float | None:
    if not (isinstance(lens_a, TunedLens) and isinstance(lens_b, TunedLens)):
        return None
    a, b = ((lens.matrix(site) - torch.eye(int(lens.model["d_model"]))).double().flatten() for lens in (lens_a, lens_b))
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 else None
