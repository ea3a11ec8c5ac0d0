"""The passes behind edge scores: the two runs of a pair, and coefficients at points of a path between them.

A point of the path is a run of the host's prompts whose input (or, for activation paths, one component's write) lies a
fraction of the way from the host (0) to the donor (1). A gradient pass at fraction 0 *is* the host's run, so that plain
scores cost one forward, and one forward with one backward. Only the columns that the metric reads are unembedded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...interventions.pairs import between_sides
from ...models.anatomy import device_of
from ...models.borrow import hooked
from ...patching.attribution import find_coefficients
from ...patching.result import Direction
from ...relevance import Binding, Composite
from ...relevance.drop import droppable_layers
from ...runs.prefix import Prefix, record_prefix
from ...runs.record import Run, record_run
from ...runs.remake import remade_blocks
from ...shapes import PerExample
from ...sites import Site, hook_name
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Put = tuple[str, Callable[..., Tensor]]
"""A forward hook that replaces an activation: (hook name, function)."""


@dataclass(frozen=True, eq=False)
class Point:
    """One point of the path: the run there, the coefficients per kind and layer, the bound rules, the metric."""

    run: Run
    coefficients: dict[str, list[Tensor]]
    binding: Binding
    metric: PerExample


@dataclass(frozen=True, eq=False)
class Passes:
    """Runs the model on one micro-batch of pairs: `pairs` has the host as its clean side.

    `drop` is a layer whose writes backward passes go around (GradDrop). With `prefix` only the columns after it run:
    those before are the same in both runs and at every point between them. `remade`: blocks run again in backward
    passes (`runs.remake`).
    """

    model: TransformerBridge
    task: Task
    pairs: PromptPairs
    composite: Composite
    drop: int | None = None
    prefix: Prefix | None = None
    remade: bool = False

    @classmethod
    def of(
        cls,
        model: TransformerBridge,
        task: Task,
        composite: Composite,
        direction: Direction,
        *,
        share_prefix: bool = False,
        remade: bool = False,
    ) -> Passes:
        pairs = task.pairs.corrupt_as_host() if direction == "denoise" else task.pairs
        prefix = record_prefix(model, task, pairs) if share_prefix else None
        return cls(model, task, pairs.to(device_of(model)), composite, prefix=prefix, remade=remade)

    @property
    def n_tail(self) -> int | None:
        """How many columns the metric needs; None: all."""
        both = max(self.pairs.n_tail, self.pairs.corrupt_as_host().n_tail)
        return both if self.task.metric.reads_final else None

    def measure(self, run: Run, *, donor: bool = False) -> PerExample:
        """The metric of a run of the host's (or the donor's) prompts, per pair."""
        return self.task.measure(run.logits, self.pairs.corrupt_as_host() if donor else self.pairs)

    def plain(self, kinds: Sequence[str | Site], *, donor: bool = False) -> Run:
        """The host's or the donor's own run. Cost: 1 forward."""
        return record_run(self.model, self.pairs, kinds, corrupt=donor, n_tail=self.n_tail, prefix=self.prefix)

    @contextmanager
    def graph(self, kinds: Sequence[str | Site], put: Sequence[Put], share: float) -> Iterator[tuple[Run, Binding]]:
        """A run as in `point`, to be differentiated inside. Cost: 1 forward."""
        with ExitStack() as stack:
            binding = stack.enter_context(self.composite.context(self.model))
            if self.drop is not None:
                stack.enter_context(droppable_layers(self.model)).layer = self.drop
            stack.enter_context(between_sides(self.model, self.pairs.corrupt_tokens, share))
            stack.enter_context(hooked(self.model, list(put)))
            stack.enter_context(remade_blocks(self.model, when=self.remade))
            yield (
                record_run(self.model, self.pairs, kinds, grad=True, n_tail=self.n_tail, prefix=self.prefix),
                binding,
            )

    def point(
        self,
        kinds: Sequence[str | Site],
        also_record: Sequence[str | Site] = (),
        put: Sequence[Put] = (),
        share: float = 0.0,
    ) -> Point:
        """Coefficients at a run of the host's prompts in which `put` replaces activations, and which has the donor's
        writes to `share`, where the two sides differ in writes. Of the run, `also_record` is kept. Cost: 1 forward, 1
        backward (and 1 forward where blocks are remade).
        """
        wanted = list(dict.fromkeys([*kinds, *also_record]))
        with self.graph(wanted, put, share) as (run, binding):
            values = self.measure(run)
            names = list(dict.fromkeys(kind.kind if isinstance(kind, Site) else kind for kind in kinds))
            coefficients = find_coefficients(run, values.sum(), names)
        kept = {kind.kind if isinstance(kind, Site) else kind for kind in also_record}
        detached = {kind: [t.detach() for t in run.layers[kind]] for kind in kept}
        return Point(Run(run.logits.detach(), detached), coefficients, binding, values.detach())


def start_at(value: Tensor) -> Put:
    """The stream entering block 0 is `value`, and the leaf of the graph."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        return value.detach().requires_grad_(True)

    return hook_name(Site("resid_pre", 0)), put


def add_at(kind: str, layer: int, amount: Tensor) -> Put:
    """The activation of a site plus `amount`."""

    def put(activation: Tensor, hook: Any) -> Tensor:
        return activation + amount

    return hook_name(Site(kind, layer)), put
