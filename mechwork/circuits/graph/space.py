"""The computational graph as tables: writers, readers, and which writer each reader can see.

Writers write to the residual stream: ``input`` (the stream entering block 0; with `split_input` in its two parts,
``embed`` of the tokens and ``pos_embed`` of the positions), heads ``a3.h1``, MLPs ``m3``. Readers
read from it: ``a3.h1<q>``, ``a3.h0<k>``, ``a3.h0<v>`` (under grouped-query attention k and v have one reader per
key/value head), ``m3``, ``logits``. With `n_experts` every expert of a mixture writes for itself (``m3.e1``), and all
read what their router reads, ``m3``. Writers are ordered as they run, so what a reader sees is a prefix of the writers,
and the whole edge set is one boolean ``[writer, reader]`` mask. Names are made only when somebody asks.

    >>> space = EdgeSpace(n_layers=2, n_heads=2, n_kv_heads=1)
    >>> space.writers
    ('input', 'a0.h0', 'a0.h1', 'm0', 'a1.h0', 'a1.h1', 'm1')
    >>> space.n_edges
    36
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...errors import InputError, UnknownNameError
from ...models.anatomy import ModelAnatomy
from ...names import edge_name, expert_name, head_name, mlp_name, split_edge
from ...shapes import EdgeMask

INPUT, LOGITS = "input", "logits"
INPUT_PARTS = ("embed", "pos_embed")
"""The writers of a split input: token embedding, and what positions add to it."""


@dataclass(frozen=True)
class EdgeSpace:
    """The edge space of a decoder-only transformer with `n_layers` blocks; `parallel` blocks feed attention and MLP
    alike; `attn_only` blocks have no MLP.

    `split_input`: tokens and positions are writers apart, in models that add an embedding of positions to the stream.
    `sources`: writers that differ between the two sides by themselves, beside the input: those that carry the writes
    of steered pairs. Paths begin there too.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False
    attn_only: bool = False
    split_input: bool = False
    sources: Sequence[Any] = ()
    n_experts: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        if self.n_layers < 1 or self.n_heads < 1 or self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            raise InputError(f"an edge space needs layers, and heads in whole groups; got {asdict(self)}")

    @classmethod
    def of(
        cls,
        anatomy: ModelAnatomy,
        *,
        split_input: bool = False,
        split_experts: bool = False,
        sources: Sequence[str] = (),
    ) -> EdgeSpace:
        """The edge space of a model."""
        sizes = anatomy.n_layers, anatomy.n_heads, anatomy.n_kv_heads
        n_experts = (anatomy.n_experts or 0) if split_experts else 0
        return cls(*sizes, anatomy.parallel, anatomy.attn_only, split_input, sources, n_experts)

    @property
    def splits(self) -> dict[str, bool]:
        """What of the graph is split finer than usual: arguments of `edge_space`, and settings of units of work."""
        return {"split_input": self.split_input, "split_experts": self.n_experts > 0}

    # ---- writers -------------------------------------------------------------------------------------------------

    @property
    def mlps(self) -> range:
        """Layers that have an MLP: all or none."""
        return range(0 if self.attn_only else self.n_layers)

    @property
    def mlp_writers_per_layer(self) -> int:
        """Rows of a layer's MLP: one, none, or one per expert."""
        return 0 if self.attn_only else max(1, self.n_experts)

    @property
    def writers_per_layer(self) -> int:
        return self.n_heads + self.mlp_writers_per_layer

    @property
    def n_inputs(self) -> int:
        """How many rows the input has: the first ones."""
        return 2 if self.split_input else 1

    @property
    def n_writers(self) -> int:
        return self.n_inputs + self.n_layers * self.writers_per_layer

    def head_writers(self, layer: int) -> slice:
        """Rows of a layer's heads."""
        start = self.n_inputs + layer * self.writers_per_layer
        return slice(start, start + self.n_heads)

    def mlp_writers(self, layer: int) -> slice:
        """Rows of the MLP of one of the layers `mlps`: one, or one per expert."""
        start = self.head_writers(layer).stop
        return slice(start, start + self.mlp_writers_per_layer)

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Names of the rows."""
        names = list(INPUT_PARTS) if self.split_input else [INPUT]
        for layer in range(self.n_layers):
            names += [head_name(layer, h) for h in range(self.n_heads)]
            if self.n_experts:
                names += [expert_name(layer, e) for e in range(self.n_experts)]
            else:
                names += [mlp_name(layer)] * (not self.attn_only)
        return tuple(names)

    @cached_property
    def begins(self) -> Bool[Tensor, " writer"]:
        """Writers at which paths begin: the input, and the `sources`."""
        begins = torch.tensor([name in self.sources for name in self.writers])
        begins[: self.n_inputs] = True
        return begins

    def ends(self) -> dict[str, list[str]]:
        """Names of both ends of every edge, row by row: the first columns of any table of edges."""
        index = self.mask.nonzero()
        return {
            "source": [self.writers[i] for i in index[:, 0].tolist()],
            "target": [self.readers[j] for j in index[:, 1].tolist()],
        }

    # ---- readers -------------------------------------------------------------------------------------------------

    @property
    def readers_per_layer(self) -> int:
        return self.n_heads + 2 * self.n_kv_heads + (not self.attn_only)

    @property
    def n_readers(self) -> int:
        return self.n_layers * self.readers_per_layer + 1

    def attention_readers(self, layer: int, kind: str) -> slice:
        """Columns of a layer's q, k or v readers."""
        start = layer * self.readers_per_layer
        if kind == "q":
            return slice(start, start + self.n_heads)
        start += self.n_heads + (self.n_kv_heads if kind == "v" else 0)
        return slice(start, start + self.n_kv_heads)

    def mlp_reader(self, layer: int) -> int:
        """Column of the MLP input of one of the layers `mlps`."""
        return (layer + 1) * self.readers_per_layer - 1

    @property
    def logits_reader(self) -> int:
        """Column of the unembedding's input."""
        return self.n_readers - 1

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of the columns."""
        names: list[str] = []
        for layer in range(self.n_layers):
            names += [head_name(layer, h, "q") for h in range(self.n_heads)]
            names += [head_name(layer, h, kind) for kind in "kv" for h in range(self.n_kv_heads)]
            names += [mlp_name(layer)] * (not self.attn_only)
        return (*names, LOGITS)

    # ---- edges ---------------------------------------------------------------------------------------------------

    def n_seen_by_attention(self, layer: int) -> int:
        """How many writers come before a layer's attention."""
        return self.n_inputs + layer * self.writers_per_layer

    def n_seen_by_mlp(self, layer: int) -> int:
        """How many writers come before a layer's MLP."""
        return self.n_seen_by_attention(layer) + (0 if self.parallel else self.n_heads)

    @cached_property
    def n_seen(self) -> Int[Tensor, " reader"]:
        """For every reader the number of writers (a prefix) that it can see."""
        seen: list[int] = []
        for layer in range(self.n_layers):
            seen += [self.n_seen_by_attention(layer)] * (self.n_heads + 2 * self.n_kv_heads)
            seen += [self.n_seen_by_mlp(layer)] * (not self.attn_only)
        return torch.tensor([*seen, self.n_writers])

    @cached_property
    def mask(self) -> EdgeMask:
        """Which cells are edges."""
        return torch.arange(self.n_writers)[:, None] < self.n_seen[None, :]

    @property
    def n_edges(self) -> int:
        return int(self.n_seen.sum())

    @cached_property
    def feeds(self) -> EdgeMask:
        """``[writer, reader]``: whether the reader is an input of the component that writes (its q, k, v or
        MLP input).
        """
        feeds = torch.zeros(self.n_writers, self.n_readers, dtype=torch.bool)
        group = self.n_heads // self.n_kv_heads
        for layer in range(self.n_layers):
            for head in range(self.n_heads):
                row = self.head_writers(layer).start + head
                feeds[row, self.attention_readers(layer, "q").start + head] = True
                for kind in "kv":
                    feeds[row, self.attention_readers(layer, kind).start + head // group] = True
        for layer in self.mlps:
            feeds[self.mlp_writers(layer), self.mlp_reader(layer)] = True
        return feeds

    def layer_of_writer(self, row: int) -> int:
        """Layer of a writer; -1 for the input."""
        return (row - self.n_inputs) // self.writers_per_layer if row >= self.n_inputs else -1

    def edge_name(self, row: int, column: int) -> str:
        """``"a5.h1->a7.h9<q>"``."""
        return edge_name(self.writers[row], self.readers[column])

    def edge_index(self, name: str) -> tuple[int, int]:
        """Row and column of a named edge; raises `UnknownNameError` or, for two nodes that are not connected,
        `InputError`.
        """
        source, target = split_edge(name)
        if source not in self.writers:
            raise UnknownNameError("writer", source, self.writers)
        if target not in self.readers:
            raise UnknownNameError("reader", target, self.readers)
        row, column = self.writers.index(source), self.readers.index(target)
        if not bool(self.mask[row, column]):
            raise InputError(f"{target} runs before {source} has written, so there is no edge {name}")
        return row, column

    def to_dict(self) -> dict[str, Any]:
        """As JSON; a whole input, which is the rule, is left unsaid."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value or name not in ("split_input", "sources", "n_experts")
        }
