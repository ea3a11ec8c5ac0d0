"""Concepts in value vectors: neurons whose output weights say alike, clustered, and switched on or off as one.

    k-means of the value vectors' token effects (see `directions`), each of length 1, over all neurons of some layers

A cluster is named by the tokens that its mean raises. `write` sets every neuron of it to one number, so that a
concept is steered by neurons instead of a vector. `control` draws as many neurons of every layer by lot. `tightness` is
the mean cosine of a cluster's members with its centre, beside that of clusters dealt out by lot. Source: value vectors
as concepts (Geva et al. 2022), clustered and steered (VLA steering, Haon et al. 2025). Cost: products of the value
vectors with the unembedding; no forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions.clusters import find_clusters
from ..errors import InputError, check_whole
from ..interventions import Constant, Entries, Write
from ..models.anatomy import check_ready
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import place_name
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from .directions import token_effects, value_vectors
from .lens import LOGIT_LENS
from .prompts import token_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_TOKENS = 8


@dataclass(frozen=True, eq=False)
class ValueClusters(Result, what="clusters of value vectors", strongest="tightness"):
    """`members[k]`: (layer, neuron) of cluster k; `words[k]` and `ids[k]`: the tokens that its centre raises most."""

    members: tuple[tuple[tuple[int, int], ...], ...]
    words: tuple[tuple[str, ...], ...]
    ids: tuple[tuple[int, ...], ...]
    tightness: tuple[float, ...]
    by_lot: float
    d_mlp: int
    provenance: Provenance = field(default_factory=dict)

    def find(self, token: int) -> int:
        """The cluster that names a token soonest; raises `InputError` when none does."""
        places = [ids.index(token) if token in ids else len(ids) for ids in self.ids]
        best = min(range(len(places)), key=lambda k: places[k])
        if places[best] == len(self.ids[best]):
            raise InputError(f"token {token} is among the {len(self.ids[0])} first tokens of no cluster")
        return best

    def write(self, cluster: int, value: float) -> list[Write]:
        """Every neuron of a cluster set to `value`, for `intervene` and generation; 0 switches it off."""
        if not 0 <= cluster < len(self.members):
            raise InputError(f"clusters are 0 to {len(self.members) - 1}; got {cluster}")
        by_layer: dict[int, list[int]] = {}
        for layer, neuron in self.members[cluster]:
            by_layer.setdefault(layer, []).append(neuron)
        return [
            Write(Site("mlp_post", layer), Entries(Constant(value), tuple(rows))) for layer, rows in by_layer.items()
        ]

    def control(self, seed: int = 0) -> ValueClusters:
        """The same numbers of neurons of every layer in each cluster, drawn by lot."""
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for part in self.members:
            rows: list[tuple[int, int]] = []
            for layer in dict.fromkeys(layer for layer, _ in part):
                n = sum(at == layer for at, _ in part)
                rows += [(layer, i) for i in torch.randperm(self.d_mlp, generator=generator)[:n].tolist()]
            drawn.append(tuple(rows))
        return replace(self, members=tuple(drawn))

    def _table(self) -> Table:
        """One row per cluster."""
        return {
            "cluster": list(range(len(self.members))), "neurons": [len(part) for part in self.members],
            "tightness": self.tightness, "tokens": [" ".join(map(repr, part)) for part in self.words],
            "first": [", ".join(place_name("mlp_post", {"neuron": f"m{layer}.n{n}"}) for layer, n in part[:4])
                      for part in self.members],
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [
            f"{len(self.members)} clusters of value vectors; clusters by lot have a tightness of {self.by_lot:.3f}"
        ]
        lines += [
            f"  {k}: {len(part)} neurons, tightness {tight:.3f}: {' '.join(map(repr, said[:6]))}"
            for k, (part, tight, said) in enumerate(zip(self.members, self.tightness, self.words, strict=True))
        ]
        return "\n".join(lines)


@borrows
@torch.no_grad()
def cluster_values(
    model: TransformerBridge, layers: Sequence[int] | None = None, n_clusters: int = 8, *, seed: int = 0
) -> ValueClusters:
    """Clusters of the value vectors of some layers (default: the upper half), numbered by size.

    Raises `InputError` for layers without neurons, or more clusters than neurons.

    >>> found = cluster_values(model, [4, 5], 12)
    >>> with intervene(model, found.write(3, 2.0)):
    ...     logits = model(tokens)
    """
    anatomy = check_ready(model)
    anatomy.check_site(Site("mlp_post", 0))
    chosen = list(range(anatomy.n_layers // 2, anatomy.n_layers)) if layers is None else list(layers)
    if not chosen or not all(0 <= layer < anatomy.n_layers for layer in chosen) or len(set(chosen)) != len(chosen):
        raise InputError(f"layers of this model are 0 to {anatomy.n_layers - 1}, each once; got {chosen}")
    rows = [value_vectors(model, layer) for layer in chosen]
    d_mlp = len(rows[0])
    if not 1 <= check_whole("n_clusters", n_clusters) <= d_mlp * len(chosen):
        raise InputError(f"clusters are 1 to {d_mlp * len(chosen)}, the number of neurons; got {n_clusters}")
    # v M are a vector's effects; M M^T = R R, so rows v R have the effects' lengths and angles in d_model numbers
    vectors = torch.cat(rows).double()
    through = token_effects(model, torch.eye(anatomy.d_model, device=vectors.device), LOGIT_LENS)
    values, axes = torch.linalg.eigh((through @ through.T).double())
    short = vectors @ (axes * values.clamp(min=0).sqrt()) @ axes.T
    lengths = short.norm(dim=1, keepdim=True).clamp(min=1e-30)
    said = short / lengths
    generator = torch.Generator().manual_seed(seed)
    index, centres = find_clusters(said, n_clusters, generator)
    names = [(layer, n) for layer in chosen for n in range(d_mlp)]
    tight, _ = _tightness(said, index, n_clusters)
    lots = index[torch.randperm(len(index), generator=generator)]
    means = torch.stack([(vectors / lengths)[index == k].mean(dim=0) for k in range(n_clusters)])
    ids = (means.to(through) @ through).topk(min(N_TOKENS, through.shape[1]), dim=1).indices.tolist()
    parts = []
    for k in range(n_clusters):
        inside = (index == k).nonzero().flatten()
        order = (said[inside] @ centres[k]).argsort(descending=True)
        parts.append(tuple(names[i] for i in inside[order].tolist()))
    facts = build_provenance(method="clusters of value vectors", model=identify_model(model), layers=chosen, seed=seed)
    words = tuple(tuple(token_text(model, token) for token in row) for row in ids)
    return ValueClusters(
        tuple(parts), words, tuple(map(tuple, ids)), tight, sum(_tightness(said, lots, n_clusters)[0]) / n_clusters,
        d_mlp, facts,
    )  # fmt: skip


def _tightness(said: Float[Tensor, "n d"], index: Tensor, k: int) -> tuple[tuple[float, ...], Float[Tensor, "k d"]]:
    """Mean cosine of each cluster's rows with its mean, and the means."""
    means = torch.stack([said[index == number].mean(dim=0) for number in range(k)])
    cosine = torch.nn.functional.cosine_similarity(said, means[index], dim=1)
    return tuple(float(cosine[index == number].mean()) for number in range(k)), means
