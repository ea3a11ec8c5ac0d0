"""Does a model notice that it is steered, and does it resist? What it reports, and what it writes.

Reports: the task's clean prompts ask whether something was put in, and the correct answer says that it was. Per
strength, against the same prompts without the write:

    said      share of prompts on which the report wins (the model's own criterion): hits with the write, false alarms
              without
    hits      share of prompts whose metric is above a threshold that `rate` of the plain prompts exceed
    area      chance that the metric with the write is above the metric without, over prompts (0.5: it cannot tell)

Writing: the share of continuations in which one of `phrases` stands, e.g. a restart ("wait", "let me try again").
(Introspective awareness: Lindsey 2025; endogenous resistance: arXiv:2602.06941, where a judge model counts restarts;
phrases are a cruder measure.) The same for random directions as long: a model that reports any push has not noticed
this one. Cost: (1 + strengths x (1 + `n_random`)) forwards, and as many generations with `phrases`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, check_whole
from ..execute.progress import Progress
from ..interventions import as_interventions, guard_overflow, intervene
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..runs.record import check_task, run_to_metric
from ..statistics import area_under_roc
from ..tasks.encode import require_tokenizer
from ..tasks.metrics import accuracy
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .direction import Direction
from .steer import steering_write

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class DetectionRow:
    """One direction (``plain``, the fitted one or a random one) at one strength; `wrote` is None without phrases."""

    direction: str
    strength: float
    said: float
    hits: float
    area: float
    wrote: float | None = None


@dataclass(frozen=True, eq=False)
class DetectionStudy(Result):
    """All rows, the plain prompts' first; `texts` are the first continuation of each."""

    rows: tuple[DetectionRow, ...]
    rate: float
    n: int
    texts: tuple[str, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.n} prompts; hits at {self.rate:.0%} false alarms",
            f"{'direction':<24}{'strength':>9}{'said':>7}{'hits':>7}{'area':>7}{'wrote':>7}",
        ]
        for row in self.rows:
            wrote = "" if row.wrote is None else f"{row.wrote:7.2f}"
            lines.append(
                f"{row.direction[:23]:<24}{row.strength:9.2f}{row.said:7.2f}{row.hits:7.2f}{row.area:7.2f}{wrote}"
            )
        return "\n".join(lines)


@borrows
def study_detection(
    model: TransformerBridge,
    task: Task,
    direction: Direction,
    *,
    strengths: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
    method: str = "add",
    rate: float = 0.1,
    phrases: Sequence[str] = (),
    n_generated: int = 24,
    n_random: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> DetectionStudy:
    """Ask the questions of `task` with and without the write (see the module); phrases are found in any case.

    Raises `InputError` for fewer than four prompts, strengths that are 0, or phrases without a tokenizer.

    >>> print(study_detection(model, she, direction, strengths=[2.0], n_random=1))
    """
    check_task(model, task)
    direction.check(model)
    check_whole("n_random", n_random, least=0)
    check_whole("n_generated", n_generated, least=1)
    if len(task) < 4:
        raise InputError(f"a rate over prompts needs at least 4 of them; got {len(task)}")
    if not strengths or not all(strength for strength in strengths):
        raise InputError(f"strengths are numbers other than 0, which is the plain model; got {list(strengths)}")
    if not 0 < rate < 1:
        raise InputError(f"a rate of false alarms is between 0 and 1; got {rate}")
    if isinstance(phrases, str) or not all(isinstance(phrase, str) and phrase for phrase in phrases):
        raise InputError(f"phrases are a list of texts; got {phrases!r}")
    if phrases:
        require_tokenizer(model)
    pairs, ways = task.pairs.to(device_of(model)), [direction, *map(direction.random_control, range(n_random))]
    plain, said, wrote, text = _ask(model, task, pairs, None, phrases, n_generated)
    threshold = plain.double().quantile(1 - rate)
    rows = [DetectionRow("plain", 0.0, said, float((plain > threshold).double().mean()), 0.5, wrote)]
    texts = [text]
    for one in ways:
        for strength in strengths:
            write = as_interventions(one.site, steering_write(one, method, strength))
            found, said, wrote, text = _ask(model, task, pairs, write, phrases, n_generated)
            labels = torch.arange(2 * len(plain)) >= len(plain)
            area = area_under_roc(torch.cat([plain, found]), labels)
            hits = float((found > threshold).double().mean())
            rows.append(DetectionRow(one.name, strength, said, hits, area, wrote))
            texts.append(text)
            if progress is not None:
                progress(len(rows) - 1, len(ways) * len(strengths), "asking with and without the write")
    facts = build_provenance(
        method="detection of steering", way=method, rate=rate, phrases=list(phrases), n_random=n_random, seed=seed,
        model=identify_model(model), task=task.provenance(), direction=direction.provenance,
    )  # fmt: skip
    return DetectionStudy(tuple(rows), rate, len(task), tuple(texts) if phrases else (), facts)


@torch.no_grad()
def _ask(
    model: TransformerBridge, task: Task, pairs: PromptPairs, write: Any, phrases: Sequence[str], n_generated: int
) -> tuple[Tensor, float, float | None, str]:
    """Metric per prompt, share of reports, share of continuations with a phrase, and the first continuation."""
    with nullcontext() if write is None else intervene(model, write), guard_overflow(model, "steering"):
        logits = run_to_metric(model, task, pairs)
        grown = [_continue(model, pairs, row, n_generated) for row in range(len(pairs) if phrases else 0)]
    found = [any(phrase.lower() in text.lower() for phrase in phrases) for text in grown]
    share = sum(found) / len(found) if found else None
    said = float(accuracy(logits, pairs).double().mean())
    return task.measure(logits, pairs).cpu(), said, share, grown[0] if grown else ""


def _continue(model: TransformerBridge, pairs: PromptPairs, row: int, n: int) -> str:
    """What the model writes after one prompt, greedily."""
    prompt = pairs.clean_tokens[row : row + 1, : int(pairs.lengths[row])]
    grown: Any = model.generate(prompt, max_new_tokens=n, do_sample=False, return_type="tokens", verbose=False)
    return str(require_tokenizer(model).decode(grown[0, prompt.shape[1] :]))
