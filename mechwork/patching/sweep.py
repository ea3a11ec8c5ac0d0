"""The plan of a sweep: which cells, in which direction, with which tricks, in which chunks. Pure data, no model.

A *cell* is one patched run: a kind of site, a layer, a place (one position, one span or all positions), and a head or a
set of neurons where the kind has them. A *grid* is the cells of one kind, in the order of its result's axes. A `Sweep`
can be compared, hashed and written as JSON, which is how a checkpoint knows whether it belongs to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from ..errors import InputError
from ..provenance import hash_json

CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 2 * 2**30}
"""What the patched runs of one chunk take at most. On a CPU larger chunks are slower: tensors beyond 32 MB are fetched
from the system anew each time (measured: 25 % from 16 to 28 cells of 8 x 15 tokens at d_mlp 3072).
"""

SHARES = 16
"""A chunk takes at most this part of the block's work, so that workers have something to share."""

LEAST_TOKENS = {"cpu": 2**10, "cuda": 2**14}
"""But chunks of fewer tokens are not cut further: the weights are read anew for each."""


@dataclass(frozen=True)
class Tricks:
    """What an exact sweep saves. Every trick leaves the effects what they are, up to rounding.

    `suffix`: run only the columns from the first changed position on, over the host's cached keys and values, and all
    cells of a chunk together layer by layer. `readout`: compute only the logits that the metrics read: the last
    token's, and of those only the answers'. `unchanged`: do not run cells that provably change nothing (equal values; a
    last layer's write that nobody reads). Without `suffix` and `readout` the numbers are TransformerLens' own, bit for
    bit; with them they differ by rounding.
    """

    suffix: bool = True
    readout: bool = True
    unchanged: bool = True


@dataclass(frozen=True)
class Cell:
    """One patched run: flat `index` in grid number `grid`; `place` indexes the position masks of the grid."""

    grid: int
    index: int
    layer: int
    place: int
    head: int | None = None
    neurons: tuple[int, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The cells of one kind of site. `labels` are (axis, names) in the result's order, layers and places in the cells'.

    `neurons`: (layer, neurons patched together) instead of the layer axis.
    """

    kind: str
    positions: str
    layers: tuple[int, ...]
    n_places: int
    heads: tuple[int, ...]
    neurons: tuple[tuple[int, tuple[int, ...]], ...]
    labels: tuple[tuple[str, tuple[str, ...]], ...]

    def __post_init__(self) -> None:
        n = (len(self.neurons) or len(self.layers)) * self.n_places * (len(self.heads) or 1)
        if n != self.n_cells:
            raise InputError(f"the axes of {self.kind!r} name {self.n_cells} cells, and there are {n}")

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(axis for axis, _ in self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(names) for _, names in self.labels)

    @property
    def n_cells(self) -> int:
        return prod(self.shape)

    def cells(self, number: int) -> Iterator[Cell]:
        """The cells in the order of the flattened result; `number` is the grid's own in its sweep."""
        rows: Sequence[tuple[int, tuple[int, ...]]] = self.neurons or [(layer, ()) for layer in self.layers]
        heads: Sequence[int | None] = self.heads or (None,)
        index = 0
        for layer, neurons in rows:
            for place in range(self.n_places):
                for head in heads:
                    yield Cell(number, index, layer, place, head, neurons)
                    index += 1


@dataclass(frozen=True)
class Sweep:
    """A whole sweep. `only`: indexes of the cells to run, per grid (empty: all of them).

    `pairs_per_block` pairs are run at a time, and a chunk of patched runs takes about `chunk_bytes`.
    """

    grids: tuple[Grid, ...]
    direction: str
    metrics: tuple[str, ...]
    tricks: Tricks = Tricks()
    chunk_bytes: int = CHUNK_BYTES["cpu"]
    pairs_per_block: int = 0
    only: tuple[tuple[int, ...], ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """Every cell that is to be measured."""
        wanted = [set(only) for only in self.only] or [None] * len(self.grids)
        return [
            cell
            for number, (grid, only) in enumerate(zip(self.grids, wanted, strict=True))
            for cell in grid.cells(number)
            if only is None or cell.index in only
        ]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(grid.kind for grid in self.grids)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sweep:
        """The plan that `to_json` told."""
        facts = {name: _tuples(value) for name, value in data.items()}
        grids = tuple(Grid(**{name: _tuples(value) for name, value in grid.items()}) for grid in facts["grids"])
        return cls(**{**facts, "grids": grids, "tricks": Tricks(**facts["tricks"])})

    def fingerprint(self) -> str:
        """sha256 of the plan."""
        return hash_json(self.to_json())


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
