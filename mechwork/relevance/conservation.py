"""Is relevance conserved? A per-layer account of where it is.

When every factor that the rules hold constant is held, the metric is affine in each residual stream:

    m  =  sum(resid_l * coefficient_l)  +  sum over the biases b from layer l on of b * dm/db  +  residue

The first sum is the relevance R_l in the stream, the second the bias account. The residue is 0, to rounding, under a
conserving composite and a metric linear in the logits; `Conservation.reasons` says why it need not be otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MetricError
from ..models.anatomy import check_ready, device_of, dtype_of, read_anatomy
from ..models.borrow import borrows, hooked, run_tail
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..runs.record import leaf_at_embedding
from ..shapes import Tokens
from ..sites import FINAL_NORM, UNEMBED, Site, hook_name
from .composite import Binding, Composite
from .fittings import activation_of
from .presets import find_composite
from .rules import AHRule, Family, Rule

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

UNTREATED: dict[Family, str] = {
    "norm": "the scale of a norm depends on its input",
    "activation": "a non-linearity keeps its gradient",
    "product": "both factors of a gated product receive the whole of it",
    "attention": "both factors of attention's products receive the whole of it (no AH-rule)",
    "router": "expert weights depend on the input",
    "softcap": "the soft cap of the logits keeps its gradient",
}
"""Why a family without a rule does not conserve relevance; linear modules and the softmax of a constant pattern do."""


@dataclass(frozen=True, eq=False)
class Conservation(Result):
    """Where relevance is, layer by layer: before block 0, ..., before the last block, after it.

    `relevance`, `bias` and `residue` are in units of the metric, summed over prompts; `reasons` are empty when
    conservation is to be expected.
    """

    value: float
    relevance: tuple[float, ...]
    bias: tuple[float, ...]
    reasons: tuple[str, ...]
    provenance: Provenance

    @property
    def residue(self) -> tuple[float, ...]:
        """metric - relevance - bias account."""
        return tuple(self.value - r - b for r, b in zip(self.relevance, self.bias, strict=True))

    @property
    def expected(self) -> bool:
        """Whether these rules conserve this metric's relevance."""
        return not self.reasons

    def holds(self, tolerance: float) -> bool:
        """Whether every residue is at most `tolerance` times the metric (or times 1, if that is larger)."""
        return max(map(abs, self.residue)) <= tolerance * max(1.0, abs(self.value))

    @property
    def places(self) -> tuple[str, ...]:
        return (*(f"before block {i}" for i in range(len(self.relevance) - 1)), "after the last block")

    def _table(self) -> Table:
        """One row per place, in units of the metric."""
        return {"place": self.places, "relevance": self.relevance, "bias": self.bias, "residue": self.residue}

    def __str__(self) -> str:
        rows = [
            f"{place:<22}{r:>14.6g}{b:>14.6g}{rest:>14.2e}"
            for place, r, b, rest in zip(self.places, self.relevance, self.bias, self.residue, strict=True)
        ]
        why = ["conservation is to be expected"] if self.expected else ["conservation is not to be expected:"]
        return "\n".join(
            [
                f"metric {self.value:.6g} under {self.provenance['rules']['name']}",
                f"{'':<22}{'relevance':>14}{'biases':>14}{'residue':>14}",
                *rows,
                *why,
                *(f"- {reason}" for reason in self.reasons),
            ]
        )


