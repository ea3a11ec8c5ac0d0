"""From a micro-batch of pairs to scores per pair: one estimator per kind of evidence, all with the same call.

    estimator = ESTIMATORS["coefficients"](model, task, space, method, n_positions, seed)
    rows = estimator(task[:8])                  # rows.values [batch, writer, reader], rows.baseline

An estimator sees the whole task once, when it is made: that is where data-set means come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ...models.anatomy import device_of, dtype_of
from ...models.pulse import beat
from ...runs.record import Baseline, Run
from ...tasks.task import Task
from ..graph.ablated import mean_writes
from ..graph.budget import layers_per_product
from ..graph.space import EdgeSpace
from ..graph.writers import Writes, move_run, record_writers, stream_kinds, write_differences, writer_kinds
from .exact import ExactEffects
from .flow import InformationFlow
from .methods import Method
from .points import Passes, Point, add_at, start_at
from .readers import fill_coefficients, fill_logits, reader_kinds
from .rows import Rows

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Cells = Bool[Tensor, "cell batch pos"]


@dataclass(eq=False)
class Coefficients:
    """(clean write - ablated write) . coefficient, at points of a path: every gradient and relevance method."""

    model: TransformerBridge
    task: Task
    space: EdgeSpace
    method: Method
    n_positions: int
    seed: int
    remade: bool = False

    @property
    def n_columns(self) -> int:
        """Scores per writer."""
        return self.space.n_readers

    def __post_init__(self) -> None:
        self.ablated = None if self.method.ablation == "corrupt" else self._ablated_writes()

    def __call__(self, task: Task) -> Rows:
        """Scores ``[batch, writer, reader]`` of some pairs."""
        rows = self.by_cell(task, None)
        return Rows(rows.values.squeeze(1), rows.baseline)

    def by_cell(self, task: Task, cells: Cells | None, fractions: Sequence[float] | None = None) -> Rows:
        """Scores ``[batch, cell, writer, reader]``, a cell being a set of positions of each prompt (None: all
        in one).
        """
        passes = Passes.of(
            self.model, task, self.method.rules, self.method.direction, share_prefix=self.ablated is None,
            remade=self.remade,
        )  # fmt: skip
        if cells is not None and passes.prefix is not None:
            cells = cells[:, :, passes.prefix.n :]
        if not self.method.rules.grad_drop or self.space.n_layers == 1:
            return self._one(passes, cells, fractions)
        return self._dropping(passes, cells, fractions)

    def _one(self, passes: Passes, cells: Cells | None, fractions: Sequence[float] | None) -> Rows:
        n_cells = 1 if cells is None else len(cells)
        self.total = torch.zeros(
            len(passes.task), n_cells, self.space.n_writers, self.n_columns,
            dtype=torch.promote_types(dtype_of(self.model), torch.float32), device=device_of(self.model),
        )  # fmt: skip
        if self.method.path == "activations":
            baseline = self._along_activations(passes, cells)
        else:
            baseline = self._along_inputs(passes, cells, tuple(fractions or self.method.fractions))
        total, self.total = self.total, torch.empty(0)
        return Rows(total if self.method.direction == "denoise" else -total, baseline)

    def _dropping(self, passes: Passes, cells: Cells | None, fractions: Sequence[float] | None) -> Rows:
        """GradDrop (Kramár et al. 2024): mean magnitude over backward passes that skip a layer each, with the sign of
        the sum.

        A reader inside a layer is not judged without that layer.
        """
        n_layers = self.space.n_layers
        inside = torch.full((self.space.n_readers,), -1)
        for layer in range(n_layers):
            inside[layer * self.space.readers_per_layer : (layer + 1) * self.space.readers_per_layer] = layer
        signed = size = torch.zeros(())
        ends: list[Baseline] = []
        for layer in range(n_layers):
            rows = self._one(replace(passes, drop=layer), cells, fractions)
            share = torch.where(inside < 0, 1 / n_layers, (inside != layer).double() / (n_layers - 1))
            weight = share.to(rows.values)
            ends.append(rows.baseline)
            signed = signed.to(rows.values) + weight * rows.values
            size = size.to(rows.values) + weight * rows.values.abs()
        return Rows(signed.sign() * size, ends[0])

    # ---- paths ---------------------------------------------------------------------------------------------------

    def _along_inputs(self, passes: Passes, cells: Cells | None, fractions: tuple[float, ...]) -> Baseline:
        reading, streams, writing = reader_kinds(self.space), stream_kinds(self.space), writer_kinds(self.space)
        at_host = at_donor = None
        if 0.0 in fractions:
            at_host = passes.point(reading, [*writing, *streams])
        host = at_host.run if at_host else passes.plain(writing)
        if 1.0 in fractions and self.ablated is None:
            swapped = replace(passes, pairs=passes.pairs.corrupt_as_host())
            at_donor = swapped.point(reading, [*writing, *streams])
        donor = at_donor.run if at_donor else passes.plain(writing if self.ablated is None else (), donor=True)
        baseline = self._baseline(passes, host, donor)
        donor = move_run(donor, host, passes.pairs) if self.ablated is None else donor
        start = host.layers["resid_pre"][0]
        end = donor.layers["resid_pre"][0] if self.ablated is None else self._ablated_input(start)
        n_pos = start.shape[1]
        # Where everything fits at once, writes meet the average of the coefficients.
        mean = self._no_coefficients(start) if len(fractions) > 1 and self.n_positions >= n_pos else None
        for fraction in fractions:
            ready = at_host if fraction == 0.0 else at_donor if fraction == 1.0 else None
            put = [] if ready else [start_at(start + fraction * (end - start))]
            point = ready or passes.point(reading, streams, put, fraction if self.ablated is None else 0.0)
            if mean is not None:
                self._average(point, mean, 1 / len(fractions))
                continue
            for chunk, writes in self._differences(donor, host):
                self._add(point, chunk, writes, cells, 1 / len(fractions))
        if mean is not None:
            for chunk, writes in self._differences(donor, host):
                self._multiply_all(mean, chunk, writes, cells)
        return baseline

    def _along_activations(self, passes: Passes, cells: Cells | None) -> Baseline:
        """For the heads of a layer, or an MLP, or the input: gradients while that component alone moves."""
        kinds = (*writer_kinds(self.space), "attn_out")
        host, donor = passes.plain(kinds), passes.plain(kinds if self.ablated is None else (), donor=True)
        steps = [(k + 0.5) / self.method.ig_steps for k in range(self.method.ig_steps)]
        for chunk, writes in self._differences(donor, host, whole=True):
            for rows, kind, layer in self._components():
                change = writes[rows].sum(dim=0).to(host.layers["resid_pre"][0])
                for fraction in steps:
                    if kind == "resid_pre":
                        put = start_at(host.layers["resid_pre"][0] + fraction * change)
                    else:
                        put = add_at(kind, layer, fraction * change)
                    point = passes.point(reader_kinds(self.space), stream_kinds(self.space), [put])
                    self._add(point, chunk, writes, cells, 1 / len(steps), rows)
        return self._baseline(passes, host, donor)

    def _components(self) -> Iterator[tuple[slice, str, int]]:
        for row in range(self.space.n_inputs):
            yield slice(row, row + 1), "resid_pre", 0
        for layer in range(self.space.n_layers):
            yield self.space.head_writers(layer), "attn_out", layer
            if self.space.attn_only:
                continue
            yield self.space.mlp_writers(layer), "mlp_out", layer

    # ---- products ------------------------------------------------------------------------------------------------

    def _differences(self, donor: Run, host: Run, *, whole: bool = False) -> Iterator[tuple[slice, Writes]]:
        """Donor minus host writes, some positions at a time."""
        n_pos = host.layers["resid_pre"][0].shape[1]
        step = n_pos if whole else self.n_positions
        for first in range(0, n_pos, step):
            chunk = slice(first, min(first + step, n_pos))
            yield chunk, self._difference(donor, host, chunk)

    def _difference(self, donor: Run, host: Run, chunk: slice) -> Writes:
        if self.ablated is None:
            return write_differences(self.model, self.space, donor, host, chunk)
        constant = self.ablated if self.ablated.shape[2] == 1 else self.ablated[:, :, chunk]
        return constant - record_writers(self.model, self.space, host, chunk)

    def _groups(self) -> Iterator[tuple[range, slice]]:
        """Layers whose readers meet the writes in one product, and their columns; the last group has the logits too."""
        step, per_layer = layers_per_product(self.space), self.space.readers_per_layer
        for first in range(0, self.space.n_layers, step):
            layers = range(first, min(first + step, self.space.n_layers))
            last = layers.stop * per_layer + (layers.stop == self.space.n_layers)
            yield layers, slice(first * per_layer, last)

    def _add(
        self,
        point: Point,
        chunk: slice,
        writes: Float[Tensor, "writer batch chunk d_model"],
        cells: Cells | None,
        weight: float,
        rows: slice | None = None,
    ) -> None:
        """Adds weight x writes . coefficients; `rows` limits the writers (activation paths)."""
        for layers, columns in self._groups():
            beat()
            if rows is not None and int(self.space.n_seen[columns].max()) <= rows.start:
                continue
            coefficients = writes.new_empty(columns.stop - columns.start, *writes.shape[1:])
            self._fill(point, layers, coefficients, chunk)
            self._multiply(coefficients, columns, chunk, writes, cells, weight, rows)

    def _fill(self, point: Point, layers: range, out: Tensor, chunk: slice) -> None:
        """Writes the coefficients of the readers of some layers (and of the logits after the last) into `out`."""
        per_layer = self.space.readers_per_layer
        for i, layer in enumerate(layers):
            fill_coefficients(self.model, self.space, point, layer, out[i * per_layer : (i + 1) * per_layer], chunk)
        if layers.stop == self.space.n_layers:
            fill_logits(point, out[-1], chunk)

    def _no_coefficients(self, like: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "reader batch pos d_model"]:
        return torch.zeros(self.space.n_readers, *like.shape, dtype=self.total.dtype, device=like.device)

    def _average(self, point: Point, mean: Float[Tensor, "reader batch pos d_model"], weight: float) -> None:
        """Adds weight x the coefficients of every reader."""
        for layers, columns in self._groups():
            beat()
            coefficients = mean.new_empty(columns.stop - columns.start, *mean.shape[1:])
            self._fill(point, layers, coefficients, slice(None))
            mean[columns].add_(coefficients, alpha=weight)

    def _multiply_all(self, mean: Tensor, chunk: slice, writes: Tensor, cells: Cells | None) -> None:
        for _, columns in self._groups():
            beat()
            self._multiply(mean[columns][:, :, chunk], columns, chunk, writes, cells, 1.0)

    def _multiply(
        self,
        coefficients: Float[Tensor, "reader batch chunk d_model"],
        columns: slice,
        chunk: slice,
        writes: Float[Tensor, "writer batch chunk d_model"],
        cells: Cells | None,
        weight: float,
        rows: slice | None = None,
    ) -> None:
        """One product for many readers; what some of them cannot see is multiplied too, and left out of the sum."""
        n_seen = int(self.space.n_seen[columns].max())
        first, last = (0, n_seen) if rows is None else (rows.start, min(rows.stop, n_seen))
        a, c = writes[first:last], coefficients
        unseen = ~self.space.mask[first:last, columns].to(writes.device)
        if cells is None:
            product = torch.bmm(
                rearrange(a, "writer batch pos d_model -> batch writer (pos d_model)"),
                rearrange(c, "reader batch pos d_model -> batch (pos d_model) reader"),
            )
            self.total[:, 0, first:last, columns].add_(product.masked_fill_(unseen, 0.0), alpha=weight)
        else:
            each = torch.bmm(
                rearrange(a, "writer batch pos d_model -> (batch pos) writer d_model"),
                rearrange(c, "reader batch pos d_model -> (batch pos) d_model reader"),
            )
            each = rearrange(each, "(batch pos) writer reader -> batch pos writer reader", batch=a.shape[1])
            summed = torch.einsum("bpwr,cbp->bcwr", each, cells[:, :, chunk].to(each))
            self.total[:, :, first:last, columns].add_(summed.masked_fill_(unseen, 0.0), alpha=weight)

    def _ablated_input(self, like: Tensor) -> Tensor:
        assert self.ablated is not None
        return self.ablated[: self.space.n_inputs].sum(dim=0).to(like).expand_as(like)

    def _baseline(self, passes: Passes, host: Run, donor: Run) -> Baseline:
        metrics = passes.measure(host).detach().cpu(), passes.measure(donor, donor=True).detach().cpu()
        return Baseline(*(metrics[::-1] if self.method.direction == "denoise" else metrics))

    def _ablated_writes(self) -> Float[Tensor, "writer #batch #pos d_model"]:
        if self.method.ablation == "zero":
            return torch.zeros(self.space.n_writers, 1, 1, self.model.cfg.d_model).to(next(self.model.parameters()))
        return mean_writes(self.model, self.task, self.space, by_position=self.method.ablation == "mean_by_position")


class WriterTotals(Coefficients):
    """Every writer's scores summed over its readers, ``[batch, writer, 1]``, without a product per edge: its write
    meets the sum of their coefficients. Paths through inputs, and no dropped layers.
    """

    @property
    def n_columns(self) -> int:
        return 1

    @cached_property
    def _ranges(self) -> list[slice]:
        """Writers that the same readers see."""
        ends = self.space.n_seen.unique().tolist()
        return [slice(first, last) for first, last in pairwise([0, *ends])]

    def _totals(self, point: Point, positions: slice, like: Tensor) -> Float[Tensor, "range batch pos d_model"]:
        """For each of the ranges the sum over the readers that see it, which are those from some layer on."""
        totals = like.new_empty(len(self._ranges), *like.shape)
        total, left = torch.zeros_like(like), len(self._ranges)
        for layers, columns in reversed(list(self._groups())):
            beat()
            coefficients = like.new_empty(columns.stop - columns.start, *like.shape)
            self._fill(point, layers, coefficients, positions)
            seen = self.space.n_seen[columns].to(like.device)
            for n in seen.unique().flip(0).tolist():
                total = total + coefficients[seen == n].sum(dim=0)
                left -= 1
                totals[left] = total
        return totals

    def _credit(self, totals: Tensor, writes: Writes, weight: float) -> None:
        for total, rows in zip(totals, self._ranges, strict=True):
            product = torch.einsum("wbpd,bpd->bw", writes[rows], total.to(writes))
            self.total[:, 0, rows, 0].add_(product, alpha=weight)

    def _add(
        self, point: Point, chunk: slice, writes: Writes, cells: Cells | None, weight: float, rows: slice | None = None
    ) -> None:
        self._credit(self._totals(point, chunk, writes[0]), writes, weight)

    def _no_coefficients(self, like: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "range batch pos d_model"]:
        return torch.zeros(len(self._ranges), *like.shape, dtype=self.total.dtype, device=like.device)

    def _average(self, point: Point, mean: Float[Tensor, "range batch pos d_model"], weight: float) -> None:
        mean.add_(self._totals(point, slice(None), mean[0]), alpha=weight)

    def _multiply_all(self, mean: Tensor, chunk: slice, writes: Tensor, cells: Cells | None) -> None:
        self._credit(mean[:, :, chunk], writes, 1.0)


@dataclass(eq=False)
class RandomScores:
    """Uniform noise in [-1, 1], the same for every pair: the control beside every score."""

    model: TransformerBridge
    task: Task
    space: EdgeSpace
    method: Method
    n_positions: int
    seed: int

    def __call__(self, task: Task) -> Rows:
        passes = Passes.of(self.model, task, self.method.rules, "noise")
        clean, corrupt = (passes.measure(passes.plain((), donor=d), donor=d).cpu() for d in (False, True))
        generator = torch.Generator().manual_seed(self.seed)
        values = 2 * torch.rand(self.space.n_writers, self.space.n_readers, generator=generator) - 1
        return Rows((values * self.space.mask).expand(len(task), -1, -1), Baseline(clean, corrupt))


Estimator = Callable[[Task], Rows]

ESTIMATORS: dict[str, Callable[[TransformerBridge, Task, EdgeSpace, Method, int, int], Estimator]] = {
    "coefficients": Coefficients,
    "information-flow": InformationFlow,
    "exact": ExactEffects,
    "random": RandomScores,
}
