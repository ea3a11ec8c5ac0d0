"""Measured effects of single features and errors: the ground truth of their scores, one forward each.

    denoise: m(corrupt run with node i at its clean value) - m(corrupt)         noise: m(clean) - m(clean run with node
    i at its corrupt value)

The node is set at all positions; everything after it follows. Positive = the clean value raises the metric, as for
scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..circuits.graph.writers import require_aligned
from ..errors import InputError
from ..interventions import Add, Write, intervene
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..patching.result import check_direction
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, run_to_metric
from ..sites import SITE_KINDS, Site
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .feature_set import FeatureSet
from .record import record_features
from .scores import FeatureScores, NodeTable

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class FeatureEffects(Result):
    """Measured effects of some nodes, ``[batch, node]``; `names` says which."""

    names: tuple[str, ...]
    per_example: Float[Tensor, "batch node"]
    direction: str
    metric_name: str
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, " node"]:
        """Mean effect over pairs."""
        return self.per_example.mean(dim=0)

    def correlation(self, scores: FeatureScores) -> float:
        """Pearson correlation of the scores of these nodes with their effects; raises `InputError` where one of them is
        constant.
        """
        index = [scores.nodes.index(name) for name in self.names]
        both = torch.stack([self.values.double(), scores.values[index].double()])
        if len(index) < 3 or float(both.std(dim=1).min()) == 0:
            raise InputError("a correlation needs three nodes or more whose effects and scores differ")
        return float(torch.corrcoef(both)[0, 1])

    def _table(self) -> Table:
        """One row per node, as given."""
        return {"node": self.names, "effect": self.values.tolist()}

    def __str__(self) -> str:
        rows = zip(self.names, self.values.tolist(), strict=True)
        return "\n".join(
            [f"measured effects ({self.direction})", *(f"  {name:<24}{value:10.4f}" for name, value in rows)]
        )


@borrows
def patch_features(
    model: TransformerBridge,
    task: Task,
    features: FeatureSet,
    names: Sequence[str],
    *,
    direction: str = "denoise",
    batch_size: int = 64,
) -> FeatureEffects:
    """Effects of the nodes called `names` (``"resid_post.3/f17"``, ``"mlp_out.0/error"``).

    Cost per batch of pairs: 4 forwards, and 1 per node. Raises `InputError` for names that are not there, or pairs of
    unequal length; `ArtefactError` for features of another model.
    """
    direction = check_direction(direction)
    nodes = NodeTable.of(features)
    chosen = [nodes.index(name) for name in names]
    if not chosen:
        raise InputError("effects are measured of one node or more; got no names")
    check_task(model, task)
    features.check(model)
    require_aligned(task)
    rows = []
    for piece in task.pairs.batches(batch_size):
        pairs = piece.to(device_of(model))
        host = pairs.corrupt_as_host() if direction == "denoise" else pairs
        rows.append(_effects(model, task, features, nodes, chosen, host, 1.0 if direction == "denoise" else -1.0))
    provenance = build_provenance(
        method="feature effects",
        direction=direction,
        features=features.describe(),
        model=identify_model(model),
        task=task.provenance(),
    )
    return FeatureEffects(tuple(names), torch.cat(rows), direction, task.metric.name, provenance)


def _effects(
    model: TransformerBridge,
    task: Task,
    features: FeatureSet,
    nodes: NodeTable,
    chosen: Sequence[int],
    host: PromptPairs,
    sign: float,
) -> Float[Tensor, "batch node"]:
    """Effects in one batch, whose clean side is the run that is patched."""
    coders = list(features)
    own, other = (record_features(model, tokens, coders) for tokens in (host.clean_tokens, host.corrupt_tokens))
    plain = task.measure(run_to_metric(model, task, host, host.clean_tokens), host)
    effects: list[Tensor] = []
    for node in chosen:
        place = next(i for i, span in enumerate(nodes.spans) if span.start <= node < span.stop)
        span, coder = nodes.spans[place], coders[place]
        if node == span.stop - 1:
            change = other[place].error - own[place].error
        else:
            feature = node - span.start
            moved = other[place].features[..., feature] - own[place].features[..., feature]
            change = moved[..., None] * coder.W_dec[feature].to(moved)
        with torch.no_grad(), intervene(model, [Write(coder.writes, Add(_like(change, coder.writes, model)))]):
            patched = task.measure(run_to_metric(model, task, host, host.clean_tokens), host)
        effects.append(sign * (patched - plain))
    return torch.stack(effects, dim=1).cpu()


def _like(change: Tensor, site: Site, model: TransformerBridge) -> Tensor:
    """Heads side by side as heads again, for sites that have them."""
    per_head = "head" in SITE_KINDS[site.kind].axes and site.head is None
    return change.unflatten(-1, (-1, int(model.cfg.d_head))) if per_head else change
