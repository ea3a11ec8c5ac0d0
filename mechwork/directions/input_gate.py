"""Forgetting at inference: steer away from what is to be forgotten, only on prompts that are about it.

    v_k = f_k - (f_k . r / |r|^2) r, then as long as (mean |f| + mean |r|) / 2      f_k: centre of a cluster of forget
    x -> (x - s v(x)) |x| / |x - s v(x)|     v(x): mean of the v_k whose centre has a cosine above T with the prompt

states, r: mean retain state. This is GUARD-IT (inference-time unlearning via gated activation redirection, 2026) with
its `orthogonal` vectors, lengths and rotation; two things differ and are said here: prompts are routed by the model's
own states (its recommended route is by a sentence encoder), and T is set at a false-positive rate on retain prompts
(it reads T off a plot). Where a model's first token is massive, prompts are read at their last token: the mean over all
positions is that of the first, for every prompt alike. `caught` and `false_alarms` are shares of held-out prompts;
`control` has both for gates fitted to labels by lot. Cost of fitting: 1 forward of all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, MetricError, check_whole
from ..interventions import Always, PerInput, Similarity, guard_overflow, intervene
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import check_task, run_to_metric
from ..shapes import PositionMask
from ..sites import Site
from ..statistics import kl_nats
from ..tasks.metrics import accuracy
from ..tasks.task import Task
from .clusters import find_clusters
from .examples import Examples, marked_positions, record_examples
from .fit import by_lot
from .probes import threshold_at

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class InputGate(Result, what="gate per input"):
    """`centres` and `vectors` ``[cluster d]``; (caught, false alarms) on held-out prompts, and the same by lot."""

    centres: Float[Tensor, "n d"]
    vectors: Float[Tensor, "n d"]
    threshold: float
    site: Site
    sizes: tuple[int, ...]
    caught: float
    false_alarms: float
    control: tuple[float, float]
    provenance: Provenance = field(default_factory=dict)

    def write(self, where: PositionMask, strength: float = 1.0, *, gated: bool = True) -> PerInput:
        """The intervention, for prompts whose columns `where` decide; not `gated`: the mean vector on every prompt."""
        n = len(self.vectors)
        route = Similarity(self.centres, self.threshold) if gated else Always(torch.full((n,), 1 / n))
        return PerInput(self.site, route, where, self.site, -self.vectors, strength, keep_norm=True)

    def random_control(self, seed: int = 0) -> InputGate:
        """The same gate with random vectors as long."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randn(*self.vectors.shape, generator=generator, dtype=torch.float64)
        scale = self.vectors.double().norm(dim=1, keepdim=True) / draw.norm(dim=1, keepdim=True)
        return replace(self, vectors=(draw * scale).to(self.vectors))

    def opens(self, states: Float[Tensor, "batch d"]) -> Bool[Tensor, " batch"]:
        """Which prompts are steered, from their states (see `record_examples`)."""
        return Similarity(self.centres, self.threshold).cosines(states).amax(dim=1) > self.threshold

    def _table(self) -> Table:
        """One row per cluster."""
        return {
            "cluster": list(range(len(self.sizes))), "prompts": self.sizes,
            "length": self.vectors.norm(dim=1).tolist(),
        }  # fmt: skip

    def __str__(self) -> str:
        return (
            f"gate at {self.site} of {len(self.sizes)} clusters, cosine above {self.threshold:.3f}: opens for "
            f"{self.caught:.0%} of held-out prompts to forget and {self.false_alarms:.0%} of those to retain (by lot "
            f"{self.control[0]:.0%} and {self.control[1]:.0%})"
        )


