"""A circuit: a subset of the edges of the computational graph, as a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...encoding import Decoder
from ...errors import ArtefactError, InputError, MetricError, UnknownNameError
from ...files import read_object, reading, write_json
from ...models.anatomy import device_of
from ...provenance import Provenance, stable
from ...result import Result, Table
from ...shapes import EdgeMask, EdgeMatrix
from ...tasks.task import Task
from .ablated import find_ablation
from .prune import prune
from .run import as_circuit
from .space import LOGITS, EdgeSpace
from .writers import edge_space

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 2
WHAT = "mechwork circuit"


@dataclass(frozen=True, eq=False)
class Circuit(Result):
    """The edges where `mask` is True. `scores`, if known, are the signed scores the circuit was selected by.

    `n_requested` is the nominal size before pruning. Circuits of one space support ``&``, ``|``, ``-`` and
    `complement`. `roles` and `notes` say things about nodes; `supernodes` are named groups of nodes. `extras` holds
    what another tool's file said that mechwork has no field for.
    """

    space: EdgeSpace
    mask: EdgeMask
    scores: EdgeMatrix | None = None
    n_requested: int | None = None
    roles: dict[str, str] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    supernodes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if tuple(self.mask.shape) != (self.space.n_writers, self.space.n_readers):
            raise InputError(
                f"a circuit's mask is [writer, reader] = {(self.space.n_writers, self.space.n_readers)}; got "
                f"{tuple(self.mask.shape)}"
            )
        if bool((self.mask & ~self.space.mask).any()):
            row, column = (self.mask & ~self.space.mask).nonzero()[0].tolist()
            raise InputError(f"{self.space.edge_name(row, column)} is not an edge of this graph")
        if self.scores is not None and (self.scores.shape != self.mask.shape or not self.scores.is_floating_point()):
            got = f"{tuple(self.scores.shape)} {self.scores.dtype}"
            raise InputError(f"a circuit's scores are floating-point numbers in the shape of its mask; got {got}")
        if self.scores is not None and not bool(self.scores.isfinite().all()):
            row, column = (~self.scores.isfinite()).nonzero()[0].tolist()
            name, value = self.space.edge_name(row, column), float(self.scores[row, column])
            raise MetricError(f"the scores of a circuit must be finite; {name} has {value}. Score the edges again.")
        known = {*self.space.writers, LOGITS}
        for name in (*self.roles, *self.notes, *(node for group in self.supernodes.values() for node in group)):
            if name not in known:
                raise UnknownNameError("node", name, known)

    @classmethod
    def from_edges(cls, space: EdgeSpace, edges: Iterable[str]) -> Circuit:
        """A circuit from edge names such as ``"a0.h1->a1.h0<k>"``."""
        mask = torch.zeros(space.n_writers, space.n_readers, dtype=torch.bool)
        for edge in edges:
            mask[space.edge_index(edge)] = True
        return cls(space, mask)

    @property
    def n_edges(self) -> int:
        return int(self.mask.sum())

    @property
    def fraction(self) -> float:
        """Share of all edges of the graph."""
        return self.n_edges / self.space.n_edges

    @property
    def edges(self) -> tuple[str, ...]:
        """Edge names, strongest first when scores are known, else in graph order."""
        return tuple(self.space.edge_name(row, column) for row, column in self._ordered_index())

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that have an edge in the circuit, in the order they run, ``logits`` last.

        A key/value reader shared by several heads counts for those that are in the circuit otherwise, or, if none is,
        for all.
        """
        feeds, read = self.space.feeds, self.mask.any(dim=0)
        shared = feeds.sum(dim=0) > 1
        rows = self.mask.any(dim=1) | (feeds & (read & ~shared)[None, :]).any(dim=1)
        unclaimed = read & shared & ~(feeds & rows[:, None]).any(dim=0)
        rows = rows | (feeds & unclaimed[None, :]).any(dim=1)
        names = [name for name, used in zip(self.space.writers, rows.tolist(), strict=True) if used]
        return (*names, LOGITS) if bool(self.mask[:, self.space.logits_reader].any()) else tuple(names)

    def _table(self) -> Table:
        """One row per edge, strongest first."""
        index = self._ordered_index()
        ends = {
            "source": [self.space.writers[i] for i, _ in index],
            "target": [self.space.readers[j] for _, j in index],
        }
        return ends if self.scores is None else {**ends, "score": [float(self.scores[i, j]) for i, j in index]}

    def __contains__(self, edge: str) -> bool:
        return bool(self.mask[self.space.edge_index(edge)])

    def __len__(self) -> int:
        return self.n_edges

    def __and__(self, other: Circuit) -> Circuit:
        return self._with(self.mask & self._mask_of(other))

    def __or__(self, other: Circuit) -> Circuit:
        return self._with(self.mask | self._mask_of(other))

    def __sub__(self, other: Circuit) -> Circuit:
        return self._with(self.mask & ~self._mask_of(other))

    def complement(self) -> Circuit:
        """The rest of the graph."""
        return self._with(self.space.mask & ~self.mask)

    def labelled(
        self,
        *,
        roles: Mapping[str, str] | None = None,
        notes: Mapping[str, str] | None = None,
        supernodes: Mapping[str, Sequence[str]] | None = None,
    ) -> Circuit:
        """With more labels: what nodes do (`roles`), remarks on them (`notes`), and named groups of them
        (`supernodes`).

        Raises `UnknownNameError` for a node that the graph does not have.

        >>> circuit.labelled(roles={"a4.h1": "name mover"}, supernodes={"movers": ["a4.h1", "a5.h0"]})
        """
        groups = {name: tuple(nodes) for name, nodes in (supernodes or {}).items()}
        return replace(
            self,
            roles={**self.roles, **(roles or {})},
            notes={**self.notes, **(notes or {})},
            supernodes={**self.supernodes, **groups},
        )

    @contextmanager
    def run(
        self, model: TransformerBridge, task: Task, *, ablation: str = "mean", seed: int = 0
    ) -> Iterator[TransformerBridge]:
        """Inside, `model` behaves as this circuit, so that any lens, patch, plot or ``model.generate`` applies to it.

        With a constant `ablation` (``"mean"`` over the task's clean prompts, ``"zero"``, ``"optimal"``) it does so for
        any prompt of any length; with ``"corrupt"``, ``"resample"`` or ``"mean_by_position"`` for the task's own clean
        prompts, all at once. On exit the model is itself again, also after an exception. Cost of each forward: about
        1.5.

        >>> with circuit.run(model, task) as bridge:
        ...     logits = bridge(tokens)
        """
        if self.space != edge_space(model, task, **self.space.splits, aligned=None if ablation == "corrupt" else False):
            raise InputError(f"the circuit belongs to another graph, {self.space}")
        pairs = task.pairs.to(device_of(model))
        ablated = find_ablation(model, task, self.space, ablation, seed=seed).writes(pairs, 0)
        with as_circuit(model, self.space, self.mask, ablated):
            yield model

    def pruned(self) -> Circuit:
        """Without edges that do not lie on a path from the input to the logits."""
        return replace(self, mask=prune(self.space, self.mask))

    def overlap(self, other: Circuit) -> float:
        """Jaccard index of the edge sets (1 for two empty circuits)."""
        union = int((self.mask | self._mask_of(other)).sum())
        return int((self.mask & other.mask).sum()) / union if union else 1.0

    def expected_overlap(self, other: Circuit) -> float:
        """The Jaccard index that two random circuits of these sizes would have: their expected intersection
        over union.
        """
        both = self.n_edges * other.n_edges / self.space.n_edges
        union = self.n_edges + other.n_edges - both
        return both / union if union else 1.0

    def to_json(self) -> dict[str, Any]:
        """The circuit as JSON; the same inputs give the same text."""
        edges: list[dict[str, Any]] = []
        for row, column in self._ordered_index():
            edge: dict[str, Any] = {"edge": self.space.edge_name(row, column)}
            if self.scores is not None:
                edge["score"] = float(f"{float(self.scores[row, column]):.9g}")
            edges.append(edge)
        return {
            "what": WHAT,
            "format": FORMAT,
            "space": self.space.to_dict(),
            "n_edges": self.n_edges,
            "n_edges_of_graph": self.space.n_edges,
            "n_requested": self.n_requested,
            "nodes": list(self.nodes),
            "edges": edges,
            "roles": self.roles,
            "notes": self.notes,
            "supernodes": {name: list(nodes) for name, nodes in self.supernodes.items()},
            "extras": self.extras,
            "provenance": stable(self.provenance),
        }

    def save(self, path: str | Path) -> Path:
        """Write JSON. Returns the path."""
        return write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read what `save` wrote; raises `ArtefactError` for another or a newer format."""
        data = read_object(path, ("what", "format"))
        with reading(path, WHAT):
            if data["what"] != WHAT:
                raise ArtefactError(f"{path} is a {data['what']!r}, not a {WHAT!r}. Give another file")
            if Decoder({}).decode(int, data["format"], "format") > FORMAT:
                raise ArtefactError(
                    f"{path} is a circuit of format {data['format']}; this version reads up to format {FORMAT}. "
                    "Upgrade mechwork."
                )
            space = EdgeSpace(**data["space"])
            circuit = cls.from_edges(space, (edge["edge"] for edge in data["edges"]))
            scores = None
            if all("score" in edge for edge in data["edges"]) and data["edges"]:
                scores = torch.zeros(space.n_writers, space.n_readers)
                for edge in data["edges"]:
                    scores[space.edge_index(edge["edge"])] = edge["score"]
            return replace(circuit, scores=scores, **facts_of(data))

    def __repr__(self) -> str:
        scores = [] if self.scores is None else [(*at, float(self.scores[*at])) for at in self._ordered_index()[:3]]
        top = ", ".join(f"{self.space.edge_name(i, j)} {score:+.3g}" for i, j, score in scores)
        strongest = f"; strongest {top}" if top else ""
        return f"Circuit({self.n_edges} of {self.space.n_edges} edges, {len(self.nodes)} nodes{strongest})"

    def _mask_of(self, other: Circuit) -> EdgeMask:
        if other.space != self.space:
            raise InputError(f"only circuits of one graph can be compared; got {self.space} and {other.space}")
        return other.mask

    def _with(self, mask: EdgeMask) -> Circuit:
        return Circuit(self.space, mask, self.scores, provenance=self.provenance)

    def _ordered_index(self) -> list[list[int]]:
        """Rows and columns of the edges, strongest first when scores are known."""
        index = self.mask.nonzero()
        if self.scores is not None:
            index = index[self.scores[index[:, 0], index[:, 1]].abs().argsort(descending=True, stable=True)]
        return index.tolist()


def facts_of(data: dict[str, Any]) -> dict[str, Any]:
    """What a circuit has beside space, mask and scores, out of its JSON; raises for facts of another type."""
    texts = {name: Decoder({}).decode(dict[str, str], data.get(name, {}), name) for name in ("roles", "notes")}
    groups = Decoder({}).decode(dict[str, tuple[str, ...]], data.get("supernodes", {}), "supernodes")
    plain = {name: Decoder({}).decode(dict[str, Any], data.get(name, {}), name) for name in ("provenance", "extras")}
    requested = Decoder({}).decode(int | None, data["n_requested"], "n_requested")
    return {"n_requested": requested, "supernodes": groups, **texts, **plain}
