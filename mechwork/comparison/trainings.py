"""Trainings of the same compute that differ in one thing: a clamp, the text, a rate. What does it change, and when?

A recipe is trained from several seeds, and again from the same seeds with one thing changed. Steps, texts per step and
shape stay, and so does compute; other text may be longer or shorter, and `tokens` says so. After each step that the
recipe keeps, with its clamps held as in training:

    loss          weighted cross-entropy on fresh text of the recipe's last mixture, the same for all runs
    accuracy      of induction, on held-out words and templates
    scores        the highest previous-token and induction score of a head that is not held (`zoo.heads`)
    shares        each layer's part of the sum of induction scores over heads

Differences are paired by seed (changed minus as it is), their intervals percentiles over resampled seeds; with few
seeds they are rough, and with one there is none. Sources: clamps while training, Singh et al. 2024; whether induction
scores say what induction is worth, at matched compute, Sabry and Belz 2025 (arXiv:2509.22947). Cost: one training per
recipe and seed, each in a folder of its own, from which it goes on when it was stopped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..artefact import read_tensors
from ..errors import InputError, UnknownNameError
from ..execute.progress import Progress
from ..names import head_name
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..statistics import bootstrap_interval

if TYPE_CHECKING:
    from ..zoo.clamps import TrainingClamp
    from ..zoo.heads import HeadScores
    from ..zoo.recipe import Recipe
    from ..zoo.train import TrainingRun

CHANGEABLE = (
    "clamps", "phases", "learning_rate", "final_learning_rate", "warm_up", "weight_decay", "embedding_decay", "betas",
    "clip", "initial_std", "seed",
)  # fmt: skip
"""Fields of a recipe that leave its compute as it is."""
ROLES = ("previous token", "induction", "control")
"""Names for heads that a clamp may hold: those of the recipe's own run from the same seed, after its last step."""
LAST = "last"
"""What a clamp is taken to that holds a head at what it does in that run after its last step."""
FRESH = 1_000_003
"""Seed of the text that all runs are judged on."""
QUANTITIES = ("loss", "accuracy", "previous_token", "induction")
Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class TrainedRow:
    """One run after one step; `shares` are by layer."""

    variant: str
    seed: int
    step: int
    loss: float
    accuracy: float
    previous_token: float
    previous_token_head: str
    induction: float
    induction_head: str
    shares: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class TrainingComparison(Result):
    """Rows by variant, seed and step; the first variant is the recipe as it is. `heads`: by seed, the heads that roles
    mean; `tokens`: by variant, the mean number of tokens that a run has read.
    """

    recipe: str
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    rows: tuple[TrainedRow, ...]
    heads: dict[str, dict[str, str]]
    tokens: dict[str, float]
    provenance: Provenance

    def mean(self, variant: str, what: str = "loss") -> list[float]:
        """Mean over seeds, after every step."""
        return self._values(variant, what).mean(dim=0).tolist()

    def difference(self, variant: str, what: str = "loss") -> list[tuple[float, float, float]]:
        """Changed minus as it is, after every step: mean over seeds and the ends of its interval (NaN for one seed)."""
        gaps = self._values(variant, what) - self._values(self.variants[0], what)
        none = torch.full((2, len(self.steps)), float("nan"), dtype=torch.float64)
        ends = bootstrap_interval(gaps) if len(self.seeds) > 1 else none
        return list(zip(gaps.mean(dim=0).tolist(), *ends.tolist(), strict=True))

    def _values(self, variant: str, what: str) -> torch.Tensor:
        if variant not in self.variants:
            raise UnknownNameError("variant", variant, self.variants)
        if what not in QUANTITIES:
            raise UnknownNameError("quantity of a training", what, QUANTITIES)
        found = {(row.seed, row.step): getattr(row, what) for row in self.rows if row.variant == variant}
        return torch.tensor([[found[seed, step] for step in self.steps] for seed in self.seeds], dtype=torch.float64)

    def __str__(self) -> str:
        lines = [f"{self.recipe}, {len(self.seeds)} seeds: loss (and its change with interval), induction score"]
        for variant in self.variants:
            losses, scores = self.mean(variant), self.mean(variant, "induction")
            gaps = self.difference(variant)
            lines.append(f"{variant}: {self.tokens[variant]:,.0f} tokens")
            for i, step in enumerate(self.steps):
                gap, low, high = gaps[i]
                change = "" if variant == self.variants[0] else f" ({gap:+.2f} [{low:+.2f}, {high:+.2f}])"
                lines.append(f"{step:>8}  {losses[i]:.3f}{change}  induction {scores[i]:.2f}")
        return "\n".join(lines)

    __repr__ = __str__


