"""Indirect object identification (Wang et al. 2022, arXiv:2211.00593)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from ..arguments import checked
from ..errors import InputError
from .classic import classic_task
from .sampling.examples import Example, ioi_example
from .sampling.lexicon import Lexicon
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checked
def ioi(
    model: TransformerBridge,
    n: int = 64,
    seed: int = 0,
    *,
    corruption: Literal["io", "third_name"] = "io",
    names: tuple[str, str] | None = None,
    template: str | None = None,
) -> Task:
    """Prompts like "When Mary and John went to the store, John gave a drink to" -> " Mary" rather than " John".

    Either name of the first clause is repeated, other people stand in between in many templates, so that neither
    recency nor order gives the answer away. The corrupt prompt has, in place of the second mention of the subject,
    the answer (``corruption="io"``, which turns the right answer round) or a name that was not there
    (``"third_name"``, which leaves it open). `names`: always this indirect object and this subject, so that one
    direction can be
    fitted for who has which role. Metric: logit of the indirect object minus logit of the subject.
    Spans: ``IO``, ``S1``, ``S2`` and the last token, ``END``. `template` replaces the shipped templates; it mentions
    ``{IO}``, ``{S1}``, ``{S2}`` and, if wanted, ``{place} {object} {C} {D}``.

    Citation: Wang et al. 2022, Interpretability in the Wild, arXiv:2211.00593.

    Raises:
        InputError: fewer than 5 names are single tokens of this model, an unknown corruption, or `names` that are not
            two different ones.
    """
    if corruption not in ("io", "third_name"):
        raise InputError(f"corruption of ioi is 'io' or 'third_name'; got {corruption!r}")
    if names is not None and (len(names) != 2 or names[0] == names[1]):
        raise InputError(f"names are two different ones, the indirect object's and the subject's; got {names!r}")
    people = None if names is None else (names[0], names[1])

    def draw(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
        return ioi_example(rng, lexicon, template, corruption, people)

    return classic_task(
        model,
        "ioi",
        draw,
        n=n,
        seed=seed,
        spans=("IO", "S1", "S2"),
        needs={"names": 5, "places": 2, "objects": 2},
        template=template,
        slots_needed=("IO", "S1", "S2"),
    )
