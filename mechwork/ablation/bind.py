"""From a spec and its tables to writes: what each forward on particular prompts puts where."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import InputError
from ..interventions import (
    Along,
    ByCell,
    ByPosition,
    Chosen,
    Constant,
    Entries,
    ExpertWrites,
    Noise,
    OnEdges,
    Positional,
    Replacement,
    Value,
    Write,
    Zero,
    intervene,
    intervene_experts,
)
from ..models.anatomy import device_of, read_anatomy
from ..runs.record import align_donor, record_run
from ..sites import Site
from ..tasks.pairs import ABSENT, PromptPairs
from .record import cells_of, positions_mask, sites_needed, table_key, values_in
from .spec import BY_PROMPT, AblationSpec
from .targets import Target

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Bound:
    """An ablation ready to run. `values[table]` replaces a whole activation; `writes` and `experts` replace the targets
    alone.
    """

    spec: AblationSpec
    values: dict[str, Replacement | Positional]
    where: Bool[Tensor, "batch pos"] | None
    writes: list[Write] = field(default_factory=list)
    experts: ExpertWrites = field(default_factory=lambda: ExpertWrites({}))

    @contextmanager
    def installed(self, model: TransformerBridge) -> Iterator[None]:
        """Inside, the model runs with these writes."""
        with ExitStack() as stack:
            stack.enter_context(intervene(model, self.writes))
            if self.experts.by_layer:
                stack.enter_context(intervene_experts(model, self.experts))
            yield

    @property
    def never_routed(self) -> tuple[str, ...]:
        """Ablated experts to which no token went in the forwards so far: ablating them changed nothing."""
        return tuple(f"m{layer}.e{expert}" for (layer, expert), n in self.experts.routed.items() if n == 0)


def bind(
    model: TransformerBridge,
    spec: AblationSpec,
    tables: Mapping[str, Tensor],
    pairs: PromptPairs | None,
    first_row: int = 0,
) -> Bound:
    """See `Ablation.bind`."""
    if pairs is None and spec.kind in BY_PROMPT:
        raise InputError(f"{spec.kind!r} ablation belongs to particular prompts: pass the pairs that are run")
    values = Values(model, spec, tables, pairs, first_row).all()
    width = 0 if pairs is None else pairs.clean_tokens.shape[1]
    where = positions_mask(spec, pairs, width)
    writes = _writes(model, spec, values, where, pairs, width)
    experts: dict[int, dict[int, Replacement | Positional]] = {}
    for target in spec.parsed:
        if target.kind == "expert":
            put = values[str(target)]
            experts.setdefault(target.layer, {})[target.index[0]] = put if where is None else Chosen(put, where)
    return Bound(spec, values, where, writes, ExpertWrites(experts))


def _writes(
    model: TransformerBridge,
    spec: AblationSpec,
    values: Mapping[str, Replacement | Positional],
    where: Bool[Tensor, "batch pos"] | None,
    pairs: PromptPairs | None,
    width: int,
) -> list[Write]:
    """One write per site that holds targets; edges and directions have their own."""
    causal, device = read_anatomy(model).causal, device_of(model)
    entries: dict[tuple[str, int], list[int] | None] = {}
    writes: list[Write] = []
    for target in spec.parsed:
        if target.kind == "edge":
            put = OnEdges(
                _cells(target, values[str(target)], pairs, width, causal=causal), values[str(target)], spec.renormalise
            )
            writes.append(Write(Site("pattern", target.layer, target.index[0]), put))
        elif target.kind == "direction":
            put = Along(spec.directions[target.name].to(device), values[str(target)])
            writes.append(Write(target.place, put if where is None else Chosen(put, where)))
        elif target.kind != "expert":
            for kind, index in target.parts:
                known = entries.setdefault((kind, target.layer), [] if index is not None else None)
                if known is not None:
                    known.extend(index or ())
    for (kind, layer), index in entries.items():
        put = values[f"{kind}.{layer}"]
        put = put if where is None else Chosen(put, where)
        put = put if index is None else Entries(put, tuple(index))
        writes.append(Write(Site(kind, layer), put))
    return writes


@dataclass(frozen=True, eq=False)
class Values:
    """What replaces each activation that a spec touches, on the clean prompts of `pairs`."""

    model: TransformerBridge
    spec: AblationSpec
    tables: Mapping[str, Tensor]
    pairs: PromptPairs | None
    first_row: int

    def all(self) -> dict[str, Replacement | Positional]:
        """Per table."""
        keys = list(dict.fromkeys(key for target in self.spec.parsed for key in _keys(target)))
        match self.spec.kind:
            case "zero":
                return dict.fromkeys(keys, Zero())
            case "constant":
                return dict.fromkeys(keys, Constant(self.spec.value))
            case "mean" | "optimal":
                return {key: Value(self.tables[key]) for key in keys}
            case "mean_by_position":
                return {key: _by_place(key, self.tables[key][None]) for key in keys}
            case "noise":
                scale = self.spec.strength
                return {key: Noise(scale * self.tables[key], self._seed(key), self.first_row) for key in keys}
            case "mean_by_span":
                return {key: self._by_span(key) for key in keys}
            case "resample":
                rows = self._rows()
                return {key: _by_place(key, self._trimmed(self.tables[key][rows], key), self._real()) for key in keys}
            case _:
                return self._corrupt()

    def _seed(self, key: str) -> int:
        return (self.spec.seed << 32) + zlib.crc32(key.encode())

    def _pairs(self) -> PromptPairs:
        if self.pairs is None:
            raise InputError(f"{self.spec.kind!r} ablation belongs to particular prompts: pass the pairs that are run")
        return self.pairs

    def _real(self) -> Bool[Tensor, "batch pos"]:
        return self._pairs().mask.cpu()

    def _trimmed(self, rows: Tensor, key: str) -> Tensor:
        width = self._pairs().clean_tokens.shape[1]
        rows = (
            rows[:, :width]
            if rows.shape[1] >= width
            else torch.nn.functional.pad(rows, [0, 0] * (rows.ndim - 2) + [0, width - rows.shape[1]])
        )
        return rows[:, :, :width] if "[" in key else rows

    def _by_span(self, key: str) -> ByPosition:
        spans = self._pairs().spans
        names = {name.split("|", 1)[1] for name in self.tables if name.startswith(f"{key}|")}
        if missing := sorted(name for name in spans if name not in names and bool(spans[name].any())):
            raise InputError(
                f"the reference has no span {missing[0]!r}; it has {', '.join(sorted(names))}. Fit to prompts of this "
                "task."
            )
        batch, width = self._pairs().clean_tokens.shape
        shape = next(table for name, table in self.tables.items() if name.startswith(f"{key}|")).shape
        value = torch.zeros(batch, width, *shape, dtype=next(iter(self.tables.values())).dtype)
        known = torch.zeros(batch, width, dtype=torch.bool)
        for name, mask in spans.items():
            if name in names:
                value[mask.cpu()] = self.tables[f"{key}|{name}"]
                known |= mask.cpu()
        return ByPosition(value, known)

    def _rows(self) -> Int[Tensor, " batch"]:
        """The reference prompt of every row: the planned one on the reference's own prompts, one of the same length on
        others.
        """
        pairs, tokens, lengths = self._pairs(), self.tables["tokens"], self.tables["lengths"]
        rows = slice(self.first_row, self.first_row + len(pairs))
        width = pairs.clean_tokens.shape[1]
        mine = pairs.clean_tokens.cpu()
        if len(tokens[rows]) == len(pairs) and width <= tokens.shape[1] and torch.equal(tokens[rows][:, :width], mine):
            return self.tables["order"][rows]
        chosen = []
        for row, length in enumerate(pairs.lengths.tolist()):
            same = (lengths == length).nonzero().flatten()
            other = same[(tokens[same, :length] != mine[row, :length]).any(dim=1)]
            if not len(other):
                raise InputError(
                    f"resampling needs another reference prompt of {length} tokens for row {self.first_row + row}; "
                    "there is none"
                )
            generator = torch.Generator().manual_seed((self.spec.seed * 1_000_003 + self.first_row + row) % 2**63)
            chosen.append(int(other[torch.randint(len(other), (1,), generator=generator)]))
        return torch.tensor(chosen)

    def _corrupt(self) -> dict[str, Replacement | Positional]:
        if self.pairs is None:
            raise InputError("'corrupt' ablation puts in the value of the paired prompt: pass the pairs that are run")
        if any(t.kind == "edge" for t in self.spec.parsed) and not self.pairs.aligned:
            raise InputError(
                "patterns of paired prompts correspond only at equal length; pairs of this task differ. Ablate "
                "'a0.h0' instead."
            )
        pairs, order = self.pairs.to(device_of(self.model)), sites_needed(self.spec)
        run = record_run(self.model, pairs, order, corrupt=True, n_tail=1)
        index = pairs.alignment()
        edges = {str(t) for t in self.spec.parsed if t.kind == "edge"}
        found = {}
        for key, value in values_in(self.spec, run, order, pairs):
            moved = value if key in edges else align_donor(value, value, index)
            found[key] = _by_place(key, moved, index != ABSENT)
        return found


def _by_place(key: str, value: Tensor, known: Tensor | None = None) -> ByPosition | ByCell:
    """A table by position; of an attention edge by cell."""
    return ByCell(value) if "[" in key else ByPosition(value, known)


def _cells(
    target: Target, value: Replacement | Positional, pairs: PromptPairs | None, width: int, *, causal: bool
) -> Bool[Tensor, "batch query_pos key_pos"]:
    """The cells of an edge, after checking that the values put there are known."""
    cells = cells_of(target, pairs, width, causal=causal)
    if isinstance(value, ByCell):
        n = value.value.shape[-1]
        if bool(cells[:, n:].any()) or bool(cells[:, :, n:].any()):
            raise InputError(f"the reference of {target} has {n} positions; the edge names later ones")
    return cells


def _keys(target: Target) -> list[str]:
    kinds = [target.site] if target.kind == "direction" else [kind for kind, _ in target.parts]
    return [table_key(target, kind) for kind in kinds]
