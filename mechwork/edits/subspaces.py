"""Edits of one MLP's output weight that come from subspaces: into one (unlearning), or like a patch along a vector.

    o_i -> p + B^T B (o_i - p)                                the output's place in the target's subspace
    D = argmin mean |x_i D - (o_i' - o_i)|^2 + ...            see `least_squares`: x^+ (o' - o) when ridge goes to 0

x_i: what the weight reads on prompts to forget; o_i = x_i W; p and the k rows of B: mean and principal axes of what it
puts out on the target prompts (refusals). The arrangement of STAMP (RePAIR, 2026), told from its summary: MLP outputs
redirected into a refusal subspace by a closed-form pseudoinverse; `rank` is its low-rank form. Its watchdog and surgeon
models are not here.

    like a patch:  y_i = (v . (x_i^clean - x_i)) v W          D = w v W: one column w, rank 1

(Makelov, Lange & Nanda 2023, section on fact editing.) On the pairs that it was fitted on, the edit puts out what
patching along v puts out, whether or not the model uses v: what a rank-1 edit of a fact changes does not show that the
fact is there. `compare_with_patch` has both side by side, with what v's row part does and what random vectors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..directions import Direction, Examples
from ..directions.examples import record_positions
from ..errors import InputError
from ..interventions import Add, Write, intervene
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result
from ..runs.record import align_donor, check_task, run_to_metric
from ..sites import Site
from ..statistics import kl_nats
from ..tasks.pairs import END, PromptPairs
from ..tasks.task import Task
from .least_squares import LayerFit, ends, fit_layer_edit, inputs_of
from .weights import find_weight, parse_weight

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@borrows
def edit_into_subspace(
    model: TransformerBridge,
    weight: str,
    examples: Examples,
    n_axes: int = 4,
    *,
    ridge: float = 1e-2,
    rank: int | None = None,
    keep: Sequence[Task] = (),
    keep_weight: float = 1.0,
    control_seed: int | None = None,
) -> LayerFit:
    """An edit of ``"W_out.l"`` that puts the output on the positive prompts into the subspace of the negative ones'.

    Positions are those of the examples. Kept as they are: the inputs on the negative prompts, and every position of the
    clean prompts of `keep`. With `control_seed`, a random subspace as far away. Cost: 1 forward of all prompts. Raises
    `InputError` for another weight, or axes outside 0 to what the target's outputs span.

    >>> fit = edit_into_subspace(model, "W_out.4", Examples.of_task(task.train), 2, keep=[agreement.train])
    >>> with intervene(model, [fit.edit]):
    ...     logits = model(prompt)
    """
    W, site = _weight(model, weight)
    for task in keep:
        check_task(model, task)
    x = record_positions(model, examples, site).double()
    here, there = (x[examples.where & side[:, None]] for side in (examples.labels, ~examples.labels))
    o, target = here @ W, there @ W
    limit = min(len(target) - 1, W.shape[1])
    if not 0 <= n_axes <= limit:
        raise InputError(f"the target's outputs span 0 to {limit} axes around their mean; got {n_axes}")
    centre, axes = target.mean(dim=0), torch.linalg.svd(target - target.mean(dim=0), full_matrices=False).Vh[:n_axes]
    if control_seed is not None:
        centre, axes = _random_place(o.mean(dim=0), centre, n_axes, control_seed)
    wanted = centre + (o - centre) @ axes.T @ axes
    kept = [there, *(inputs_of(model, task.pairs, site)[task.pairs.mask].double() for task in keep)]
    facts = build_provenance(
        method="edit into a subspace", model=identify_model(model), n_axes=n_axes, ridge=ridge, rank=rank,
        control_seed=control_seed, examples={"name": examples.name, "sha256": examples.sha256()},
        keep=[task.provenance() for task in keep], keep_weight=keep_weight,
    )  # fmt: skip
    return fit_layer_edit(
        model, weight, here, wanted - o, ridge=ridge, rank=rank, keep=torch.cat(kept), keep_weight=keep_weight,
        name=f"{examples.name}: {weight} into {n_axes} axes", provenance=facts,
    )  # fmt: skip


@borrows
def edit_like_patch(
    model: TransformerBridge,
    task: Task,
    direction: Direction,
    *,
    position: str = END,
    ridge: float = 1e-2,
    keep: Sequence[Task] = (),
    keep_weight: float = 1.0,
) -> LayerFit:
    """The rank-1 edit of an MLP's output weight that does on corrupt prompts what patching along `direction` does.

    `direction` is at ``mlp_post``. Kept as they are: the clean prompts there, and every position of the clean prompts
    of `keep`. Cost: 1 forward of each. Raises `InputError` for a direction elsewhere or of another model, or a span
    that the prompts do not have.
    """
    _, here, coefficient, kept = _along(model, task, direction, position)
    W, site = _weight(model, f"W_out.{direction.site.layer}")
    for other in keep:
        check_task(model, other)
        kept = torch.cat([kept, inputs_of(model, other.pairs, site)[other.pairs.mask].double()])
    facts = build_provenance(
        method="edit like a patch", model=identify_model(model), task=task.provenance(), position=position, ridge=ridge,
        direction=direction.provenance, keep=[other.provenance() for other in keep], keep_weight=keep_weight,
    )  # fmt: skip
    return fit_layer_edit(
        model, f"W_out.{direction.site.layer}", here, coefficient[:, None] * (direction.unit.double().cpu() @ W),
        ridge=ridge, rank=1, keep=kept, keep_weight=keep_weight, name=f"like a patch of {direction.name}",
        provenance=facts,
    )  # fmt: skip


@dataclass(frozen=True)
class EditRow:
    """One vector: mean change of the metric on corrupt prompts by patching along it, by patching its row part, and by
    the edit; the edit's on held-out pairs, and its KL elsewhere (NaN without other tasks).
    """

    vector: str
    null_share: float
    patch: float
    row_part: float
    edit: float
    held_out: float
    kl: float


@dataclass(frozen=True, eq=False)
class EditBesidePatch(Result):
    """The vector and random ones, each patched and made an edit; `gap`: clean minus corrupt metric."""

    rows: tuple[EditRow, ...]
    gap: float
    metric_name: str
    provenance: Provenance = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.metric_name}: clean - corrupt {self.gap:+.4g}"]
        lines += [
            f"  {r.vector}: patch {r.patch:+.4g}, without the {r.null_share:.0%} that nothing reads {r.row_part:+.4g}; "
            f"rank-1 edit {r.edit:+.4g}, held out {r.held_out:+.4g}, KL elsewhere {r.kl:.4f}"
            for r in self.rows
        ]
        return "\n".join(lines)


@borrows
def compare_with_patch(
    model: TransformerBridge,
    task: Task,
    direction: Direction,
    test: Task,
    *,
    position: str = END,
    others: Sequence[Task] = (),
    ridge: float = 1e-2,
    n_random: int = 2,
    seed: int = 0,
) -> EditBesidePatch:
    """A rank-1 edit beside the patch along its vector, the vector's row part, and random vectors (see the module).

    An edit that works where the row part does not is no evidence that the model keeps the fact there. `others` are
    kept as they are, on their clean prompts. Cost: 6 forwards of the pairs and 2 of the others, per vector. Raises as
    `edit_like_patch`.
    """
    _check_along(model, direction)
    W, _ = _weight(model, f"W_out.{direction.site.layer}")
    check_task(model, test)
    plain = [_measured(model, one, one.pairs.corrupt_as_host())[0] for one in (task, test)]
    clean = _measured(model, task, task.pairs)[0]
    before = [_measured(model, other, other.pairs)[1] for other in others]
    vectors = [direction, *(direction.random_control(seed + i) for i in range(n_random))]
    rows = []
    for one in vectors:
        unit = one.unit.double().cpu()
        read = torch.linalg.svd(W, full_matrices=False)
        inside = read.U[:, read.S / read.S.max() > 1e-10]
        row = inside @ (inside.T @ unit)
        patched = [_patched(model, task, one, vector, position) for vector in (unit, row)]
        fit = edit_like_patch(model, task, one, position=position, ridge=ridge, keep=others)
        with intervene(model, [fit.edit]):
            edited = [_measured(model, each, each.pairs.corrupt_as_host())[0] for each in (task, test)]
            after = [_measured(model, other, other.pairs)[1] for other in others]
        kl = [float(kl_nats(a, b).clamp(min=0).mean()) for a, b in zip(before, after, strict=True)]
        rows.append(
            EditRow(
                one.name, float(1 - row @ row), float((patched[0] - plain[0]).mean()),
                float((patched[1] - plain[0]).mean()), float((edited[0] - plain[0]).mean()),
                float((edited[1] - plain[1]).mean()), sum(kl) / len(kl) if kl else float("nan"),
            )
        )  # fmt: skip
    facts = build_provenance(
        method="edit beside a patch", model=identify_model(model), task=task.provenance(), seed=seed, position=position,
        test=test.provenance(), direction=direction.provenance,
    )  # fmt: skip
    return EditBesidePatch(tuple(rows), float((clean - plain[0]).mean()), task.metric.name, facts)


def _weight(model: TransformerBridge, weight: str) -> tuple[Float[Tensor, "d_mlp d_model"], Site]:
    kind, layer = parse_weight(weight)
    if kind != "W_out":
        raise InputError(f"these edits are of an MLP's output weight, W_out.<layer>; got {weight}")
    check_ready(model)
    return find_weight(model, weight).read().cpu().double(), Site("mlp_post", layer)


def _check_along(model: TransformerBridge, direction: Direction) -> None:
    """Raises `InputError` for a direction that is not among this model's neurons."""
    if direction.site.kind != "mlp_post":
        raise InputError(f"a rank-1 edit like a patch is along neurons, Site('mlp_post', layer); got {direction.site}")
    direction.check(model)


