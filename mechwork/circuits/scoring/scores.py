"""Edge scores: one number per (writer, reader) cell and pair, with what they mean, how sure they are, where they came
from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...arguments import checked
from ...artefact import Artefact
from ...errors import InputError, MetricError, check_whole
from ...patching.result import Direction
from ...provenance import Provenance
from ...result import Result, Table
from ...runs.record import Baseline
from ...shapes import EdgeMatrix
from ...statistics import bootstrap_weights, percentile_interval
from ..graph.circuit import Circuit
from ..graph.select import Ranking, select
from ..graph.space import EdgeSpace
from .sample import Streamed
from .stability import Stability, jaccard

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class EdgeScores(Result, version=3, strongest="score"):
    """Estimated effects of edges: positive = the clean value along the edge raises the metric.

    `per_example` is ``[batch, writer, reader]``, zero where there is no edge, or None when the pairs were `streamed`
    and only mean, variance and bootstrap means are left. `rules` names the composite, `direction` the run at which
    coefficients were taken (denoise: corrupt, noise: clean), `path` and `ablation` as in `score_edges`. `templates`
    names each pair's template.
    """

    space: EdgeSpace
    per_example: Float[Tensor, "batch writer reader"] | None
    direction: Direction
    rules: str
    ig_steps: int
    metric_name: str
    baseline: Baseline
    provenance: Provenance
    path: str = "inputs"
    ablation: str = "corrupt"
    templates: tuple[str, ...] = ()
    streamed: Streamed | None = None

    def __post_init__(self) -> None:
        if (self.per_example is None) == (self.streamed is None):
            raise InputError("edge scores are either per pair or streamed; give exactly one of the two")
        known = self.per_example if self.streamed is None else self.streamed.mean
        if known is not None and not bool(known.isfinite().all()):
            raise MetricError(
                "edge scores must be finite; got NaN or infinity. Use float32 weights, or another composite of rules."
            )
        wanted = tuple(self.space.mask.shape) if self.streamed is None else (self.space.n_edges,)
        if known is not None and tuple(known.shape)[-len(wanted) :] != wanted:
            raise InputError(f"scores of {self.space} have the shape {wanted} per pair; got {tuple(known.shape)}")

    @property
    def n_pairs(self) -> int:
        """How many pairs the scores are means over."""
        return len(self.per_example) if self.per_example is not None else self._streamed.n

    def require_pairs(self) -> Float[Tensor, "batch writer reader"]:
        """Scores per pair; raises `InputError` for scores that were streamed."""
        if self.per_example is None:
            raise InputError(
                "these scores were streamed and keep no score per pair; score with keep='pairs' or a larger memory "
                "budget"
            )
        return self.per_example

    @cached_property
    def values(self) -> EdgeMatrix:
        """Mean score over pairs, in units of the metric."""
        return self.per_example.mean(dim=0) if self.per_example is not None else self.unpack(self._streamed.mean)

    @property
    def node_values(self) -> Float[Tensor, " writer"]:
        """Scores of the writers: the sum of their outgoing edges."""
        return self.values.sum(dim=1)

    def standard_error(self) -> EdgeMatrix:
        """Standard error of `values` over pairs (NaN for a single pair)."""
        if self.per_example is not None:
            return self.per_example.std(dim=0) / self.n_pairs**0.5
        return self.unpack((self._streamed.variance / self.n_pairs).sqrt())

    @checked
    def circuit(self, n_edges: int, *, by: Ranking = "absolute", prune: bool = True) -> Circuit:
        """The `n_edges` edges of largest absolute (or signed) score; edges on no path from input to logits are dropped.

        ``by="greedy"`` and ``"greedy_signed"`` grow the circuit from the logits instead; see
        `mechwork.circuits.graph.select`. Raises `InputError` when `n_edges` is not between 1 and the size of the graph.
        """
        mask = select(self.space, self.values, n_edges, by=by)
        circuit = Circuit(
            self.space,
            mask,
            self.values,
            n_requested=n_edges,
            provenance={**self.provenance, "selection": by, "n_edges": n_edges},
        )
        return circuit.pruned() if prune else circuit

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` edges of largest absolute score, strongest first."""
        check_whole("n", n, least=1)
        flat = self.values.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.space.edge_name(*divmod(i, self.space.n_readers)), float(flat[i])) for i in order]

    def interval(self, level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> tuple[EdgeMatrix, EdgeMatrix]:
        """Percentile bootstrap interval of every score over pairs: (low, high). Streamed scores use their own
        resamples.
        """
        low, high = percentile_interval(self.resampled_means(n_resamples, seed), level)
        return self.unpack(low), self.unpack(high)

    def inclusion(self, n_edges: int, n_resamples: int = 200, seed: int = 0) -> EdgeMatrix:
        """How often each edge is among the `n_edges` of largest absolute score when the pairs are resampled,
        in [0, 1].
        """
        means = self.resampled_means(n_resamples, seed).abs()
        chosen = torch.zeros_like(means).scatter_(1, means.topk(n_edges, dim=1).indices, 1.0)
        return self.unpack(chosen.mean(dim=0))

    def stability(self, n_edges: int, *, over: str = "resamples", n_resamples: int = 200, seed: int = 0) -> Stability:
        """How much the circuit of the `n_edges` strongest edges depends on the pairs: Jaccard indices to the whole
        data's circuit.

        ``over="resamples"``: circuits of bootstrap resamples; ``"templates"``: of each template's pairs alone (needs
        per-pair scores and a task with templates); for seeds or other settings compare several scores with
        `compare_selections`.
        """
        if over == "resamples":
            means, labels = self.resampled_means(n_resamples, seed), ()
        elif over == "templates":
            means, labels = self._template_means()
        else:
            raise InputError(f"stability is measured over 'resamples' or 'templates'; got {over!r}")
        if not 0 < n_edges <= self.space.n_edges:
            raise InputError(f"the size of a circuit is 1 to {self.space.n_edges} edges; got {n_edges}")
        packed = self.values[self.space.mask].abs().to(means)
        whole = torch.zeros_like(packed, dtype=torch.bool)
        whole[packed.topk(n_edges).indices] = True
        sets = torch.zeros_like(means, dtype=torch.bool).scatter_(
            1, means.abs().topk(n_edges, dim=1).indices, value=True
        )
        expected = n_edges / (2 * self.space.n_edges - n_edges)
        return Stability(over, n_edges, tuple(jaccard(row, whole) for row in sets), expected, labels)

    def resampled_means(self, n_resamples: int, seed: int) -> Float[Tensor, "resample edge"]:
        """Mean scores of bootstrap resamples of the pairs, packed in the order of the space's mask."""
        if self.per_example is not None:
            edges = self.per_example[:, self.space.mask]
            return bootstrap_weights(len(edges), n_resamples, seed).to(edges) @ edges
        if not len(self._streamed.resampled):
            raise InputError(
                "these scores carry no resamples (they are not means over pairs); resample the scores they were made of"
            )
        return self._streamed.resampled[:n_resamples]

    def _template_means(self) -> tuple[Float[Tensor, "template edge"], tuple[str, ...]]:
        names = tuple(dict.fromkeys(self.templates))
        if self.per_example is None or len(names) < 2:
            raise InputError(
                f"stability over templates needs per-pair scores of pairs of at least two templates; got {len(names)} "
                f"template(s), {'streamed' if self.per_example is None else 'per-pair'} scores"
            )
        edges = self.per_example[:, self.space.mask]
        rows = [[i for i, name in enumerate(self.templates) if name == wanted] for wanted in names]
        return torch.stack([edges[index].mean(dim=0) for index in rows]), names

    def unpack(self, packed: Float[Tensor, " edge"]) -> EdgeMatrix:
        """One number per edge, in the order of the space's mask, as a matrix; zero elsewhere."""
        full = packed.new_zeros(self.space.n_writers, self.space.n_readers)
        full[self.space.mask] = packed
        return full

    def _table(self) -> Table:
        """One row per edge, strongest first."""
        mask = self.space.mask
        columns = {"score": self.values[mask].tolist(), "standard_error": self.standard_error()[mask].tolist()}
        return {**self.space.ends(), **columns}

    @classmethod
    def _from_old(cls, found: Artefact) -> EdgeScores:
        tensors, facts = found.tensors, {**found.facts, "templates": tuple(found.facts.get("templates", ()))}
        space = EdgeSpace(**facts.pop("space"))
        baseline = Baseline(tensors["baseline.clean"], tensors["baseline.corrupt"])
        if "per_example" in tensors:
            return cls(space, tensors["per_example"], baseline=baseline, **facts)
        parts = {name.partition(".")[2]: x for name, x in tensors.items() if name.startswith("streamed.")}
        streamed = Streamed(n=facts.pop("n"), seed=facts.pop("seed"), **parts)
        return cls(space, None, baseline=baseline, streamed=streamed, **facts)

    def require_model(self, weights_sha256: str) -> None:
        """Raises `InputError` when the scores were computed on other weights."""
        mine = self.provenance.get("model", {}).get("weights_sha256")
        if mine is not None and mine != weights_sha256:
            raise InputError(
                f"these scores belong to another model: weights sha256 {mine[:12]}..., this model has "
                f"{weights_sha256[:12]}.... Score this model's edges first."
            )

    def require_task(self, name: str, metric_name: str) -> None:
        """Raises `InputError` when the scores were computed on another task or metric."""
        mine = self.provenance.get("task", {}).get("name")
        if (mine is not None and mine != name) or self.metric_name != metric_name:
            raise InputError(
                f"these scores belong to task {mine!r} with metric {self.metric_name!r}; got task {name!r} with "
                f"{metric_name!r}. "
                "Score this task's edges first, or pass across_tasks=True to test how scores carry over."
            )

    @property
    def _streamed(self) -> Streamed:
        assert self.streamed is not None
        return self.streamed
