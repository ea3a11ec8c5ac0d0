"""Closed-form edits of one layer's output weight from pairs of activations: what it reads, and what it should write
instead.

    D = argmin  mean_i |x_i D - y_i|^2  +  keep_weight mean_j |x'_j D|^2  +  ridge m |D|^2,     m = mean of |x|^2 / d_in
      = (X^T X / n + keep_weight X'^T X' / n' + ridge m)^-1 X^T Y / n

x: inputs of the weight (`mlp_post`, or z of all heads); y: the wanted change of its output; x': inputs on which nothing
should change. ridge -> 0 without x' gives the pseudo-inverse D = X^+ Y; x' with its second moments is MEMIT's form
(Meng et al. 2023, equation 14). `rank` keeps the best D of that rank for the same objective (reduced-rank regression):
the fitted outputs' leading right singular vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError, MetricError
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import align_donor, check_task, record_run
from ..sites import Site
from ..tasks.pairs import END, PromptPairs
from ..tasks.task import Task
from .edit import LowRankChange, WeightEdit
from .weights import INPUTS, find_weight, parse_weight

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class LayerFit(Result):
    """The edit, and how well it does on the pairs it was fitted on: 0 is exact, 1 is as good as nothing.

    `error`: |x D - y|^2 / |y|^2. `kept`: |x' D|^2 / |y|^2 per input of each (NaN without inputs to keep).
    """

    edit: WeightEdit
    error: float
    kept: float
    n_pairs: int

    def _table(self) -> Table:
        """One row per weight; the errors are of the edit as a whole."""
        changes = self.edit.changes
        return {
            "weight": list(changes),
            "rank": [one.rank for one in changes.values()],
            "norm": [float(one.dense().norm()) for one in changes.values()],
            "error": [self.error] * len(changes),
            "kept": [self.kept] * len(changes),
        }

    def __str__(self) -> str:
        return (
            f"{self.edit}; of the wanted change {self.error:.3f} is missed on {self.n_pairs} pairs, "
            f"{self.kept:.3f} leaks to the inputs kept"
        )


def least_squares(
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_model"],
    *,
    ridge: float = 1e-3,
    rank: int | None = None,
    keep: Float[Tensor, "m d_in"] | None = None,
    keep_weight: float = 1.0,
) -> LowRankChange:
    """D of the module's formula, in float64, as factors of its rank. Raises `InputError` for settings out of range,
    `MetricError` for numbers that are not finite.
    """
    if not ridge > 0 or not keep_weight >= 0 or (rank is not None and not 1 <= rank <= min(x.shape[1], y.shape[1])):
        raise InputError(
            f"ridge is above 0, keep_weight at least 0, rank 1 to {min(x.shape[1], y.shape[1])}; got {ridge}, "
            f"{keep_weight}, {rank}"
        )
    x, y = x.double(), y.double()
    if not all(bool(part.isfinite().all()) for part in (x, y)) or not float(y.norm()) > 0:
        raise MetricError("activations must be finite and some change be wanted; got NaN, infinity or no change at all")
    level = ridge * float(x.pow(2).sum(dim=1).mean()) / x.shape[1]
    rows = [x / len(x) ** 0.5]
    if keep is not None and len(keep):
        rows.append(keep.double() * (keep_weight / len(keep)) ** 0.5)
    rows.append(level**0.5 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
    # |A D - B|^2 with A the stacked rows; by QR, which keeps twice the digits that the normal equations would.
    Q, R = torch.linalg.qr(torch.cat(rows))
    change = torch.linalg.solve_triangular(R, Q[: len(x)].T @ y / len(x) ** 0.5, upper=True)
    fitted = R @ change  # the best D of rank r projects the fitted outputs onto their leading r directions
    found = torch.linalg.svd(fitted, full_matrices=False)
    n = min(len(x), *change.shape) if rank is None else rank
    right = found.Vh[:n]
    return LowRankChange(change @ right.T, right)


@borrows
def fit_layer_edit(
    model: TransformerBridge,
    weight: str,
    x: Float[Tensor, "n d_in"],
    y: Float[Tensor, "n d_model"],
    *,
    ridge: float = 1e-3,
    rank: int | None = None,
    keep: Float[Tensor, "m d_in"] | None = None,
    keep_weight: float = 1.0,
    name: str = "least squares",
    provenance: Provenance | None = None,
) -> LayerFit:
    """An edit of ``"W_out.l"`` (or ``"W_O.l"``) that adds `y` to its output where it reads `x`, and nothing where it
    reads `keep`.

    No forward pass. Raises `InputError` for vectors of another width, besides what `find_weight` and `least_squares`
    raise.
    """
    shape = find_weight(model, weight).read().shape
    if x.shape[1] != shape[0] or y.shape[1] != shape[1] or (keep is not None and keep.shape[1] != shape[0]):
        raise InputError(
            f"{weight} reads {shape[0]} numbers and writes {shape[1]}; got inputs of {x.shape[1]} and changes of "
            f"{y.shape[1]}"
        )
    change = least_squares(x, y, ridge=ridge, rank=rank, keep=keep, keep_weight=keep_weight)
    dense, size = change.dense(), y.double().pow(2).sum(dim=1).mean()
    error = float((x.double() @ dense - y.double()).pow(2).sum(dim=1).mean() / size)
    kept = float("nan") if keep is None else float((keep.double() @ dense).pow(2).sum(dim=1).mean() / size)
    facts = provenance or build_provenance(
        method="least-squares edit", model=identify_model(model), ridge=ridge, rank=rank
    )
    dtype = torch.promote_types(find_weight(model, weight).parameter.dtype, torch.float32)
    change = LowRankChange(change.left.to(dtype), change.right.to(dtype))
    return LayerFit(
        WeightEdit({weight: change}, identify_model(model)["weights_sha256"], name, facts), error, kept, len(x)
    )


@borrows
def edit_from_pairs(
    model: TransformerBridge,
    task: Task,
    weight: str,
    *,
    position: str = END,
    ridge: float = 1e-2,
    rank: int | None = None,
    keep: tuple[Task, ...] = (),
    keep_weight: float = 1.0,
) -> LayerFit:
    """An edit that makes the layer write on corrupt prompts what it writes on the clean ones, at a span of the prompts.

    Kept as they are: the clean prompts at the same span, and every position of the clean prompts of `keep`. Cost: 1
    forward of each. Raises `InputError` for a span that the prompts do not have, and what `fit_layer_edit` raises.

    >>> fit = edit_from_pairs(model, task.train, "W_out.0", position="S2", keep=(agreement.train,))
    >>> with intervene(model, [fit.edit]):
    ...     model(tokens)
    """
    kind, layer = parse_weight(weight)
    check_task(model, task)
    for other in keep:
        check_task(model, other)
    site = Site(INPUTS[kind], layer)
    check_ready(model).check_site(site)
    host = task.pairs.corrupt_as_host()
    chosen, clean = ends(host, position), ends(task.pairs, position)
    here, there = inputs_of(model, host, site), inputs_of(model, task.pairs, site)
    moved = align_donor(there, here, host.alignment())
    kept = [there[clean], *(inputs_of(model, other.pairs, site)[other.pairs.mask] for other in keep)]
    W = find_weight(model, weight).read()
    x, y = here[chosen], (moved - here)[chosen].double() @ W.cpu().double()
    provenance = build_provenance(
        method="least-squares "
               "edit", model=identify_model(model), task=task.provenance(), position=position, ridge=ridge,
        rank=rank, keep=[other.provenance() for other in keep], keep_weight=keep_weight,
    )  # fmt: skip
    return fit_layer_edit(
        model, weight, x, y, ridge=ridge, rank=rank, keep=torch.cat(kept), keep_weight=keep_weight,
        name=f"{task.name}: {weight} at {position}", provenance=provenance,
    )  # fmt: skip


def ends(pairs: PromptPairs, position: str) -> Bool[Tensor, "batch pos"]:
    """Where the clean prompts of `pairs` are read; raises `InputError` for a span that they do not have."""
    if position in pairs.spans:
        return pairs.spans[position]
    if position != END:
        raise InputError(
            f"position is {END} or one of the spans {', '.join(pairs.spans) or '(none)'}; got {position!r}"
        )
    chosen = torch.zeros_like(pairs.mask)
    chosen[torch.arange(len(pairs)), pairs.lengths - 1] = True
    return chosen


@torch.no_grad()
def inputs_of(model: TransformerBridge, pairs: PromptPairs, site: Site) -> Float[Tensor, "batch pos d_in"]:
    """What the weight reads at every position of the clean prompts (heads side by side)."""
    run = record_run(model, pairs.to(device_of(model)), [site], n_tail=1)
    return run.layers[site.kind][0].flatten(2).cpu()
