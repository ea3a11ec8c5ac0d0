"""Names of writers and readers, as in edges of circuits: ``input``, ``a5.h1``, ``m3``; ``a7.h9<q>``, ``m8``,
``logits``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..models.anatomy import ModelAnatomy
from ..names import Place, parse_node

Group = tuple[str, ...]
"""Nodes taken together."""


@dataclass(frozen=True)
class Writer:
    """What adds to the stream. `layer` -1 is the input; `head` None an MLP (or the input)."""

    layer: int
    head: int | None = None

    def precedes(self, reader: Reader, *, parallel: bool) -> bool:
        """Whether the write is in the stream that the reader reads."""
        if reader.kind == "mlp" and self.layer == reader.layer:
            return self.head is not None and not parallel
        return self.layer < reader.layer


@dataclass(frozen=True)
class Reader:
    """What reads the stream: `kind` is q, k, v, mlp or logits; `head` counts key/value heads for k and v."""

    kind: str
    layer: int
    head: int = 0


def parse_writer(anatomy: ModelAnatomy, name: str) -> Writer:
    """The writer called `name`; raises `InputError` for anything that this model does not have."""
    if name == "input":
        return Writer(-1)
    place = _node(name)
    if place is not None and place.layer is not None and place.layer < anatomy.n_layers and not place.side:
        writer = Writer(place.layer, place.head)
        if (writer.head or 0) < anatomy.n_heads:
            return writer
    raise InputError(
        f"writers of this model are 'input', 'a0.h0' to 'a{anatomy.n_layers - 1}.h{anatomy.n_heads - 1}' and 'm0' to "
        f"'m{anatomy.n_layers - 1}'; got {name!r}"
    )


def parse_reader(anatomy: ModelAnatomy, name: str) -> Reader:
    """The reader called `name`; raises `InputError` for anything that this model does not have."""
    if name == "logits":
        return Reader("logits", anatomy.n_layers)
    place = _node(name)
    if place is not None and place.layer is not None and place.layer < anatomy.n_layers:
        if place.head is None:
            return Reader("mlp", place.layer)
        if place.side and place.head < (anatomy.n_heads if place.side == "q" else anatomy.n_kv_heads):
            return Reader(place.side, place.layer, place.head)
    kv = anatomy.n_kv_heads - 1
    raise InputError(
        f"readers of this model are 'a0.h0<q>' to 'a{anatomy.n_layers - 1}.h{anatomy.n_heads - 1}<q>', '<k>' and "
        "'<v>' of "
        f"key/value heads 0 to {kv}, 'm0' to 'm{anatomy.n_layers - 1}' and 'logits'; got {name!r}"
    )


def _node(name: str) -> Place | None:
    """The node, or None for a word that is none (the message then says what this model has)."""
    try:
        place = parse_node(name)
    except InputError:
        return None
    return None if place.at else place


def as_groups(nodes: Sequence[str | Sequence[str]], what: str) -> tuple[Group, ...]:
    """Each entry as a group: a name alone, or several names taken together."""
    if isinstance(nodes, str) or not nodes:
        raise InputError(f"{what} is a list of names, or of groups of names; got {nodes!r}")
    groups = tuple((entry,) if isinstance(entry, str) else tuple(entry) for entry in nodes)
    if not all(groups):
        raise InputError(f"every group of {what} names at least one node; got {nodes!r}")
    return groups
