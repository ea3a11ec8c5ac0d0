"""Subject-verb agreement across a phrase (Linzen et al. 2016, arXiv:1611.01368)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arguments import checked
from .classic import classic_task
from .sampling.examples import agreement_example
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checked
def agreement(model: TransformerBridge, n: int = 64, seed: int = 0, *, template: str | None = None) -> Task:
    """Prompts like "The keys near the cabinet" -> " are", " were", " have" rather than " is", " was", " has".

    The noun in between has the other number half of the time. The corrupt prompt has the subject in the other number.
    Metric: mean logit of the three verbs that agree minus mean logit of the three that do not. Spans: ``NOUN``,
    ``ATTRACTOR`` where it is not the last word, and ``END``. `template` replaces the shipped templates; it mentions
    ``{NOUN}`` and ``{ATTRACTOR}``.

    Citation: Linzen et al. 2016, arXiv:1611.01368; Finlayson et al. 2021, arXiv:2106.06087.

    Raises:
        InputError: fewer than 2 nouns of a split are single tokens in both numbers.
    """
    return classic_task(
        model,
        "agreement",
        agreement_example,
        n=n,
        seed=seed,
        spans=("NOUN", "ATTRACTOR"),
        needs={"nouns": 2, "thing_adjectives": 1, "places": 2, "objects": 2},
        template=template,
        slots_needed=("NOUN", "ATTRACTOR"),
    )
