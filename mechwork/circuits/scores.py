"""Edge scores: one number per (writer, reader) cell and pair, with what they mean and where they came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..display import Displayable
from ..errors import ArtefactError, InputError, MetricError
from ..patching.result import Direction
from ..provenance import Provenance
from ..runs.record import Baseline
from ..shapes import EdgeMatrix
from .circuit import Circuit
from .select import Ranking, select_top
from .space import EdgeSpace

if TYPE_CHECKING:
    import pandas

FORMAT = 1


@dataclass(frozen=True, eq=False)
class EdgeScores(Displayable):
    """Estimated effects of edges: positive = the clean value along the edge raises the metric.

    `per_example` is ``[batch, writer, reader]``, zero where there is no edge; `values` is its mean. `rules` names the
    composite, `direction` the run at which coefficients were taken (denoise: corrupt, noise: clean).
    """

    space: EdgeSpace
    per_example: Float[Tensor, "batch writer reader"]
    direction: Direction
    rules: str
    ig_steps: int
    metric_name: str
    baseline: Baseline
    provenance: Provenance

    def __post_init__(self) -> None:
        if not bool(self.per_example.isfinite().all()):
            raise MetricError(
                "edge scores must be finite; got NaN or infinity. Use float32 weights, or another composite of rules."
            )

    @property
    def values(self) -> EdgeMatrix:
        """Mean score over pairs, in units of the metric."""
        return self.per_example.mean(dim=0)

    @property
    def node_values(self) -> Float[Tensor, " writer"]:
        """Scores of the writers: the sum of their outgoing edges."""
        return self.values.sum(dim=1)

    def circuit(self, n_edges: int, *, by: Ranking = "absolute", prune: bool = True) -> Circuit:
        """The `n_edges` edges of largest absolute (or signed) score; edges on no path from input to logits are dropped.

        Raises `InputError` when `n_edges` is not between 1 and the size of the graph.
        """
        mask = select_top(self.space, self.values, n_edges, by=by)
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
        flat = self.values.flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.space.edge_name(*divmod(i, self.space.n_readers)), float(flat[i])) for i in order]

    def interval(self, level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> tuple[EdgeMatrix, EdgeMatrix]:
        """Percentile bootstrap interval of every score over pairs: (low, high)."""
        means = self._resampled_means(n_resamples, seed)
        tail = (1 - level) / 2
        low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype), dim=0)
        shape = (self.space.n_writers, self.space.n_readers)
        low_full, high_full = torch.zeros(shape), torch.zeros(shape)
        low_full[self.space.mask], high_full[self.space.mask] = low.float(), high.float()
        return low_full, high_full

    def inclusion(self, n_edges: int, n_resamples: int = 200, seed: int = 0) -> EdgeMatrix:
        """How often each edge is among the `n_edges` of largest absolute score when the pairs are resampled, in [0, 1]."""
        means = self._resampled_means(n_resamples, seed).abs()
        chosen = torch.zeros_like(means).scatter_(1, means.topk(n_edges, dim=1).indices, 1.0)
        full = torch.zeros(self.space.n_writers, self.space.n_readers)
        full[self.space.mask] = chosen.mean(dim=0).float()
        return full

    def _resampled_means(self, n_resamples: int, seed: int) -> Float[Tensor, "resample edge"]:
        edges = self.per_example[:, self.space.mask]
        generator = torch.Generator().manual_seed(seed)
        n = len(edges)
        weights = torch.zeros(n_resamples, n, dtype=edges.dtype)
        draws = torch.randint(n, (n_resamples, n), generator=generator)
        weights.scatter_add_(1, draws, torch.ones(n_resamples, n, dtype=edges.dtype))
        return weights @ edges / n

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per edge: source, target, score, standard error; strongest first."""
        import pandas

        index = self.space.mask.nonzero()
        values, error = self.values, self.per_example.std(dim=0) / len(self.per_example) ** 0.5
        frame = pandas.DataFrame(
            {
                "source": [self.space.writers[i] for i in index[:, 0].tolist()],
                "target": [self.space.readers[i] for i in index[:, 1].tolist()],
                "score": values[self.space.mask].tolist(),
                "standard_error": error[self.space.mask].tolist(),
            }
        )
        return frame.sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file. Returns the path."""
        path = Path(path).with_suffix(".safetensors")
        facts = {name: getattr(self, name) for name in ("direction", "rules", "ig_steps", "metric_name", "provenance")}
        tensors = {
            "per_example": self.per_example.contiguous(),
            "baseline.clean": self.baseline.clean_per_example.clone(),
            "baseline.corrupt": self.baseline.corrupt_per_example.clone(),
        }
        header = {
            "format": str(FORMAT),
            "what": "edge scores",
            "space": json.dumps(self.space.to_dict()),
            "facts": json.dumps(facts),
        }
        save_file(tensors, path, metadata=header)
        return path

    @classmethod
    def load(cls, path: str | Path) -> EdgeScores:
        """Read what `save` wrote; raises `ArtefactError` for another or a newer format."""
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("what") != "edge scores" or int(header.get("format", 0)) > FORMAT:
                raise ArtefactError(
                    f"{path} is not an edge-score file of format <= {FORMAT}; it says {header.get('what')}, {header.get('format')}"
                )
            facts: dict[str, Any] = json.loads(header["facts"])
            baseline = Baseline(file.get_tensor("baseline.clean"), file.get_tensor("baseline.corrupt"))
            return cls(
                EdgeSpace(**json.loads(header["space"])), file.get_tensor("per_example"), baseline=baseline, **facts
            )

    def require_model(self, weights_sha256: str) -> None:
        """Raises `InputError` when the scores were computed on other weights."""
        mine = self.provenance.get("model", {}).get("weights_sha256")
        if mine is not None and mine != weights_sha256:
            raise InputError(
                f"these scores belong to another model: weights sha256 {mine[:12]}..., this model has {weights_sha256[:12]}.... Score this model's edges first."
            )
