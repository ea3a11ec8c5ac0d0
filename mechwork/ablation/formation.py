"""Induction along training: when the heads form, and what they wait for, measured on a bundled model's checkpoints.

For every checkpoint, on random repeated tokens: the highest previous-token and induction score of any head, the loss
(mean negative log-probability in nats) at the repetition, and the same with activations *clamped* to those of the last
checkpoint:

    pattern of the previous-token head      is the attention of layer 0 what induction waits for?
    z of the previous-token head            ... or what it moves?
    the same of another head of its layer   the control
    pattern of the induction head           with its attention given, does the rest already copy?

and, the other way round, the last checkpoint with the previous-token head's pattern clamped to that of each earlier
one. Prompts are the same throughout. Cost: 1 forward of each model per condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import bundled
from ..errors import InputError
from ..models.anatomy import read_anatomy
from ..models.load import load_model
from ..models.sources import Checkpoints, find_checkpoints
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import record_run
from ..tasks.induction import induction
from ..tasks.task import Task
from .clamp import record_clamp
from .repeated import RepeatedTokens, changing_words, repeated_tokens
from .roles import RoleTable, measure_roles

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CONDITIONS = ("previous-token pattern", "previous-token z", "control pattern", "control z", "induction pattern")
LIKE = 400
"""Prompts of the induction task whose words are drawn from."""
BACK = "last model, earlier previous-token pattern"


@dataclass(frozen=True)
class FormationRow:
    """One checkpoint. Scores are the highest of any head; `clamped` and `clamped_induction` map conditions to loss and
    induction score.
    """

    step: int
    previous_token: float
    previous_token_head: str
    induction: float
    induction_head: str
    loss: float
    clamped: dict[str, float]
    clamped_induction: dict[str, float]


@dataclass(frozen=True, eq=False)
class Formation(Result):
    """Rows by step of training; `heads` are the last checkpoint's previous-token head, control and induction head."""

    model: str
    rows: tuple[FormationRow, ...]
    heads: dict[str, str]
    uniform_loss: float
    """ln of the number of candidate tokens: a model that knows only which tokens are drawn from."""
    provenance: Provenance

    def _table(self) -> Table:
        """One row per checkpoint."""
        return [
            {
                **{k: v for k, v in vars(row).items() if not isinstance(v, dict)},
                **{f"loss, {k}": v for k, v in row.clamped.items()},
                **{f"induction, {k}": v for k, v in row.clamped_induction.items()},
            }
            for row in self.rows
        ]

    def __str__(self) -> str:
        said = ", ".join(f"{what} {head}" for what, head in self.heads.items())
        lines = [
            f"{self.model}: {said}. Loss at the repetition of random tokens; clamped: to the last checkpoint's values",
            (
                f"{'step':>6}{'previous':>10}{'induction':>11}{'loss':>7} "
                f"|{'prev pattern':>14}{'prev z':>8}{'ctrl pattern':>14}{'ctrl z':>8}{'ind pattern':>13} "
                f"|{'ind score, prev z':>19} |{'last, early pattern':>21}"
            ),
        ]
        for r in self.rows:
            c = r.clamped
            lines.append(
                f"{r.step:>6}{r.previous_token:10.2f}{r.induction:11.2f}{r.loss:7.2f} "
                f"|{c[CONDITIONS[0]]:14.2f}{c[CONDITIONS[1]]:8.2f}{c[CONDITIONS[2]]:14.2f}"
                f"{c[CONDITIONS[3]]:8.2f}{c[CONDITIONS[4]]:13.2f} |{r.clamped_induction[CONDITIONS[1]]:19.2f} "
                f"|{c[BACK]:21.2f}"
            )
        return "\n".join(lines)


