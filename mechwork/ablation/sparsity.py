"""How sparse the MLPs of a whole model are at a given loss, with one tolerance for all layers.

With neuron i's part of what an MLP writes, a_i W_i (a: `mlp_post`, W_i: its row of W_out):

    tail error of a cut = | sum over dropped i of a_i W_i | / | sum over all i of a_i W_i |      (mean over tokens)

Every layer drops the activations of least size |a_i| (or of least importance |a_i| |W_i|, ``rule="channel"``), as many
as keep its tail error at one number c, the same for all layers; and c is the largest, found by bisection, at which
perplexity on the text rises by no more than a share `rise`. `found` is the share of activations dropped there. Sources:
the Sparsing Law's PPL-p% sparsity (Luo et al. 2024) and its tail error; CHESS (He et al. 2024) for thresholds by
channel. Thresholds are fitted on `text` and judged on `held_out`; beside them stands dropping as many of each layer by
lot. Cost: 2 forwards of the text to fit, about 10 of it to bisect, 3 of the held-out text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import checked
from ..display import Readable
from ..errors import InputError, UnknownNameError
from ..execute.memory import cut
from ..interventions import Write, intervene
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows, hooked
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, hash_tensors
from ..result import Result, Table
from ..runs.room import rows_that_fit
from ..sites import Site, hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RULES = ("magnitude", "channel")
SHARES = (*(1 - 10 ** (-i / 20) for i in range(61)), 1.0)
"""Cuts that are tried per layer: what is kept shrinks by 11 % from one to the next, down to a thousandth, then all
goes.
"""
STEPS = 8
"""Halvings of the tail error."""
Windows = Int[Tensor, "batch pos"]


@dataclass(frozen=True, eq=False)
class Cut(Readable):
    """Sets activations of an MLP whose size, times `weight`, is at most `threshold` to zero."""

    threshold: float
    weight: Float[Tensor, " d_mlp"] | None = None

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        size = activation.abs() if self.weight is None else activation.abs() * self.weight.to(activation)
        return torch.where(size <= self.threshold, torch.zeros_like(activation), activation)


@dataclass(frozen=True, eq=False)
class CutByLot(Readable):
    """Sets a share of the activations to zero, drawn by lot: a pure function of seed and row, whatever the batch.

    The first row of the activation is row `first_row` of the text.
    """

    share: float
    seed: int
    first_row: int = 0

    def __call__(self, activation: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        drawn = []
        for row in range(self.first_row, self.first_row + len(activation)):
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + row) % 2**63)
            drawn.append(torch.rand(activation.shape[1:], generator=generator))
        return activation * (torch.stack(drawn) >= self.share).to(activation.device)


@dataclass(frozen=True, eq=False)
class ModelSparsity(Result, what="sparsity of a model"):
    """Per layer the share dropped, its tail error and its threshold; perplexities are of the held-out text: as it
    is, with the cuts, and with as many activations dropped by lot.
    """

    rule: str
    rise: float
    tail_error: float
    shares: tuple[float, ...]
    errors: tuple[float, ...]
    thresholds: tuple[float, ...]
    exact_zeros: tuple[float, ...]
    perplexity: float
    cut_perplexity: float
    lot_perplexity: float
    provenance: Provenance = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of all MLP activations that is dropped."""
        return sum(self.shares) / len(self.shares)

    @property
    def rise_held_out(self) -> float:
        """By which share perplexity rises on the held-out text."""
        return self.cut_perplexity / self.perplexity - 1

    def writes(self, model: TransformerBridge) -> list[Write]:
        """The cuts as writes, for `intervene` and generation."""
        return _writes(model, self.rule, self.thresholds)

    def _table(self) -> Table:
        """One row per layer."""
        return {
            "layer": list(range(len(self.shares))), "dropped": self.shares, "tail_error": self.errors,
            "threshold": self.thresholds, "exact_zeros": self.exact_zeros,
        }  # fmt: skip

    def __str__(self) -> str:
        layers = ", ".join(f"{share:.0%}" for share in self.shares)
        return (
            f"{self.share:.1%} of the MLP activations dropped by {self.rule} at a tail error of {self.tail_error:.3f} "
            f"in every layer ({layers}); held-out perplexity {self.perplexity:.3f} -> {self.cut_perplexity:.3f} "
            f"({self.rise_held_out:+.1%}; allowed {self.rise:.1%} on the text), as many by lot "
            f"{self.lot_perplexity:.3f}"
        )


