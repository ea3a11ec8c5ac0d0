"""A known circuit: a model, a task, and the edges that do the work, each with the reason why.

What counts as *true* is a fact about single edges: under an ablation, an edge belongs to the circuit when replacing
what it carries changes the metric of some pair. The lists are written down from the construction and verified edge by
edge in the tests. They depend on the ablation: what carries the same value in both prompts is invisible to
``"corrupt"``, and what carries the same value everywhere is invisible to ``"mean"``. They also depend on the direction:
an AND gate hides its inputs from denoising, an OR gate from noising (Heimersheim & Nanda 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ...display import Readable
from ...errors import InputError, UnknownNameError
from ...models.anatomy import read_anatomy
from ...patching.result import Direction
from ...tasks.task import Task
from ..graph.circuit import Circuit
from ..graph.space import EdgeSpace

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

METHODS = ("exact", "gradient", "relp", "eap-ig", "random")
"""Columns of the table of cases: measured, attribution patching, relevance patching, EAP-IG, and the control."""


@dataclass(frozen=True, eq=False)
class KnownCircuit(Readable):
    """A model whose circuit is known. `model` and `task` are built on first use.

    `reasons`: every true edge under any ablation -> why it is one. `edges`: ablation -> the true edges. `direction` is
    the direction of patching in which the edges show; `blind` are the true edges that the *other* direction misses
    under ``"corrupt"``. `explanations`: a method of `METHODS` whose ranking is not perfect -> why. `split_experts`: the
    truth is stated with every expert of a mixture as a node.
    """

    name: str
    description: str
    citation: str
    build_model: Callable[[], TransformerBridge]
    build_task: Callable[[], Task]
    edges: Mapping[str, tuple[str, ...]]
    reasons: Mapping[str, str]
    direction: Direction = "noise"
    blind: tuple[str, ...] = ()
    explanations: Mapping[str, str] = field(default_factory=dict)
    split_experts: bool = False

    def __post_init__(self) -> None:
        if "corrupt" not in self.edges:
            raise InputError(
                f"a known circuit lists its edges under 'corrupt' ablation; {self.name} has {list(self.edges)}"
            )
        named = {edge for edges in self.edges.values() for edge in edges}
        if named != set(self.reasons):
            raise InputError(
                f"every true edge has a reason; {self.name} differs in {sorted(named ^ set(self.reasons))}"
            )
        if unknown := set(self.explanations) - set(METHODS):
            raise UnknownNameError("method", min(unknown), METHODS)

    @cached_property
    def model(self) -> TransformerBridge:
        """The model, built once."""
        return self.build_model()

    @cached_property
    def task(self) -> Task:
        """Its task, built once."""
        return self.build_task()

    @property
    def space(self) -> EdgeSpace:
        """The graph in which the truth is stated."""
        return EdgeSpace.of(read_anatomy(self.model), split_experts=self.split_experts)

    def truth(self, ablation: str = "corrupt") -> Circuit:
        """The true circuit under an ablation; raises `UnknownNameError` for one that this case does not list."""
        if ablation not in self.edges:
            raise UnknownNameError("ablation", ablation, self.edges)
        return Circuit.from_edges(self.space, self.edges[ablation])
