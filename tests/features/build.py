"""Random coders for tiny models: weights at which every part acts."""

from __future__ import annotations

from typing import Any

import torch

from mechwork.features import FeatureSet, GatedRelu, JumpRelu, Relu, SparseCoder, TopK
from mechwork.features.feature_set import site_width
from mechwork.models.anatomy import read_anatomy
from mechwork.sites import Site

N = 12
KINDS = ("relu", "jumprelu", "topk", "gated")


def coder(
    reads: Site,
    d: int,
    kind: str = "relu",
    writes: Site | None = None,
    n: int = N,
    seed: int = 0,
    *,
    skip: bool = False,
) -> SparseCoder:
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    activation = {
        "relu": Relu, "jumprelu": lambda: JumpRelu(draw(n).abs()), "topk": lambda: TopK(3),
        "gated": lambda: GatedRelu(0.3 * draw(n), 0.5 * draw(n)),
    }[kind]()  # fmt: skip
    return SparseCoder(
        reads, writes or reads, draw(d, n) / d**0.5, 0.3 * draw(n), draw(n, d) / n**0.5, 0.2 * draw(d), activation,
        0.3 * draw(d), draw(d, d) / d if skip else None,
    )  # fmt: skip


def features(model: Any, *places: Site | tuple[Site, Site], kind: str = "relu") -> FeatureSet:
    anatomy = read_anatomy(model)
    made = []
    for i, place in enumerate(places):
        reads, writes = (place, place) if isinstance(place, Site) else place
        d = site_width(model, anatomy, reads)
        assert d is not None
        made.append(coder(reads, d, kind, writes, seed=i))
    return FeatureSet(tuple(made), {}, {}, "random")
