"""Gendered pronouns from first names (Mathwin et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arguments import checked
from .classic import classic_task
from .sampling.examples import pronoun_example
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checked
def pronoun(model: TransformerBridge, n: int = 64, seed: int = 0, *, template: str | None = None) -> Task:
    """Prompts like "So Anna is a really great friend, isn't" -> " she" rather than " he".

    The corrupt prompt has a name of the other gender. Metric: logit of the right pronoun minus logit of the other.
    Spans: ``NAME`` and ``END``. `template` replaces the shipped templates; it mentions ``{NAME}`` and, if wanted,
    ``{adjective} {role} {place} {object}``.

    Citation: Mathwin et al. 2023, Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small.

    Raises:
        InputError: no female or no male name of a split is a single token of this model.
    """
    return classic_task(
        model,
        "pronoun",
        pronoun_example,
        n=n,
        seed=seed,
        spans=("NAME",),
        needs={"female": 2, "male": 2, "places": 2, "objects": 2, "roles": 1, "adjectives": 1},
        template=template,
        slots_needed=("NAME",),
    )