@borrows
def fit_input_gate(
    model: TransformerBridge,
    examples: Examples,
    site: Site,
    n_clusters: int = 1,
    *,
    rate: float = 0.05,
    n_controls: int = 3,
    seed: int = 0,
) -> InputGate:
    """A gate and its vectors; the positive prompts are to be forgotten, the negative ones retained.

    70 % of the groups are fitted, the others tell how well the gate tells them apart. Raises `InputError` for fewer
    prompts to forget than clusters, a held-out part of one class only, or a rate that so few prompts cannot show;
    `MetricError` for states that are not finite.

    >>> gate = fit_input_gate(model, Examples.of_task(task, "all"), Site("resid_post", 2), rate=0.5)
    >>> with intervene(model, [gate.write(torch.ones_like(prompt, dtype=torch.bool))]):
    ...     logits = model(prompt)
    """
    x = record_examples(model, examples, [site])[0].double()
    if not bool(x.isfinite().all()):
        raise MetricError(f"activations at {site} are not finite; nothing can be fitted")
    fitted, _ = examples.split(seed=seed)
    rows = torch.isin(examples.groups, fitted.groups.unique())
    tested = examples.labels[~rows]
    if not 0 < int(tested.sum()) < len(tested):
        raise InputError("the held-out prompts are all of one class; give more prompts, or another seed")
    if check_whole("n_clusters", n_clusters) < 1 or int((examples.labels & rows).sum()) < n_clusters:
        raise InputError(
            f"each of {n_clusters} clusters needs a prompt to forget; {int((examples.labels & rows).sum())} are fitted"
        )
    generator = torch.Generator().manual_seed(seed)

    def fit(labels: Tensor) -> tuple[InputGate, float, float]:
        forget, retain = x[rows & labels], x[rows & ~labels]
        index, centres = find_clusters(forget, n_clusters, generator)
        scores = Similarity(centres, 0.0).cosines(x[rows]).amax(dim=1)
        threshold = threshold_at(scores, labels[rows], rate)
        length = (forget.norm(dim=1).mean() + retain.norm(dim=1).mean()) / 2
        vectors = redirections(centres, retain.mean(dim=0), float(length))
        sizes = tuple(index.bincount(minlength=n_clusters).tolist())
        found = InputGate(centres, vectors, threshold, site, sizes, 0.0, 0.0, (float("nan"), float("nan")))
        opened = found.opens(x[~rows]).double()
        return found, float(opened[labels[~rows]].mean()), float(opened[~labels[~rows]].mean())

    found, caught, alarms = fit(examples.labels)
    lots = torch.tensor([fit(by_lot(examples, generator).labels)[1:] for _ in range(n_controls)], dtype=torch.float64)
    control = lots.nanmean(dim=0).tolist() if n_controls else [float("nan")] * 2
    facts = build_provenance(
        method="gate per input", model=identify_model(model), seed=seed, rate=rate,
        examples={"name": examples.name, "sha256": examples.sha256()},
    )  # fmt: skip
    return replace(found, caught=caught, false_alarms=alarms, control=(control[0], control[1]), provenance=facts)


def redirections(centres: Float[Tensor, "n d"], retain: Float[Tensor, " d"], length: float) -> Float[Tensor, "n d"]:
    """What of every centre is across the retain mean, each `length` long; raises `MetricError` where nothing is."""
    across = centres - (centres @ retain / retain.pow(2).sum().clamp(min=1e-30))[:, None] * retain
    sizes = across.norm(dim=1, keepdim=True)
    if not bool((sizes > 1e-9 * centres.norm(dim=1, keepdim=True)).all()):
        raise MetricError("what is to be forgotten lies along the mean of what is to be retained: nothing to remove")
    return across / sizes * length


@dataclass(frozen=True)
class ForgettingRow:
    """One way at one strength: accuracy and mean metric on the clean prompts to forget, accuracy and KL elsewhere."""

    way: str
    strength: float
    forget_accuracy: float
    forget_metric: float
    retain_accuracy: float
    retain_kl: float


