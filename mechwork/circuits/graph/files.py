"""Circuits and scores in other tools' files. The only place where signs are converted.

*MIB / EAP-IG JSON* (`write_mib`, `read_mib`):
``{"cfg": ..., "nodes": {name: {"in_graph"}}, "edges": {name: {"score", "in_graph"}}}``. Their code computes (corrupt -
clean) . gradient of what it is given. Given the *loss* (minus the metric), as in the benchmark, a positive score helps
the metric, as ours does; given the *metric* itself, the sign is the opposite. A file does not say which, so `read_mib`
must be told, unless mechwork wrote it. Edges that are not listed have score 0 there, so files are sparse. Under
grouped-query attention they have one k and v reader per query head: a score is shared out equally and summed up again.

*Anthropic / Neuronpedia attribution graph* (`AttributionGraph`): nodes, weighted links, labels and supernodes of one
prompt, kept as they are, so that reading and writing lose nothing: see `graph_file`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...artefact import read_artefact, write_artefact
from ...errors import ArtefactError, InputError
from ...files import read_object, reading, write_json
from ...names import head_name, parse_node
from ...provenance import stable
from .circuit import WHAT, Circuit, facts_of
from .space import EdgeSpace

OWN = "mechwork"
"""The key under which our own facts travel in other tools' files."""

FORMAT = 1


def save_tensors(circuit: Circuit, path: str | Path) -> Path:
    """Write a circuit as one safetensors file: indices ``[edge, 2]`` and scores ``[edge]``, everything else in its
    header.
    """
    facts = circuit.to_json()
    tensors = {"index": circuit.mask.nonzero().to(torch.int32)}
    if circuit.scores is not None:
        every = circuit.scores.nonzero()
        tensors |= {"scored": every.to(torch.int32), "scores": circuit.scores[every[:, 0], every[:, 1]]}
    del facts["edges"]
    return write_artefact(Path(path).with_suffix(".safetensors"), WHAT, facts, tensors, version=FORMAT)


def load_tensors(path: str | Path) -> Circuit:
    """Read what `save_tensors` wrote: the mask and the scores of all edges, to the bit."""
    found = read_artefact(path, WHAT, version=FORMAT)
    with reading(path, WHAT):
        space = EdgeSpace(**found.facts["space"])
        index = cells_of(space, found.tensors["index"])
        mask = torch.zeros(space.n_writers, space.n_readers, dtype=torch.bool)
        mask[index[:, 0], index[:, 1]] = True
        scores = None
        if ("scores" in found.tensors) != ("scored" in found.tensors):
            raise ArtefactError("scores go with the edges they belong to; the file has one of the two")
        if "scores" in found.tensors:
            values, every = found.tensors["scores"], cells_of(space, found.tensors["scored"])
            if values.shape != (len(every),):
                shape = tuple(values.shape)
                raise ArtefactError(f"there is one score per scored edge, {len(every)} here; the file has {shape}")
            scores = torch.zeros(space.n_writers, space.n_readers, dtype=values.dtype)
            scores[every[:, 0], every[:, 1]] = values
        return Circuit(space, mask, scores, **facts_of(found.facts))


def cells_of(space: EdgeSpace, index: Tensor) -> Int[Tensor, "edge 2"]:
    """Cells ``[edge, 2]`` of a file, as numbers of writers and readers; raises `ArtefactError` for one that is
    no edge.
    """
    whole = index.ndim == 2 and index.shape[1] == 2 and index.dtype in (torch.int32, torch.int64)
    cells = index.long() if whole else torch.zeros(0, 2, dtype=torch.long)
    ends = torch.tensor([space.n_writers, space.n_readers])
    inside = whole and bool(((cells >= 0) & (cells < ends)).all())
    if not inside or not bool(space.mask[cells[:, 0], cells[:, 1]].all()):
        raise ArtefactError(
            f"edges are pairs of a writer and a reader that {space} joins; the file has others, {tuple(index.shape)}"
        )
    return cells


# ---- MIB / EAP-IG ----------------------------------------------------------------------------------------------------


def write_mib(circuit: Circuit, path: str | Path, *, d_model: int, convention: str = "loss") -> Path:
    """Write a circuit with its scores for the EAP-IG package and the MIB leaderboard; see the module for signs and
    groups.

    Scores of all edges are written when the circuit has them, so that the benchmark can choose its own sizes.
    """
    sign = _sign(convention)
    if circuit.space.split_input:
        raise InputError("files of EAP-IG know one input node; score without split_input to write one")
    if circuit.space.n_experts:
        raise InputError("files of EAP-IG know MLPs as one node; score without split_experts to write one")
    space, nodes = circuit.space, set(circuit.nodes)
    before = circuit.extras.get("mib", {})
    cfg = {
        **before.get("cfg", {}),
        "n_layers": space.n_layers,
        "n_heads": space.n_heads,
        "parallel_attn_mlp": space.parallel,
        "d_model": d_model,
    }
    listed = {
        name: {"in_graph": name in nodes or name == "logits", **before.get("nodes", {}).get(name, {})}
        for name in (*space.writers, "logits")
    }
    scores = torch.zeros(circuit.mask.shape) if circuit.scores is None else circuit.scores
    edges: dict[str, Any] = {}
    for row, column in (circuit.mask | (scores != 0)).nonzero().tolist():
        targets = _their_readers(space, space.readers[column])
        score = float(f"{sign * float(scores[row, column]) / len(targets):.9g}")
        for target in targets:
            edges[f"{space.writers[row]}->{target}"] = {"score": score, "in_graph": bool(circuit.mask[row, column])}
    own = {
        "format": FORMAT,
        "convention": convention,
        "scored": circuit.scores is not None,
        "space": space.to_dict(),
        "n_requested": circuit.n_requested,
        "roles": circuit.roles,
        "notes": circuit.notes,
        "supernodes": {name: list(members) for name, members in circuit.supernodes.items()},
        "provenance": stable(circuit.provenance),
    }
    return write_json(path, {"cfg": cfg, "nodes": listed, "edges": edges, OWN: own}, indent=None)


