"""Function vectors across templates and tasks: do vectors of one wording work in another, and what do lenses see of it?

    v_a          one vector per template a of a task, fitted on half of its pairs (default: the mean difference)
    success      (metric with v_a added at the last token - corrupt) / (clean - corrupt), on template b's other half
    turned       share of those pairs in which the right answer then wins
    explained    ordinary least squares over all ordered pairs a != b of one task, all tasks together:
                   success ~ 1 + log norm(v_a)                        R^2 of the norm
                   success ~ 1 + log norm(v_a) + cosine(v_a, v_b)     its delta R^2: what the cosine adds
                   success ~ task, and ~ task + cosine                the same beyond which task it is
                 A regressor by lot adds something too: the same with cosines dealt out by lot among the pairs
    lens deltas  log2(1 + rank of the right answer) read by a lens after every later layer, steered - plain; negative:
                 the answer moved up. Of several right answers, the one that is read highest

Random vectors as long stand beside each success and each delta. The site is the one where vectors do best on the pairs
that they were fitted on. Source: Nadaf 2026 (arXiv:2604.02608), whose vectors are mean differences.

Cost, with T tasks of k templates, S sites, r random vectors: T k (S + 1) forwards of half of a template's pairs to fit
and to choose, T k (1 + r) (T - 1 + k) to apply, and 5 per template for the lenses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Direction, Examples, fit_directions
from ..directions.examples import marked_positions
from ..errors import InputError, MetricError, check_whole
from ..interventions import Add, Write, intervene
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import build_provenance
from ..runs.record import check_task, metric_of, run_to_metric
from ..sites import Site
from ..tasks.continuations import require_one_token
from ..tasks.metrics import accuracy
from ..tasks.pairs import END, PromptPairs
from ..tasks.task import Task
from .directions import place_after
from .lens import LOGIT_LENS, Lens
from .readout import Readout
from .states import record_states
from .transfer_table import LensDelta, TransferRow, VectorTransfer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FitVector = Callable[[Task, Site], Direction]
"""From pairs of one template to their vector at a site."""
LEAST = 4
"""Pairs that a template needs: two to fit, two to test."""


@dataclass(frozen=True, eq=False)
class _Template:
    """Pairs of one template: those that are fitted, those that are tested, and the metric of the latter's sides."""

    task: str
    text: str
    fitted: Task
    tested: Task

    @property
    def host(self) -> PromptPairs:
        return self.tested.pairs.corrupt_as_host()


