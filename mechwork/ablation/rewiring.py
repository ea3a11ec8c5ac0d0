"""Rewiring experts on the fly: offsets of the routers' logits, fitted to a context alone.

    l'_e = l_e + d_e at every token,     d = argmin of the mean surprisal of the context's own tokens, by Adam from 0

The context is the only data, so it can be done while a prompt is read; what it is good for shows on the tokens that
follow. Beside it stand offsets as large in directions drawn by lot. Source: rewiring experts on the fly (online
optimisation of router logits in mixtures of experts). The choice of experts is a step function: the gradient goes
through the weights of those that are chosen, and offsets cross the steps as they grow. Surprisal in bits per token.
Cost: `n_steps` x (forward + backward) of the context, and 2 + `n_random` forwards of context and continuation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import checked
from ..errors import InputError, check_whole
from ..interventions import Routing, intervene
from ..interventions.routing import change_routers
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..names import expert_name
from ..provenance import Provenance, build_provenance, hash_tensors
from ..result import Result, Table

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BITS = 1 / 0.6931471805599453


@dataclass(frozen=True, eq=False)
class Rewiring(Result, what="rewired experts", strongest="offset"):
    """`offsets` ``[layer, expert]``; surprisal in bits per token ``(plain, rewired, by lot: mean)`` of the context and
    of what follows it.
    """

    offsets: Float[Tensor, "layer expert"]
    context: tuple[float, float, float]
    follows: tuple[float, float, float]
    losses: tuple[float, ...]
    provenance: Provenance = field(default_factory=dict)

    def writes(self, strength: float = 1.0) -> list[Routing]:
        """The offsets as changes of the routers, for `intervene` and generation."""
        return [
            Routing(layer, offsets={e: strength * value for e, value in enumerate(row)})
            for layer, row in enumerate(self.offsets.tolist())
        ]

    def _table(self) -> Table:
        """One row per expert."""
        n_layers, n = self.offsets.shape
        names = [expert_name(layer, e) for layer in range(n_layers) for e in range(n)]
        return {"expert": names, "offset": self.offsets.flatten().tolist()}

    def __str__(self) -> str:
        parts = [
            f"{name} {plain:.4f} -> {new:.4f} bits (offsets by lot {lot:.4f})"
            for name, (plain, new, lot) in (("context", self.context), ("what follows", self.follows))
        ]
        return f"routers rewired on a context: {'; '.join(parts)}"


@borrows
@checked
def rewire_experts(
    model: TransformerBridge, context: Int[Tensor, "batch pos"], follows: Int[Tensor, "batch pos2"], *,
    n_steps: int = 20, rate: float = 0.05, n_random: int = 3, seed: int = 0,
) -> Rewiring:  # fmt: skip
    """Fit offsets of all routers to `context` (token ids without padding) and judge them on what `follows` it.

    Raises `InputError` for a model without experts, a context of fewer than two tokens, nothing that follows, numbers
    of rows that differ, or settings out of range; `UnsupportedModelError` for a router that is no softmax and top k.

    >>> found = rewire_experts(model, tokens[:, :12], tokens[:, 12:])
    >>> with intervene(model, found.writes()):
    ...     model.generate(tokens)
    """
    anatomy = check_ready(model)
    if anatomy.n_experts is None:
        raise InputError(f"{anatomy.architecture} has no experts, so nothing is routed")
    if context.ndim != 2 or follows.ndim != 2 or len(context) != len(follows) or context.shape[1] < 2:
        raise InputError(
            "a context is [batch, pos] of at least two tokens, what follows has as many rows; got "
            f"{tuple(context.shape)} and {tuple(follows.shape)}"
        )
    if not follows.numel():
        raise InputError("offsets are judged on tokens that follow the context; got none")
    if check_whole("n_steps", n_steps) < 1 or check_whole("n_random", n_random) < 0 or not rate > 0:
        raise InputError(f"n_steps is at least 1, n_random at least 0, rate above 0; got {n_steps}, {n_random}, {rate}")
    device, n = device_of(model), context.shape[1]
    both = torch.cat([context, follows], dim=1).to(device)
    offsets = torch.zeros(anatomy.n_layers, anatomy.n_experts, dtype=torch.float64, device=device, requires_grad=True)
    optimizer, losses = torch.optim.Adam([offsets], lr=rate), []
    with torch.enable_grad(), _frozen(model):
        for _ in range(n_steps):
            with change_routers(model, offsets):
                loss = _surprisal(model, both[:, :n]).mean()
            (offsets.grad,) = torch.autograd.grad(loss, [offsets])
            optimizer.step()
            losses.append(float(loss.detach()))
    found = offsets.detach()
    generator = torch.Generator().manual_seed(seed)
    lots = []
    for _ in range(n_random):
        draw = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        lots.append((draw / draw.norm() * found.norm().cpu()).to(device))
    rows = [_parts(model, both, n, table) for table in (torch.zeros_like(found), found, *lots)]
    means = [sum(row[i] for row in rows[2:]) / n_random if n_random else float("nan") for i in (0, 1)]
    facts = build_provenance(
        method="rewired experts", model=identify_model(model), n_steps=n_steps, rate=rate, seed=seed,
        text=hash_tensors({"context": context, "follows": follows}),
    )  # fmt: skip
    cells = [(rows[0][i], rows[1][i], means[i]) for i in (0, 1)]
    return Rewiring(found.cpu(), cells[0], cells[1], tuple(losses), facts)


@contextmanager
def _frozen(model: TransformerBridge) -> Iterator[None]:
    """Inside, no weight has a gradient; on exit each asks for one as before."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    with ExitStack() as stack:
        for parameter, asked in before:
            stack.callback(parameter.requires_grad_, asked)
            parameter.requires_grad_(False)
        yield


def _surprisal(model: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos2"]:
    logs: Any = model(tokens)[:, :-1].log_softmax(dim=-1)
    return -logs.gather(-1, tokens[:, 1:, None])[..., 0] * BITS


@torch.no_grad()
def _parts(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], n: int, offsets: Float[Tensor, "layer expert"]
) -> tuple[float, float]:
    """Mean surprisal of the context's tokens but the first, and of those that follow."""
    writes = [Routing(layer, offsets=dict(enumerate(row))) for layer, row in enumerate(offsets.tolist()) if any(row)]
    with intervene(model, writes):
        found = _surprisal(model, tokens).double()
    return float(found[:, : n - 1].mean()), float(found[:, n - 1 :].mean())
