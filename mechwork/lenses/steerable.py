"""Steerable against decodable: what a direction can do at a place, beside what can be read there.

    steering       best success of steering held-out prompts with the direction there (`study_steering`), over methods
    and strengths
                   whose KL elsewhere is at most `max_kl`; a random direction's best beside it
    decodability   balanced accuracy of telling clean from corrupt held-out prompts by
                     a lens: the difference between correct and incorrect answers' logits read from the state at the
                         last token
                     a probe: linear or two-layer, on that state (its control task beside it)
                   Thresholds are calibrated on training prompts. 0.5 is chance.

A push that destroys the corrupt prompts' answer has a success of about one half where that answer was sure, and leaves
to chance which answer wins. So a place counts as steerable when the success is at least `STEERABLE` and above every
random direction's *and* the wanted answer wins in at least the share `TURNED` of the prompts. The four outcomes:
steerable and decodable; steerable, not decodable (the model works with it, the decoder cannot say it); decodable, not
steerable (it is there, and what follows does not use it so); neither.

Cost: 1 forward of all prompts per place for the probes and one for the lenses, and a steering study per place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Direction, Examples, best_threshold, fit_directions, study_probes, study_steering, train_probe
from ..directions.examples import record_positions
from ..errors import InputError, UnknownNameError
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..shapes import Tokens
from ..sites import Site
from ..tasks.continuations import require_one_token
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .directions import place_after
from .lens import LOGIT_LENS, Lens
from .readout import Readout
from .states import record_states

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

STEERABLE, TURNED, DECODABLE = 0.5, 0.75, 0.75
"""Success and share of turned prompts from which a direction counts as steering, if no random one has as much success;
accuracy from which a state counts as decoded.
"""

PROBES = {"linear probe": "linear", "two-layer probe": "two_layer"}
INADMISSIBLE = "no admissible strength"
"""What a place was reached with where every strength had a larger KL elsewhere than is allowed."""
OUTCOMES = ("steerable and decodable", "steerable, not decodable", "decodable, not steerable", "neither")


@dataclass(frozen=True)
class SteerableRow:
    """One place: `success` and what it was reached with, `turned`: the share of prompts in which the wanted answer then
    wins,
    `random`: the best success of random directions, `decoded`: decoder -> accuracy.
    """

    task: str
    site: Site
    success: float
    reached_by: str
    turned: float
    random: float
    decoded: dict[str, float]
    control: float

    @property
    def steerable(self) -> bool:
        return self.success >= STEERABLE and self.turned >= TURNED and self.success > self.random

    def outcome(self, decoder: str) -> str:
        """One of `OUTCOMES`, by what one decoder reads; raises `UnknownNameError` for another decoder."""
        if decoder not in self.decoded:
            raise UnknownNameError("decoder", decoder, self.decoded)
        read = self.decoded[decoder] >= DECODABLE
        return OUTCOMES[(0 if read else 1) if self.steerable else (2 if read else 3)]


@dataclass(frozen=True, eq=False)
class SteerableTable(Result):
    """Rows by task and place; `max_kl` is the side effect that steering was allowed."""

    rows: tuple[SteerableRow, ...]
    max_kl: float
    provenance: Provenance

    @property
    def decoders(self) -> tuple[str, ...]:
        return tuple(self.rows[0].decoded)

    def counts(self, decoder: str) -> dict[str, int]:
        """Outcome -> how many places have it."""
        found = [row.outcome(decoder) for row in self.rows]
        return {outcome: found.count(outcome) for outcome in OUTCOMES}

    def _table(self) -> Table:
        """One row per place and decoder."""
        return [
                {
                    "task": row.task, "site": str(row.site), "success": row.success, "reached_by": row.reached_by,
                    "turned": row.turned, "random": row.random, "decoder": decoder, "accuracy": accuracy,
                    "control": row.control,
                    "outcome": row.outcome(decoder),
                }
                for row in self.rows
                for decoder, accuracy in row.decoded.items()
            ]  # fmt: skip

    def __str__(self) -> str:
        widths = [max(len(name), 7) + 2 for name in self.decoders]
        head = "".join(f"{name:>{width}}" for name, width in zip(self.decoders, widths, strict=True))
        lines = [
            (
                f"success of steering (KL elsewhere at most {self.max_kl:g}) beside balanced accuracy of decoding; "
                "limits "
                f"{STEERABLE} (turned {TURNED}) and {DECODABLE}"
            ),
            f"{'task':<28}{'place':<15}{'success':>8}{'turned':>8}{'random':>8}{head}{'control':>9}",
        ]
        for row in self.rows:
            cells = "".join(f"{value:>{width}.3f}" for value, width in zip(row.decoded.values(), widths, strict=True))
            lines.append(
                f"{row.task[:27]:<28}{row.site!s:<15}{row.success:8.3f}{row.turned:8.3f}{row.random:8.3f}{cells}"
                f"{row.control:9.3f}"
            )
        lines.append(f"{'outcomes, in places':<28}{''.join(f'{name:>27}' for name in OUTCOMES)}")
        lines += [
            f"{name:<28}{''.join(f'{count:>27}' for count in self.counts(name).values())}" for name in self.decoders
        ]
        if unknown := [str(row.site) for row in self.rows if row.reached_by == INADMISSIBLE]:
            lines.append(
                f"{INADMISSIBLE} at {', '.join(unknown)}: every one had a KL elsewhere above {self.max_kl:g}, so "
                "whether these places steer is not known. Try smaller strengths or a larger max_kl"
            )
        return "\n".join(lines)


def join_tables(tables: Sequence[SteerableTable]) -> SteerableTable:
    """Tables of several tasks as one. Raises `InputError` for none, other decoders, or another limit of side
    effects.
    """
    if not tables or len({(table.decoders, table.max_kl) for table in tables}) != 1:
        raise InputError("tables are joined when there are some, all with the same decoders and the same max_kl")
    rows = tuple(row for table in tables for row in table.rows)
    return SteerableTable(rows, tables[0].max_kl, {"tables": [table.provenance for table in tables]})


@borrows
def compare_steering_and_decoding(
    model: TransformerBridge,
    train: Task,
    test: Task,
    *,
    lenses: Mapping[str, Lens] | None = None,
    directions: Sequence[Direction] | None = None,
    others: Sequence[Task] = (),
    text: Tokens | None = None,
    methods: Sequence[str] = ("add", "mirror_below"),
    strengths: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    max_kl: float = 1.0,
    n_random: int = 2,
    n_controls: int = 2,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> SteerableTable:
    """The table for one task: directions fitted on `train` (default: the mean difference after every layer), all judged
    on `test`.

    Both tasks hold pairs of one direction: clean prompts of the positive class, corrupt ones of the other. `lenses`:
    name -> lens (default: the logit lens). Side effects are seen on `others` and `text`, as in `study_steering`.

    Raises what `study_steering` raises; `InputError` for a direction that is not in the stream at a block's exit;
    `ArtefactError` for another model's lens.
    """
    anatomy = check_ready(model)
    lenses = {LOGIT_LENS.name: LOGIT_LENS} if lenses is None else dict(lenses)
    examples, held = Examples.of_task(train), Examples.of_task(test)
    if directions is None:
        directions = fit_directions(model, examples, [Site("resid_post", i) for i in range(anatomy.n_layers)])
    for direction in directions:
        if direction.site.kind != "resid_post":
            raise InputError(
                f"lenses read the stream at a block's exit (resid_post); got a direction at {direction.site}"
            )
        direction.check(model)
    for lens in lenses.values():
        lens.check(model)
    rows = []
    for done, direction in enumerate(directions, start=1):
        site = direction.site
        study = study_steering(
            model, test, direction, methods=methods, strengths=strengths, others=others, text=text, n_random=n_random,
            seed=seed
        )  # fmt: skip
        allowed = [row for row in study.rows if row.kl <= max_kl]
        best = max((row for row in allowed if not row.control), key=lambda row: row.success, default=None)
        chance = max([0.0, *(row.success for row in allowed if row.control)])
        decoded = {name: _by_lens(model, lens, site, train, test) for name, lens in lenses.items()}
        decoded |= {name: _by_probe(model, kind, site, examples, held, seed) for name, kind in PROBES.items()}
        control = study_probes(model, examples, [site], ["two_layer"], n_controls=n_controls, seed=seed).rows[0].control
        won = best is not None and best.success > 0
        rows.append(
            SteerableRow(
                train.name, site, best.success if best is not None and won else 0.0,
                INADMISSIBLE if best is None else f"{best.method}, strength {best.strength:g}" if won else "nothing",
                best.accuracy if best is not None and won else 0.0, chance, decoded, control,
            )
        )  # fmt: skip
        if progress is not None:
            progress(done, len(directions), str(site))
    provenance = build_provenance(
        method="steerable against decodable", seed=seed, model=identify_model(model), train=train.provenance(),
        test=test.provenance(), lenses=list(lenses), methods=list(methods), strengths=list(strengths),
    )  # fmt: skip
    return SteerableTable(tuple(rows), max_kl, provenance)


@torch.no_grad()
def _by_lens(model: TransformerBridge, lens: Lens, site: Site, train: Task, test: Task) -> float:
    """Balanced accuracy on `test` of the answers' logit difference read at `site`, its threshold calibrated on
    `train`.
    """
    fitted, labels = _lens_scores(model, lens, site, train.pairs)
    scores, truth = _lens_scores(model, lens, site, test.pairs)
    above = scores > best_threshold(fitted, labels)
    return float((above[truth].double().mean() + (~above[~truth]).double().mean()) / 2)


def _lens_scores(model: TransformerBridge, lens: Lens, site: Site, pairs: PromptPairs) -> tuple[Tensor, Tensor]:
    """(logit difference per prompt, clean prompts first; whether it is clean)."""
    require_one_token(pairs.continuations, "the reading of a lens")
    place, readout, found = place_after(model, lens, int(site.layer or 0)), Readout.of(model), []
    last = site.layer == int(model.cfg.n_layers) - 1
    for side in (pairs, pairs.corrupt_as_host()):
        tokens = side.clean_tokens.to(device_of(model))
        state = record_states(model, tokens, [site])[0]
        ends = side.lengths.to(state.device) - 1
        x: Float[Tensor, "batch d_model"] = state[torch.arange(len(state), device=state.device), ends]
        logits = readout.logits(x if last or place is None else lens.translate(x, place))
        found.append(_difference(logits, side))
    n = len(pairs)
    return torch.cat(found).double().cpu(), torch.arange(2 * n) < n


def _difference(logits: Float[Tensor, "batch d_vocab"], pairs: PromptPairs) -> Float[Tensor, " batch"]:
    """Mean logit of the correct answers minus mean logit of the incorrect ones."""
    means = []
    for answers in (pairs.correct.to(logits.device), pairs.incorrect.to(logits.device)):
        present = answers >= 0
        picked = logits.gather(-1, answers.clamp(min=0)) * present
        means.append(picked.sum(dim=-1) / present.sum(dim=-1))
    return means[0] - means[1]


def _by_probe(model: TransformerBridge, kind: str, site: Site, examples: Examples, held: Examples, seed: int) -> float:
    """Balanced accuracy on `held` of a probe fitted and calibrated on `examples`."""
    fitted, rest = examples.split(0.75, seed=seed)
    x, y, z = (record_positions(model, part, site) for part in (fitted, rest, held))
    probe = train_probe(x, fitted.where, fitted.labels, kind, seed=seed)
    probe = probe.calibrated(probe.scores(y, rest.where), rest.labels)
    said = probe.scores(z, held.where) > probe.threshold
    return float((said[held.labels].double().mean() + (~said[~held.labels]).double().mean()) / 2)
