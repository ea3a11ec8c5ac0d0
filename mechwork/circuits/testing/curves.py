"""Faithfulness as a result: of one circuit, and over sizes.

faithfulness(C) = (m(C) - m(empty)) / (m(M) - m(empty)), m = mean metric over the data, not clipped; `empty` has every
edge cut under the same ablation, M is the whole model. CPR is the area under faithfulness over edge fraction with
circuits ranked by signed score (higher is better), CMD the area of |1 - faithfulness| with circuits ranked by absolute
score (0 is best); sizes and trapezoid as in the MIB benchmark (Mueller et al. 2025), x being the nominal fraction.

`cpr_log` and `cmd_log` are the same areas over log10 of the fraction, divided by its range: small circuits, which are
what people look at, then count as much as large ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import MetricError, UnknownNameError
from ...provenance import Provenance
from ...result import Result, Table
from ...shapes import PerExample
from ...statistics import bootstrap_weights, percentile_interval
from ..graph.circuit import Circuit

MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def faithfulness(circuit: PerExample, empty: PerExample, model: PerExample) -> float:
    """Ratio of means; raises `MetricError` when the model and the empty circuit have the same metric."""
    m, e, c = float(model.mean()), float(empty.mean()), float(circuit.mean())
    if abs(m - e) <= 1e-6 * max(abs(m), abs(e), 1e-12):
        raise MetricError(
            f"faithfulness is undefined: the whole model and the empty circuit have the same metric ({m:.6g}). "
            "Choose corrupt prompts that change the answer, or another ablation."
        )
    return (c - e) / (m - e)


def bootstrap_faithfulness(
    circuit: PerExample,
    empty: PerExample,
    model: PerExample,
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval over pairs."""
    ratios = resampled_faithfulness(circuit[None], empty, model, n_resamples=n_resamples, seed=seed)
    low, high = percentile_interval(ratios, level)
    return float(low), float(high)


def resampled_faithfulness(
    circuits: Float[Tensor, "size batch"], empty: PerExample, model: PerExample, *, n_resamples: int, seed: int
) -> Float[Tensor, "resample size"]:
    """Faithfulness of several circuits on bootstrap resamples of the pairs (0 where a resample leaves it undefined)."""
    weights = bootstrap_weights(circuits.shape[1], n_resamples, seed).double()
    c, e, m = (weights @ x.double().T for x in (circuits, empty[None], model[None]))
    return ((c - e) / (m - e)).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, eq=False)
