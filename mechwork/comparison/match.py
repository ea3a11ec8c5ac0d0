"""Whether two models can be compared number by number: one anatomy, one vocabulary, parameters of the same names and
shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models.anatomy import ModelAnatomy, check_ready
from ..runs.record import check_task
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def check_same(model_a: TransformerBridge, model_b: TransformerBridge, task: Task | None = None) -> ModelAnatomy:
    """The anatomy that both have; raises `InputError` saying what differs, or what `check_task` raises for the task."""
    a, b = check_ready(model_a), check_ready(model_b)
    if a != b:
        mine, theirs = a.to_dict(), b.to_dict()
        differing = ", ".join(f"{key} {mine[key]} and {theirs[key]}" for key in mine if mine[key] != theirs[key])
        raise InputError(
            f"two models are compared place by place, so they have one anatomy; these differ in {differing}"
        )
    vocabularies = [_vocabulary(model) for model in (model_a, model_b)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise InputError(
            "the two models' tokenizers give tokens different ids, so that one prompt is not the same in both"
        )
    if task is not None:
        check_task(model_a, task)
    return a


def _vocabulary(model: TransformerBridge) -> Any:
    tokenizer = getattr(model, "tokenizer", None)
    return None if tokenizer is None else tokenizer.get_vocab()
