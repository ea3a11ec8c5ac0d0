"""Scores of features as nodes: names, layout, and the result object.

Nodes are laid out coder by coder: its features, then its error. A node stands for all positions: ``resid_post.3/f17``
is feature 17 wherever it is active, ``resid_post.3/error`` everything at that place that the coder does not explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..provenance import Provenance
from ..result import Result, Table
from ..runs.record import Baseline
from .feature_set import FeatureSet

ERRORS = ("ranked", "cut")


@dataclass(frozen=True)
class NodeTable:
    """Which node stands where: `places` as text, `counts` features each; every place has one more node, its error."""

    places: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, features: FeatureSet) -> NodeTable:
        return cls(features.places, tuple(coder.n_features for coder in features))

    def __len__(self) -> int:
        return sum(self.counts) + len(self.counts)

    @property
    def spans(self) -> tuple[slice, ...]:
        """The nodes of every place; the last of each is its error."""
        found, start = [], 0
        for count in self.counts:
            found.append(slice(start, start + count + 1))
            start += count + 1
        return tuple(found)

    @property
    def errors(self) -> Bool[Tensor, " node"]:
        """Which nodes are errors."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[[span.stop - 1 for span in self.spans]] = True
        return mask

    def name(self, node: int) -> str:
        """``resid_post.3/f17`` or ``resid_post.3/error``."""
        for place, span in zip(self.places, self.spans, strict=True):
            if span.start <= node < span.stop:
                return f"{place}/error" if node == span.stop - 1 else f"{place}/f{node - span.start}"
        raise InputError(f"nodes are 0 to {len(self) - 1}; got {node}")

    def index(self, name: str) -> int:
        """The inverse of `name`; raises `InputError` for a node that is not there."""
        place, _, what = name.partition("/")
        if place not in self.places:
            raise InputError(f"no features at {place!r}; there are some at {', '.join(self.places)}")
        span = self.spans[self.places.index(place)]
        if what == "error":
            return span.stop - 1
        if not (what.startswith("f") and what[1:].isdigit() and int(what[1:]) < span.stop - 1 - span.start):
            raise InputError(f"nodes at {place} are f0 to f{span.stop - 2 - span.start} and error; got {what!r}")
        return span.start + int(what[1:])


@dataclass(frozen=True, eq=False)
class FeatureScores(Result):
    """Estimated effects of features and errors, per pair: ``[batch, node]``; positive = the clean value raises the
    metric.

    `varies`: nodes whose value differs between the two prompts of at least one pair; all others have score 0 by
    definition.
    """

    nodes: NodeTable
    per_example: Float[Tensor, "batch node"]
    varies: Bool[Tensor, " node"]
    method: str
    metric_name: str
    baseline: Baseline
    provenance: Provenance

    @property
    def values(self) -> Float[Tensor, " node"]:
        """Mean score over pairs."""
        return self.per_example.mean(dim=0)

    def ranking(self, errors: str = "ranked") -> list[int]:
        """Nodes that vary, by falling absolute score; ``errors="cut"`` leaves the errors out."""
        if errors not in ERRORS:
            raise InputError(f"errors are {' or '.join(ERRORS)}; got {errors!r}")
        allowed = self.varies & ~self.nodes.errors if errors == "cut" else self.varies
        order = self.values.abs().argsort(descending=True, stable=True)
        return order[allowed[order]].tolist()

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` nodes of largest absolute score, strongest first."""
        return [(self.nodes.name(i), float(self.values[i])) for i in self.ranking()[:n]]

    def select(self, n_nodes: int, errors: str = "ranked") -> Bool[Tensor, " node"]:
        """The `n_nodes` of largest absolute score as a mask; fewer where fewer vary. Raises `InputError` for less than
        one.
        """
        if n_nodes < 1:
            raise InputError(f"a circuit has at least one node; got {n_nodes}")
        return mask_of(self.nodes, self.ranking(errors)[:n_nodes])

    def _table(self) -> Table:
        """One row per node that varies, strongest first."""
        order = self.ranking()
        spread = self.per_example.std(dim=0) / len(self.per_example) ** 0.5
        return {
            "node": [self.nodes.name(i) for i in order],
            "score": self.values[order].tolist(),
            "standard_error": spread[order].tolist(),
        }

    def __str__(self) -> str:
        n = int(self.varies.sum())
        head = f"{self.method}: {n} of {len(self.nodes)} nodes differ between the prompts; the strongest"
        return "\n".join([head, *(f"  {name:<24}{value:10.4f}" for name, value in self.top(12))])


def mask_of(nodes: NodeTable, chosen: Sequence[int]) -> Bool[Tensor, " node"]:
    """The nodes as a mask."""
    mask = torch.zeros(len(nodes), dtype=torch.bool)
    mask[list(chosen)] = True
    return mask
