"""How good a lens is: per place, in bits, beside the logit lens, with intervals over rows of text.

| column | per place, mean over positions |
|---|---|
| `kl` | D(model || lens) |
| `logit_kl` | D(model || logit lens) |
| `gain` | logit_kl - kl, paired |
| `ce` | surprisal of the text's next token under the lens; the last place is the model itself |
| `top1` | share of positions at which lens and model find the same token most probable |

Intervals are bootstrap percentiles over rows (neighbouring positions are not independent), sums and counts drawn
together. The transfer matrix is D(model || translator of place i at place j): how far translators can be exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..execute import ModelRef, Unit, Work
from ..execute.drive import run_units
from ..execute.unit import Run, Tensors
from ..models.anatomy import read_anatomy
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..sites import Site
from .distil import divergences
from .lens import Lens, LogitLens
from .readout import BITS, Readout
from .states import lens_sites, record_states
from .text import Row, TextStream, open_text, pad, row_batches
from .translators import find_form
from .tuned import TunedLens
from .units import FORWARD_TOKENS

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

OPERATION = "lens.rows"
COLUMNS = ("kl", "logit_kl", "ce", "logit_ce", "top1", "logit_top1")


@dataclass(frozen=True, eq=False)
class LensEvaluation(Result):
    """Sums over positions per row of text: ``sums[column][row, place]``; `n` positions per row (for ``ce``:
    `n_next`).
    """

    lens: str
    places: tuple[str, ...]
    sums: dict[str, Float[Tensor, "row place"]]
    n: Float[Tensor, " row"]
    n_next: Float[Tensor, " row"]
    transfer: Float[Tensor, "translator origin"] | None
    provenance: Provenance

    def _counts(self, column: str) -> Tensor:
        return self.n_next if column.endswith("ce") else self.n

    def mean(self, column: str) -> Float[Tensor, " place"]:
        """Mean over all positions; ``gain`` is the difference to the logit lens."""
        if column == "gain":
            return self.mean("logit_kl") - self.mean("kl")
        if column not in self.sums:
            raise InputError(f"columns are {', '.join((*self.sums, 'gain'))}; got {column!r}")
        return self.sums[column].sum(dim=0) / self._counts(column).sum()

    def interval(self, column: str, level: float = 0.95, n: int = 1000, seed: int = 0) -> Float[Tensor, "2 place"]:
        """Bootstrap interval of `mean` over rows of text."""
        rows = len(self.n)
        if rows < 2 or not 0 < level < 1 or n < 2:
            raise InputError(
                f"an interval needs two rows or more and a level in (0, 1); got {rows} rows, level={level}, n={n}"
            )
        sums = self.sums["logit_kl"] - self.sums["kl"] if column == "gain" else self.sums[column]
        drawn = torch.randint(rows, (n, rows), generator=torch.Generator().manual_seed(seed))
        weights = torch.zeros(n, rows, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(n, rows, dtype=torch.float64)
        )
        means = (weights @ sums) / (weights @ self._counts(column))[:, None]
        return means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64), dim=0)

    def _table(self) -> Table:
        """One row per place: every mean, with the intervals of kl, ce and gain."""
        columns: dict[str, Any] = {"place": self.places}
        for name in (*COLUMNS, "gain"):
            columns[name] = self.mean(name).tolist()
            if name in ("kl", "ce", "gain"):
                low, high = self.interval(name)
                columns |= {f"{name}_low": low.tolist(), f"{name}_high": high.tolist()}
        return columns

    def __str__(self) -> str:
        low, high = self.interval("kl")
        lines = [
            f"{self.lens} on {int(self.n.sum()):,} positions of {len(self.n)} rows; bits",
            (
                f"{'place':<14}{'KL':>8}{'95 % interval':>18}{'logit lens':>12}{'gain':>8}{'CE':>8}{'its CE':>8}"
                f"{'top-1':>8}{'its':>8}"
            ),
        ]
        columns = [
            self.mean(name).tolist() for name in ("kl", "logit_kl", "gain", "ce", "logit_ce", "top1", "logit_top1")
        ]
        for i, (place, kl, other, gain, ce, other_ce, top, other_top) in enumerate(
            zip(self.places, *columns, strict=True)
        ):
            span = f"[{float(low[i]):.3f}, {float(high[i]):.3f}]"
            lines.append(
                f"{place:<14}{kl:8.3f}{span:>18}{other:12.3f}{gain:8.3f}{ce:8.3f}{other_ce:8.3f}{top:8.3f}"
                f"{other_top:8.3f}"
            )
        return "\n".join(lines)


@borrows
def evaluate_lens(
    model: TransformerBridge, lens: Lens, text: Any, *, n_rows: int = 256, start: int = 0, transfer: bool = False
) -> LensEvaluation:
    """Measure a lens on rows `start` to `start + n_rows` of `text` (fewer where it ends; see `open_text`).

    Cost: 1 forward per row, two products with the unembedding per place; with `transfer`, one more per pair of places.
    Raises `InputError` for text of fewer than two rows, `ArtefactError` for a lens of another model.
    """
    lens.check(model)
    stream = text if isinstance(text, TextStream) else open_text(model, text)
    rows = stream.rows(start, n_rows)
    if len(rows) < 2:
        raise InputError(f"an evaluation needs two rows of text or more; got {len(rows)} from row {start} on")
    found = measure_rows(model, lens, rows, transfer=transfer)
    provenance = build_provenance(
        method="lens evaluation",
        lens=lens.name,
        text=stream.facts,
        rows=[start, start + len(rows)],
        model=identify_model(model),
    )
    return LensEvaluation(lens.name, *found, provenance)


def measure_rows(
    model: TransformerBridge, lens: Lens, rows: Sequence[Row], *, transfer: bool
) -> tuple[tuple[str, ...], dict[str, Tensor], Tensor, Tensor, Tensor | None]:
    """Places, sums, counts and the transfer matrix of `LensEvaluation`, row by row in order of length.

    One unit per forward batch.
    """
    facts, parts = pack_lens(lens)
    why = None if facts else f"{lens.name} is an object of this process; use forked workers"
    settings = {"lens": facts, "transfer": transfer}
    work = Work(OPERATION, ModelRef.of(model), settings, {"lens": parts} if parts else {}, why)
    units = (work.unit(slice(0, len(part)), part) for part in row_batches(rows, FORWARD_TOKENS))
    run = _Rows(model, unpack_lens(facts, parts) if facts else lens, transfer=transfer).run
    found = [values for _, values in run_units(work, units, run)]
    sums = {name: torch.cat([values[name] for values in found]) for name in COLUMNS}
    counts, next_counts = (torch.cat([values[name] for values in found]) for name in ("n", "n_next"))
    places = tuple(map(str, lens_sites(read_anatomy(model), [lens.kinds[0]])))
    if not transfer:
        return places, sums, counts, next_counts, None
    matrix = torch.stack([values["transfer"] for values in found]).sum(dim=0)
    return places, sums, counts, next_counts, matrix / counts.sum()


def pack_lens(lens: Lens) -> tuple[Provenance, Tensors]:
    """A logit or tuned lens as JSON values and tensors; nothing for any other."""
    if isinstance(lens, LogitLens):
        return {"name": lens.name, "kinds": list(lens.kinds)}, {}
    if isinstance(lens, TunedLens):
        parts = {name: part.detach().contiguous() for name, part in lens.parts.items()}
        return {"form": lens.form.name, "kind": lens.kind, "model": lens.model}, parts
    return {}, {}


def unpack_lens(facts: Mapping[str, Any], parts: Tensors) -> Lens:
    """The lens that `pack_lens` packed."""
    if "form" not in facts:
        return LogitLens(facts["name"], tuple(facts["kinds"]))
    return TunedLens(find_form(facts["form"]), facts["kind"], dict(parts), dict(facts["model"]))


def build(model: TransformerBridge, work: Work) -> Run:
    """What measures the batches in a process that has the work's data and the model alone."""
    lens = unpack_lens(work.settings["lens"], work.data.get("lens", {}))
    return _Rows(model, lens, transfer=work.settings["transfer"]).run


