"""Attribution graphs in the JSON of Anthropic's circuit tracing and Neuronpedia: read, written and converted
losslessly.

A graph has ``metadata`` (slug, scan, prompt, tokens), ``qParams`` (what a viewer shows: pinned nodes, supernodes,
selection), ``nodes`` (``node_id``, ``layer``, ``ctx_idx``, ``feature_type``, ``clerp`` = label, ...) and ``links``
(``source``, ``target``, ``weight``). Weights are the writer's direct effects: positive raises the target, which is the
sign of our scores; nothing is converted.

Circuits have no positions and several edges (q, k, v) between two heads: `graph_of` puts every node at the last token
and says the kind on each link; what the format has no field for travels in ``metadata.mechwork``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtefactError, InputError, MetricError
from ...files import read_object, reading, write_json
from ...names import head_name, parse_node
from ...provenance import stable
from ...result import Result, Table
from ...tasks.task import Task
from .circuit import Circuit
from .files import FORMAT, OWN
from .space import INPUT, LOGITS, EdgeSpace

Json = dict[str, Any]

KEYS = ("metadata", "qParams", "nodes", "links")


@dataclass(frozen=True, eq=False)
class AttributionGraph(Result):
    """One attribution graph, field by field as in its file; unknown fields are kept in place.

    Raises `ArtefactError` for a link to a node that is not there or two nodes of one id, `MetricError` for weights that
    are not finite.
    """

    metadata: Json
    q_params: Json
    nodes: list[Json]
    links: list[Json]
    others: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = (self.metadata, self.q_params, self.others, *self.nodes, *self.links)
        if not all(isinstance(one, dict) for one in kinds):
            raise ArtefactError(
                "metadata, qParams, nodes and links of an attribution graph are objects; got something else"
            )
        ids = [node.get("node_id") for node in self.nodes]
        known = set(ids)
        if None in known or len(known) != len(ids):
            raise ArtefactError("every node of an attribution graph needs a node_id of its own")
        for link in self.links:
            for end in ("source", "target"):
                if link.get(end) not in known:
                    raise ArtefactError(f"a link's {end} must be a node of the graph; got {link.get(end)!r}")
            weight = link.get("weight")
            if not isinstance(weight, int | float) or not math.isfinite(weight):
                raise MetricError(f"the weight of a link must be a finite number; got {link.get('weight')!r}")

    @property
    def labels(self) -> dict[str, str]:
        """Node id -> label, where there is one."""
        return {node["node_id"]: node["clerp"] for node in self.nodes if node.get("clerp")}

    @property
    def supernodes(self) -> dict[str, tuple[str, ...]]:
        """Name -> node ids of each named group."""
        return {group[0]: tuple(group[1:]) for group in self.q_params.get("supernodes", [])}

    @classmethod
    def load(cls, path: str | Path) -> AttributionGraph:
        """Read a graph; raises `ArtefactError` for another kind of file."""
        data = read_object(path, KEYS)
        others = {key: value for key, value in data.items() if key not in KEYS}
        with reading(path, "attribution graph"):
            return cls(data["metadata"], data["qParams"], data["nodes"], data["links"], others)

    def save(self, path: str | Path) -> Path:
        """Write the graph. Returns the path."""
        parts = (self.metadata, self.q_params, self.nodes, self.links)
        return write_json(path, {**dict(zip(KEYS, parts, strict=True)), **self.others}, indent=None, escape=False)

    def _table(self) -> Table:
        """One row per link, as in the file."""
        return self.links

    def __repr__(self) -> str:
        return (
            f"AttributionGraph({self.metadata.get('slug')!r}: {len(self.nodes)} nodes, {len(self.links)} links, "
            f"{len(self.supernodes)} supernodes)"
        )


def graph_of(circuit: Circuit, task: Task, *, row: int = 0, slug: str = "", scan: str = "") -> AttributionGraph:
    """A circuit as an attribution graph of the clean prompt of pair `row`; `scan` is the model's name there.

    Raises `InputError` for a circuit without scores, since links have weights.
    """
    if circuit.scores is None:
        raise InputError(
            "links of an attribution graph have weights; this circuit has no scores. Select it from scores."
        )
    if not 0 <= row < len(task):
        raise InputError(f"the task has pairs 0 to {len(task) - 1}; got row {row}")
    if circuit.space.split_input:
        raise InputError("attribution graphs know one input node per token; score without split_input to write one")
    if circuit.space.n_experts:
        raise InputError("attribution graphs know MLPs as one node; score without split_experts to write one")
    space, tokens = circuit.space, list(task.prompt_texts(row)[0])
    last, answer = len(tokens) - 1, int(task.pairs.correct[row][0])
    ids = {name: _node_id(space, name, last, answer) for name in circuit.nodes}
    nodes = [_node(space, name, ids[name], last, circuit.roles.get(name, "")) for name in circuit.nodes]
    links = []
    for i, j in circuit.mask.nonzero().tolist():
        kind, targets = _targets(space, j, set(circuit.nodes))
        weight = float(f"{float(circuit.scores[i, j]) / len(targets):.9g}")
        links += [{"source": ids[space.writers[i]], "target": ids[t], "weight": weight, "kind": kind} for t in targets]
    own = {
        "format": FORMAT,
        "space": space.to_dict(),
        "names": {identifier: name for name, identifier in ids.items()},
        "n_requested": circuit.n_requested,
        "roles": circuit.roles,
        "notes": circuit.notes,
        "supernodes": {name: list(members) for name, members in circuit.supernodes.items()},
        "provenance": stable(circuit.provenance),
    }
    metadata = {
        "slug": slug or task.name,
        "scan": scan or str(circuit.provenance.get("model", {}).get("name", "")),
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": "".join(tokens),
        "schema_version": 1,
        OWN: own,
    }
    groups = [[name, *(ids[n] for n in members if n in ids)] for name, members in circuit.supernodes.items()]
    pinned = [ids[name] for name in circuit.nodes if name in circuit.roles]
    q_params = {"pinnedIds": pinned, "supernodes": groups, "linkType": "both", "clickedId": "", "sg_pos": ""}
    return AttributionGraph(metadata, q_params, nodes, links)


def circuit_of(graph: AttributionGraph) -> Circuit:
    """The circuit that `graph_of` wrote; raises `ArtefactError` for graphs of other units (features of transcoders)."""
    own = graph.metadata.get(OWN)
    if not own:
        raise ArtefactError(
            f"{graph} was not made from a circuit of heads and MLPs; its nodes are of type "
            f"{', '.join(sorted({str(n.get('feature_type')) for n in graph.nodes}))}"
        )
    with reading(str(graph), "circuit in an attribution graph"):
        return _circuit_of(graph, own)


def _circuit_of(graph: AttributionGraph, own: Json) -> Circuit:
    space = EdgeSpace(**own["space"])
    mask, scores = torch.zeros_like(space.mask), torch.zeros(space.n_writers, space.n_readers, dtype=torch.float64)
    for link in graph.links:
        source, target = own["names"][link["source"]], own["names"][link["target"]]
        cell = space.edge_index(f"{source}->{_reader(space, target, link['kind'])}")
        mask[cell] = True
        scores[cell] += float(link["weight"])
    groups = {name: tuple(members) for name, members in own["supernodes"].items()}
    return Circuit(
        space, mask, scores.float(), own["n_requested"], own["roles"], own["provenance"], own["notes"], groups
    )


def _place(space: EdgeSpace, name: str) -> tuple[int, int]:
    """Layer and index within it: heads first, then the MLP."""
    place = parse_node(name)
    assert place.layer is not None
    return place.layer, space.n_heads if place.head is None else place.head


def _node_id(space: EdgeSpace, name: str, pos: int, answer: int) -> str:
    if name == INPUT:
        return f"E_0_{pos}"
    if name == LOGITS:
        return f"{space.n_layers + 1}_{answer}_{pos}"
    layer, index = _place(space, name)
    return f"{layer}_{index}_{pos}"


def _node(space: EdgeSpace, name: str, identifier: str, pos: int, role: str) -> Json:
    kinds = {INPUT: "embedding", LOGITS: "logit"}
    layer, index, _ = identifier.split("_")
    return {
        "node_id": identifier,
        "jsNodeId": identifier.replace("_", "-"),
        "feature": int(index),
        "layer": layer,
        "ctx_idx": pos,
        "reverse_ctx_idx": 0,
        "run_idx": 0,
        "feature_type": kinds.get(name, "attention head" if name.startswith("a") else "mlp"),
        "token_prob": 0.0,
        "is_target_logit": name == LOGITS,
        "clerp": f"{name}: {role}" if role else name,
    }


def _targets(space: EdgeSpace, column: int, nodes: set[str]) -> tuple[str, list[str]]:
    """Kind of a reader (q, k, v or empty) and the nodes it belongs to: the circuit's heads of its group."""
    reader = space.readers[column]
    if reader == LOGITS:
        return "", [LOGITS]
    owners = [space.writers[i] for i in space.feeds[:, column].nonzero().flatten().tolist()]
    return (reader[-2] if reader.endswith(">") else ""), [name for name in owners if name in nodes]


def _reader(space: EdgeSpace, node: str, kind: str) -> str:
    if not kind:
        return node
    layer, head = _place(space, node)
    group = 1 if kind == "q" else space.n_heads // space.n_kv_heads
    return head_name(layer, head // group, kind)
