"""How good features are as a code of the model: reconstruction, loss recovered, sparsity; beside random directions.

    unexplained    sum |y - y'|^2 / sum |y - mean(y)|^2: the share of variance that the reconstruction y' misses (0
    best; 1 is the mean) L0             features above 0 per position
    dead           share of features that are 0 at every position measured
    recovered      (CE(mean) - CE(y')) / (CE(mean) - CE(y)): what of the model's loss is kept when y' stands for y, 0
    when it is no better
                   than the place's mean there, 1 when nothing is lost; CE is the surprisal of the text's next token, in
                   bits

The row of all places puts every reconstruction in at once. The control of a place has as many random directions as
features and keeps as many of them per position as the coder does on average. Skipped positions (the first of every row,
as in training) are left as they are and not counted. Cost: per batch 1 forward, and 3 per place and 2 for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, check_whole
from ..execute import ModelRef, Unit, Work
from ..execute.drive import run_units
from ..execute.unit import Run, Tensors
from ..lenses.readout import BITS
from ..lenses.text import TextStream, open_text, pad, row_batches
from ..models.anatomy import device_of
from ..models.borrow import borrows, hooked
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..shapes import Tokens
from ..sites import hook_name
from ..statistics import bootstrap_weights, percentile_interval
from .activations import TopK
from .coder import SparseCoder, as_vectors, working
from .feature_set import FeatureSet, pack_coder, unpack_coder, working_copy
from .record import record_sites

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ALL = "all places"
CELLS = 2048
"""Cells of one forward pass."""
OPERATION = "features.batch"


@dataclass(frozen=True, eq=False)
class FeatureEvaluation(Result):
    """One entry per place, the row of all places last in `spliced`, `random_spliced` and `flat`: surprisal in bits,
    summed per row of text.

    `plain` is that of the model itself; `n_tokens` counts positions that predict, per row. `random_*` are of the
    control.
    """

    places: tuple[str, ...]
    n_features: tuple[int, ...]
    unexplained: tuple[float, ...]
    random_unexplained: tuple[float, ...]
    l0: tuple[float, ...]
    dead: tuple[float, ...]
    spliced: Float[Tensor, "place row"]
    random_spliced: Float[Tensor, "place row"]
    flat: Float[Tensor, "place row"]
    plain: Float[Tensor, " row"]
    n_tokens: Float[Tensor, " row"]
    provenance: Provenance

    @property
    def recovered(self) -> tuple[float, ...]:
        """Of every place, and of all together (NaN where the mean costs nothing)."""
        return tuple(self._recovered(self.spliced))

    @property
    def random_recovered(self) -> tuple[float, ...]:
        return tuple(self._recovered(self.random_spliced))

    def intervals(self, level: float = 0.95, n_resamples: int = 500, seed: int = 0) -> tuple[tuple[float, float], ...]:
        """Bootstrap intervals of `recovered` over rows of text."""
        weights = bootstrap_weights(len(self.plain), n_resamples, seed).double()
        flat, spliced, plain = (weights @ x.double().T for x in (self.flat, self.spliced, self.plain[None]))
        low, high = percentile_interval((flat - spliced) / (flat - plain), level)
        return tuple(zip(low.tolist(), high.tolist(), strict=True))

    def loss(self, what: str) -> tuple[float, ...]:
        """Mean surprisal in bits per token: of ``"spliced"``, ``"random_spliced"``, ``"flat"`` (means), per place, or
        ``"plain"``.
        """
        total = self.plain[None] if what == "plain" else getattr(self, what)
        return tuple((total.sum(dim=1) / self.n_tokens.sum()).tolist())

    def _table(self) -> Table:
        """One row per place, and one of all places."""
        nan = float("nan")
        low, high = zip(*self.intervals(), strict=True)
        return {
                "place": [*self.places, ALL], "n_features": [*self.n_features, sum(self.n_features)],
                "unexplained": [*self.unexplained, nan], "random_unexplained": [*self.random_unexplained, nan],
                "l0": [*self.l0, nan], "dead": [*self.dead, nan], "recovered": self.recovered, "low": low, "high": high,
                "random_recovered": self.random_recovered, "loss_bits": self.loss("spliced"),
            }  # fmt: skip

    def __str__(self) -> str:
        head = (
            f"{int(self.n_tokens.sum())} positions of {len(self.plain)} rows; the model's loss is "
            f"{self.loss('plain')[0]:.3f} bits\n"
            f"{'place':<16}{'features':>9}{'unexplained':>12}{'(random)':>10}{'L0':>7}{'dead':>7}{'recovered':>11}  "
            f"{'95 % interval':<17}{'(random)':>9}"
        )
        lines = [head]
        intervals, recovered, chance = self.intervals(), self.recovered, self.random_recovered
        for i, place in enumerate(self.places):
            low, high = intervals[i]
            lines.append(
                f"{place:<16}{self.n_features[i]:9d}{self.unexplained[i]:12.3f}{self.random_unexplained[i]:10.3f}"
                f"{self.l0[i]:7.1f}"
                f"{self.dead[i]:7.1%}{recovered[i]:11.3f}  [{low:.3f}, {high:.3f}]  {chance[i]:9.3f}"
            )
        low, high = intervals[-1]
        lines.append(
            f"{ALL:<16}{sum(self.n_features):9d}{'':>36}{recovered[-1]:11.3f}  [{low:.3f}, {high:.3f}]  "
            f"{chance[-1]:9.3f}"
        )
        return "\n".join(lines)

    def _recovered(self, spliced: Float[Tensor, "place row"]) -> list[float]:
        flat, spliced, plain = (x.double().sum(dim=-1) for x in (self.flat, spliced, self.plain))
        return ((flat - spliced) / (flat - plain)).tolist()


@borrows
def evaluate_features(
    model: TransformerBridge,
    features: FeatureSet,
    text: Any,
    *,
    n_rows: int = 64,
    start: int = 0,
    skip: int = 1,
    seed: int = 0,
) -> FeatureEvaluation:
    """Measure features on rows ``start .. start + n_rows`` of `text` (see `lenses.open_text`), which should not have
    trained them.

    Raises `ArtefactError` for another model's features, `InputError` for a layer or width it has not, or fewer than two
    rows.

    >>> evaluate_features(model, features, "gpt2-6l", n_rows=64)
    """
    features.check(model)
    stream = text if isinstance(text, TextStream) else open_text(model, text)
    check_whole("start", start, least=0)
    rows = [row for row in stream.rows(start, n_rows) if len(row) > skip + 1]
    if len(rows) < 2:
        raise InputError(
            f"features are measured on two rows or more of over {skip + 1} tokens; the text has {len(rows)} from row "
            f"{start} on"
        )
    coders = [working_copy(coder) for coder in features]
    sums = [_Sums.of(coder) for coder in coders]
    batches = [(len(part), part) for part in row_batches(rows, CELLS)]
    for found in _measured(model, batches, skip, coders):
        for i, total in enumerate(sums):
            total.add(found, f"{i}.")
    means = [total.mean for total in sums]
    controls = [
        working_copy(_random_coder(coder, mean, max(1, round(total.l0)), seed + i))
        for i, (coder, mean, total) in enumerate(zip(coders, means, sums, strict=True))
    ]
    left = [_Sums.of(control) for control in controls]
    losses: dict[str, list[Tensor]] = {"plain": [], "spliced": [], "random": [], "flat": [], "n": []}
    for found in _measured(model, batches, skip, coders, controls, means):
        for i, total in enumerate(left):
            total.add(found, f"{i}.")
        for name, parts in losses.items():
            parts.append(found[name])
    provenance = build_provenance(
        method="evaluation of features", text=stream.facts, rows=[start, start + n_rows], skip=skip, seed=seed,
        features=features.describe(), model=identify_model(model),
    )  # fmt: skip
    spliced, random, flat = (torch.cat(losses[name], dim=1) for name in ("spliced", "random", "flat"))
    return FeatureEvaluation(
        features.places, tuple(c.n_features for c in coders), tuple(t.unexplained for t in sums),
        tuple(t.unexplained for t in left),
        tuple(t.l0 for t in sums), tuple(t.dead for t in sums), spliced, random, flat, torch.cat(losses["plain"]),
        torch.cat(losses["n"]),
        provenance,
    )  # fmt: skip


@dataclass
class _Sums:
    """Running sums over positions of one place."""

    fired: Bool[Tensor, " feature"]
    total: Float[Tensor, " d"]
    squares: float = 0.0
    missed: float = 0.0
    active: int = 0
    n: int = 0

    @classmethod
    def of(cls, coder: SparseCoder) -> _Sums:
        return cls(torch.zeros(coder.n_features, dtype=torch.bool), torch.zeros(coder.d_out, dtype=torch.float64))

    def add(self, found: Tensors, at: str) -> None:
        """Take in what `_sums` found on some positions."""
        self.missed += float(found[f"{at}missed"])
        self.fired |= found[f"{at}fired"]
        self.active += int(found[f"{at}active"])
        self.total += found[f"{at}total"]
        self.squares += float(found[f"{at}squares"])
        self.n += int(found[f"{at}n"])

    @property
    def mean(self) -> Float[Tensor, " d"]:
        return self.total / self.n

    @property
    def unexplained(self) -> float:
        return self.missed / (self.squares - self.n * float(self.mean.pow(2).sum()))

    @property
    def l0(self) -> float:
        return self.active / self.n

    @property
    def dead(self) -> float:
        return 1 - float(self.fired.float().mean())


@torch.no_grad()
def _sums(coder: SparseCoder, read: Float[Tensor, "n d_in"], written: Float[Tensor, "n d_out"], at: str) -> Tensors:
    """What `_Sums` adds up, of some positions."""
    f, y = coder.encode(read), working(written)
    found = {
        "missed": (y - coder.decode(f, read)).double().pow(2).sum(),
        "fired": (f > 0).any(dim=0),
        "active": (f > 0).sum(),
        "total": y.double().sum(dim=0),
        "squares": y.double().pow(2).sum(),
        "n": torch.tensor(len(read)),
    }
    return {f"{at}{name}": value.cpu() for name, value in found.items()}


def _measured(
    model: TransformerBridge, batches: Sequence[tuple[int, Any]], skip: int, coders: Sequence[SparseCoder],
    controls: Sequence[SparseCoder] = (), means: Sequence[Tensor] = (),
) -> Iterator[Tensors]:  # fmt: skip
    """What `_Batches` finds on each batch of rows, one unit each."""
    settings: dict[str, Any] = {"skip": skip}
    data: dict[str, Tensors] = {f"mean.{i}": {"mean": mean} for i, mean in enumerate(means)}
    for kind, given in (("coder", coders), ("control", controls)):
        packed = [pack_coder(coder) for coder in given]
        settings[kind] = [facts for facts, _ in packed]
        data |= {f"{kind}.{i}": tensors for i, (_, tensors) in enumerate(packed)}
    work = Work(OPERATION, ModelRef.of(model), settings, data)
    units = (work.unit(slice(0, n), rows) for n, rows in batches)
    run = _Batches(model, skip, coders, controls, means).run
    return (values for _, values in run_units(work, units, run))


def build(model: TransformerBridge, work: Work) -> Run:
    """What measures the batches in a process that has the work's data and the model alone."""
    coders, controls = (
        [unpack_coder(facts, work.data[f"{kind}.{i}"]) for i, facts in enumerate(work.settings[kind])]
        for kind in ("coder", "control")
    )
    means = [work.data[f"mean.{i}"]["mean"] for i in range(len(controls))]
    return _Batches(model, work.settings["skip"], coders, controls, means).run