@borrows
def study_vector_transfer(
    model: TransformerBridge,
    tasks: Mapping[str, Task],
    *,
    sites: Sequence[Site] | None = None,
    fit: FitVector | None = None,
    lenses: Mapping[str, Lens] | None = None,
    strength: float = 1.0,
    n_templates: int = 4,
    n_random: int = 2,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> VectorTransfer:
    """Vectors of every task's `n_templates` most frequent templates, on their own and each other's pairs, and on those
    of the most frequent template of every other task.

    Each task holds pairs of one direction (clean prompts of the positive class) that know their templates; `tasks`
    names them. `fit` makes the vector of some pairs at a site (default: `fit_directions`, the mean difference), e.g.
    Todd's with ``lambda part, site: fit_function_vector(model, Demonstrations.of_task(part), site=site).direction``.
    `sites`: candidates, after blocks (default: all but the last, behind which there is nothing left to read).
    `lenses`: name -> lens (default: the logit lens; ``{}``: none).

    Raises:
        InputError: no tasks, a task with fewer than two templates of four pairs, sites that are not ``resid_post``, a
            strength of 0, a `fit` that gives vectors of other sites or models.
        MetricError: clean and corrupt test pairs of a template have the same mean metric.
        ArtefactError: another model's lens.

    >>> found = study_vector_transfer(model, {"she": she, "greater than": mw.tasks.greater_than(model, n=256)})
    >>> print(found.explained().cosine_beyond_norm)
    """
    anatomy = check_ready(model)
    lenses = {LOGIT_LENS.name: LOGIT_LENS} if lenses is None else dict(lenses)
    sites = [Site("resid_post", i) for i in range(max(1, anatomy.n_layers - 1))] if sites is None else list(sites)
    if not tasks or not sites or any(site.kind != "resid_post" for site in sites):
        raise InputError(f"vectors of one task or more are added after blocks (resid_post); got {list(tasks)}, {sites}")
    if check_whole("n_templates", n_templates) < 2 or check_whole("n_random", n_random) < 1:
        raise InputError(f"two templates and one random vector at least; got {n_templates} and {n_random}")
    if not math.isfinite(strength) or strength == 0:
        raise InputError(f"a strength is a finite number other than 0; got {strength}")
    for site in sites:
        anatomy.check_site(site)
    for lens in lenses.values():
        lens.check(model)
    parts: dict[str, list[_Template]] = {}
    for name, task in tasks.items():
        check_task(model, task)
        require_one_token(task.pairs.continuations, "the rank of the answer")
        parts[name] = _templates(name, task, n_templates, seed)
    vectors: dict[str, list[Direction]] = {}
    for done, (name, templates) in enumerate(parts.items(), start=1):
        vectors[name] = _fit_task(model, templates, sites, fit, strength)
        if progress is not None:
            progress(done, 2 * len(parts), f"vectors of {name}")
    ends = {
        id(one): [
            metric_of(model, one.tested, side.to(device_of(model))).cpu() for side in (one.host, one.tested.pairs)
        ]
        for templates in parts.values()
        for one in templates
    }
    rows, deltas = [], []
    for done, (name, templates) in enumerate(parts.items(), start=len(parts) + 1):
        for one, vector in zip(templates, vectors[name], strict=True):
            for target, others in parts.items():
                kept = len(others) if target == name else 1
                for there, theirs in zip(others[:kept], vectors[target], strict=False):
                    rows.append(_row(model, one, vector, there, theirs, ends[id(there)], strength, n_random, seed))
        if lenses:
            deltas += _deltas(model, name, templates, vectors[name], lenses, strength, seed)
        if progress is not None:
            progress(done, 2 * len(parts), f"transfer of {name}")
    facts = build_provenance(
        method="transfer of function vectors", model=identify_model(model), seed=seed, strength=strength,
        tasks={name: task.provenance() for name, task in tasks.items()}, lenses=list(lenses), n_random=n_random,
    )  # fmt: skip
    return VectorTransfer(
        tuple(rows), tuple(deltas), {name: found[0].site for name, found in vectors.items()}, strength, facts
    )


def _templates(name: str, task: Task, n: int, seed: int) -> list[_Template]:
    counts = Counter(task.pairs.templates)
    kept = [text for text, count in counts.most_common(n) if count >= LEAST]
    if len(kept) < 2:
        raise InputError(
            f"transfer takes two templates with {LEAST} pairs each; {name} has {len(kept)}: "
            f"{dict(counts.most_common(3)) or 'its pairs know no template'}. Draw more pairs"
        )
    generator, found = torch.Generator().manual_seed(seed), []
    for text in kept:
        rows = torch.tensor([i for i, own in enumerate(task.pairs.templates) if own == text])
        order = rows[torch.randperm(len(rows), generator=generator)].tolist()
        found.append(_Template(name, text, task[order[: len(order) // 2]], task[order[len(order) // 2 :]]))
    return found


def _fit_task(
    model: TransformerBridge, templates: Sequence[_Template], sites: Sequence[Site], fit: FitVector | None,
    strength: float,
) -> list[Direction]:  # fmt: skip
    """The vectors of all templates at the site where they do best on the pairs they were fitted on."""
    found = [
        fit_directions(model, Examples.of_task(one.fitted), sites)
        if fit is None
        else [fit(one.fitted, s) for s in sites]
        for one in templates
    ]
    for vectors in found:
        for vector, site in zip(vectors, sites, strict=True):
            vector.check(model)
            if vector.site != site:
                raise InputError(f"`fit` makes the vector of a site; asked for {site}, it gave one of {vector.site}")
    if len(sites) == 1:
        return [vectors[0] for vectors in found]
    reached = torch.zeros(len(sites), dtype=torch.float64)
    for one, vectors in zip(templates, found, strict=True):
        for i, vector in enumerate(vectors):
            reached[i] += float(_reach(model, one.fitted, vector, strength)[0].double().mean())
    best = int(reached.argmax())
    return [vectors[best] for vectors in found]


def write_at_end(pairs: PromptPairs, vector: Direction, strength: float) -> Write:
    """The vector added at the last token of every prompt."""
    where = marked_positions(pairs.mask, pairs.lengths, pairs.spans, END)
    return Write(vector.site, Add(vector.vector, strength), where)


@torch.no_grad()
def _reach(
    model: TransformerBridge, task: Task, vector: Direction, strength: float
) -> tuple[Float[Tensor, " batch"], float]:
    """(metric per pair, share of answers that are right) of the corrupt prompts with a vector."""
    host = task.pairs.corrupt_as_host().to(device_of(model))
    with intervene(model, [write_at_end(host, vector, strength)]):
        logits = run_to_metric(model, task, host)
    return task.measure(logits, host).cpu(), float(accuracy(logits, host).double().mean())


def _row(
    model: TransformerBridge, one: _Template, vector: Direction, there: _Template, theirs: Direction,
    ends: Sequence[Tensor], strength: float, n_random: int, seed: int,
) -> TransferRow:  # fmt: skip
    low, high = (float(side.double().mean()) for side in ends)
    if abs(high - low) <= 1e-6 * max(1e-12, abs(high)):
        raise MetricError(f"success is undefined: {there.task}, {there.text!r} has the same metric clean and corrupt")
    tried = [_reach(model, there.tested, v, strength) for v in (vector, *_lots(vector, n_random, seed))]
    success = [(float(reached.double().mean()) - low) / (high - low) for reached, _ in tried]
    turned = [right for _, right in tried]
    return TransferRow(
        one.task, one.text, there.task, there.text, vector.cosine(theirs), vector.norm, success[0], turned[0],
        max(success[1:]), max(turned[1:]), len(there.tested),
    )  # fmt: skip


def _lots(vector: Direction, n: int, seed: int) -> list[Direction]:
    return [vector.random_control(seed + i) for i in range(n)]


@torch.no_grad()
def _deltas(
    model: TransformerBridge, name: str, templates: Sequence[_Template], vectors: Sequence[Direction],
    lenses: Mapping[str, Lens], strength: float, seed: int,
) -> list[LensDelta]:  # fmt: skip
    start = int(vectors[0].site.layer or 0)
    sites = [Site("resid_post", i) for i in range(start, int(model.cfg.n_layers))]
    found: list[list[Tensor]] = [[] for _ in range(5)]
    for i, one in enumerate(templates):
        own, other = vectors[i], vectors[(i + 1) % len(vectors)]
        host = one.host
        sides: list[tuple[PromptPairs, Direction | None]] = [
            (host, None), (host, own), (host, other), (host, own.random_control(seed)), (one.tested.pairs, None),
        ]  # fmt: skip
        answers = one.tested.pairs.correct
        for kept, (pairs, vector) in zip(found, sides, strict=True):
            kept.append(read_ranks(model, list(lenses.values()), pairs, answers, sites, vector, strength))
    means = torch.stack([torch.cat(kept, dim=2).add(1).log2().mean(dim=2) for kept in found], dim=-1)
    return [
        LensDelta(name, label, site, *values)
        for label, by_site in zip(lenses, means.tolist(), strict=True)
        for site, values in zip(sites, by_site, strict=True)
    ]


@torch.no_grad()
def read_ranks(
    model: TransformerBridge, lenses: Sequence[Lens], pairs: PromptPairs, answers: Tensor, sites: Sequence[Site],
    vector: Direction | None = None, strength: float = 1.0,
) -> Float[Tensor, "lens site batch"]:  # fmt: skip
    """Rank (0: the first) of the best of each prompt's `answers`, read by every lens at its last token after some
    blocks, with a vector added there. Cost: 1 forward.
    """
    tokens, readout = pairs.clean_tokens.to(device_of(model)), Readout.of(model)
    writes = [] if vector is None else [write_at_end(pairs, vector, strength)]
    with intervene(model, writes):
        states = record_states(model, tokens, sites)
    rows, ends = torch.arange(len(tokens)), pairs.lengths - 1
    found = torch.zeros(len(lenses), len(sites), len(tokens), dtype=torch.float64)
    for j, (site, state) in enumerate(zip(sites, states, strict=True)):
        x = state[rows.to(state.device), ends.to(state.device)]
        last = site.layer == int(model.cfg.n_layers) - 1
        for i, lens in enumerate(lenses):
            place = place_after(model, lens, int(site.layer or 0))
            logits = readout.logits(x if last or place is None else lens.translate(x, place)).double().cpu()
            right = logits.gather(-1, answers.clamp(min=0)).masked_fill(answers < 0, -torch.inf)
            found[i, j] = (logits > right.amax(dim=-1, keepdim=True)).sum(dim=-1)
    return found
