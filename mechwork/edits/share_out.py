"""A direction turned into rank-1 edits of the heads and neurons that carry it: Steer2Edit (Sun et al. 2026).

Component i (a head's slice of W_O, a neuron's row of W_out) puts out x_i W_i. It gets

    W_i -> W_i + lambda_i k_i u_i^T      u_i: the direction v, of length 1;   k_i: an input direction, of length 1
    k_i = W_i v / |W_i v|                ``inputs="contribution"``: what the component writes along v already (the
    paper's) k_i ~ (C_i + eps)^-1 (difference)    ``inputs="contrast"``: the input that tells the prompts to be steered
    from the others

A state x is moved along v by lambda_i (k_i . x_i). With g_i = mean of k_i . x_i on the prompts to be steered (the
negative class) less the mean on the others (0 for a component whose edit would take the prompts to be steered the wrong
way), the shares are the elastic net's closed form

    lambda_i = soft(g_i, rho) / c = argmax  lambda_i g_i - rho |lambda_i| - c lambda_i^2 / 2

where rho leaves `n_components` of them above 0, and c is such that the predicted move of the prompts to be steered,
sum_i lambda_i mean(k_i . x_i), is the direction's own length: strength 1 moves them as far as adding v does, to first
order (what the components do to one another is left out). With "contribution" an edit turns down (or round) what the
component writes along v, on every prompt, whatever its class; "contrast" leaves alone what does not look like the
prompts to be steered. Where a post-norm follows, v is pulled back through it at the scale of these prompts. Our choices
where the paper leaves room: g as the contrast of classes, and the scale by the predicted move. Neurons have one number
as input, so k_i = 1 or -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from ..directions import Direction, Examples, record_examples
from ..errors import InputError, MetricError
from ..models.anatomy import check_ready
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import head_name
from ..provenance import build_provenance
from ..result import Result, Table, table_rows
from ..sites import Site
from .edit import LowRankChange, WeightEdit
from .weights import INPUTS, find_weight, post_norm

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

INPUT_CHOICES = ("contribution", "contrast")
RIDGE = 0.1
"""Of the mean variance, added to within-class covariances ("contrast")."""


@dataclass(frozen=True, eq=False)
class ComponentShare:
    """One component's part of an edit: `gain` g_i, `share` lambda_i, and the predicted `move` of the prompts to be
    steered.
    """

    node: str
    gain: float
    share: float
    move: float


@dataclass(frozen=True, eq=False)
class SharedEdit(Result):
    """The edit, and what every component that it changes contributes, largest predicted move first."""

    edit: WeightEdit
    shares: tuple[ComponentShare, ...]

    def _table(self) -> Table:
        """One row per component."""
        return table_rows(self.shares)

    def __str__(self) -> str:
        rows = [f"  {row.node:<10} share {row.share:8.4f}  moves {row.move:8.4f}" for row in self.shares[:12]]
        return "\n".join([str(self.edit), *rows])


@dataclass(frozen=True, eq=False)
class _Candidate:
    """`inputs` k_i, `output` u_i, and the mean coordinate k_i . x_i (times what u_i is worth along v) of both
    classes.
    """

    weight: str
    node: str
    rows: slice
    inputs: Float[Tensor, " d_in"]
    output: Float[Tensor, " d_model"]
    gain: float
    per_unit: float


@borrows
def share_out(
    model: TransformerBridge,
    direction: Direction,
    examples: Examples,
    *,
    n_components: int = 16,
    inputs: str = "contribution",
    kinds: tuple[str, ...] = ("W_O", "W_out"),
    layers: tuple[int, ...] | None = None,
) -> SharedEdit:
    """An edit that moves the negative class of `examples` along `direction`. Cost: 1 forward of all prompts per kind.

    `layers`: whose components may be changed (default: all that write before the direction's site). In models with
    experts only heads are.

    Raises:
        InputError: a direction of another model or not in the residual stream, no such layers, settings out of range.
        MetricError: the chosen components do not move the prompts towards the direction.

    >>> found = share_out(model, direction, examples, n_components=12)
    >>> with intervene(model, [found.edit.scaled(2.0)]):
    ...     model(tokens)
    """
    direction.check(model)
    anatomy = check_ready(model)
    if direction.site.kind not in ("resid_pre", "resid_mid", "resid_post") or direction.site.layer is None:
        raise InputError(f"edits are shared out for a direction in the residual stream; got one at {direction.site}")
    if inputs not in INPUT_CHOICES or n_components < 1 or not set(kinds) <= set(INPUTS) or not kinds:
        raise InputError(
            f"inputs is one of {INPUT_CHOICES}, kinds of {tuple(INPUTS)}, components are 1 or more; got {inputs!r}, "
            f"{kinds}, {n_components}"
        )
    last = direction.site.layer - (direction.site.kind == "resid_pre")
    chosen = tuple(range(last + 1)) if layers is None else layers
    if not chosen or not all(0 <= layer <= last for layer in chosen):
        raise InputError(f"components that write before {direction.site} are in layers 0 to {last}; got {chosen}")
    candidates: list[_Candidate] = []
    for kind in kinds:
        before_mlp = direction.site.kind == "resid_mid" and kind == "W_out"
        for layer in chosen:
            if anatomy.has_site(INPUTS[kind]) and not (before_mlp and layer == last):
                candidates += _candidates(model, f"{kind}.{layer}", direction, examples, inputs)
    edit, shares = _solve(candidates, direction, n_components, model)
    provenance = build_provenance(
        method=f"shared-out edit, inputs by {inputs}", model=identify_model(model), direction=direction.provenance,
        n_components=n_components, examples={"name": examples.name, "sha256": examples.sha256()},
    )  # fmt: skip
    name = f"{direction.name} shared out over {len(shares)} components"
    changes = {weight: LowRankChange(*sides) for weight, sides in edit.items()}
    base = identify_model(model)["weights_sha256"]
    return SharedEdit(WeightEdit(changes, base, name, provenance), shares)


def _candidates(
    model: TransformerBridge, weight: str, direction: Direction, examples: Examples, inputs: str
) -> list[_Candidate]:
    kind, layer = weight.split(".")
    W = find_weight(model, weight).read().cpu().double()
    if kind == "W_O":
        d_head = int(model.cfg.d_head)
        sites = [Site("z", int(layer), head) for head in range(int(model.cfg.n_heads))]
        x = record_examples(model, examples, sites).double()
        parts = [(head_name(layer, i), slice(i * d_head, (i + 1) * d_head)) for i in range(len(sites))]
        x = rearrange(x, "head n d_head -> n (head d_head)")
    else:
        x = record_examples(model, examples, [Site("mlp_post", int(layer))])[0].double()
        parts = [(f"m{layer}.n{i}", slice(i, i + 1)) for i in range(W.shape[0])]
    readout = _readout(model, weight, direction, x @ W)
    output = readout / readout.norm()
    worth, made = float(output @ readout), []
    for node, rows in parts:
        k = _input_direction(x[:, rows], examples.labels, W[rows] @ output, inputs)
        if k is None:
            continue
        moves = (x[:, rows] @ k) * worth
        steered, others = float(moves[~examples.labels].mean()), float(moves[examples.labels].mean())
        gain = steered - others
        made.append(_Candidate(weight, node, rows, k, output, gain if gain * steered > 0 else 0.0, steered))
    return made


def _readout(
    model: TransformerBridge, weight: str, direction: Direction, written: Float[Tensor, "batch d_model"]
) -> Float[Tensor, " d_model"]:
    """What a weight's output is worth along v: v itself, or v through the linear part of the post-norm at these
    prompts' scale.
    """
    unit = direction.unit.cpu().double()
    norm = post_norm(model, weight)
    if norm is None:
        return unit
    bias = find_weight(model, weight).bias
    scale = norm.scale(written if bias is None else written + bias.detach().cpu().double()).mean()
    return norm.centre(norm.gain.cpu().double() * unit) / scale


def _input_direction(
    x: Float[Tensor, "batch d"], labels: Bool[Tensor, " batch"], contribution: Float[Tensor, " d"], inputs: str
) -> Tensor | None:
    """k_i, of length 1; None where the component has nothing to do with the direction."""
    if inputs == "contribution" or x.shape[1] == 1:
        k = contribution
    else:
        within = torch.cat([x[side] - x[side].mean(dim=0) for side in (labels, ~labels)])
        covariance = within.T @ within / len(x)
        level = RIDGE * float(covariance.diagonal().mean())
        system = covariance + max(level, 1e-30) * torch.eye(x.shape[1], dtype=x.dtype)
        k = torch.linalg.solve(system, x[~labels].mean(dim=0) - x[labels].mean(dim=0))
    return k / k.norm() if float(k.norm()) > 0 else None


def _solve(
    candidates: list[_Candidate], direction: Direction, n_components: int, model: TransformerBridge
) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[ComponentShare, ...]]:
    """Soft-thresholded gains, scaled to the direction's length; the factors of every weight's change."""
    gains = torch.tensor([c.gain for c in candidates], dtype=torch.float64)
    sizes = gains.abs().sort(descending=True).values
    threshold = float(sizes[n_components]) if n_components < len(sizes) else 0.0
    shares = gains.sign() * (gains.abs() - threshold).clamp(min=0)
    predicted = float(sum(share * c.per_unit for share, c in zip(shares.tolist(), candidates, strict=True)))
    if not predicted > 0:
        raise MetricError(
            f"no component of these layers moves the prompts along {direction.name!r} when it is turned up or down. "
            "Try other layers, or a "
            "direction at a later layer"
        )
    shares = shares * (direction.norm / predicted)
    sides: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    rows: list[ComponentShare] = []
    for share, c in zip(shares.tolist(), candidates, strict=True):
        if share == 0:
            continue
        left = torch.zeros(find_weight(model, c.weight).read().shape[0], dtype=torch.float64)
        left[c.rows] = c.inputs * share
        lefts, rights = sides.setdefault(c.weight, ([], []))
        lefts.append(left)
        rights.append(c.output)
        rows.append(ComponentShare(c.node, c.gain, share, share * c.per_unit))
    dtype = direction.vector.dtype
    factors = {  # one output direction per weight: the sum of all its components' edits has rank 1 too
        weight: (torch.stack(lefts).sum(dim=0)[:, None].to(dtype), rights[0][None].to(dtype))
        for weight, (lefts, rights) in sides.items()
    }
    return factors, tuple(sorted(rows, key=lambda row: -row.move))
