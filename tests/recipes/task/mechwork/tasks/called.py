"""Who answers when one person calls another (an example of a classic task)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from .classic import classic_task
from .sampling.examples import Example, templates
from .sampling.lexicon import Lexicon
from .sampling.templates import fill
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def called_example(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
    """The corrupt prompt has the two people in each other's place."""
    a, b = rng.sample(lexicon.names, 2)
    template = template or rng.choice(templates("called", lexicon.split))
    clean, corrupt = (fill(template, {"A": one, "B": other}) for one, other in ((a, b), (b, a)))
    return Example("called", template, clean, corrupt, (f" {b}",), (f" {a}",))


def called(model: TransformerBridge, n: int = 64, seed: int = 0, *, template: str | None = None) -> Task:
    """Prompts like "When Mary called John, the one who answered was" -> " John" rather than " Mary".

    The corrupt prompt has the names exchanged. Metric: logit difference. Spans: ``A``, ``B`` and ``END``. `template`
    replaces the shipped templates; it mentions ``{A}`` and ``{B}``.

    Raises:
        InputError: fewer than two names of a split are single tokens of this model.
    """
    return classic_task(
        model,
        "called",
        called_example,
        n=n,
        seed=seed,
        spans=("A", "B"),
        needs={"names": 2},
        template=template,
        slots_needed=("A", "B"),
    )
