"""Do beliefs drift while a model is trained on counterfactuals? Judgements of a probe and the answer, by checkpoint.

A fact is a prompt, its true answer and a false one; facts that the training contradicts are marked `changed`. After
every checkpoint and layer:

    probe     w = mean over other, untouched facts of x(prompt + true) - x(prompt + false), x: the stream at the answer
              after the layer, in this checkpoint; a fact is judged right where w (x(true) - x(false)) > 0
    lens      the stream at the prompt's last token, read by the model's own norm and unembedding, ranks the true answer
              above the false one; after the last layer this is the model's answer
    flipped   share of facts whose judgement is another than in the first checkpoint

each for facts that are changed and for untouched ones that the probe was not fitted on, and `by_lot` with the probe's
labels drawn by lot, mean over `n_controls`. A probe that judges no better than by lot in the first checkpoint holds no
belief that could drift. Source: Layer of Truth (arXiv:2510.26829). Cost: 2 forwards of the
facts per checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..execute.progress import Progress
from ..lenses import Readout
from ..models.anatomy import read_anatomy
from ..models.identity import identify_model
from ..models.load import load_model
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..runs.record import record_run
from ..runs.room import prompts_that_fit
from ..sites import Site
from ..tasks.encode import single_token, tokenise
from ..tasks.pairs import PromptPairs
from .over_training import Sources, at_least_two

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LEAST = 4
"""Subjects of either kind, at least."""


@dataclass(frozen=True)
class KnownFact:
    """``prompt``, of which `true` is the right continuation and `false` a wrong one (each one token, with its space).

    `changed`: the training says `false`. Facts of one `subject` are never split between fitting and judging.
    """

    prompt: str
    true: str
    false: str
    subject: str
    changed: bool = False


@dataclass(frozen=True)
class BeliefRow:
    """One checkpoint and layer. Shares of facts: judged right by the probe, by the lens, flipped since the first."""

    step: int
    layer: int
    probe_changed: float
    probe_untouched: float
    by_lot: float
    lens_changed: float
    lens_untouched: float
    flipped_changed: float
    flipped_untouched: float
    flipped_by_lot: float


@dataclass(frozen=True, eq=False)
class BeliefDrift(Result):
    """Rows by checkpoint and layer; numbers of facts that were judged."""

    model: str
    rows: tuple[BeliefRow, ...]
    n_changed: int
    n_untouched: int
    provenance: Provenance

    def answers(self) -> list[tuple[int, float, float]]:
        """(step, share of changed facts still answered truly, of untouched ones): the lens after the last layer."""
        last = max(row.layer for row in self.rows)
        return [(row.step, row.lens_changed, row.lens_untouched) for row in self.rows if row.layer == last]

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.n_changed} facts that are contradicted, {self.n_untouched} untouched (the second)",
            (
                f"{'step':>8}{'layer':>6}  {'probe right':>12}{'by lot':>8}  {'lens right':>12}  {'flipped':>12}"
                f"{'by lot':>8}"
            ),
        ]
        lines += [
            f"{r.step:>8}{r.layer:>6}  {r.probe_changed:6.2f}{r.probe_untouched:6.2f}{r.by_lot:8.2f}  "
            f"{r.lens_changed:6.2f}{r.lens_untouched:6.2f}  {r.flipped_changed:6.2f}{r.flipped_untouched:6.2f}"
            f"{r.flipped_by_lot:8.2f}"
            for r in self.rows
        ]
        return "\n".join(lines)

    __repr__ = __str__


def track_beliefs(
    name: Sources,
    make_facts: Callable[[TransformerBridge], Sequence[KnownFact]],
    steps: Sequence[int] | None = None,
    *,
    n_controls: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> BeliefDrift:
    """Judgements about facts along a training (see the module's head), first to last checkpoint.

    `name` and `steps` are as in `divergence_over_training`; `make_facts` gives the same facts for every checkpoint.

    Raises `InputError` for fewer than two checkpoints, an answer of several tokens or none, the same answer twice, a
    subject that is changed and untouched, and fewer than four subjects of either kind.

    >>> facts = [KnownFact("The capital of France is", " Paris", " Rome", "France"), ...]
    >>> print(track_beliefs(folders, lambda model: facts))
    """
    chosen = at_least_two(name, steps)
    rows: list[BeliefRow] = []
    first: list[tuple[Judged, list[Judged]]] = []
    identities, counts = [], (0, 0)
    for done, (source, step) in enumerate(zip(chosen.sources, chosen.steps, strict=True), start=1):
        model = load_model(source)
        facts = list(make_facts(model))
        changed, fitted = _split(facts, seed)
        pairs = _encode(model, facts)
        differences, lens = _record(model, pairs)
        judged = [_judge(x, fitted, n_controls, seed) for x in differences]
        first = first or judged
        judge, counts = ~fitted & ~changed, (int(changed.sum()), int((~fitted & ~changed).sum()))
        for layer, (right, lots) in enumerate(judged):
            now, before = (torch.stack(part[layer][1]) for part in (judged, first))
            flipped = right != first[layer][0]
            rows.append(
                BeliefRow(
                    step, layer, _share(right, changed), _share(right, judge), _share(now.double(), judge),
                    _share(lens[layer], changed), _share(lens[layer], judge), _share(flipped, changed),
                    _share(flipped, judge), _share((now != before).double(), changed),
                )
            )  # fmt: skip
            assert len(lots) == n_controls
        identities.append(identify_model(model))
        del model
        if progress is not None:
            progress(done, len(chosen.sources), "following checkpoints")
    facts_of = build_provenance(
        method="drift of beliefs", model=chosen.label, steps=list(chosen.steps), seed=seed, n_controls=n_controls,
        checkpoints=identities,
    )  # fmt: skip
    return BeliefDrift(chosen.label, tuple(rows), *counts, facts_of)


Judged = Bool[Tensor, " fact"]


def _share(right: Tensor, which: Judged) -> float:
    return float(right[..., which].double().mean())


def _split(facts: Sequence[KnownFact], seed: int) -> tuple[Judged, Judged]:
    """Which facts are changed, and which untouched ones the probe is fitted on: those of half of the subjects."""
    changed = {fact.subject for fact in facts if fact.changed}
    untouched = sorted({fact.subject for fact in facts if not fact.changed})
    if both := sorted(changed & set(untouched)):
        raise InputError(f"the facts of a subject are changed or untouched; {', '.join(both[:5])} has both kinds")
    if len(changed) < LEAST or len(untouched) < LEAST:
        raise InputError(
            f"beliefs are followed over {LEAST} subjects of either kind or more; got {len(changed)} changed and "
            f"{len(untouched)} untouched"
        )
    order = torch.randperm(len(untouched), generator=torch.Generator().manual_seed(seed)).tolist()
    used = {untouched[i] for i in order[: len(untouched) // 2]}
    return torch.tensor([fact.changed for fact in facts]), torch.tensor([fact.subject in used for fact in facts])


def _encode(model: TransformerBridge, facts: Sequence[KnownFact]) -> PromptPairs:
    """Statements: the prompt with its true answer, and with the false one."""
    answers = []
    for fact in facts:
        ids = [single_token(model, word) for word in (fact.true, fact.false)]
        if None in ids or ids[0] == ids[1]:
            raise InputError(
                f"answers are two different words of one token each, as they follow the prompt; got {fact.true!r} and "
                f"{fact.false!r} for {fact.prompt!r}"
            )
        answers.append([token for token in ids if token is not None])
    prompts = [tokenise(model, fact.prompt) for fact in facts]
    sides = [[[*p, ids[i]] for p, ids in zip(prompts, answers, strict=True)] for i in (0, 1)]
    return PromptPairs.from_tokens(sides[0], sides[1], [ids[0] for ids in answers], [ids[1] for ids in answers])


@torch.no_grad()
def _record(model: TransformerBridge, pairs: PromptPairs) -> tuple[list[Float[Tensor, "fact d_model"]], list[Judged]]:
    """By layer: x(true) - x(false) at the answer, and whether the lens at the prompt's end ranks them rightly."""
    n_layers, readout = read_anatomy(model).n_layers, Readout.of(model)
    differences: list[list[Tensor]] = [[] for _ in range(n_layers)]
    ranked: list[list[Tensor]] = [[] for _ in range(n_layers)]
    sites = [Site("resid_post", layer) for layer in range(n_layers)]
    for part in pairs.batches(prompts_that_fit(model, pairs, sites=sites * 2)):
        true, false = (record_run(model, part, ["resid_post"], corrupt=side, n_tail=1) for side in (False, True))
        each, end = torch.arange(len(part)), part.lengths - 1
        for layer in range(n_layers):
            a, b = (run.layers["resid_post"][layer] for run in (true, false))
            differences[layer].append((a[each, end] - b[each, end]).double().cpu())
            logits = readout.logits(a[each, end - 1])
            ranked[layer].append((logits[each, part.correct[:, 0]] > logits[each, part.incorrect[:, 0]]).cpu())
    return [torch.cat(x) for x in differences], [torch.cat(x) for x in ranked]


def _judge(x: Float[Tensor, "fact d_model"], fitted: Judged, n_controls: int, seed: int) -> tuple[Judged, list[Judged]]:
    """Which facts the probe judges rightly, and the same with its labels by lot."""
    generator = torch.Generator().manual_seed(seed)
    right = x @ x[fitted].mean(dim=0) > 0
    lots = []
    for _ in range(n_controls):
        signs = 2.0 * torch.randint(2, (int(fitted.sum()), 1), generator=generator).double() - 1
        lots.append(x @ (signs * x[fitted]).mean(dim=0) > 0)
    return right, lots
