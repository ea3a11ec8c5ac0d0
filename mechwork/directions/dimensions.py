"""Fine-grained steering: move the few dimensions (or neurons) that tell the classes apart, and leave the others alone.

    t_d = |mean difference_d| / pooled spread_d;   x_d -> x_d + s (mean difference)_d   for the n dimensions with the
    largest t_d

At ``mlp_post`` the dimensions are neurons. The control moves as many dimensions, chosen by lot, by their own mean
differences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import InputError
from ..interventions import Stretch
from ..models.borrow import borrows
from ..sites import Site
from .examples import Examples, record_examples
from .steer import Strengths

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def separating_dimensions(x: Float[Tensor, "batch d"], labels: Bool[Tensor, " batch"], n: int) -> Int[Tensor, " n"]:
    """The `n` dimensions with the largest t, largest first; raises `InputError` for n outside 1 to d."""
    if not 1 <= n <= x.shape[1]:
        raise InputError(f"dimensions are 1 to {x.shape[1]} in number; got {n}")
    x = x.double()
    pooled = ((x[labels].var(dim=0) + x[~labels].var(dim=0)) / 2).sqrt()
    t = (x[labels].mean(dim=0) - x[~labels].mean(dim=0)).abs() / pooled.clamp(min=1e-9 * float(pooled.max()))
    return t.argsort(descending=True, stable=True)[:n]


@borrows
def dimension_write(
    model: TransformerBridge, examples: Examples, site: Site, n: int, *, control_seed: int | None = None
) -> Strengths:
    """Strength -> the `n` most telling dimensions moved by strength times their mean difference. Cost: 1 forward of all
    prompts.

    With `control_seed`, `n` dimensions chosen by lot instead. Raises `InputError` for fewer than two prompts of a class
    or a number of dimensions that the site does not have.

    >>> with intervene(model, [Write(site, dimension_write(model, examples, site, 8)(1.0))]):
    ...     model(tokens)
    """
    x, labels = record_examples(model, examples, [site])[0], examples.labels
    if min(int(labels.sum()), int((~labels).sum())) < 2:
        raise InputError("a spread needs at least two prompts of each class")
    chosen = separating_dimensions(x, labels, n)
    if control_seed is not None:
        chosen = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(control_seed))[:n]
    difference = x[labels].mean(dim=0) - x[~labels].mean(dim=0)
    shift = torch.zeros_like(difference)
    shift[chosen] = difference[chosen]
    return lambda strength: Stretch(torch.ones_like(shift), strength * shift)