def study_formation(
    name: str | Sequence[str | Path] = "attn-only-2l",
    steps: Sequence[int] | None = None,
    *,
    n: int = 64,
    length: int = 12,
    like: Task | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Formation:
    """The study on a bundled model's checkpoints (default: all of ``attn-only-2l``), or on a list of sources, first to
    last.

    Sources are folders, GGUF files or hub names of one architecture, `steps` their labels (default: their places in the
    list). Beside the last model, whose values are clamped, one is in memory at a time. The random tokens are the
    changing words of `like` (default: of the induction task, which these models were trained on).

    Raises `InputError` for a model without checkpoints, sources that differ in architecture, or fewer than two layers.
    """
    chosen = _at_least_two(name, steps)
    last = load_model(chosen.sources[-1])
    if read_anatomy(last).n_layers < 2:
        raise InputError("induction takes two layers; this model has one")
    like = induction(last, n=LIKE, seed=seed) if like is None else like
    prompts = repeated_tokens(last, n, length, like=like, seed=seed)
    final = measure_roles(last, prompts, seed=seed)
    heads = _heads(final)
    rows = []
    for done, (source, step) in enumerate(zip(chosen.sources, chosen.steps, strict=True), start=1):
        model = last if done == len(chosen.sources) else load_model(source)
        rows.append(_row(step, model, last, prompts, heads, measure_roles(model, prompts, n_null=2, seed=seed)))
        if progress is not None:
            progress(done, len(chosen.sources), "following checkpoints")
        del model
    uniform = float(torch.tensor(float(len(changing_words(like)))).log())
    facts = build_provenance(
        method="formation of induction",
        model=chosen.label,
        steps=list(chosen.steps),
        task=prompts.task.provenance(),
        roles=final.provenance,
        seed=seed,
    )
    return Formation(chosen.label, tuple(rows), heads, uniform, facts)


def _at_least_two(name: str | Sequence[str | Path], steps: Sequence[int] | None) -> Checkpoints:
    """The checkpoints; raises `InputError` for fewer than two."""
    known = bundled.checkpoints(name) if isinstance(name, str) and name in bundled.model_names() else []
    n = len(list(steps)) if steps is not None else len(known) if isinstance(name, str | Path) else len(name)
    if n < 2:
        raise InputError(
            f"formation is followed over at least two checkpoints; {name} has {known or 'none'}. "
            "Give a bundled model that has them, or a list of folders, GGUF files or hub names."
        )
    return find_checkpoints(name, steps)


def _heads(table: RoleTable) -> dict[str, str]:
    """The last checkpoint's heads: best previous-token head, another one of its layer as control, best
    induction head.
    """
    previous, induction = table.top("previous token", 1)[0][0], table.top("induction", 1)[0][0]
    layer = previous.split(".")[0]
    others = [
        (head, score)
        for head, score in table.top("previous token", len(table.heads))
        if head.split(".")[0] == layer and head != previous
    ]
    if not others:
        raise InputError(
            f"the control is another head of the previous-token head's layer; {previous} is alone in its own"
        )
    return {"previous token": previous, "control": others[-1][0], "induction": induction}


def _row(
    step: int,
    model: TransformerBridge,
    last: TransformerBridge,
    prompts: RepeatedTokens,
    heads: dict[str, str],
    table: RoleTable,
) -> FormationRow:
    places = {
        CONDITIONS[0]: (heads["previous token"], "pattern"), CONDITIONS[1]: (heads["previous token"], "z"),
        CONDITIONS[2]: (heads["control"], "pattern"), CONDITIONS[3]: (heads["control"], "z"),
        CONDITIONS[4]: (heads["induction"], "pattern"),
    }  # fmt: skip
    loss, scores = {}, {}
    for condition, (head, what) in places.items():
        with record_clamp(last, prompts.tokens, [head], what=what).applied(model):
            loss[condition] = _loss(model, prompts)
            scores[condition] = _induction(model, prompts)
    with record_clamp(model, prompts.tokens, [heads["previous token"]], what="pattern").applied(last):
        loss[BACK] = _loss(last, prompts)
        scores[BACK] = _induction(last, prompts)
    (previous, p_score), (induction, i_score) = table.top("previous token", 1)[0], table.top("induction", 1)[0]
    return FormationRow(step, p_score, previous, i_score, induction, _loss(model, prompts), loss, scores)


def _loss(model: Any, prompts: RepeatedTokens) -> float:
    with torch.no_grad():
        return -float(prompts.task.measure(model(prompts.tokens)).mean())


def _induction(model: TransformerBridge, prompts: RepeatedTokens) -> float:
    """The highest induction score of any head, all prompts in one forward."""
    run = record_run(model, prompts.task.pairs, ["pattern"], n_tail=1)
    keys = prompts.queries - prompts.length + 1
    return max(float(p[:, :, prompts.queries, keys].double().mean(dim=(0, 2)).max()) for p in run.layers["pattern"])
