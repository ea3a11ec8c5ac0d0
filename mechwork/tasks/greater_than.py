"""Greater-than: years that must come later (Hanna et al. 2023, arXiv:2305.00586)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arguments import checked
from .classic import classic_task
from .metrics import Metric, MetricFunction
from .sampling.examples import greater_than_example
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checked
def greater_than(
    model: TransformerBridge,
    n: int = 64,
    seed: int = 0,
    *,
    metric: str | Metric | MetricFunction = "probability_difference",
    template: str | None = None,
) -> Task:
    """Prompts like "The war lasted from the year 1732 to 17" -> two digits above 32 rather than up to 32.

    The corrupt prompt begins in year 01 of the century, after which every year is possible. Metric: probability of the
    later years minus probability of the others, as in the paper. Spans: ``NOUN``, ``YY`` (the two digits) and ``END``.
    `template` replaces the shipped templates; it mentions ``{NOUN}``, ``{XX}{YY}`` and ends in ``{XX}``.

    Citation: Hanna et al. 2023, How does GPT-2 compute greater-than?, arXiv:2305.00586.

    Raises:
        InputError: the tokenizer does not split enough years into a century and two digits, one token each.
    """
    task = classic_task(
        model,
        "greater_than",
        greater_than_example,
        n=n,
        seed=seed,
        spans=("NOUN", "YY"),
        needs={"events": 1, "centuries": 1, "years": 50},
        template=template,
        slots_needed=("NOUN", "XX", "YY"),
    )
    return task.with_metric(metric, model)
