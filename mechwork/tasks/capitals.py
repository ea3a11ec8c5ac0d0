"""Country capitals: recall of a fact about the country that is asked for (Merullo et al. 2023, arXiv:2305.16130)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models.training.examples import capitals_example
from .classic import classic_task
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def capitals(model: TransformerBridge, n: int = 64, seed: int = 0, *, template: str | None = None) -> Task:
    """Prompts like "The capital of Peru, which is near Chile, is" -> " Lima".

    Most templates name another country too, before or after the one asked about. The corrupt prompt asks about a country
    that the clean one does not name; its capital is the incorrect answer. Metric: logit of the right capital minus logit
    of the other. Spans: ``COUNTRY``, ``OTHER`` where there is one, and ``END``. `template` replaces the shipped templates;
    it mentions ``{COUNTRY}`` and, if wanted, ``{OTHER} {OTHER2} {NAME} {NAME2} {object}``.

    The countries of ``task.test`` occur in the bundled models' training in statements of the fact and in prompts that name
    no other country, never in a prompt that names two; its templates do not occur at all.

    Citation: Merullo et al. 2023, Language Models Implement Simple Word2Vec-style Vector Arithmetic, arXiv:2305.16130.

    Raises:
        InputError: fewer than 4 countries of a split are single tokens together with their capitals.
    """
    return classic_task(
        model,
        "capitals",
        capitals_example,
        n=n,
        seed=seed,
        spans=("COUNTRY", "OTHER"),
        needs={"countries": 4, "names": 2, "places": 2, "objects": 2},
        template=template,
        slots_needed=("COUNTRY",),
    )