def compare_trainings(
    recipe: Recipe,
    changes: Changes,
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    n: int = 200,
    progress: Progress | None = None,
) -> TrainingComparison:
    """Train `recipe` as it is and with each of `changes`, from every seed, and compare after every kept step.

    `changes`: name -> one field of the recipe and its other value. Clamps are `TrainingClamp`s or what makes one, e.g.
    ``("previous token", "pattern", "uniform")``, whose head may be one of `ROLES` and whose last part ``"last"``.
    `n`: documents, and prompts of induction, that runs are judged on.

    Raises `InputError` for a recipe that does not keep its last weights, no seeds, a change of no or several things, or
    of compute; `UnknownNameError` for a field that is none. All before the first step.

    >>> held = {"uniform": {"clamps": [("previous token", "pattern", "uniform")]}}
    >>> print(compare_trainings(recipe, held, "runs/clamped", seeds=[0, 1]))
    """
    from ..zoo.train import train

    _check(recipe, changes, seeds)
    names = ("as it is", *changes)
    folder, rows, heads, tokens = Path(folder), [], {}, dict.fromkeys(names, 0.0)
    recipes = []
    total = len(names) * len(seeds)
    for seed in seeds:
        own = replace(recipe, seed=seed)
        roles: dict[str, str] = {}
        for name in names:
            change = dict(changes.get(name, {}))
            if "clamps" in change:
                change["clamps"] = tuple(_resolve(clamp, roles) for clamp in change["clamps"])
            variant = replace(own, **change)
            run = train(variant, folder / re.sub(r"\W+", "-", name) / f"seed-{seed}")
            found = [_measure(run, step, recipe.phases[-1].mixture, n) for step in recipe.keep]
            if name == names[0]:
                roles = {**_roles(found[-1][1]), LAST: str(run.kept[recipe.steps])}
                heads[str(seed)] = {role: roles[role] for role in ROLES}
            rows += [_row(name, seed, step, variant, *one) for step, one in zip(recipe.keep, found, strict=True)]
            tokens[name] += run.tokens / len(seeds)
            recipes.append(variant.to_dict())
            if progress is not None:
                progress(len(recipes), total, f"training {name}")
    facts = build_provenance(method="matched trainings", recipes=recipes, seeds=list(seeds), n=n, fresh=FRESH)
    return TrainingComparison(recipe.name, names, tuple(seeds), recipe.keep, tuple(rows), heads, tokens, facts)


def _check(recipe: Recipe, changes: Changes, seeds: Sequence[int]) -> None:
    if recipe.steps not in recipe.keep:
        raise InputError(f"runs are compared after the steps that {recipe.name!r} keeps; its last, {recipe.steps}, too")
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds are different numbers, at least one; got {list(seeds)}")
    if not changes or "as it is" in changes:
        raise InputError(
            "changes name what is compared with 'as it is', e.g. {'other text': {'phases': ...}}; got none"
        )
    for name, change in changes.items():
        if len(change) != 1:
            raise InputError(f"trainings that are compared differ in one thing; {name!r} changes {sorted(change)}")
        (what, value), = change.items()  # fmt: skip
        if what not in CHANGEABLE:
            raise UnknownNameError(f"change of {name!r} that leaves compute as it is", what, CHANGEABLE)
        if what == "clamps":
            value = tuple(_resolve(clamp, {**dict.fromkeys(ROLES, "a0.h0"), LAST: "a model"}) for clamp in value)
        if what == "phases" and (steps := sum(phase.steps for phase in change["phases"])) != recipe.steps:
            raise InputError(f"compute is matched: {name!r} has {steps} steps, {recipe.name!r} {recipe.steps}")
        replace(recipe, **{what: value})


def _resolve(clamp: TrainingClamp | Sequence[str], roles: Mapping[str, str]) -> TrainingClamp:
    from ..zoo.clamps import TrainingClamp

    if isinstance(clamp, TrainingClamp):
        return clamp
    target, *rest = clamp
    return TrainingClamp(roles.get(target, target), *(roles[LAST] if part == LAST else part for part in rest))


@torch.no_grad()
def _measure(
    run: TrainingRun, step: int, mixture: Mapping[str, float], n: int
) -> tuple[tuple[float, float], HeadScores]:
    """Loss and accuracy after one step, and the heads' scores."""
    from ..zoo.clamps import clamped, load_donors
    from ..zoo.grammar import step_documents
    from ..zoo.heads import score_heads
    from ..zoo.measure import measure_task
    from ..zoo.train import RowPacker, weighted_loss

    recipe, model = run.recipe, run.model
    tensors = read_tensors(run.kept[step])[1]
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])
    batch = RowPacker(run.tokenizer, recipe.row)(step_documents(mixture, n, FRESH, 0))
    with clamped(model, recipe.clamps, load_donors(recipe, len(run.tokenizer))):
        loss = float(weighted_loss(model, batch))
        accuracy = measure_task(model, run.tokenizer, "induction", n=n).accuracy
        return (loss, accuracy), score_heads(model, run.tokenizer, n=n)


def _roles(scores: HeadScores) -> dict[str, str]:
    n_heads = scores.induction.shape[1]
    layer, head = divmod(int(scores.previous_token.argmax()), n_heads)
    if n_heads < 2:
        raise InputError("the control is another head of the previous-token head's layer; give the recipe two heads")
    row = scores.previous_token[layer].clone()
    row[head] = float("inf")
    found = (layer, head), divmod(int(scores.induction.argmax()), n_heads), (layer, int(row.argmin()))
    return {role: head_name(*place) for role, place in zip(ROLES, found, strict=True)}


def _row(
    name: str, seed: int, step: int, recipe: Recipe, measured: tuple[float, float], scores: HeadScores
) -> TrainedRow:
    free = torch.ones_like(scores.induction)
    for clamp in recipe.clamps:
        for layer, head in clamp.heads(recipe.n_heads):
            free[layer, head] = 0
    previous, induction = scores.previous_token * free, scores.induction * free
    best = [head_name(*divmod(int(table.argmax()), recipe.n_heads)) for table in (previous, induction)]
    shares = scores.induction.double().sum(dim=1) / scores.induction.double().sum()
    return TrainedRow(
        name, seed, step, *measured, float(previous.max()), best[0], float(induction.max()), best[1],
        tuple(shares.tolist()),
    )  # fmt: skip
