"""Every known circuit, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ...errors import UnknownNameError
from ...tasks.task import Task
from ..graph.circuit import Circuit
from .case import KnownCircuit
from .equality import EQUALITY
from .induction import INDUCTION
from .lookup import LOOKUP
from .micro import AND, LINEAR, OR
from .programs import FRAC_PREVS, HIST, REVERSE

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CASES: dict[str, KnownCircuit] = {
    case.name: case for case in (LINEAR, AND, OR, INDUCTION, REVERSE, FRAC_PREVS, HIST, EQUALITY)
}
"""From what can be solved on paper to what was trained."""

MIXTURES: dict[str, KnownCircuit] = {LOOKUP.name: LOOKUP}
"""Mixtures of experts, whose graph has a node per expert: by name only, since searches do not know that graph."""


class Triple(NamedTuple):
    """What a method needs, and what it should find."""

    model: TransformerBridge
    task: Task
    circuit: Circuit


def all_cases(ablation: str = "corrupt") -> Iterator[Triple]:
    """(model, task, circuit) of every case that states a truth under `ablation`. Models are built one by one, once.

    Score in the case's own direction (`KnownCircuit.direction`); in the other the gates hide their inputs.

    >>> for model, task, circuit in all_cases():
    ...     print(circuit)
    """
    for case in CASES.values():
        if ablation in case.edges:
            yield Triple(case.model, case.task, case.truth(ablation))


def find_case(name: str) -> KnownCircuit:
    """The case of that name; raises `UnknownNameError` with the nearest names."""
    known = CASES | MIXTURES
    if name not in known:
        raise UnknownNameError("known circuit", name, known)
    return known[name]