class CircuitEvaluation(Result):
    """How a circuit does on some pairs, beside the empty and random circuits. Metrics are per pair.

    `random` and `same_degree` are the faithfulness of random circuits of that size, and of those that also keep how
    many edges every node has. `empty_kl` is the mean KL of the empty circuit.
    """

    circuit: Circuit
    per_example: PerExample
    empty_per_example: PerExample
    model_per_example: PerExample
    random: tuple[float, ...]
    accuracy: float
    model_accuracy: float
    ablation: str
    metric_name: str
    provenance: Provenance
    same_degree: tuple[float, ...] = ()
    kl_per_example: PerExample | None = None
    empty_kl: float | None = None

    @property
    def kl(self) -> float | None:
        """Mean KL(model ‖ circuit) at the answer in nats, where it was measured."""
        return None if self.kl_per_example is None else float(self.kl_per_example.mean())

    @property
    def metric(self) -> float:
        """Mean metric of the circuit."""
        return float(self.per_example.mean())

    @property
    def empty(self) -> float:
        """Mean metric of the empty circuit."""
        return float(self.empty_per_example.mean())

    @property
    def faithfulness(self) -> float:
        return faithfulness(self.per_example, self.empty_per_example, self.model_per_example)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bootstrap interval of the faithfulness over pairs."""
        return bootstrap_faithfulness(self.per_example, self.empty_per_example, self.model_per_example, level=level)

    def _table(self) -> Table:
        """One row: of the circuit, and of the random ones beside it (means)."""
        low, high = self.interval()
        means = {"random": self.random, "same_degree": self.same_degree}
        controls = {name: sum(values) / len(values) for name, values in means.items() if values}
        measured = {"metric": self.metric, "empty": self.empty, "accuracy": self.accuracy, "kl": self.kl}
        return [
            {
                "n_edges": self.circuit.n_edges,
                "faithfulness": self.faithfulness,
                "low": low,
                "high": high,
                **controls,
                **measured,
            }
        ]

    def __repr__(self) -> str:
        low, high = self.interval()
        controls = ", ".join(f"{r:.3f}" for r in self.random)
        if self.same_degree:
            controls += "; of its degrees " + ", ".join(f"{r:.3f}" for r in self.same_degree)
        return (
            f"faithfulness {self.faithfulness:.3f} [{low:.3f}, {high:.3f}] with {self.circuit.n_edges} of "
            f"{self.circuit.space.n_edges} edges "
            f"({self.ablation} ablation); random circuits of that size {controls}; accuracy {self.accuracy:.3f} "
            f"(model {self.model_accuracy:.3f})"
        )


@dataclass(frozen=True, eq=False)
class FaithfulnessCurve(Result):
    """Faithfulness over circuit sizes. `fractions` are nominal, `sizes` the nominal numbers of edges, `n_kept` after
    pruning.

    `per_example` and `signed_per_example` are metrics ``[size, batch]`` of circuits ranked by absolute and signed
    score; `accuracy` and `kl` (mean KL(model ‖ circuit) in nats) are of the former. `random_at` says at which of the
    sizes random circuits were run (empty: at all of them).
    """

    fractions: tuple[float, ...]
    sizes: tuple[int, ...]
    n_kept: tuple[int, ...]
    per_example: Float[Tensor, "size batch"]
    signed_per_example: Float[Tensor, "size batch"]
    random_per_example: Float[Tensor, "repeat measured batch"]
    empty_per_example: PerExample
    model_per_example: PerExample
    ablation: str
    metric_name: str
    provenance: Provenance
    same_degree_per_example: Float[Tensor, "shuffle size batch"] | None = None
    accuracy: Float[Tensor, " size"] | None = None
    kl: Float[Tensor, " size"] | None = None
    random_at: tuple[int, ...] = ()

    @property
    def faithfulness(self) -> Float[Tensor, " size"]:
        """Of the circuits ranked by absolute score (those that `scores.circuit` gives)."""
        return self._faithfulness(self.per_example)

    @property
    def signed(self) -> Float[Tensor, " size"]:
        """Of the circuits ranked by signed score."""
        return self._faithfulness(self.signed_per_example)

    @property
    def random(self) -> Float[Tensor, " size"]:
        """Of random circuits of the same sizes, averaged over repeats (NaN where none were run)."""
        found = torch.full((len(self.sizes),), torch.nan, dtype=torch.float64)
        if len(self.random_per_example):
            rows = [self._faithfulness(repeat) for repeat in self.random_per_example]
            found[list(self._random_at)] = torch.stack(rows).mean(dim=0)
        return found

    @property
    def _random_at(self) -> tuple[int, ...]:
        return self.random_at or tuple(range(len(self.sizes)))

    @property
    def same_degree(self) -> Float[Tensor, " size"] | None:
        """Of random circuits with the degrees of the circuits ranked by absolute score, where they were run."""
        if self.same_degree_per_example is None:
            return None
        return torch.stack([self._faithfulness(repeat) for repeat in self.same_degree_per_example]).mean(dim=0)

    @property
    def empty(self) -> float:
        """Mean metric of the empty circuit, whose faithfulness is 0 by definition."""
        return float(self.empty_per_example.mean())

    @property
    def cpr(self) -> float:
        """Area under `signed` over edge fraction (higher is better)."""
        return self._area(self.signed)

    @property
    def cmd(self) -> float:
        """Area of |1 - `faithfulness`| over edge fraction (0 is best)."""
        return self._area((1 - self.faithfulness).abs())

    @property
    def cpr_log(self) -> float:
        """Mean of `signed` over log edge fraction."""
        return self._log_area(self.signed)

    @property
    def cmd_log(self) -> float:
        """Mean of |1 - `faithfulness`| over log edge fraction."""
        return self._log_area((1 - self.faithfulness).abs())

    def cpr_interval(self, level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of `cpr` over pairs."""
        return _ends(self.resampled_areas("cpr", n_resamples, seed), level)

    def cmd_interval(self, level: float = 0.95, n_resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval of `cmd` over pairs."""
        return _ends(self.resampled_areas("cmd", n_resamples, seed), level)

    def resampled_areas(self, what: str = "cmd", n_resamples: int = 1000, seed: int = 0) -> Float[Tensor, " resample"]:
        """`cmd`, `cmd_log`, `cpr` or `cpr_log` on bootstrap resamples of the pairs: the same resamples for every curve
        over as many pairs, so that differences are paired.
        """
        known = ("cmd", "cmd_log", "cpr", "cpr_log")
        if what not in known:
            raise UnknownNameError("area", what, known)
        metrics = self.per_example if what.startswith("cmd") else self.signed_per_example
        ratios = resampled_faithfulness(
            metrics, self.empty_per_example, self.model_per_example, n_resamples=n_resamples, seed=seed
        )
        heights = (1 - ratios).abs() if what.startswith("cmd") else ratios
        x = torch.tensor(self.fractions, dtype=torch.float64)
        if what.endswith("log"):
            x = x.log10() / (x[-1] / x[0]).log10()
        return torch.trapezoid(heights, x, dim=1)

    @property
    def random_cpr(self) -> float:
        """Area under `random`, between the sizes at which it was measured."""
        return self._random_area(self.random)

    @property
    def random_cmd(self) -> float:
        """Area of |1 - `random`|, between the sizes at which it was measured."""
        return self._random_area((1 - self.random).abs())

    def intervals(self, level: float = 0.95) -> tuple[tuple[float, float], ...]:
        """Bootstrap interval over pairs at every size."""
        return tuple(
            bootstrap_faithfulness(row, self.empty_per_example, self.model_per_example, level=level)
            for row in self.per_example
        )

    def _table(self) -> Table:
        """One row per size."""
        low, high = zip(*self.intervals(), strict=True)
        return {
            "fraction": self.fractions,
            "n_edges": self.sizes,
            "n_kept": self.n_kept,
            "faithfulness": self.faithfulness.tolist(),
            "low": low,
            "high": high,
            "faithfulness_signed": self.signed.tolist(),
            "faithfulness_random": self.random.tolist(),
            **({} if self.accuracy is None else {"accuracy": self.accuracy.tolist()}),
            **({} if self.kl is None else {"kl": self.kl.tolist()}),
            **({} if self.same_degree is None else {"faithfulness_same_degree": self.same_degree.tolist()}),
        }

    def __str__(self) -> str:
        lines = ["   edges    share  faithfulness   [95 % interval]   random"]
        rows = zip(
            self.sizes, self.fractions, self.faithfulness.tolist(), self.intervals(), self.random.tolist(), strict=True
        )
        lines += [
            f"{n:8d}  {share:6.1%}  {f:12.3f}   [{low:6.3f}, {high:6.3f}]  {'' if r != r else f'{r:7.3f}'}".rstrip()
            for n, share, f, (low, high), r in rows
        ]
        return "\n".join(
            [
                *lines,
                (
                    f"CPR {self.cpr:.3f} (random {self.random_cpr:.3f})   CMD {self.cmd:.3f} (random "
                    f"{self.random_cmd:.3f})"
                ),
            ]
        )

    __repr__ = __str__

    def _faithfulness(self, metrics: Float[Tensor, "size batch"]) -> Float[Tensor, " size"]:
        return torch.tensor(
            [faithfulness(row, self.empty_per_example, self.model_per_example) for row in metrics], dtype=torch.float64
        )

    def _log_area(self, heights: Float[Tensor, " size"]) -> float:
        x = torch.tensor(self.fractions, dtype=torch.float64).log10()
        return float(torch.trapezoid(heights.double(), x) / (x[-1] - x[0]))

    def _random_area(self, heights: Float[Tensor, " size"]) -> float:
        at = list(self._random_at)
        return float(torch.trapezoid(heights[at].double(), torch.tensor(self.fractions, dtype=torch.float64)[at]))

    def _area(self, heights: Float[Tensor, " size"]) -> float:
        return float(torch.trapezoid(heights.double(), torch.tensor(self.fractions, dtype=torch.float64)))


def _ends(areas: Float[Tensor, " resample"], level: float) -> tuple[float, float]:
    """The central `level` of resampled areas."""
    low, high = percentile_interval(areas[:, None], level)
    return float(low), float(high)