def _along(
    model: TransformerBridge, task: Task, direction: Direction, position: str
) -> tuple[Bool[Tensor, "batch pos"], Float[Tensor, "n d"], Float[Tensor, " n"], Float[Tensor, "m d"]]:
    """Where corrupt prompts are read, what is read there, how far clean is along the direction, and clean inputs."""
    _check_along(model, direction)
    check_task(model, task)
    host = task.pairs.corrupt_as_host()
    chosen, clean = ends(host, position), ends(task.pairs, position)
    here, there = (inputs_of(model, pairs, direction.site).double() for pairs in (host, task.pairs))
    moved = align_donor(there, here, host.alignment())
    return chosen, here[chosen], (moved - here)[chosen] @ direction.unit.double().cpu(), there[clean]


@torch.no_grad()
def _patched(
    model: TransformerBridge, task: Task, direction: Direction, vector: Float[Tensor, " d"], position: str
) -> Float[Tensor, " batch"]:
    """The metric on corrupt prompts with (vector . (clean - corrupt)) vector / |vector|^2 added where they are read."""
    unit = vector / vector.norm().clamp(min=1e-30)
    host = task.pairs.corrupt_as_host()
    chosen = ends(host, position)
    here, there = (inputs_of(model, pairs, direction.site).double() for pairs in (host, task.pairs))
    far = ((align_donor(there, here, host.alignment()) - here) @ unit)[..., None] * unit
    with intervene(model, [Write(direction.site, Add(far * chosen[..., None]))]):
        return _measured(model, task, host)[0]


@torch.no_grad()
def _measured(model: TransformerBridge, task: Task, pairs: PromptPairs) -> tuple[Tensor, Tensor]:
    """Metric and next-token log-probabilities per prompt."""
    pairs = pairs.to(device_of(model))
    logits = run_to_metric(model, task, pairs)
    return task.measure(logits, pairs).double().cpu(), pairs.final(logits).double().log_softmax(dim=-1).cpu()


def _random_place(near: Tensor, centre: Tensor, n_axes: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random centre as far from `near` as `centre` is, and random axes."""
    generator = torch.Generator().manual_seed(seed)
    draw: Any = torch.randn(1 + n_axes, len(near), generator=generator, dtype=torch.float64)
    away = draw[0] / draw[0].norm() * (centre - near).norm()
    axes = torch.linalg.qr(draw[1:].T).Q.T if n_axes else draw[1:]
    return near + away, axes