def read_mib(path: str | Path, *, convention: str | None = None, n_kv_heads: int | None = None) -> Circuit:
    """Read a circuit in EAP-IG's JSON. `convention` says what its scores are gradients of; files that mechwork wrote
    know.

    `n_kv_heads`: of a model with grouped-query attention, whose query heads' k and v edges are then summed by group.
    Node scores and neurons are kept in `extras` and written again by `write_mib`.

    Raises `ArtefactError` for another kind of file; `InputError` without a convention or with one that contradicts the
    file.
    """
    data = read_object(path, ("cfg", "nodes", "edges"))
    own = data.get(OWN, {})
    if not isinstance(own, dict):
        raise ArtefactError(f"{path} has facts of mechwork that are no object: {own!r:.80}. Leave {OWN!r} out of it")
    said = own.get("convention")
    if convention is None and said is None:
        raise InputError(
            f"{path} does not say what its scores are gradients of: pass convention='loss' (positive helps; the MIB "
            "benchmark) "
            "or convention='metric' (positive hurts)"
        )
    if convention is not None and said is not None and convention != said:
        raise InputError(f"{path} says that its scores follow convention {said!r}; got {convention!r}. Leave it out.")
    with reading(path, "circuit of EAP-IG"):
        return _circuit_of(path, data, own, _sign(convention or said), n_kv_heads)


def _circuit_of(
    path: str | Path, data: dict[str, Any], own: dict[str, Any], sign: float, n_kv_heads: int | None
) -> Circuit:
    cfg = data["cfg"]
    kv = n_kv_heads or own.get("space", {}).get("n_kv_heads") or cfg["n_heads"]
    space = EdgeSpace(
        int(cfg["n_layers"]),
        int(cfg["n_heads"]),
        int(kv),
        bool(cfg.get("parallel_attn_mlp")),
        bool(own.get("space", {}).get("attn_only")),
    )
    mask, scores = torch.zeros_like(space.mask), torch.zeros(space.n_writers, space.n_readers, dtype=torch.float64)
    writers = {name: i for i, name in enumerate(space.writers)}
    readers = {t: j for j, name in enumerate(space.readers) for t in _their_readers(space, name)}
    for name, edge in data["edges"].items():
        source, _, target = name.partition("->")
        if source not in writers or target not in readers or not bool(space.mask[writers[source], readers[target]]):
            raise ArtefactError(f"{path} has an edge {name!r} that the graph {space} has not")
        cell = writers[source], readers[target]
        mask[cell] |= bool(edge["in_graph"])
        scores[cell] += sign * float(edge.get("score") or 0.0)
    if not bool(scores.isfinite().all()):
        raise ArtefactError(f"scores must be finite; {path} has NaN or infinity. Score the edges again.")
    plain = {"in_graph"}
    nodes = {n: {k: v for k, v in d.items() if k not in plain} for n, d in data["nodes"].items() if isinstance(d, dict)}
    extras = {"mib": {"cfg": cfg, "nodes": {name: rest for name, rest in nodes.items() if rest}}}
    return Circuit(
        space,
        mask,
        scores.float() if own.get("scored", True) else None,
        own.get("n_requested"),
        own.get("roles", {}),
        own.get("provenance", {"method": "read from an EAP-IG file"}),
        own.get("notes", {}),
        {name: tuple(members) for name, members in own.get("supernodes", {}).items()},
        extras,
    )


def _sign(convention: object) -> float:
    if convention not in ("loss", "metric"):
        raise InputError(
            f"the convention is 'loss' (positive scores help) or 'metric' (positive scores hurt); got {convention!r}"
        )
    return 1.0 if convention == "loss" else -1.0


def _their_readers(space: EdgeSpace, reader: str) -> list[str]:
    """The reader's names in an ungrouped graph: one per query head of the group for k and v."""
    group = space.n_heads // space.n_kv_heads
    if not reader.endswith(("<k>", "<v>")) or group == 1:
        return [reader]
    place = parse_node(reader)
    return [head_name(place.layer or 0, place.index[0] * group + i, place.side) for i in range(group)]
