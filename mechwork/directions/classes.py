"""Several classes at one site: their means, the boundaries between them, and a probe that may say "neither".

| what | formula | source |
|---|---|---|
| means | m_k, and their centre m = mean_k m_k | |
| direction a -> b | m_b - m_a, boundary in the middle | mean difference, pair by pair |
| probe | softmax_k(w_k . z + b_k), z standardised; log-loss + penalty norm(w)^2 / 2 | |
| flips | judgements that change with what prompts of a third class are called | representational stability |

Accuracy is balanced (the mean over classes of the share of prompts that are recognised), measured on groups that were
not fitted; beside it the same for labels by lot. Chance is 1 / number of classes. Cost: 1 forward of all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError, MetricError, UnknownNameError
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table, table_rows
from ..sites import Site
from .direction import Direction
from .examples import record_examples
from .fit import PENALTY
from .labelled import Labelled

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class ClassProbe(Result):
    """Scores of every class: `weights` ``[class d]`` and `biases` ``[class]`` on the vectors as they are."""

    weights: Float[Tensor, "n_class d"]
    biases: Float[Tensor, " n_class"]

    def _table(self) -> Table:
        """One row per class, by its number: the length of its weights, and its bias."""
        rows = zip(self.weights.norm(dim=1).tolist(), self.biases.tolist(), strict=True)
        return [{"class": k, "weight_norm": norm, "bias": bias} for k, (norm, bias) in enumerate(rows)]

    def log_probabilities(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch n_class"]:
        """log softmax of the scores, in float64."""
        return (x.double() @ self.weights.T + self.biases).log_softmax(dim=-1)

    def judge(self, x: Float[Tensor, "batch d"]) -> Int[Tensor, " batch"]:
        """The most probable class of each vector."""
        return self.log_probabilities(x).argmax(dim=-1)


def fit_class_probe(
    x: Float[Tensor, "batch d"], targets: Int[Tensor, " batch"], n_classes: int, penalty: float = PENALTY
) -> ClassProbe:
    """Multinomial logistic regression in float64, to its minimum (L-BFGS on a convex loss): nothing is drawn by lot.

    Raises `InputError` for a class without examples, `MetricError` for vectors that are not finite.
    """
    if not bool(x.isfinite().all()):
        raise MetricError("the vectors are not finite; nothing can be fitted")
    missing = sorted(set(range(n_classes)) - set(targets.tolist()))
    if missing or n_classes < 2:
        raise InputError(f"a probe needs examples of every one of two classes or more; class {missing or 0} has none")
    x = x.double()
    mean, spread = x.mean(dim=0), x.std(dim=0, unbiased=False).clamp(min=1e-9)
    z = (x - mean) / spread
    parameters = torch.zeros(n_classes, z.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(z @ parameters[:, :-1].T + parameters[:, -1], targets)
        value = value + penalty / 2 * parameters[:, :-1].pow(2).sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    found = parameters.detach()
    weights = found[:, :-1] / spread
    return ClassProbe(weights, found[:, -1] - weights @ mean)


@dataclass(frozen=True, eq=False)
class ClassFit(Result, what="classes at a site"):
    """`means` ``[class d]``; `accuracy` and `control` (labels by lot) of the probe on held-out groups; `confusion`
    ``[class class]``: share of held-out prompts of a class (row) that were taken for another (column).
    """

    classes: tuple[str, ...]
    site: Site
    means: Float[Tensor, "n_class d"]
    weights: Float[Tensor, "n_class d"]
    biases: Float[Tensor, " n_class"]
    accuracy: float
    control: float
    confusion: Float[Tensor, "n_class n_class"]
    n_tested: int
    provenance: Provenance = field(default_factory=dict)

    @property
    def centre(self) -> Float[Tensor, " d"]:
        """The mean of the class means."""
        return self.means.mean(dim=0)

    @property
    def probe(self) -> ClassProbe:
        """The probe fitted to the groups that were not tested."""
        return ClassProbe(self.weights, self.biases)

    def direction(self, start: str, end: str) -> Direction:
        """From one class's mean to another's, boundary in the middle; added once, it moves the one onto the other."""
        a, b = (self.means[_number(self.classes, name)].double() for name in (start, end))
        unit = (b - a) / (b - a).norm()
        low, high = float(a @ unit), float(b @ unit)
        name = f"{start} to {end}"
        vector = (b - a).to(self.means)
        return Direction(vector, self.site, (low + high) / 2, low, high, name, self.provenance, self.centre)

    def _table(self) -> Table:
        """One row per class: how often it is recognised, and where its mean lies."""
        away = (self.means - self.centre).norm(dim=1)
        rows = {"class": list(self.classes), "recognised": self.confusion.diagonal().tolist()}
        return {**rows, "distance from the centre": away.tolist()}

    def __str__(self) -> str:
        head = "".join(f"{name:>12.11s}" for name in self.classes)
        lines = [
            (
                f"{len(self.classes)} classes at {self.site}: balanced accuracy {self.accuracy:.3f} on {self.n_tested} "
                f"held-out prompts, labels by lot {self.control:.3f}, chance {1 / len(self.classes):.3f}"
            ),
            f"{'taken for':<14}{head}",
        ]
        for name, row in zip(self.classes, self.confusion.tolist(), strict=True):
            lines.append(f"{name:<14.13s}" + "".join(f"{share:12.2f}" for share in row))
        return "\n".join(lines)


@borrows
def fit_classes(
    model: TransformerBridge, data: Labelled, site: Site, *, n_controls: int = 3, seed: int = 0,
    penalty: float = PENALTY,
) -> ClassFit:  # fmt: skip
    """Means of all prompts, and a probe fitted on 70 % of the groups and tested on the rest. Cost: 1 forward.

    Raises `InputError` for targets that are numbers (see `fit_ridge`), or a class that one part does not have.

    >>> data = Labelled.of_parts({"people": examples, "gifts": Examples.of_task(task)})
    >>> found = fit_classes(model, data, Site("resid_post", 3))
    >>> print(found.accuracy, found.control, found.direction("people", "gifts"))
    """
    _check_classes(data)
    x = record_examples(model, data, [site])[0].double()
    means = torch.stack([x[data.rows_of(name)].mean(dim=0) for name in data.classes])
    rows = data.split_rows(seed=seed)
    probe, confusion = _judge(x, data, data.targets, rows, penalty)
    generator = torch.Generator().manual_seed(seed)
    chance = [
        float(_judge(x, data, data.shuffled(generator).targets, rows, penalty)[1].diagonal().nanmean())
        for _ in range(n_controls)
    ]
    provenance = build_provenance(
        method="classes", model=identify_model(model), examples={"name": data.name, "sha256": data.sha256()}, seed=seed
    )
    return ClassFit(
        data.classes, site, means, probe.weights, probe.biases, float(confusion.diagonal().mean()),
        sum(chance) / len(chance) if chance else float("nan"), confusion, len(rows[1]), provenance,
    )  # fmt: skip


def _judge(
    x: Tensor, data: Labelled, targets: Tensor, rows: tuple[Tensor, Tensor], penalty: float
) -> tuple[ClassProbe, Tensor]:
    fitted, tested = rows
    n = len(data.classes)
    for part, what in ((fitted, "fitted"), (tested, "tested")):
        missing = sorted(set(range(n)) - set(targets[part].tolist()))
        if missing and targets is data.targets:
            raise InputError(f"the {what} part has no prompt of {data.classes[missing[0]]!r}; give more of it")
    present = sorted(set(targets[fitted].tolist()))
    number = {old: new for new, old in enumerate(present)}  # a control may leave a class out
    probe = fit_class_probe(
        x[fitted], torch.tensor([number[t] for t in targets[fitted].tolist()]), len(present), penalty
    )
    said = torch.tensor(present)[probe.judge(x[tested])]
    table = torch.zeros(n, n, dtype=torch.float64)
    table.index_put_((targets[tested], said), torch.ones(len(tested), dtype=torch.float64), accumulate=True)
    return probe, table / table.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class FlipRow:
    """One way to label the third class: `flipped` is the share of held-out prompts of the two classes that are judged
    otherwise than by the probe that never saw the third class; `accuracy` is balanced, on the same prompts.
    """

    third_class: str
    flipped: float
    accuracy: float
    n_tested: int


@dataclass(frozen=True)
class FlipStudy(Result, what="flipped judgements"):
    """Rows: the third class left out, called positive, called negative; and, as controls, as many prompts of the two
    classes themselves given a label by lot.
    """

    rows: tuple[FlipRow, ...]
    site: Site
    positive: str
    negative: str
    neither: str

    def __str__(self) -> str:
        head = f"{self.positive} against {self.negative} at {self.site}; {self.neither!r} is"
        lines = [f"{head:<52}{'flipped':>9}{'accuracy':>10}"]
        return "\n".join([*lines, *(f"  {r.third_class:<50}{r.flipped:9.3f}{r.accuracy:10.3f}" for r in self.rows)])


@borrows
def study_flips(
    model: TransformerBridge, data: Labelled, site: Site, positive: str, negative: str, neither: str, *,
    n_controls: int = 3, seed: int = 0, penalty: float = PENALTY,
) -> FlipStudy:  # fmt: skip
    """Do judgements about two classes depend on what prompts that are neither are called? Cost: 1 forward.

    A stable representation has few flips, for the third class as for as many of its own prompts relabelled by lot.
    Raises `UnknownNameError` for a class that is not there, `InputError` where a part has one class only.
    """
    _check_classes(data)
    numbers = [data.number_of(name) for name in (positive, negative, neither)]
    if len(set(numbers)) < 3:
        raise InputError(f"three different classes are needed; got {positive!r}, {negative!r} and {neither!r}")
    x = record_examples(model, data, [site])[0].double()
    fitted, tested = data.split_rows(seed=seed)
    yes, no, third = numbers
    two = [rows[(data.targets[rows] == yes) | (data.targets[rows] == no)] for rows in (fitted, tested)]
    others = fitted[data.targets[fitted] == third]
    truth = (data.targets[two[1]] == yes).long()
    if any(len((data.targets[rows] == yes).unique()) < 2 for rows in two) or not len(others):
        raise InputError("fitting and testing need prompts of both classes, and fitting some of the third; give more")

    def judge(extra: Tensor, labels: Tensor) -> Tensor:
        own = (data.targets[two[0]] == yes).long()
        keep = ~torch.isin(two[0], extra)
        rows = torch.cat([two[0][keep], extra])
        return fit_class_probe(x[rows], torch.cat([own[keep], labels]), 2, penalty).judge(x[two[1]])

    none = others[:0]
    plain = judge(none, none)

    def row(name: str, said: Tensor) -> FlipRow:
        sides = [(said[truth == side] == side).double().mean() for side in (0, 1)]
        return FlipRow(name, float((said != plain).double().mean()), float(sum(sides)) / 2, len(truth))

    rows = [row("left out", plain)]
    rows += [
        row(f"called {n}", judge(others, torch.full((len(others),), v))) for n, v in ((positive, 1), (negative, 0))
    ]
    generator = torch.Generator().manual_seed(seed)
    n = min(len(others), len(two[0]) // 2)
    for number in range(n_controls):
        extra = two[0][torch.randperm(len(two[0]), generator=generator)[:n]]
        labels = torch.randint(2, (n,), generator=generator)
        rows.append(row(f"left out; {n} others by lot, {number}", judge(extra, labels)))
    return FlipStudy(tuple(rows), site, positive, negative, neither)


@dataclass(frozen=True)
class ClassRow:
    """Balanced accuracy of the class probe at one site, and of labels by lot."""

    site: Site
    accuracy: float
    control: float
    chance: float
    n_tested: int


@dataclass(frozen=True)
class ClassStudy(Result, what="classes by site", strongest="accuracy"):
    """The class probe at several sites."""

    rows: tuple[ClassRow, ...]
    classes: tuple[str, ...]

    def _table(self) -> Table:
        """One row per site."""
        return table_rows(self.rows)


@borrows
def study_classes(
    model: TransformerBridge, data: Labelled, sites: Sequence[Site], *, n_controls: int = 3, seed: int = 0
) -> ClassStudy:
    """`fit_classes` at every site: where several classes can be told apart. Cost: 1 forward per site."""
    found = [fit_classes(model, data, site, n_controls=n_controls, seed=seed) for site in sites]
    chance = 1 / len(data.classes)
    return ClassStudy(tuple(ClassRow(f.site, f.accuracy, f.control, chance, f.n_tested) for f in found), data.classes)


def _check_classes(data: Labelled) -> None:
    if not data.classes:
        raise InputError("these labels are numbers, not classes; fit_ridge predicts numbers")


def _number(classes: tuple[str, ...], name: str) -> int:
    if name not in classes:
        raise UnknownNameError("class", name, classes)
    return classes.index(name)
