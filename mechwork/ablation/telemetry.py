"""Telemetry: what the activations of a model look like on some prompts.

    massive activations   the largest absolute entries of the stream leaving each block, with place, value and ratio to
    the median
                          absolute entry of that layer (Sun et al. 2024, arXiv:2402.17762: above 100 and 1000 times the
                          median)
    sparsity              the largest share of an MLP's activations, smallest first, that can be set to zero at once
    while perplexity
                          on the prompts rises by no more than a tolerance; layer by layer, the other layers whole
    sinks and entropy     per head: mean attention to the first position from later queries; mean entropy of the
    pattern, as a share
                          of the entropy of uniform attention over the keys that a query sees
    norm growth           mean norm of the stream leaving each block, at all positions but the first, and at the first

Perplexity is exp of the mean negative log-probability of each real token but the first. Cost: 1 forward per 32 prompts,
and about 8 per layer for sparsity, from that layer on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..execute.memory import MemoryBudget
from ..interventions import Write, intervene
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, record_run
from ..runs.room import DEFAULT_BUDGET, prompts_that_fit
from ..sites import Site
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MASSIVE, RATIO = 100.0, 1000.0
"""Sun et al.'s thresholds: absolute value, and ratio to the median."""
SHARES = tuple(i / 20 for i in range(21))
"""Grid of the sparsity search."""
BATCH = 32
"""Most prompts per pass: medians are of a batch, so that a smaller budget alone may change them in the last digits."""


@dataclass(frozen=True)
class LargeActivation:
    """One entry of the stream leaving block `layer`: at `position` of `prompt`, dimension `dimension`."""

    layer: int
    prompt: int
    position: int
    dimension: int
    value: float
    ratio: float

    @property
    def massive(self) -> bool:
        """By the thresholds of Sun et al. 2024."""
        return abs(self.value) > MASSIVE and self.ratio > RATIO


@dataclass(frozen=True, eq=False)
class Telemetry(Result):
    """Summaries per layer and head; `sparsity` is the share of MLP activations that can be zeroed per layer (empty
    without MLPs).
    """

    model: str
    largest: tuple[LargeActivation, ...]
    median: Float[Tensor, " layer"]
    norm: Float[Tensor, " layer"]
    norm_first: Float[Tensor, " layer"]
    sink: Float[Tensor, "layer head"]
    entropy: Float[Tensor, "layer head"]
    perplexity: float
    sparsity: tuple[float, ...]
    exact_zeros: tuple[float, ...]
    tolerance: float
    provenance: Provenance
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def massive(self) -> tuple[LargeActivation, ...]:
        """Largest activations that reach the thresholds of Sun et al. 2024."""
        return tuple(one for one in self.largest if one.massive)

    def _table(self) -> Table:
        """One row per layer."""
        best = {one.layer: one for one in reversed(self.largest)}
        n = len(self.norm)
        return {
            "layer": list(range(n)),
            "norm": self.norm.tolist(),
            "norm_first": self.norm_first.tolist(),
            "largest": [best[layer].value for layer in range(n)],
            "ratio_to_median": [best[layer].ratio for layer in range(n)],
            "position": [best[layer].position for layer in range(n)],
            "dimension": [best[layer].dimension for layer in range(n)],
            "mean_sink": self.sink.mean(dim=1).tolist(),
            "max_sink": self.sink.amax(dim=1).tolist(),
            "entropy": self.entropy.mean(dim=1).tolist(),
            "sparsity": [*self.sparsity, *[float("nan")] * (n - len(self.sparsity))],
        }

    def __str__(self) -> str:
        found = (
            f"{len(self.massive)} massive"
            if self.massive
            else f"none massive (above {MASSIVE:g} and {RATIO:g} x the median)"
        )
        lines = [
            (
                f"{self.model}: perplexity {self.perplexity:.2f}; activations: {found}; sparsity at "
                f"{self.tolerance:.0%} "
                "more perplexity"
            ),
            (
                f"{'layer':>5}{'norm':>8}{'at first':>10}{'largest':>9}{'x median':>10}{'position':>10}{'dim':>6}"
                f"{'sink':>7}{'max sink':>10}{'entropy':>9}{'sparsity':>10}"
            ),
        ]
        lines += [
            f"{r['layer']:>5}{r['norm']:8.2f}{r['norm_first']:10.2f}{r['largest']:9.2f}{r['ratio_to_median']:10.1f}"
            f"{r['position']:>10}{r['dimension']:>6}"
            f"{r['mean_sink']:7.2f}{r['max_sink']:10.2f}{r['entropy']:9.2f}{r['sparsity']:10.2f}"
            for r in self.to_dataframe().to_dict(orient="records")
        ]
        return "\n".join([*lines, *self.notes])


