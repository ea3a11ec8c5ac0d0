"""Colored objects: the color of the thing that is asked about (Merullo et al. 2024, arXiv:2310.08744)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ..arguments import checked
from ..errors import InputError
from .classic import classic_task
from .sampling.examples import Example, colored_objects_example
from .sampling.lexicon import Lexicon
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checked
def colored_objects(
    model: TransformerBridge, n: int = 64, seed: int = 0, *, n_objects: int = 3, template: str | None = None
) -> Task:
    """Prompts like "On the table there is a red pen, a blue cup and a green hat. The color of the cup is" -> " blue".

    The corrupt prompt asks about another thing of the list, whose color is the incorrect answer. Metric: logit of the
    right color minus logit of the other. Spans: ``COLOR`` and ``OBJECT`` (of the thing asked about, in the list),
    ``ASKED`` and ``END``. `n_objects` things are listed. `template` replaces the shipped templates; it mentions
    ``{ITEMS}`` and ``{ASKED}`` and, if wanted, ``{surface} {place} {NAME} {NAME2} {NAME3}``.

    The task is the one that Merullo et al. found to reuse most of the IOI circuit of GPT-2 medium.

    Citation: Merullo et al. 2024, Circuit Component Reuse Across Tasks in Transformer Language Models,
    arXiv:2310.08744.

    Raises:
        InputError: too few things of a split or colors are single tokens, or `n_objects` is less than 2.
    """
    if n_objects < 2:
        raise InputError(f"colored_objects lists at least 2 things, so that one can be asked about; got {n_objects}")

    def draw(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
        return colored_objects_example(rng, lexicon, template, n_objects)

    return classic_task(
        model,
        "colored_objects",
        draw,
        n=n,
        seed=seed,
        spans=("COLOR", "OBJECT", "ASKED"),
        needs={"things": n_objects, "colors": n_objects, "surfaces": 1, "names": 3, "places": 2, "objects": 2},
        template=template,
        slots_needed=("ITEMS", "ASKED"),
    )
