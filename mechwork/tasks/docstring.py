"""Docstrings: the next argument to document (Heimersheim and Janiak 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arguments import checked
from .classic import classic_task
from .sampling.examples import docstring_example
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@checked
def docstring(model: TransformerBridge, n: int = 64, seed: int = 0, *, template: str | None = None) -> Task:
    """Prompts like "def run(self, load, size, file): ... :param load: ... :param size: ... :param" -> " file".

    The corrupt prompt has another argument in the answer's place of the signature, which turns the right answer into
    that one. Metric: logit of the right argument minus logit of the other. Spans: ``A``, ``B``, ``ANSWER`` in the
    signature, ``A2``, ``B2`` in the docstring, and ``END``. `template` replaces the shipped templates; it mentions
    ``{A} {ANSWER} {A2}`` and, if wanted, ``{B} {B2} {D} {D2} {E} {F} {FUNC} {W1} ... {W6}``.

    Citation: Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer.

    Raises:
        InputError: fewer than 7 argument names of a split are single tokens of this model.
    """
    return classic_task(
        model,
        "docstring",
        docstring_example,
        n=n,
        seed=seed,
        spans=("A", "B", "ANSWER", "A2", "B2"),
        needs={"arguments": 7, "descriptions": 1, "functions": 1},
        template=template,
        slots_needed=("A", "ANSWER", "A2"),
    )