@borrows
def check_conservation(
    model: TransformerBridge,
    tokens: Tokens,
    metric: Callable[[Any], Tensor],
    rules: str | Composite = "relp_ah",
    *,
    n_tail: int | None = None,
) -> Conservation:
    """The account of relevance for `metric(logits)`, summed if it has one value per prompt. Cost: 1 forward + 1
    backward.

    `n_tail`: the metric gets the last columns' logits only, and no others are computed (default: all).

    Never fails because relevance is not conserved: it says where it went, and whether that was to be expected. Raises
    `MetricError` for a metric without gradient and `InputError` for rules that do not fit the model.

    >>> account = check_conservation(model, task.pairs.clean_tokens, lambda logits: logits[:, -1, 42], "relp_ah")
    >>> account.holds(1e-4), account.reasons
    (True, ())
    """
    composite = find_composite(rules)
    anatomy = check_ready(model)
    streams: list[Tensor] = []
    last = Site("resid_post", anatomy.n_layers - 1)
    sites = [*(Site("resid_pre", layer) for layer in range(anatomy.n_layers)), last]
    hooks = [(hook_name(site), lambda x, **_: streams.append(x)) for site in sites]
    with (
        torch.enable_grad(),
        _live_biases(model, anatomy.n_layers) as biases,
        composite.context(model) as binding,
        leaf_at_embedding(model),
        hooked(model, hooks),
    ):
        logits = run_tail(model, tokens.to(device_of(model)), n_tail)
        value = metric(logits).sum()
        if not value.requires_grad:
            raise MetricError("the metric has no gradient with respect to the logits. Use a differentiable metric.")
        parameters = [p for group in biases for p in group]
        # resid_post of one block is resid_pre of the next: the same tensor stands for both.
        grads = torch.autograd.grad(value, [*streams, *parameters, logits], allow_unused=True)
    found = dict(zip(map(id, [*streams, *parameters, logits]), grads, strict=True))
    relevance = tuple(_product(x, found[id(x)]) for x in streams)
    shares = [sum(_product(p, found[id(p)]) for p in group) for group in biases]
    account = tuple(sum(shares[start:]) for start in range(anatomy.n_layers + 1))
    reasons = _reasons(model, binding, float(value.detach()), _product(logits, found[id(logits)]), dtype_of(model))
    provenance = build_provenance(method="conservation", rules=composite.to_json(), model=identify_model(model))
    return Conservation(float(value.detach()), relevance, account, reasons, provenance)


@contextmanager
def _live_biases(model: TransformerBridge, n_layers: int) -> Iterator[list[list[Tensor]]]:
    """The biases of block 0, ..., of the last block, and of what follows, asking for gradients for a while."""
    places = [*model.blocks, [getattr(model, FINAL_NORM), getattr(model, UNEMBED)]]
    groups: list[list[Any]] = []
    for place in places:
        modules = place if isinstance(place, list) else [place]
        named = {id(p): p for m in modules for name, p in m.named_parameters() if _is_bias(name.rsplit(".", 1)[-1])}
        groups.append(list(named.values()))
    frozen = [p for group in groups for p in group if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield groups
    finally:
        for p in frozen:
            p.requires_grad_(False)


def _is_bias(name: str) -> bool:
    return name in ("bias", "b") or name.startswith("b_")


def _product(x: Tensor, grad: Tensor | None) -> float:
    return 0.0 if grad is None else float((x.detach().double() * grad.double()).sum())


def _reasons(
    model: TransformerBridge, binding: Binding, value: float, in_logits: float, dtype: torch.dtype
) -> tuple[str, ...]:
    """Everything that lets relevance leak, most general first."""
    reasons = []
    if abs(value - in_logits) > 1e-4 * max(1.0, abs(value)):
        reasons.append(f"the metric is not linear in the logits: {value:.4g} against {in_logits:.4g} by its gradient")
    by_reason: dict[str, list[str]] = {}
    # relu(x) = x * relu'(x): its gradient is the Identity-rule.
    linear_by_parts = not read_anatomy(model).attn_only and isinstance(activation_of(model), torch.nn.ReLU)
    for name, family in binding.targets:
        if family == "activation" and linear_by_parts:
            continue
        if why := _leak(binding.rule(name, family), family):
            by_reason.setdefault(why, []).append(name)
    reasons += [
        f"{why}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for why, names in by_reason.items()
    ]
    if dtype in (torch.float16, torch.bfloat16):
        reasons.append(f"{dtype} rounds to two or three digits")
    return tuple(reasons)


def _leak(rule: Rule | None, family: Family) -> str:
    if rule is None:
        return UNTREATED.get(family, "")
    return "" if isinstance(rule, AHRule) else rule.leak
