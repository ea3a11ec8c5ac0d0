"""A small trained controller that decides, position by position, whether to steer and how much at which layer.

Weighted activation steering (Hegazy et al. 2025): a network reads one activation and gives a gate and a weight per
layer, which scale vectors fitted beforehand. Here it is trained by what it is for, end to end through the frozen model:

    loss = -log p(right answers)   on the prompts to be steered, at their last token
         + KL(plain || steered)    on the prompts to be left alone, at their last token
         + binary cross-entropy of the gate: 1 on the first, 0 on the second

The network reads each position's own activation (see `Doses`), so that generation with a key-value cache gives the
same. At the start every gate is about 1/2 and every weight 1, which is plain adding of every layer's vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError, MetricError
from ..interventions import Add, Dosed, Doses, Write, intervene
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows, hooked
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..runs.record import check_task
from ..shapes import Tokens
from ..sites import Site, hook_name
from ..statistics import kl_nats
from ..tasks.continuations import require_one_token
from ..tasks.pairs import ABSENT
from ..tasks.task import Task
from .direction import Direction

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Controller(Readable):
    """A trained `Dosed`; `losses` per step; `gate`: mean gate at the last token of steered and of other prompts, in
    training.
    """

    dosed: Dosed
    losses: tuple[float, ...]
    gate: tuple[float, float]
    provenance: Provenance = field(default_factory=dict)

    def writes(self, strength: float = 1.0) -> list[Dosed]:
        """At strength 0 nothing, at 1 as trained."""
        return [replace(self.dosed, strength=strength)]

    def __str__(self) -> str:
        places = ", ".join(str(write.site) for write in self.dosed.writes)
        return (
            f"controller reading {self.dosed.read}, writing {places}: gate {self.gate[0]:.3f} where it is to steer, "
            f"{self.gate[1]:.3f} elsewhere; "
            f"loss {self.losses[0]:.4g} to {self.losses[-1]:.4g}"
        )


@borrows
def train_controller(
    model: TransformerBridge,
    task: Task,
    directions: Sequence[Direction],
    read: Site,
    *,
    leave_alone: Sequence[Task] = (),
    hidden: int = 16,
    steps: int = 100,
    learning_rate: float = 0.02,
    seed: int = 0,
) -> Controller:
    """Steer the task's corrupt prompts to its right answers; leave its clean prompts and those of `leave_alone` as they
    are.

    `directions` are one per place (e.g. `fit_directions` at several layers, towards the clean class), all computed
    after `read`.
    Cost: 1 forward of all prompts, then `steps` forwards and backwards of all of them.

    Raises:
        InputError: a direction of another model, places that come before `read`, settings out of range.
        MetricError: the loss stops being finite.

    >>> layers = [Site("resid_post", layer) for layer in (2, 3, 4)]
    >>> controller = train_controller(model, task.train, fit_directions(model, examples, layers), Site("resid_post", 1))
    """
    if hidden < 1 or steps < 1 or not learning_rate > 0:
        raise InputError(
            f"hidden and steps are 1 or more, learning_rate above 0; got {hidden}, {steps}, {learning_rate}"
        )
    if not directions:
        raise InputError("a controller weights one direction or more; got none")
    check_task(model, task)
    for other in leave_alone:
        check_task(model, other)
    for part in (task, *leave_alone):
        require_one_token(part.pairs.continuations, "a controller's goal")
    for direction in directions:
        direction.check(model)
    check_ready(model).check_site(read)
    host = task.pairs.corrupt_as_host()
    steered = _Prompts(host.clean_tokens, host.lengths, host.correct).to(model)
    others = [
        _Prompts(part.pairs.clean_tokens, part.pairs.lengths, part.pairs.correct).to(model)
        for part in (task, *leave_alone)
    ]
    writes = tuple(Write(direction.site, Add(direction.vector.to(device_of(model)))) for direction in directions)
    plain = [_read(model, prompts, read) for prompts in (steered, *others)]
    states = torch.cat([state for _, state in plain]).float()
    network = _begin(states, hidden, len(writes), seed)
    Dosed(read, network, writes).check(model)
    parameters = [network.W_in, network.b_in, network.W_out, network.b_out]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    gates = torch.cat([torch.full((len(state),), float(i == 0)) for i, (_, state) in enumerate(plain)]).to(states)
    losses: list[float] = []
    for _ in range(steps):
        with torch.enable_grad():
            loss = _gate_loss(network, states, gates)
            with intervene(model, [Dosed(read, network, writes)]):
                right = steered.answered(steered.final(model).log_softmax(dim=-1))
                loss = loss - right.mean()
                for prompts, (before, _) in zip(others, plain[1:], strict=True):
                    after = prompts.final(model).log_softmax(dim=-1)
                    loss = loss + kl_nats(before, after).mean() / len(others)
            gradients = torch.autograd.grad(loss, parameters)
        if not bool(loss.isfinite()):
            raise MetricError(
                f"the loss is {float(loss.detach())} after {len(losses)} steps; use a smaller learning_rate, or "
                "shorter vectors"
            )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        losses.append(float(loss.detach()))
    network = Doses(network.mean, network.spread, *(parameter.detach().clone() for parameter in parameters))
    gate = network.outputs(states)[:, 0].sigmoid()
    provenance = build_provenance(
        method="controller", model=identify_model(model), task=task.provenance(), hidden=hidden, steps=steps,
        learning_rate=learning_rate, seed=seed, leave_alone=[other.provenance() for other in leave_alone],
        directions=[direction.provenance for direction in directions],
    )  # fmt: skip
    means = float(gate[gates == 1].mean()), float(gate[gates == 0].mean())
    return Controller(Dosed(read, network, writes), tuple(losses), means, provenance)


@dataclass(frozen=True, eq=False)
class _Prompts:
    tokens: Tokens
    lengths: Int[Tensor, " batch"]
    correct: Int[Tensor, "batch n"]

    def to(self, model: TransformerBridge) -> _Prompts:
        device = device_of(model)
        return _Prompts(self.tokens.to(device), self.lengths.to(device), self.correct.to(device))

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return torch.arange(len(self.tokens), device=self.tokens.device), self.lengths - 1

    def final(self, model: TransformerBridge) -> Float[Tensor, "batch d_vocab"]:
        """Logits at the last token of every prompt."""
        return model(self.tokens)[self.ends].float()

    def answered(self, log_p: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
        """log of the probability of all right answers together."""
        own = log_p.gather(-1, self.correct.clamp(min=0))
        return own.masked_fill(self.correct == ABSENT, -torch.inf).logsumexp(dim=-1)


@torch.no_grad()
def _read(model: TransformerBridge, prompts: _Prompts, site: Site) -> tuple[Tensor, Tensor]:
    """Plain log-probabilities and the activation at `site`, both at the last token."""
    found: list[Tensor] = []

    def keep(activation: Tensor, hook: Any) -> None:
        found.append(activation[prompts.ends].detach())

    with hooked(model, [(hook_name(site), keep)]):
        log_p = prompts.final(model).log_softmax(dim=-1)
    return log_p, found[0]


def _begin(states: Float[Tensor, "n d"], hidden: int, n_writes: int, seed: int) -> Doses:
    """Small random weights into the hidden layer, none out of it: gate 1/2, weights 1."""
    generator = torch.Generator().manual_seed(seed)
    width = states.shape[1]
    spread = states.std(dim=0)
    W_in = torch.randn(hidden, width, generator=generator).to(states) / width**0.5
    return Doses(
        states.mean(dim=0), spread.clamp(min=1e-3 * float(spread.max())), W_in, states.new_zeros(hidden),
        states.new_zeros(n_writes + 1, hidden), states.new_zeros(n_writes + 1),
    )  # fmt: skip


def _gate_loss(network: Doses, states: Float[Tensor, "n d"], gates: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Binary cross-entropy, both kinds of prompts weighing the same."""
    shares = torch.where(gates == 1, 0.5 / gates.mean(), 0.5 / (1 - gates.mean()))
    logits = network.outputs(states)[:, 0]
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, gates, weight=shares)