@borrows
@checked
def measure_sparsity(
    model: TransformerBridge, text: Windows, held_out: Int[Tensor, "batch2 pos2"], *, rise: float = 0.01,
    rule: str = "magnitude", seed: int = 0,
) -> ModelSparsity:  # fmt: skip
    """The share of MLP activations that can be dropped at `rise` more perplexity, one tolerance for all layers.

    `text`, `held_out`: windows of token ids without padding. Raises `InputError` for windows of fewer than two tokens,
    the same windows twice, a `rise` outside (0, 10], models without one MLP per layer; `UnknownNameError` for a rule.

    >>> found = measure_sparsity(model, tokens[:8], tokens[8:], rise=0.01)
    >>> with intervene(model, found.writes(model)):
    ...     logits = model(tokens)
    """
    anatomy = check_ready(model)
    anatomy.check_site(Site("mlp_post", 0))
    if rule not in RULES:
        raise UnknownNameError("rule of a cut", rule, RULES)
    if not 0 < rise <= 10:
        raise InputError(f"rise is a share of perplexity above 0 (0.01: one per cent); got {rise}")
    for name, windows in (("text", text), ("held_out", held_out)):
        if windows.ndim != 2 or windows.is_floating_point() or windows.shape[1] < 2 or not len(windows):
            raise InputError(f"{name} is windows of at least two token ids [batch, pos]; got {tuple(windows.shape)}")
    if text.shape == held_out.shape and torch.equal(text, held_out):
        raise InputError("thresholds are judged on text that they were not fitted on; held_out is the text itself")
    curves, thresholds, zeros = _tail_errors(model, text, rule)
    limit = perplexity_of(model, text) * (1 + rise)
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        chosen = [_at(curve, levels, middle)[1] for curve, levels in zip(curves, thresholds, strict=True)]
        with intervene(model, _writes(model, rule, chosen)):
            low, high = (middle, high) if perplexity_of(model, text) <= limit else (low, middle)
    cells = [_at(curve, levels, low) for curve, levels in zip(curves, thresholds, strict=True)]
    chosen = tuple(level for _, level, _ in cells)
    plain = perplexity_of(model, held_out)
    with intervene(model, _writes(model, rule, chosen)):
        after = perplexity_of(model, held_out)

    def lots(first: int) -> list[Write]:
        return [
            Write(Site("mlp_post", layer), CutByLot(share, seed * 1009 + layer, first))
            for layer, (share, _, _) in enumerate(cells)
        ]

    lot = perplexity_of(model, held_out, lots)
    facts = build_provenance(
        method="model-wide sparsity", rule=rule, rise=rise, seed=seed, model=identify_model(model),
        text=hash_tensors({"text": text, "held_out": held_out}),
    )  # fmt: skip
    shares, errors = tuple(share for share, _, _ in cells), tuple(error for _, _, error in cells)
    return ModelSparsity(rule, rise, low, shares, errors, chosen, zeros, plain, after, lot, facts)


@torch.no_grad()
def perplexity_of(
    model: TransformerBridge, windows: Windows, writes: Callable[[int], list[Write]] | None = None
) -> float:
    """exp of the mean negative log-probability of every token but each window's first. Cost: 1 forward.

    `writes`: from the first row of a batch to what is written in its forward.
    """
    total = 0.0
    for rows in cut(len(windows), rows_that_fit(model, windows, n_tail=windows.shape[1])):
        batch = windows[rows].to(device_of(model))
        with intervene(model, [] if writes is None else writes(rows.start)):
            logs = model(batch)[:, :-1].log_softmax(dim=-1)
        total -= float(logs.gather(-1, batch[:, 1:, None]).double().sum())
    return float(torch.tensor(total / windows[:, 1:].numel(), dtype=torch.float64).exp())


def _weights(model: TransformerBridge, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    return model.blocks[layer].mlp.W_out.detach()


def _channel(model: TransformerBridge, layer: int, rule: str) -> Float[Tensor, " d_mlp"] | None:
    """What sizes are multiplied by: nothing, or the length of what each neuron writes."""
    return _weights(model, layer).norm(dim=1) if rule == "channel" else None


def _writes(model: TransformerBridge, rule: str, thresholds: tuple[float, ...] | list[float]) -> list[Write]:
    return [
        Write(Site("mlp_post", layer), Cut(level, _channel(model, layer, rule)))
        for layer, level in enumerate(thresholds)
    ]


@torch.no_grad()
def _tail_errors(
    model: TransformerBridge, text: Windows, rule: str
) -> tuple[list[list[float]], list[list[float]], tuple[float, ...]]:
    """Per layer, at each of `SHARES`: the mean tail error, and the threshold; and the share of exact zeros."""
    n_layers = int(model.cfg.n_layers)
    found: list[list[Tensor]] = [[] for _ in range(n_layers)]

    def keep(layer: int) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            found[layer].append(activation.detach().flatten(0, 1))

        return hook

    sites = [Site("mlp_post", layer) for layer in range(n_layers)]
    with hooked(model, [(hook_name(site), keep(layer)) for layer, site in enumerate(sites)]):
        for rows in cut(len(text), rows_that_fit(model, text, sites=sites, n_tail=text.shape[1])):
            model(text[rows].to(device_of(model)))
    curves, levels, zeros = [], [], []
    for layer, parts in enumerate(found):
        a, weight = torch.cat(parts), _weights(model, layer)
        channel = _channel(model, layer, rule)
        size = a.abs() if channel is None else a.abs() * channel
        ordered, whole = size.flatten().sort().values, (a @ weight).norm(dim=-1).clamp(min=1e-30)
        errors, thresholds = [], []
        for share in SHARES:
            n = round(share * len(ordered))
            threshold = float(ordered[n - 1]) if n else -1.0
            errors.append(float(((a * (size <= threshold)) @ weight).norm(dim=-1).div(whole).double().mean()))
            thresholds.append(threshold)
        curves.append(errors)
        levels.append(thresholds)
        zeros.append(float((a == 0).double().mean()))
    return curves, levels, tuple(zeros)


def _at(curve: list[float], levels: list[float], error: float) -> tuple[float, float, float]:
    """(share, threshold, tail error) of the largest cut whose tail error is at most `error`."""
    best = max(i for i in range(len(SHARES)) if curve[i] <= error or i == 0)
    return SHARES[best], levels[best], curve[best]
