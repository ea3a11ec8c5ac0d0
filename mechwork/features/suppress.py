"""Suppress a concept through its features, three ways, and see what else goes.

method | f' of each chosen feature:

- ``"mask"`` | 0 | full masking
- ``"partial"`` | (1 - s) f | partial suppression, by the same share everywhere
- ``"posterior"`` | (1 - s p(concept given f)) f | attenuation by posterior probability: only as far as the activation
  speaks for the concept

p(concept given f) is Bayes' rule on the histograms of `concepts` with equal priors, one count added to every bin: p =
P(bin of f given positive) / (P(... positive) + P(... negative)). With s = 1 the third lies between no change and full
masking. A feature that also serves other things is left alone there if its activations then are of another size.

What is asked: the metric on held-out prompts *of* the concept should fall (`concept`), that on prompts of the other
class should stay (`other_class`), and so should accuracy and next-token distributions on other tasks. The control
suppresses as many features at random, of those that are active on the concept's prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Examples
from ..display import Readable
from ..errors import InputError, UnknownNameError
from ..interventions import Replacement
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..runs.record import check_task, run_to_metric
from ..statistics import bootstrap_weights, kl_nats, percentile_interval
from ..tasks.metrics import accuracy
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .concepts import N_BINS, bin_edges, bin_index, histograms, record_concept
from .feature_set import FeatureSet
from .writes import FeatureWrite, intervene_features

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

METHODS = ("mask", "partial", "posterior")


@dataclass(frozen=True)
class Attenuate:
    """(1 - `share`) f for the features `index`, the others as they are."""

    index: tuple[int, ...]
    share: float = 1.0

    def __call__(self, activation: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        new = activation.clone()
        new[..., list(self.index)] *= 1 - self.share
        return new


@dataclass(frozen=True, eq=False)
class AttenuateByPosterior(Readable):
    """(1 - `share` p(concept given f)) f for the features `index`; `posterior` ``[bin, n]`` and `edges` ``[edge, n]``
    are theirs.
    """

    index: tuple[int, ...]
    edges: Float[Tensor, "edge n"]
    posterior: Float[Tensor, "bin n"]
    share: float = 1.0

    def __call__(self, activation: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        own = activation[..., list(self.index)]
        p = self.posterior.to(own).T[torch.arange(len(self.index), device=own.device), bin_index(own, self.edges)]
        new = activation.clone()
        new[..., list(self.index)] = (1 - self.share * p) * own
        return new


def fit_posterior(
    values: Float[Tensor, "prompt feature"],
    examples: Examples,
    index: Sequence[int],
    share: float = 1.0,
    n_bins: int = N_BINS,
) -> AttenuateByPosterior:
    """The third method for the features `index`, from recorded activations of labelled prompts (see
    `concepts.record_concept`).
    """
    own = values[:, list(index)].double()
    edges = bin_edges(own, n_bins)
    counts = [
        h * n for h, n in zip(histograms(bin_index(own, edges), examples.labels, n_bins), _sizes(examples), strict=True)
    ]
    p, q = ((count + 1) / (n + n_bins) for count, n in zip(counts, _sizes(examples), strict=True))
    return AttenuateByPosterior(tuple(index), edges, p / (p + q), share)


def _sizes(examples: Examples) -> tuple[int, int]:
    positive = int(examples.labels.sum())
    return positive, len(examples) - positive


@dataclass(frozen=True)
class FeatureSuppressionRow:
    """One method. `concept` and `other_class`: metric on prompts of the two classes, as a share of the unsuppressed
    model's; accuracies beside.

    The interval is that of the share, over resampled pairs of the concept.
    """

    method: str
    share: float
    control: bool
    concept: float
    concept_interval: tuple[float, float]
    other_class: float
    concept_accuracy: float
    other_class_accuracy: float
    other_tasks: float
    kl: float


@dataclass(frozen=True, eq=False)
class SuppressionStudy(Result):
    """All methods on one concept; `plain` is the unsuppressed model: metric and accuracy per class, and accuracy on
    other tasks.
    """

    concept: str
    place: str
    chosen: tuple[int, ...]
    rows: tuple[FeatureSuppressionRow, ...]
    plain: dict[str, float]
    others: tuple[str, ...]
    provenance: Provenance

    def __str__(self) -> str:
        plain = self.plain
        lines = [
            f"{self.concept}, {len(self.chosen)} features of {self.place}: {', '.join(f'f{i}' for i in self.chosen)}",
            (
                f"unsuppressed: metric {plain['concept']:.3f} on prompts of the concept (accuracy "
                f"{plain['concept_accuracy']:.3f}), "
                f"{plain['other_class']:.3f} on the others ({plain['other_class_accuracy']:.3f}); accuracy on "
                f"{', '.join(self.others) or 'no other task'} {plain['other_tasks']:.3f}"
            ),
            (
                f"{'method':<24}{'share':>6}{'concept':>9}  "
                f"{'95 % interval':<17}{'accuracy':>9}{'other class':>13}{'accuracy':>9}{'other tasks':>13}{'KL':>8}"
            ),
        ]
        for r in self.rows:
            name = f"{r.method} (random)" if r.control else r.method
            low, high = r.concept_interval
            lines.append(
                f"{name:<24}{r.share:6.2f}{r.concept:9.3f}  "
                f"{f'[{low:.3f}, {high:.3f}]':<17}{r.concept_accuracy:9.3f}{r.other_class:13.3f}"
                f"{r.other_class_accuracy:9.3f}{r.other_tasks:13.3f}{r.kl:8.4f}"
            )
        return "\n".join(lines)


@borrows
def study_suppression(
    model: TransformerBridge,
    features: FeatureSet,
    place: str,
    chosen: Sequence[int],
    examples: Examples,
    concept: Task,
    other_class: Task,
    *,
    others: Sequence[Task] = (),
    methods: Sequence[str] = METHODS,
    shares: Sequence[float] = (0.5, 1.0),
    seed: int = 0,
) -> SuppressionStudy:
    """Suppress the features `chosen` of `place` at every position and measure what falls and what stays.

    `examples` fit the posterior; `concept` and `other_class` are pairs whose *clean* prompts are of the two classes,
    not among the examples.
    Cost per method and share: 2 x 1 forward (with the control) of all tasks' clean prompts.

    Raises `UnknownNameError` for another method; `InputError` for features that are not there, no shares, or shares
    outside (0, 1].
    """
    for method in methods:
        if method not in METHODS:
            raise UnknownNameError("way to suppress", method, METHODS)
    if not chosen or not shares or not all(0 < share <= 1 for share in shares):
        raise InputError(
            f"suppression takes some features and shares in (0, 1]; got {tuple(chosen)} and {tuple(shares)}"
        )
    features.check(model)
    coder = features[place]
    for feature in chosen:
        coder.check_feature(feature)
    tasks = [concept, other_class, *others]
    for task in tasks:
        check_task(model, task)
    values = record_concept(model, features, examples)[0][features.places.index(str(coder.writes))]
    active = [i for i in (values[examples.labels] > 0).any(dim=0).nonzero().flatten().tolist() if i not in set(chosen)]
    draw = torch.randperm(len(active), generator=torch.Generator().manual_seed(seed))[: len(chosen)].tolist()
    lot = [active[i] for i in draw]
    plain = [_measure(model, task, None) for task in tasks]
    rows: list[FeatureSuppressionRow] = []
    for method in methods:
        for share in (1.0,) if method == "mask" else tuple(shares):
            for index in [list(chosen), lot] if lot else [list(chosen)]:
                write = FeatureWrite(coder, _replacement(method, index, share, values, examples))
                found = [_measure(model, task, write) for task in tasks]
                rows.append(_row(method, share, index is lot, found, plain))
    told = _plain(plain)
    provenance = build_provenance(
        method="concept suppression", place=place, chosen=list(chosen), random=lot, seed=seed,
        examples=examples.sha256(),
        features=features.describe(), model=identify_model(model), tasks=[task.provenance() for task in tasks],
    )  # fmt: skip
    return SuppressionStudy(
        examples.name, place, tuple(chosen), tuple(rows), told, tuple(t.name for t in others), provenance
    )


def _replacement(method: str, index: list[int], share: float, values: Tensor, examples: Examples) -> Replacement:
    if method == "posterior":
        return fit_posterior(values, examples, index, share)
    return Attenuate(tuple(index), share)


@dataclass(frozen=True, eq=False)
class _Found:
    """Per pair: metric, whether right, log-probabilities of the next token."""

    metric: Float[Tensor, " batch"]
    right: Float[Tensor, " batch"]
    logp: Float[Tensor, "batch d_vocab"]


def _measure(model: TransformerBridge, task: Task, write: FeatureWrite | None) -> _Found:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for pairs in task.pairs.batches(64):
        pairs: PromptPairs = pairs.to(device_of(model))
        with intervene_features(model, [] if write is None else [write]):
            logits = run_to_metric(model, task, pairs, pairs.clean_tokens)
        final = pairs.final(logits).double().log_softmax(dim=-1)
        parts.append((task.measure(logits, pairs).double().cpu(), accuracy(logits, pairs).double().cpu(), final.cpu()))
    return _Found(*(torch.cat(piece) for piece in zip(*parts, strict=True)))


def _row(
    method: str,
    share: float,
    control: bool,  # noqa: FBT001
    found: list[_Found],
    plain: list[_Found],
) -> FeatureSuppressionRow:
    base = float(plain[0].metric.mean())
    low, high = _interval(found[0].metric, plain[0].metric)
    rest, before = found[2:], plain[2:]
    kl = [float(kl_nats(b.logp, f.logp).mean()) for f, b in zip(rest, before, strict=True)]
    return FeatureSuppressionRow(
        method, share, control, float(found[0].metric.mean()) / base, (low, high),
        float(found[1].metric.mean()) / float(plain[1].metric.mean()), float(found[0].right.mean()),
        float(found[1].right.mean()),
        _mean([float(one.right.mean()) for one in rest]), _mean(kl),
    )  # fmt: skip


def _interval(metric: Float[Tensor, " batch"], plain: Float[Tensor, " batch"]) -> tuple[float, float]:
    """Of the ratio of means, both over the same resampled pairs."""
    weights = bootstrap_weights(len(metric), 1000, 0).double()
    low, high = percentile_interval(((weights @ metric) / (weights @ plain))[:, None], 0.95)
    return float(low), float(high)


def _plain(plain: list[_Found]) -> dict[str, float]:
    return {
        "concept": float(plain[0].metric.mean()), "concept_accuracy": float(plain[0].right.mean()),
        "other_class": float(plain[1].metric.mean()), "other_class_accuracy": float(plain[1].right.mean()),
        "other_tasks": _mean([float(one.right.mean()) for one in plain[2:]]),
    }  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