@borrows
def record_telemetry(
    model: TransformerBridge,
    task: Task,
    *,
    n_largest: int = 3,
    tolerance: float = 0.01,
    sparsity: bool = True,
    name: str = "",
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
) -> Telemetry:
    """Telemetry of `model` on the clean prompts of a task; `n_largest` activations are kept per layer.

    Raises `InputError` for a negative tolerance, or a budget that does not hold one prompt. Models of experts have no
    one table of activations, so their sparsity is left out and a note says so.
    """
    if tolerance < 0 or n_largest < 1:
        raise InputError(f"tolerance is at least 0 and n_largest at least 1; got {tolerance} and {n_largest}")
    anatomy = check_task(model, task)
    pairs = task.pairs.to(device_of(model))
    sites = [Site(kind, layer) for kind in ("resid_post", "pattern") for layer in range(anatomy.n_layers)]
    width = pairs.clean_tokens.shape[1]
    size = min(BATCH, prompts_that_fit(model, pairs, memory_budget, sites=sites, n_tail=width))
    parts = [_summarise(model, batch) for batch in pairs.batches(size)]
    largest = tuple(one for layer in range(anatomy.n_layers) for one in _largest(parts, layer, n_largest))
    weights = torch.tensor([part.n for part in parts], dtype=torch.float64)
    weights = weights / weights.sum()

    def mean(what: str) -> Tensor:
        return sum((w * getattr(part, what) for w, part in zip(weights.tolist(), parts, strict=True)), torch.zeros(()))

    can = sparsity and not anatomy.attn_only and anatomy.has_site("mlp_post")
    note = (
        () if can or not sparsity else (f"sparsity left out: {anatomy.architecture} has no MLP activations of its own",)
    )
    found = [_sparsity(model, pairs, layer, tolerance, size) for layer in range(anatomy.n_layers)] if can else []
    facts = build_provenance(
        method="telemetry",
        model=identify_model(model),
        task=task.provenance(),
        tolerance=tolerance,
        n_largest=n_largest,
    )
    return Telemetry(
        name or str(model.cfg.model_name), largest, mean("median"), mean("norm"), mean("norm_first"), mean("sink"),
        mean("entropy"),
        _perplexity(model, pairs, size), tuple(share for share, _ in found), tuple(zeros for _, zeros in found),
        tolerance, facts, note,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Part:
    """Summaries of one batch: means over its prompts' real tokens, and its streams' largest entries."""

    n: int
    median: Tensor
    norm: Tensor
    norm_first: Tensor
    sink: Tensor
    entropy: Tensor
    largest: list[list[LargeActivation]]


def _summarise(model: TransformerBridge, pairs: PromptPairs) -> _Part:
    check_ready(model)
    run = record_run(model, pairs, ["resid_post", "pattern"], n_tail=1)
    mask, streams = pairs.mask, run.layers["resid_post"]
    later = mask.clone()
    later[:, 0] = False
    norms = [stream.norm(dim=-1).double() for stream in streams]
    medians = [stream[mask].abs().median().double() for stream in streams]
    sinks, entropies = [], []
    for pattern in run.layers["pattern"]:
        p = pattern.double()
        n_keys = torch.arange(1, p.shape[-1] + 1, device=p.device).double()
        entropy = -(p * p.clamp(min=1e-30).log()).sum(dim=-1) / n_keys.log().clamp(min=1e-30)
        weights = later.double() / later.sum()
        sinks.append(torch.einsum("bhq,bq->h", p[..., 0], weights))
        entropies.append(torch.einsum("bhq,bq->h", entropy, weights))
    largest = []
    for layer, stream in enumerate(streams):
        values = stream.masked_fill(~mask[..., None], 0).flatten()
        found = []
        for flat in values.abs().topk(min(16, values.numel())).indices.tolist():
            row, position, dimension = (int(i) for i in torch.unravel_index(torch.tensor(flat), stream.shape))
            value = float(values[flat])
            found.append(
                LargeActivation(layer, row, position, dimension, value, abs(value) / max(float(medians[layer]), 1e-30))
            )
        largest.append(found)
    return _Part(
        len(pairs),
        torch.stack(medians).cpu(),
        torch.stack([norm[later].mean() for norm in norms]).cpu(),
        torch.stack([norm[:, 0].mean() for norm in norms]).cpu(),
        torch.stack(sinks).cpu(),
        torch.stack(entropies).cpu(),
        largest,
    )


def _largest(parts: Sequence[_Part], layer: int, n: int) -> list[LargeActivation]:
    """The `n` largest entries of a layer at different (position, dimension), rows counted through all batches."""
    found, first = [], 0
    for part in parts:
        found += [
            LargeActivation(o.layer, o.prompt + first, o.position, o.dimension, o.value, o.ratio)
            for o in part.largest[layer]
        ]
        first += part.n
    seen: dict[tuple[int, int], LargeActivation] = {}
    for one in sorted(found, key=lambda o: -abs(o.value)):
        seen.setdefault((one.position, one.dimension), one)
    return list(seen.values())[:n]


def _perplexity(model: TransformerBridge, pairs: PromptPairs, size: int) -> float:
    total, n = 0.0, 0
    with torch.no_grad():
        for batch in pairs.batches(size):
            logs = model(batch.clean_tokens)[:, :-1].log_softmax(dim=-1)
            picked = logs.gather(-1, batch.clean_tokens[:, 1:, None])[..., 0].double()
            total -= float((picked * batch.mask[:, 1:]).sum())
            n += int(batch.mask[:, 1:].sum())
    return float(torch.tensor(total / n, dtype=torch.float64).exp())


@dataclass(frozen=True)
class _Smallest:
    """Sets activations whose absolute value is at most `threshold` to zero."""

    threshold: float

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.where(activation.abs() <= self.threshold, torch.zeros_like(activation), activation)


def _sparsity(
    model: TransformerBridge, pairs: PromptPairs, layer: int, tolerance: float, size: int
) -> tuple[float, float]:
    """(largest share of the grid that can be zeroed within the tolerance, share of exact zeros); by bisection."""
    site = Site("mlp_post", layer)
    values = torch.cat(
        [
            _real(record_run(model, batch, [site], n_tail=1).layers["mlp_post"][0], batch.mask)
            for batch in pairs.batches(size)
        ]
    )
    ordered = values.abs().flatten().sort().values
    limit = _perplexity(model, pairs, size) * (1 + tolerance)

    def within(share: float) -> bool:
        if share == 0:
            return True
        threshold = float(ordered[max(0, round(share * len(ordered)) - 1)])
        with intervene(model, [Write(site, _Smallest(threshold))]):
            return _perplexity(model, pairs, size) <= limit

    low, high = 0, len(SHARES)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(SHARES[middle]) else (low, middle)
    return SHARES[low], float((values == 0).double().mean())


def _real(
    activation: Float[Tensor, "batch pos d_mlp"], mask: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "token d_mlp"]:
    return activation[mask.to(activation.device)]
