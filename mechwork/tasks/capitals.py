"""Country capitals: recall of a fact about the country that is asked for (Merullo et al. 2023, arXiv:2305.16130)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from ..arguments import checked
from ..errors import InputError
from .classic import classic_task
from .sampling.examples import Example, capitals_example, templates
from .sampling.lexicon import Lexicon
from .sampling.templates import fill
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MENTIONS = {
    "train": ("Yesterday {NAME} came back from {COUNTRY},", "After the trip {NAME} talked about {COUNTRY}."),
    "test": ("In the morning everyone talked about {COUNTRY}.", "Last week {NAME} sent a {object} to {COUNTRY},"),
}
"""Split -> prompts that name a country and ask nothing about it; something follows the name, so that it has a span of
its own.
"""


@checked
def capitals(
    model: TransformerBridge,
    n: int = 64,
    seed: int = 0,
    *,
    corruption: Literal["country", "mention"] = "country",
    template: str | None = None,
) -> Task:
    """Prompts like "The capital of Peru, which is near Chile, is" -> " Lima".

    Most templates name another country too, before or after the one asked about. The corrupt prompt asks about a
    country that the clean one does not name; its capital is the incorrect answer. With ``corruption="mention"`` it
    names the same country and asks nothing about it ("Yesterday Anna came back from Peru,"): what is taken away is the
    relation, for which a direction can be fitted. Metric: logit of the right capital minus logit of the other. Spans:
    ``COUNTRY``, ``OTHER`` where there is one, and ``END``; ``COUNTRY`` and ``END`` alone with ``"mention"``, whose
    prompts differ in length. `template` replaces the shipped templates of the clean prompts; it mentions ``{COUNTRY}``
    and, if wanted, ``{OTHER} {OTHER2} {NAME} {NAME2} {object}``.

    The countries of ``task.test`` occur in the bundled models' training in statements of the fact and in prompts that
    name no other country, never in a prompt that names two; its templates do not occur at all.

    Citation: Merullo et al. 2023, Language Models Implement Simple Word2Vec-style Vector Arithmetic, arXiv:2305.16130.

    Raises:
        InputError: fewer than 4 countries of a split are single tokens together with their capitals, or an unknown
            corruption.
    """
    if corruption not in ("country", "mention"):
        raise InputError(f"corruption of capitals is 'country' or 'mention'; got {corruption!r}")

    def draw(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
        if corruption == "country":
            return capitals_example(rng, lexicon, template)
        return _mention_example(rng, lexicon, template)

    return classic_task(
        model,
        "capitals",
        draw,
        n=n,
        seed=seed,
        spans=("COUNTRY", "OTHER") if corruption == "country" else ("COUNTRY",),
        needs={"countries": 4, "names": 2, "places": 2, "objects": 2},
        template=template,
        slots_needed=("COUNTRY",),
    )


def _mention_example(rng: random.Random, lexicon: Lexicon, template: str | None) -> Example:
    """A prompt that asks for the capital of its one country, and one that only names that country."""
    template = template or rng.choice([t for t in templates("capitals", lexicon.split) if "{OTHER" not in t])
    asked, instead = rng.sample(lexicon.countries, 2)
    names = rng.sample(lexicon.names, 2)
    values = {"COUNTRY": asked[0], "NAME": names[0], "NAME2": names[1], "object": rng.choice(lexicon.objects)}
    clean, corrupt = (fill(text, values) for text in (template, rng.choice(MENTIONS[lexicon.split])))
    return Example("capitals", template, clean, corrupt, (f" {asked[1]}",), (f" {instead[1]}",))
