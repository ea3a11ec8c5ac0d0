"""Induction on lists of random words (Olsson et al. 2022, arXiv:2209.11895)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from ..arguments import checked
from ..errors import InputError
from .classic import classic_task
from .sampling.examples import Example, induction_example
from .sampling.lexicon import Lexicon
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checked
def induction(
    model: TransformerBridge,
    n: int = 64,
    seed: int = 0,
    *,
    length: int | None = None,
    again: int | None = None,
    template: str | None = None,
) -> Task:
    """Prompts like "Words: lamp river boat coin lamp river" -> " boat": random words said again.

    A list of `length` words (by default 5 to 12 at random) is followed by its first `again` words once more; the answer
    is the word that came after the last one the first time. The corrupt prompt ends in another word of the list; its
    successor is the incorrect answer. Metric: logit difference of the two successors. Spans: ``FIRST`` (first mention
    of the last word), ``ANSWER`` (the word after it) and ``END``, the last word. `template` replaces the shipped
    templates; it mentions ``{WORDS}{AGAIN}``.

    Citation: Olsson et al. 2022, In-context Learning and Induction Heads, arXiv:2209.11895.

    Raises:
        InputError: fewer than `length` words of a split are single tokens, or impossible lengths.
    """
    longest = 12 if length is None else length
    if longest < 3 or (again is not None and not 1 <= again < (5 if length is None else length)):
        raise InputError(
            f"induction needs lists of at least 3 words of which 1 to length - 1 are said again; got length={length}, "
            f"again={again}"
        )

    def draw(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
        return induction_example(rng, lexicon, template, length, again)

    return classic_task(
        model,
        "induction",
        draw,
        n=n,
        seed=seed,
        spans=("FIRST", "ANSWER"),
        needs={"words": longest},
        template=template,
        slots_needed=("WORDS", "AGAIN"),
    )