@dataclass(frozen=True, eq=False)
class _Batches:
    """Measures one batch of rows at a time: the sums of `coders`; given `controls` and `means`, the sums of these, and
    surprisals with each put in.
    """

    model: TransformerBridge
    skip: int
    coders: Sequence[SparseCoder]
    controls: Sequence[SparseCoder]
    means: Sequence[Tensor]

    def run(self, unit: Unit) -> Tensors:
        batch = pad(unit.says)
        tokens = batch.tokens.to(device_of(self.model))
        mask = _counted(batch.mask, self.skip).to(tokens.device)
        recorded = record_sites(self.model, tokens, [site for c in self.coders for site in (c.reads, c.writes)])
        found: Tensors = {}
        for i, coder in enumerate(self.controls or self.coders):
            found |= _sums(coder, recorded[coder.reads][mask], recorded[coder.writes][mask], f"{i}.")
        if not self.controls:
            return found
        found["plain"] = _surprisal(self.model, tokens, mask)
        found["n"] = mask[:, :-1].logical_and(mask[:, 1:]).sum(dim=1).double().cpu()
        singles = [[i] for i in range(len(self.coders))] + [list(range(len(self.coders)))]
        for name, used in (("spliced", self.coders), ("random", self.controls), ("flat", self.means)):
            runs = [_surprisal(self.model, tokens, mask, [(self.coders[i], used[i]) for i in one]) for one in singles]
            found[name] = torch.stack(runs)
        return found


