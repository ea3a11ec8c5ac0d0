"""The illusion check for a steering direction: does what it does when added, or patched, ride on a part that nothing
reads?

At an MLP's neurons or a head's z, one weight reads the vectors. A direction v there splits into v = v_row + v_null,
v_null W = 0 (see `illusion`). Adding v_null changes nothing, always. So

    patched along v     the size comes from the inputs: an effect that v_row alone does not have is an illusion
    (`check`)
    v added             the size is chosen: what v does, v_row does; the null share says how much of v's length is idle

Success: (m(steered corrupt) - m(corrupt)) / (m(clean) - m(corrupt)), m = mean metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..directions import Direction
from ..errors import InputError
from ..interventions import Add, Write, intervene
from ..models.anatomy import device_of
from ..models.borrow import borrows
from ..result import Result, Table
from ..runs.record import run_to_metric
from ..tasks.task import Task
from .illusion import IllusionCheck, check_illusion, downstream_weight, split_subspace
from .subspace import Subspace

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class SteeringIllusion(Result):
    """`check`: the direction patched as a subspace; `added`: success of adding the whole vector, its row part, its null
    part, and random vectors as long.
    """

    check: IllusionCheck
    added: dict[str, float]
    strength: float

    @property
    def verdict(self) -> str:
        """What the numbers say, in words."""
        whole, row, null = (self.added[part] for part in ("whole", "row part", "null part"))
        chance = max(abs(value) for name, value in self.added.items() if name.startswith("random"))
        lead = (
            f"Added at strength {self.strength:g}: success {whole:.3f}; its row part alone {row:.3f}, its null part "
            f"{null:.3f}, "
            f"a random vector as long up to {chance:.3f}."
        )
        if abs(whole) <= chance:
            return (
                f"{lead} No more than a random vector does: no evidence that the direction "
                f"steers.\n{self.check.verdict}"
            )
        return (
            f"{lead} The {self.check.null_share:.0%} of its squared length that nothing reads are idle in "
            f"steering.\n{self.check.verdict}"
        )

    def _table(self) -> Table:
        """One row per vector that was added."""
        return {"added": list(self.added), "success": list(self.added.values())}

    def __str__(self) -> str:
        return self.verdict


@borrows
def check_steering(
    model: TransformerBridge,
    task: Task,
    direction: Direction,
    *,
    strength: float = 1.0,
    n_random: int = 5,
    seed: int = 0,
) -> SteeringIllusion:
    """Patch and add a direction and its parts at its site, an MLP's neurons (``mlp_post``) or a head's ``z``.

    Cost: that of `check_illusion`, and 5 + `n_random` forwards. Raises `InputError` for a direction elsewhere (the
    stream is read by many weights, so that no part of it is idle for sure), of another model or width, or fewer than
    one random control.

    >>> from mechwork import Site
    >>> direction = fit_direction(model, Examples.of_task(task.train), Site("mlp_post", 3))
    >>> print(check_steering(model, task.test, direction))
    """
    site = direction.site
    if site.kind not in ("mlp_post", "z"):
        raise InputError(
            f"the check needs a direction at a site that one weight reads; {direction.name!r} is at {site}. Fit it at "
            f"Site('mlp_post', {site.layer or 0}) or at a head's Site('z', {site.layer or 0}, head)"
        )
    direction.check(model)
    subspace = Subspace.of(direction.vector.to(device_of(model)), direction.name)
    check = check_illusion(model, task, site, subspace, n_random=n_random, seed=seed)
    row, null, _, _ = split_subspace(subspace, downstream_weight(model, site))
    parts = {"whole": direction.vector, "row part": _part(direction, row), "null part": _part(direction, null)}
    parts |= {f"random {i}": direction.random_control(seed + i).vector for i in range(n_random)}
    gap = check.baseline.require_gap()
    added = {
        name: (_metric(model, task, direction, vector, strength) - check.baseline.corrupt) / gap
        for name, vector in parts.items()
    }
    return SteeringIllusion(check, added, strength)


def _part(direction: Direction, subspace: Subspace | None) -> Float[Tensor, " d"]:
    """What lies of the vector inside a part of its own line's split; zeros for an empty part."""
    if subspace is None:
        return torch.zeros_like(direction.vector)
    return subspace.project(direction.vector.to(subspace.basis)).to(direction.vector)


@torch.no_grad()
def _metric(
    model: TransformerBridge, task: Task, direction: Direction, vector: Float[Tensor, " d"], strength: float
) -> float:
    host = task.pairs.corrupt_as_host().to(device_of(model))
    with intervene(model, [Write(direction.site, Add(vector, strength))]):
        return float(task.measure(run_to_metric(model, task, host), host).mean())
