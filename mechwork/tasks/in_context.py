"""In-context learning of a relation between words, for function vectors (Todd et al. 2024, arXiv:2310.15213)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

from ..arguments import checked
from ..errors import InputError
from .classic import classic_task
from .sampling.examples import Example, in_context_example
from .sampling.lexicon import Lexicon
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Relation = Literal["antonym", "french", "spanish"]


@checked
def in_context(
    model: TransformerBridge,
    n: int = 64,
    seed: int = 0,
    *,
    relation: Relation | None = None,
    shots: int = 4,
    template: str | None = None,
) -> Task:
    """Prompts like "Words: big: small, rich: poor, hot:" -> " cold", or in French "... hot:" -> " chaud".

    `shots` examples show which relation is meant: opposites, or translation into French or Spanish (`relation`; by
    default any of them). The corrupt prompt shows another relation on the same words, so that it differs from the clean
    one in every example's second word and in nothing else; the incorrect answer is what that relation gives. Metric:
    logit difference of the two. Spans: ``X1 Y1 X2 Y2 ...``, the examples, ``QUERY``, the last word, and ``END``.
    `template` replaces the shipped templates: it mentions ``{X}`` and ``{Y}`` once each, and what goes from ``{X}`` on
    is repeated for every example, like ``"Words: {X} - {Y},"``.

    The words of ``task.test`` occur in the bundled models' training in statements ("The opposite of hot is cold.") and
    as the first example of a list, never where an answer is wanted.

    Citation: Todd et al. 2024, Function Vectors in Large Language Models, arXiv:2310.15213.

    Raises:
        InputError: too few words of a split are single tokens together with their images, more examples than
            words allow, or a template without {X} and {Y}.
    """
    if not 1 <= shots <= 4:
        raise InputError(f"in_context shows 1 to 4 examples (that many unrelated words are held out); got {shots}")
    if template is not None and (
        template.count("{X}") != 1 or template.count("{Y}") != 1 or template.index("{X}") > template.index("{Y}")
    ):
        raise InputError(f"a template for in_context mentions {{X}} and, after it, {{Y}}, once each; got {template!r}")

    def draw(rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example:
        return in_context_example(rng, lexicon, template, relation, shots)

    return classic_task(
        model,
        "in_context",
        draw,
        n=n,
        seed=seed,
        spans=(*(f"{kind}{i}" for i in range(1, shots + 1) for kind in "XY"), "QUERY"),
        needs={"dictionary": 2 * (shots + 1)},
        template=template,
        slots_needed=("X", "Y"),
    )