class _Rows:
    """Measures one forward batch of rows at a time."""

    def __init__(self, model: TransformerBridge, lens: Lens, *, transfer: bool) -> None:
        self.model, self.lens, self.transfer = model, lens, transfer
        self.readout = Readout.of(model)
        self.sites = lens_sites(read_anatomy(model), [lens.kinds[0]])

    @torch.no_grad()
    def run(self, unit: Unit) -> Tensors:
        """Sums ``[row, place]`` by column, counts per row, and the batch's part of the transfer matrix."""
        batch, sites, n_places = pad(unit.says), self.sites, len(self.sites)
        states = [x[batch.mask.to(x.device)] for x in record_states(self.model, batch.tokens, sites)]
        last = states[-1]
        translated = [*(self.lens.translate(x, s) for x, s in zip(states[:-1], sites[:-1], strict=True)), last]
        owner = torch.arange(len(batch))[:, None].expand_as(batch.mask)[batch.mask]
        following = torch.cat([batch.tokens[:, 1:], batch.tokens[:, :1]], dim=1)[batch.mask]
        has_next = torch.cat([batch.mask[:, 1:], torch.zeros(len(batch), 1, dtype=torch.bool)], dim=1)[
            batch.mask
        ].double()
        found: Tensors = {}
        for prefix, xs in (("", translated), ("logit_", states)):
            reading = self.readout.read_places(xs, top_k=1, targets=following, reference=last)
            assert reading.kl is not None
            assert reading.surprisal is not None
            assert reading.top_ids is not None
            agrees = (reading.top_ids[..., 0] == reading.top_ids[-1, ..., 0]).double()
            for name, values in (
                ("kl", reading.kl.double()),
                ("ce", reading.surprisal.double() * has_next),
                ("top1", agrees),
            ):
                sums = torch.zeros(len(batch), n_places, dtype=torch.float64)
                found[prefix + name] = sums.index_add_(0, owner, values.T.contiguous())
        found["n"] = batch.mask.sum(dim=1).double()
        found["n_next"] = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, owner, has_next)
        if self.transfer:
            found["transfer"] = torch.stack([self._moved(site, states) for site in sites[:-1]])
        return found

    def _moved(self, site: Site, states: list[Tensor]) -> Float[Tensor, " origin"]:
        """Divergences, summed over positions, of every place read by the translator of `site`."""
        maps = [lambda x: self.lens.translate(x, site)] * (len(states) - 1)
        return divergences(self.readout, maps, states).double().sum(dim=1).cpu() * BITS
