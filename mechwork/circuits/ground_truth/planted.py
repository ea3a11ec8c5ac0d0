"""Semi-synthetic models with a planted circuit, drawn by seed and trained in under a minute (InterpBench's idea, Gupta
et al. 2024, arXiv:2407.14494).

    case = plant_circuit(seed=3)          # a KnownCircuit: case.model, case.task, case.truth()
    print(build_table([case, ...], methods=["relp", "eap-ig"]))

A seed draws which two of three letters of ``x y z END`` count, what is asked of them (are they equal? is the sum of
their numbers even?), which heads of the first layer fetch them, and which MLP answers. The model is trained so by
interchange (see `training`); everything else of it is there to be ignored. What was reached is measured, and a model
that did not learn its circuit is refused: the truth is a fact about training only where the measured effects of the
planted edges stand apart from all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...errors import MetricError, check_seed
from ...tasks.metrics import accuracy
from ...tasks.task import Task
from ..scoring.exact_edges import measure_edges
from .case import KnownCircuit
from .equality import build_from
from .training import EqualityRecipe, Program, train

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_LETTERS = 5
END, YES, NO = N_LETTERS, N_LETTERS + 1, N_LETTERS + 2
RECIPE = EqualityRecipe(steps=500, batch_size=96, d_mlp=48, learning_rate=6e-3)
APART = 2.0
"""How many times the largest effect outside the smallest one inside must be."""
RIGHT = 0.97
"""Accuracy that a planted model must have."""
QUESTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": lambda a, b: a == b,
    "even sum": lambda a, b: (a + b) % 2 == 0,
}


@dataclass(frozen=True, eq=False)
class PlantedPlan:
    """What a seed draws."""

    letters: tuple[int, int]
    question: str
    heads: tuple[int, int]
    mlp: int
    program: Program = field(repr=False)

    def __str__(self) -> str:
        names = [f"letter {i + 1}" for i in self.letters]
        heads = ", ".join(f"a0.h{head}" for head in self.heads)
        return f"{self.question} of {' and '.join(names)}, through {heads} and m{self.mlp}"


def draw_plan(seed: int) -> PlantedPlan:
    """The plan of a seed. Letters are drawn so that switching one often changes the answer either way."""
    g = torch.Generator().manual_seed(check_seed(seed))
    i, j = sorted(torch.randperm(3, generator=g)[:2].tolist())
    question = list(QUESTIONS)[int(torch.randint(len(QUESTIONS), (), generator=g))]
    heads: list[int] = torch.randperm(RECIPE.n_heads, generator=g)[:2].tolist()
    mlp = int(torch.randint(RECIPE.n_layers, (), generator=g))
    holds = QUESTIONS[question]

    def one(generator: torch.Generator, n: int) -> Int[Tensor, "batch pos"]:
        letters = torch.randint(N_LETTERS, (n, 3), generator=generator)
        same = torch.rand(n, generator=generator) < 0.4
        letters[:, j] = torch.where(same, letters[:, i], letters[:, j])
        return torch.cat([letters, torch.full((n, 1), END)], dim=1)

    def both(generator: torch.Generator, n: int) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        tokens, source = one(generator, n), one(generator, n)
        kind = torch.randint(3, (n,), generator=generator)
        source[:, i] = torch.where(kind == 1, tokens[:, j], source[:, i])
        source[:, j] = torch.where(kind == 2, tokens[:, i], source[:, j])
        return tokens, source

    fetch = [(f"input->a0.h{head}<v>", f"a0.h{head}->m{mlp}") for head in heads]
    program = Program(
        d_vocab=N_LETTERS + 3, n_pos=4, draw=both, values=lambda tokens: tokens[:, [i, j]],
        answer=lambda values: torch.where(holds(values[:, 0], values[:, 1]), YES, NO),
        carriers=(fetch[0], fetch[1]), output=(f"m{mlp}->logits",),
    )  # fmt: skip
    return PlantedPlan((i, j), question, (heads[0], heads[1]), mlp, program)


def planted_task(plan: PlantedPlan, n: int = 48, seed: int = 0) -> Task:
    """Pairs with opposite answers; all letters may differ."""
    generator = torch.Generator().manual_seed(seed)
    (clean, _), (corrupt, _) = (plan.program.draw(generator, 20 * n) for _ in range(2))
    answers = [plan.program.answer(plan.program.values(tokens)) for tokens in (clean, corrupt)]
    rows = (answers[0] != answers[1]).nonzero().flatten()[:n]
    return Task.from_tokens(clean[rows], corrupt[rows], answers[0][rows], answers[1][rows], name=f"planted: {plan}")


def plant_circuit(
    seed: int = 0, *, recipe: EqualityRecipe | None = None, progress: Callable[[int, int, str], None] | None = None
) -> KnownCircuit:
    """Train the model of a seed, and measure that it has the circuit. About 20 CPU-seconds.

    Raises `MetricError` for a model that did not learn it: say another seed, or a recipe of more steps.

    >>> case = plant_circuit(0)
    >>> print(build_table([case], methods=["eap-ig", "relp"]))
    """
    plan = draw_plan(seed)
    recipe = replace(recipe or RECIPE, seed=seed)
    model = build_from(train(plan.program, recipe, progress), recipe, plan.program, name=f"planted {seed}")
    task = planted_task(plan)
    found = measure_planted(model, task, plan)
    if found["accuracy"] < RIGHT or found["inside"] < APART * found["outside"]:
        raise MetricError(
            f"the model of seed {seed} did not learn its circuit ({plan}): accuracy {found['accuracy']:.3f}, effects "
            f"inside at least {found['inside']:.3f}, outside at most {found['outside']:.3f}. Choose another seed, or a "
            "recipe of more steps."
        )
    reasons = {
        edge: f"carries letter {plan.letters[k] + 1}" for k, edges in enumerate(plan.program.carriers) for edge in edges
    } | {plan.program.output[0]: "carries the answer"}
    return KnownCircuit(
        name=f"planted {seed}", description=str(plan), citation="Gupta et al. 2024 (InterpBench), arXiv:2407.14494",
        build_model=lambda: model, build_task=lambda: task, edges={"corrupt": plan.program.edges}, reasons=reasons,
    )  # fmt: skip


def measure_planted(model: TransformerBridge, task: Task, plan: PlantedPlan) -> dict[str, Any]:
    """Accuracy on the task, the smallest mean absolute effect of a planted edge and the largest of another one."""
    with torch.no_grad():
        right = accuracy(model(task.pairs.clean_tokens), task.pairs).double().mean()
    effects = measure_edges(model, task)
    inside = torch.zeros_like(effects.space.mask)
    for edge in plan.program.edges:
        inside[effects.space.edge_index(edge)] = True
    outside = effects.space.mask & ~inside
    return {
        "accuracy": float(right), "inside": float(effects.magnitude[inside].min()),
        "outside": float(effects.magnitude[outside].max()),
    }  # fmt: skip
