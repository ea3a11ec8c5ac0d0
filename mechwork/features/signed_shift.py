"""Features that a concept needs, traced to neurons, and a signed shift of them: Neural FOXP2's first and third stage.

    selectivity_j = (mean f_j positive - mean f_j negative) / (std positive + std negative)
    lift_j        = median over a of (metric with a W_dec[j] added - metric) / a   on the negative prompts' last token
    chosen        = the features with selectivity and lift above 0, by their product
    f -> f + strength m - suppress (f . a) P a      on the chosen features only
        m: mean difference, a: mean of the negative prompts (both of length 1); P: projector on the leading axes of the
        differences (`directions.spectrum`)

(Saha et al. 2026, who steer each forward's last position; here every position, or those of `where`.) A trace is exact:
a feature reads the residual stream linearly, so a neuron's share of it is  mlp_post_n (W_out[n] . W_enc[:, j]).
Controls: as many active features by lot with the same shift; as many neurons by lot of every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Examples, record_examples
from ..directions.clusters import differences_by_group
from ..directions.spectrum import R_MAX, spectrum_of
from ..display import Readable
from ..errors import InputError, MetricError, check_whole
from ..interventions import Add, Entries, Scale, Write, intervene
from ..models.anatomy import block_norm, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import place_name
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, run_to_metric
from ..sites import Site
from ..tasks.task import Task
from .coder import SparseCoder, working
from .feature_set import FeatureSet
from .writes import FeatureWrite

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ALPHAS = (0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, eq=False)
class SignedShift(Readable):
    """f + `strength` m - `suppress` (f . a) P a, where m, a and P are 0 outside the chosen features."""

    towards: Float[Tensor, " feature"]
    away: Float[Tensor, " feature"]
    push: Float[Tensor, " feature"]
    strength: float = 1.0
    suppress: float = 0.0

    def __call__(self, activation: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        held = (activation @ self.away.to(activation))[..., None] * self.push.to(activation)
        return activation + self.strength * self.towards.to(activation) - self.suppress * held


@dataclass(frozen=True, eq=False)
class ShiftFit(Result, what="signed shift of features", strongest="joint"):
    """The chosen features, surest first, with their selectivity and lift; `axes`: of their differences.

    `towards` and `away` have as many entries as features are chosen.
    """

    place: str
    chosen: tuple[int, ...]
    selectivity: tuple[float, ...]
    lift: tuple[float, ...]
    towards: Float[Tensor, " n"]
    away: Float[Tensor, " n"]
    axes: Float[Tensor, "rank n"]
    active: tuple[int, ...]
    provenance: Provenance = field(default_factory=dict)

    def write(self, features: FeatureSet, strength: float = 1.0, suppress: float = 0.0) -> FeatureWrite:
        """The write, for `intervene_features` and generation."""
        coder = features[self.place]
        index = list(self.chosen)
        towards, away, push = (torch.zeros(coder.n_features, dtype=torch.float64) for _ in range(3))
        towards[index], away[index] = self.towards.double(), self.away.double()
        push[index] = self.axes.double().T @ (self.axes.double() @ self.away.double())
        return FeatureWrite(coder, SignedShift(towards, away, push, strength, suppress))

    def control(self, seed: int = 0) -> ShiftFit:
        """As many other features that are active on the examples, by lot, with the same numbers."""
        generator = torch.Generator().manual_seed(seed)
        rest = [i for i in self.active if i not in set(self.chosen)]
        if len(rest) < len(self.chosen):
            raise InputError(f"{len(rest)} other features are active: too few for a control of {len(self.chosen)}")
        return replace(self, chosen=tuple(rest[i] for i in torch.randperm(len(rest), generator=generator).tolist()[
            : len(self.chosen)]))  # fmt: skip

    def _table(self) -> Table:
        """One row per chosen feature."""
        joint = [a * b for a, b in zip(self.selectivity, self.lift, strict=True)]
        return {"feature": self.chosen, "selectivity": self.selectivity, "lift": self.lift, "joint": joint}

    def __str__(self) -> str:
        told = ", ".join(
            f"f{i} ({s:.2f}, {lift:+.3f})"
            for i, s, lift in list(zip(self.chosen, self.selectivity, self.lift, strict=True))[:4]
        )
        return (
            f"{len(self.chosen)} features of {self.place} with selectivity and lift above 0: {told}; shift of rank "
            f"{len(self.axes)}"
        )


@borrows
def fit_signed_shift(
    model: TransformerBridge,
    features: FeatureSet,
    place: str,
    task: Task,
    *,
    n_top: int = 20,
    alphas: Sequence[float] = ALPHAS,
    r_max: int = R_MAX,
) -> ShiftFit:
    """Choose features of `place` that tell clean prompts from corrupt ones and raise the metric, and fit their shift.

    Cost: 1 forward of all prompts, and 1 of the corrupt prompts per feature of the `n_top` and alpha. Raises
    `InputError` for no alphas or features, `MetricError` when no feature is selective and raises the metric.

    >>> found = fit_signed_shift(model, features, "resid_post.3", task.train)
    >>> with intervene_features(model, [found.write(features, 4.0, suppress=0.5)]):
    ...     logits = model(prompt)
    """
    check_task(model, task)
    features.check(model)
    coder = features[place]
    if not alphas or 0 in alphas or not 1 <= check_whole("n_top", n_top) <= coder.n_features:
        raise InputError(f"n_top is 1 to {coder.n_features}, alphas are numbers other than 0; got {n_top}, {alphas}")
    examples = Examples.of_task(task)
    f = coder.encode(record_examples(model, examples, [coder.reads])[0]).double()
    positive, negative = f[examples.labels], f[~examples.labels]
    spread = positive.std(dim=0, unbiased=False) + negative.std(dim=0, unbiased=False) + 1e-6
    selectivity = (positive.mean(dim=0) - negative.mean(dim=0)) / spread
    top = selectivity.argsort(descending=True, stable=True)[:n_top].tolist()
    lift = {j: _lift(model, task, coder, j, alphas) for j in top if selectivity[j] > 0}
    joint = {j: float(selectivity[j]) * value for j, value in lift.items() if value > 0}
    chosen = sorted(joint, key=lambda j: -joint[j])
    if not chosen:
        raise MetricError(
            f"none of the {n_top} most selective features of {place} is both selective and raises {task.metric.name}: "
            "there is nothing to shift. Take another place, or more features"
        )
    differences = differences_by_group(f[:, chosen], examples)[0]
    *_, rank, axes = spectrum_of(differences, r_max)
    towards, away = differences.mean(dim=0), negative[:, chosen].mean(dim=0)
    facts = build_provenance(
        method="signed shift of features", model=identify_model(model), task=task.provenance(), n_top=n_top,
        alphas=list(alphas), features=features.describe(),
    )  # fmt: skip
    return ShiftFit(
        place, tuple(chosen), tuple(float(selectivity[j]) for j in chosen), tuple(lift[j] for j in chosen),
        towards / towards.norm().clamp(min=1e-30), away / away.norm().clamp(min=1e-30), axes[:rank],
        tuple((f > 0).any(dim=0).nonzero().flatten().tolist()), facts,
    )  # fmt: skip


@torch.no_grad()
def _lift(model: TransformerBridge, task: Task, coder: SparseCoder, feature: int, alphas: Sequence[float]) -> float:
    host = task.pairs.corrupt_as_host().to(device_of(model))
    last = torch.zeros_like(host.mask)
    last[torch.arange(len(host)), host.lengths - 1] = True
    vector = working(coder.W_dec[feature])
    plain = task.measure(run_to_metric(model, task, host), host).double()
    slopes = []
    for alpha in alphas:
        with intervene(model, [Write(coder.writes, Add(vector, alpha), last)]):
            moved = task.measure(run_to_metric(model, task, host), host).double()
        slopes.append(float((moved - plain).mean()) / alpha)
    return float(torch.tensor(slopes, dtype=torch.float64).median())


@dataclass(frozen=True, eq=False)
class FeatureTrace(Result, what="trace of a feature to neurons", strongest="share"):
    """`shares`: contrast (positive - negative prompts) of what each neuron adds to the feature's input, largest first.

    `whole`: the contrast of the input itself; neurons beyond those kept, attention and the embedding have the rest.
    """

    place: str
    feature: int
    neurons: tuple[tuple[int, int], ...]
    shares: tuple[float, ...]
    by_lot: float
    whole: float
    d_mlp: int
    provenance: Provenance = field(default_factory=dict)

    def write(self, factor: float) -> list[Write]:
        """The neurons times `factor` (0 switches them off), for `intervene` and generation."""
        rows: dict[int, list[int]] = {}
        for layer, n in self.neurons:
            rows.setdefault(layer, []).append(n)
        return [Write(Site("mlp_post", layer), Entries(Scale(factor), tuple(index))) for layer, index in rows.items()]

    def control(self, seed: int = 0) -> FeatureTrace:
        """As many other neurons of every layer by lot."""
        generator = torch.Generator().manual_seed(seed)
        mine, drawn = set(self.neurons), []
        for layer in dict.fromkeys(layer for layer, _ in self.neurons):
            rest = [n for n in range(self.d_mlp) if (layer, n) not in mine]
            n = sum(at == layer for at, _ in self.neurons)
            drawn += [(layer, rest[i]) for i in torch.randperm(len(rest), generator=generator)[:n].tolist()]
        return replace(self, neurons=tuple(drawn))

    def _table(self) -> Table:
        """One row per neuron."""
        return {
            "neuron": [place_name("mlp_post", {"neuron": f"m{layer}.n{n}"}) for layer, n in self.neurons],
            "share": self.shares,
        }

    def __str__(self) -> str:
        told = ", ".join(
            f"m{layer}.n{n} {x:+.3f}" for (layer, n), x in zip(self.neurons[:4], self.shares, strict=False)
        )
        return (
            f"{self.place}/f{self.feature}: input differs by {self.whole:+.3f} between the classes, "
            f"{sum(self.shares):+.3f} of it by {len(self.neurons)} neurons (as many by lot {self.by_lot:+.3f}): {told}"
        )


@borrows
def trace_feature(
    model: TransformerBridge, features: FeatureSet, place: str, feature: int, examples: Examples, n: int = 10,
    *, seed: int = 0,
) -> FeatureTrace:  # fmt: skip
    """The `n` neurons below a feature that add most to the contrast of its input between two classes of prompts.

    Direct contributions, through no later layer. Cost: 1 forward of all prompts. Raises `InputError` for features that
    do not read the stream, a model whose MLP outputs pass a norm, or no neurons below.

    >>> trace_feature(model, features, "resid_post.3", 17, Examples.of_task(task.train)).neurons
    """
    features.check(model)
    coder = features[place]
    j = coder.check_feature(feature)
    if coder.reads.kind not in ("resid_pre", "resid_mid", "resid_post") or coder.reads.layer is None:
        raise InputError(
            f"a trace to neurons is of features that read the residual stream; {place} reads {coder.reads}"
        )
    below = list(range(coder.reads.layer + (coder.reads.kind == "resid_post")))
    if not below:
        raise InputError(f"no neurons come before {coder.reads}; trace a feature of a later place")
    if any(block_norm(model, layer, "ln2_post") is not None for layer in below):
        raise InputError("MLP outputs of this model pass a norm before the stream: no neuron has a share of its own")
    sites = [Site("mlp_post", layer) for layer in below]
    *hidden, read = (
        *record_examples(model, examples, sites).double(),
        record_examples(model, examples, [coder.reads])[0],
    )
    w = coder.W_enc[:, j].double().cpu()

    def contrast(x: Tensor) -> Tensor:
        return x[examples.labels].mean(dim=0) - x[~examples.labels].mean(dim=0)

    gains = [model.blocks[layer].mlp.W_out.detach().cpu().double() @ w for layer in below]
    shares = torch.stack([contrast(h) * gain for h, gain in zip(hidden, gains, strict=True)])
    d_mlp = shares.shape[1]
    if not 1 <= check_whole("n", n) <= shares.numel():
        raise InputError(f"neurons below {coder.reads} are 1 to {shares.numel()} in number; got {n}")
    order = shares.flatten().abs().argsort(descending=True, stable=True)[:n].tolist()
    lot = torch.randperm(shares.numel(), generator=torch.Generator().manual_seed(seed))[:n]
    facts = build_provenance(
        method="trace of a feature", model=identify_model(model), features=features.describe(),
        examples={"name": examples.name, "sha256": examples.sha256()},
    )  # fmt: skip
    return FeatureTrace(
        place, j, tuple((below[i // d_mlp], i % d_mlp) for i in order), tuple(shares.flatten()[order].tolist()),
        float(shares.flatten()[lot].sum()), float(contrast(read.double()) @ w), d_mlp, facts,
    )  # fmt: skip
