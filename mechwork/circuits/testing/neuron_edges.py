"""Edges between neurons: neurons as writers and readers, by the estimator of their scores.

    study = study_neurons(model, task)                       # which neurons, at which spans
    edges = score_neuron_edges(model, task, study, n=30)     # how the 30 strongest feed each other

The score of a neuron at a span as a writer is (clean - corrupt activation) . coefficient. Its edges split that score by
who reads it next, in the coefficient's own derivative with every MLP between cut:

    edge(u -> r) = (clean - corrupt activation of u) . d(coefficient of r . activation of r) / d(activation of u)

and for the logits the metric itself is differentiated. Attention is passed through under the rules, so an edge may go
to a later position; norms and activation functions too. Of a writer, the edges to all readers (`rest`: the neurons that
are not chosen) add up to its score exactly; of a reader, what it gets from chosen neurons stands beside what it gets
from `rest` and from the `input`. Edges are estimates, like their scores (arXiv:2601.22594 draws neurons so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...errors import InputError, check_whole
from ...execute.memory import MemoryBudget
from ...execute.progress import Progress
from ...models.borrow import borrows
from ...models.identity import identify_model
from ...provenance import Provenance, build_provenance
from ...result import Result, Table
from ...sites import Site, hook_name
from ...statistics import bootstrap_interval
from ...tasks.task import Task
from ..graph.budget import DEFAULT_BUDGET
from ..graph.graph_file import AttributionGraph
from ..graph.writers import require_aligned
from ..scoring.methods import Method, find_method
from ..scoring.points import Passes, Put, start_at
from .neurons import NeuronStudy, pairs_that_fit

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

INPUT, LOGITS, REST = "input", "logits", "rest"
Place = Sequence[int]
"""Cell, layer and neuron."""


@dataclass(frozen=True, eq=False)
class NeuronEdges(Result):
    """`per_example` ``[batch, writer, reader]``: estimated effects along edges; positive = the clean activation helps.

    Writers are the chosen neurons, `rest` and `input`; readers the chosen neurons, `rest` and `logits`. Edges between
    `rest`, `input` and `rest` again are not computed (0). `places` are cell, layer and neuron of each unit.
    """

    per_example: Float[Tensor, "batch writer reader"]
    units: tuple[str, ...]
    cells: tuple[str, ...]
    places: Int[Tensor, "unit 3"]
    rules: str
    metric_name: str
    provenance: Provenance

    @property
    def writers(self) -> tuple[str, ...]:
        return (*self.units, REST, INPUT)

    @property
    def readers(self) -> tuple[str, ...]:
        return (*self.units, REST, LOGITS)

    @property
    def values(self) -> Float[Tensor, "writer reader"]:
        """Mean over pairs."""
        return self.per_example.mean(dim=0)

    @property
    def share_inside(self) -> float:
        """Of the chosen neurons' effects (absolute edges): how much goes to chosen neurons or the logits."""
        edges = self.values[: len(self.units)].abs()
        rest = float(edges[:, len(self.units)].sum())
        return 1 - rest / max(float(edges.sum()), torch.finfo(edges.dtype).tiny)

    def _ranked(self, n: int) -> list[tuple[int, int, float]]:
        """Writer, reader and score of the `n` strongest edges between chosen neurons, input and logits."""
        shown = self.values.clone()
        shown[len(self.units)] = 0
        shown[:, len(self.units)] = 0
        order = shown.flatten().abs().argsort(descending=True, stable=True)[:n].tolist()
        found = [(*divmod(i, shown.shape[1]), float(shown.flatten()[i])) for i in order]
        return [edge for edge in found if edge[2]]

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The `n` strongest edges between chosen neurons, input and logits: ``("m1.n3@S2->m4.n9@end", score)``."""
        return [(f"{self.writers[i]}->{self.readers[j]}", score) for i, j, score in self._ranked(n)]

    def to_graph(self, n_edges: int = 100) -> AttributionGraph:
        """The strongest edges as an attribution graph, layers up and spans across: `save` writes it to a file,
        `show()` draws it.
        """
        edges = self._ranked(check_whole("n_edges", n_edges))
        n_layers = int(self.places[:, 1].max()) + 1
        ids = {name: f"{layer}_{neuron}_{cell + 1}" for name, (cell, layer, neuron) in self._placed()}
        ids |= {INPUT: "E_0_0", LOGITS: f"{n_layers}_0_{len(self.cells)}"}
        kinds = {INPUT: "embedding", LOGITS: "logit"}
        links = [
            {"source": ids[self.writers[i]], "target": ids[self.readers[j]], "weight": float(f"{score:.9g}")}
            for i, j, score in edges
        ]
        drawn = {link[end] for link in links for end in ("source", "target")}
        nodes = [
            {
                "node_id": identifier, "layer": identifier.split("_")[0], "feature": int(identifier.split("_")[1]),
                "ctx_idx": int(identifier.split("_")[2]), "feature_type": kinds.get(name, "mlp neuron"),
                "clerp": name.partition("@")[0], "is_target_logit": name == LOGITS,
            }
            for name, identifier in ids.items() if identifier in drawn
        ]  # fmt: skip
        model, spans = self.provenance["model"], ["all", *self.cells]  # the input counts wherever the prompts differ
        metadata = {
            "slug": "neurons", "scan": str(model.get("name", "")), "transcoder_list": [],
            "prompt_tokens": spans, "prompt": " ".join(spans), "schema_version": 1,
        }  # fmt: skip
        return AttributionGraph(metadata, {"pinnedIds": [], "supernodes": []}, nodes, links)

    def _placed(self) -> list[tuple[str, list[int]]]:
        return list(zip(self.units, self.places.tolist(), strict=True))

    def _table(self) -> Table:
        """One row per edge that is not 0, with its interval over pairs where there are two."""
        many = len(self.per_example) > 1
        low, high = bootstrap_interval(self.per_example) if many else (self.values, self.values)
        return [
            {
                "writer": self.writers[i], "reader": self.readers[j], "score": float(self.values[i, j]),
                "low": float(low[i, j]) if many else float("nan"), "high": float(high[i, j]) if many else float("nan"),
            }
            for i, j in self.values.nonzero().tolist()
        ]  # fmt: skip

    def __str__(self) -> str:
        lines = [
            (
                f"{len(self.units)} neurons at spans, {self.rules} on {self.metric_name}: {self.share_inside:.0%} of "
                "their effects (absolute) go to each other and to the logits"
            ),
            *(f"{score:+9.4f}  {edge}" for edge, score in self.top(12)),
        ]
        return "\n".join(lines)

    __repr__ = __str__


@borrows
def score_neuron_edges(
    model: TransformerBridge,
    task: Task,
    study: NeuronStudy,
    n: int = 30,
    *,
    rules: str = "relp",
    ig_steps: int | None = None,
    positions: str = "spans",
    memory_budget: MemoryBudget = DEFAULT_BUDGET,
    progress: Progress | None = None,
) -> NeuronEdges:
    """Edges among the `n` strongest neurons of a study, the input and the logits, over the pairs of `task`.

    Raises `InputError` for a study of another model, of other rules or spans, for more neurons than it has, pairs of
    unequal length, a budget that does not hold one pair. Cost per batch of pairs: 2 forwards, and for each point of the
    path 2 forwards and `n` + 2 backwards, of which those to early layers are short.

    >>> study = study_neurons(model, task, positions="all", counts=(10,))
    >>> score_neuron_edges(model, task.train, study, n=5, positions="all").top(3)
    """
    method = find_method(rules=rules, ig_steps=ig_steps)
    check_whole("n", n)
    require_aligned(task)
    if not 0 < n <= study.scores.numel():
        raise InputError(f"n is 1 to {study.scores.numel()}, the neurons at spans of this study; got {n}")
    identity = identify_model(model)
    if study.provenance["model"]["weights_sha256"] != identity["weights_sha256"]:
        raise InputError("the study is of another model. Run study_neurons on this one.")
    if method.rules.name != study.rules or task.pairs.cells(positions)[0] != study.cells:
        raise InputError(
            f"edges split the scores of the study: give its rules, {study.rules!r}, and its positions, of which the "
            f"spans are {', '.join(study.cells)}"
        )
    size = pairs_that_fit(model, task, memory_budget)
    names, places = zip(*((name, place) for name, _, place in study.strongest(n)), strict=True)
    _, cells = task.pairs.cells(positions)
    found: list[Tensor] = []
    for start in range(0, len(task), size):
        piece = task[start : start + size]
        found.append(_score(model, piece, method, places, cells[:, start : start + len(piece)]))
        if progress is not None:
            progress(min(start + size, len(task)), len(task), "edges between neurons")
    facts = build_provenance(
        method="neuron edges", **method.to_json(), positions=positions, model=identity, task=task.provenance()
    )
    per_example = task.pairs.per_question(torch.cat(found))
    last = [int(cell.nonzero().max()) if bool(cell.any()) else 0 for cell in cells[:, 0]]
    order = sorted(range(len(last)), key=last.__getitem__)  # spans across, as they stand in the first prompt
    where = torch.tensor([(order.index(cell), layer, neuron) for cell, layer, neuron in places])
    spans = tuple(study.cells[i] for i in order)
    return NeuronEdges(per_example, tuple(names), spans, where, method.rules.name, task.metric.name, facts)


def _score(
    model: TransformerBridge, task: Task, method: Method, places: Sequence[Place], cells: Bool[Tensor, "cell batch pos"]
) -> Float[Tensor, "batch writer reader"]:
    """The edges of one batch of pairs, averaged over the points of the path."""
    passes = Passes.of(model, task, method.rules, method.direction)
    host, donor = (passes.plain(("resid_pre", "mlp_post"), donor=d) for d in (False, True))
    first, last = (run.layers["resid_pre"][0] for run in (host, donor))
    changes = [new - old for new, old in zip(donor.layers["mlp_post"], host.layers["mlp_post"], strict=True)]
    here = cells[:, :, : first.shape[1]].to(first)
    total = torch.zeros(len(task), len(places) + 2, len(places) + 2, dtype=first.dtype)
    for fraction in method.fractions:
        value = first + fraction * (last - first)
        put = [] if fraction == 0 else [start_at(value)]
        coefficients = passes.point(("mlp_post",), (), put, fraction).coefficients["mlp_post"]
        split = _Split([*changes, last - first], here, places, coefficients)
        with passes.graph(("resid_pre",), [start_at(value), *split.cut_mlps()], fraction) as (run, _):
            leaf = run.layers["resid_pre"][0]
            total += split.edges(passes.measure(run).sum(), leaf)
    return total / len(method.fractions) * (1 if method.direction == "denoise" else -1)


@dataclass(eq=False)
class _Split:
    """One run with every MLP's activation a leaf, and what the gradients at the leaves are worth to each writer."""

    changes: list[Tensor]
    """Donor - host: activations of each layer's MLP, and the stream that enters block 0."""
    cells: Float[Tensor, "cell batch pos"]
    places: Sequence[Place]
    coefficients: list[Tensor]

    def __post_init__(self) -> None:
        self.live: list[Tensor] = []
        self.leaves: list[Tensor] = []

    def cut_mlps(self) -> list[Put]:
        def cut(activation: Tensor, hook: Any) -> Tensor:
            self.live.append(activation)
            self.leaves.append(activation.detach().requires_grad_(True))
            return self.leaves[-1]

        return [(hook_name(Site("mlp_post", layer)), cut) for layer in range(len(self.coefficients))]

    def edges(self, metric: Tensor, start: Tensor) -> Float[Tensor, "batch writer reader"]:
        columns = []
        for cell, layer, neuron in self.places:
            read = self.live[layer][..., neuron] * self.coefficients[layer][..., neuron] * self.cells[cell]
            columns.append(self._column(read.sum(), [*self.leaves[:layer], start]))
        logits = self._column(metric, [*self.leaves, start])
        chosen = torch.stack(columns, dim=-1)
        whole = self._worth([*self.coefficients, torch.zeros_like(start)])  # of the input nobody asks
        rest = whole - chosen.sum(dim=-1) - logits
        rest[:, len(self.places) :] = 0
        return torch.cat([chosen, rest[..., None], logits[..., None]], dim=-1)

    def _column(self, read: Tensor, leaves: list[Tensor]) -> Float[Tensor, "batch writer"]:
        gradients = torch.autograd.grad(read, leaves, retain_graph=True, allow_unused=True)
        return self._worth([*gradients[:-1], *[None] * (len(self.leaves) + 1 - len(leaves)), gradients[-1]])

    def _worth(self, gradients: Sequence[Tensor | None]) -> Float[Tensor, "batch writer"]:
        """What the change of every writer is worth: the chosen ones, the rest of the MLPs, the input."""
        products = [
            None if gradient is None else (change * gradient).detach()
            for change, gradient in zip(self.changes, gradients, strict=True)
        ]
        zero = self.changes[0].new_zeros(self.changes[0].shape[0])
        worth = [
            zero if (product := products[layer]) is None
            else einsum(product[..., neuron], self.cells[cell], "batch pos, batch pos -> batch")
            for cell, layer, neuron in self.places
        ]  # fmt: skip
        *mlps, stream = [zero if product is None else product.sum(dim=(1, 2)) for product in products]
        rest = torch.stack(mlps).sum(dim=0) - torch.stack(worth).sum(dim=0)
        return torch.stack([*worth, rest, stream], dim=-1).cpu()