def _random_coder(coder: SparseCoder, mean: Float[Tensor, " d"], k: int, seed: int) -> SparseCoder:
    """As many random unit directions as the coder has features, the `k` largest coordinates kept; reads what the coder
    writes.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(coder.n_features, coder.d_out, generator=generator)
    rows = rows / rows.norm(dim=1, keepdim=True)
    zero = torch.zeros(coder.n_features)
    centre = mean.float()
    return replace(
        coder, reads=coder.writes, W_enc=rows.T.contiguous(), b_enc=zero, W_dec=rows, b_dec=centre, b_in=centre,
        W_skip=None,
        activation=TopK(min(k, coder.n_features)),
    )  # fmt: skip


def _counted(mask: Bool[Tensor, "batch pos"], skip: int) -> Bool[Tensor, "batch pos"]:
    counted = mask.clone()
    counted[:, :skip] = False
    return counted


def _surprisal(
    model: TransformerBridge,
    tokens: Tokens,
    mask: Bool[Tensor, "batch pos"],
    put: Sequence[tuple[SparseCoder, SparseCoder | Tensor]] = (),
) -> Float[Tensor, " batch"]:
    """Surprisal of the next tokens in bits, summed over counted positions, with reconstructions (or means) put in.
    Cost: 1 forward.
    """
    hooks: list[tuple[str, Any]] = []
    for place, used in put:
        read: list[Tensor] = []
        if isinstance(used, SparseCoder) and used.reads != used.writes:
            hooks.append((hook_name(used.reads), _keep(read, used)))
        hooks.append((hook_name(place.writes), _splice(place, used, mask, read)))
    with torch.no_grad(), hooked(model, hooks):
        logits = model(tokens)
    logp = working(logits[:, :-1]).log_softmax(dim=-1).gather(2, tokens[:, 1:, None])[..., 0]
    both = mask[:, :-1] & mask[:, 1:]
    return (-BITS * (logp * both).sum(dim=1)).double().cpu()


def _keep(read: list[Tensor], coder: SparseCoder) -> Any:
    def hook(activation: Tensor, hook: Any) -> None:
        read[:] = [as_vectors(activation if coder.reads.head is None else activation[:, :, coder.reads.head])]

    return hook


def _splice(place: SparseCoder, used: SparseCoder | Tensor, mask: Bool[Tensor, "batch pos"], read: list[Tensor]) -> Any:
    head = place.writes.head

    def hook(activation: Tensor, hook: Any) -> Tensor:
        y = as_vectors(activation if head is None else activation[:, :, head])
        if isinstance(used, SparseCoder):
            x = read[0] if read else y
            new = used.decode(used.encode(x), x)
        else:
            new = used.expand(y.shape)
        new = torch.where(mask[..., None], new.to(y), y)
        if head is None:
            return new.reshape(activation.shape)
        whole = activation.clone()
        whole[:, :, head] = new
        return whole

    return hook