@dataclass(frozen=True, eq=False)
class ForgettingStudy(Result):
    """All ways and strengths; the first row, ``plain``, is the model as it is."""

    rows: tuple[ForgettingRow, ...]
    forget: str
    retain: tuple[str, ...]
    provenance: Provenance = field(default_factory=dict)

    def of(self, way: str) -> tuple[ForgettingRow, ...]:
        """The rows of a way by rising strength."""
        return tuple(sorted((row for row in self.rows if row.way == way), key=lambda row: row.strength))

    def __str__(self) -> str:
        lines = [
            f"forget {self.forget}, retain {', '.join(self.retain)}",
            f"{'way':<16}{'strength':>9}{'forget: accuracy':>18}{'metric':>9}{'retain: accuracy':>18}{'KL':>9}",
        ]
        lines += [
            f"{r.way:<16}{r.strength:9.2f}{r.forget_accuracy:18.3f}{r.forget_metric:9.3f}{r.retain_accuracy:18.3f}"
            f"{r.retain_kl:9.4f}"
            for r in self.rows
        ]
        return "\n".join(lines)


@borrows
def study_forgetting(
    model: TransformerBridge,
    gate: InputGate,
    forget: Task,
    retain: Sequence[Task],
    *,
    position: str = "all",
    strengths: Sequence[float] = (0.5, 1.0, 2.0),
    seed: int = 0,
) -> ForgettingStudy:
    """What the gate's writes do to clean prompts of `forget` and of `retain`, beside the same without a gate (``all
    prompts``) and with random vectors as long (``random``).

    `position`: where the gate reads, as its examples were read. Cost: 1 forward of all clean prompts, and 1 per way and
    strength. Raises `InputError` for nothing to retain or no strengths, `MetricError` for an overflow.

    >>> gate = fit_input_gate(model, Examples.of_task(task, "all"), Site("resid_post", 2), rate=0.5)
    >>> study = study_forgetting(model, gate, task.test, [agreement.test], strengths=[1.0])
    """
    if not retain or not strengths:
        raise InputError("forgetting is judged on tasks to retain, at some strengths; got none of one of them")
    tasks = [forget, *retain]
    for task in tasks:
        check_task(model, task)
    plain = [_clean(model, task, None, position, 0.0, True) for task in tasks]

    def row(way: str, strength: float, used: InputGate | None, *, gated: bool = True) -> ForgettingRow:
        found = plain if used is None else [_clean(model, task, used, position, strength, gated) for task in tasks]
        kl = [float(kl_nats(b[2], a[2]).clamp(min=0).mean()) for a, b in zip(found[1:], plain[1:], strict=True)]
        right = [float(one[1].mean()) for one in found]
        n = len(retain)
        return ForgettingRow(
            way, strength, right[0], float(found[0][0].mean()), sum(right[1:]) / n, sum(kl) / n
        )  # fmt: skip

    rows = [row("plain", 0.0, None)]
    for strength in map(float, strengths):
        rows.append(row("gated", strength, gate))
        rows.append(row("all prompts", strength, gate, gated=False))
        rows.append(row("random", strength, gate.random_control(seed)))
    facts = build_provenance(
        method="forgetting study", model=identify_model(model), seed=seed, position=position, gate=gate.provenance,
        tasks=[task.provenance() for task in tasks],
    )  # fmt: skip
    return ForgettingStudy(tuple(rows), forget.name, tuple(task.name for task in retain), facts)


@torch.no_grad()
def _clean(
    model: TransformerBridge,
    task: Task,
    gate: InputGate | None,
    position: str,
    strength: float,
    gated: bool,  # noqa: FBT001
) -> tuple[Tensor, Tensor, Tensor]:
    """Per clean prompt: metric, whether right, log-probabilities of the next token."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece in task.pairs.batches(64):
        pairs = piece.to(device_of(model))
        where = marked_positions(pairs.mask, pairs.lengths, pairs.spans, position)
        writes = [] if gate is None else [gate.write(where, strength, gated=gated)]
        with intervene(model, writes), guard_overflow(model, f"forgetting at strength {strength}"):
            logits = run_to_metric(model, task, pairs)
        final = pairs.final(logits).double().log_softmax(dim=-1)
        parts.append((task.measure(logits, pairs).double().cpu(), accuracy(logits, pairs).double().cpu(), final.cpu()))
    metric, right, logp = (torch.cat(piece) for piece in zip(*parts, strict=True))
    return metric, right, logp
