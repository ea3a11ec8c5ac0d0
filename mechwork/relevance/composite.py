"""Composites: ordered (selector, rule) lists. For every module and rule family the first match wins.

A selector is a glob on the bridge's module names (``"blocks.[3-5].attn"``, ``"ln_final"``, ``"*"``). A composite is a value:
it is compared, printed, recorded as JSON, and extended by putting a user's rules first.

    >>> composite = RELP.prepend(("ln_final", GradientRule("norm")))
    >>> [rule.name for _, rule in composite.entries][0]
    'GradientRule'
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UnknownNameError
from ..models.anatomy import check_ready, norm_modules
from ..sites import UNEMBED, block_module
from .install import install
from .rules import (
    AHRule,
    Family,
    GradientRule,
    HalfRule,
    IdentityRule,
    LNRule,
    RouterRule,
    Rule,
    SoftcapRule,
    family_of,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Entry = tuple[str, Rule]
Target = tuple[str, Family]
"""A module's name and the family in which it can take a rule."""


@dataclass(frozen=True)
class Composite:
    """A named, ordered list of (selector, rule)."""

    name: str
    entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        for entry in self.entries:
            if not (
                isinstance(entry, tuple)
                and len(entry) == 2
                and isinstance(entry[0], str)
                and isinstance(entry[1], Rule)
            ):
                raise InputError(f"a composite is made of (glob on module names, rule) pairs; got {entry!r}")

    def prepend(self, *entries: Entry, name: str | None = None) -> Composite:
        """The composite with `entries` first, so that they win."""
        return Composite(name or f"{self.name}+", (*entries, *self.entries))

    def bind(self, model: TransformerBridge) -> Binding:
        """Which module gets which rule. Raises `InputError` for a selector that matches no module of its rule's family."""
        check_ready(model)
        targets = find_targets(model)
        bound: dict[Target, Rule] = {}
        for selector, rule in self.entries:
            family = family_of(rule)
            matches = [t for t in targets if t[1] == family and fnmatch.fnmatchcase(t[0], selector)]
            if not matches and selector != "*":
                names = [name for name, of in targets if of == family]
                raise InputError(
                    f"{rule.name} is bound to {selector!r}, which matches none of this model's {family} modules: {', '.join(names) or 'it has none'}"
                )
            for target in matches:
                bound.setdefault(target, rule)
        return Binding(self, targets, {t: r for t, r in bound.items() if not isinstance(r, GradientRule)})

    @contextmanager
    def context(self, model: TransformerBridge) -> Iterator[Binding]:
        """Inside, backward passes through forwards run in this thread follow the rules; forwards are unchanged to the bit.

        Restores the model on exit, also after an exception. Survives `model.reset_hooks()`. Nested contexts on one model:
        the innermost alone is active.
        """
        binding = self.bind(model)
        with install(model, binding.rules):
            yield binding

    def to_json(self) -> dict[str, Any]:
        """For provenance."""
        return {
            "name": self.name,
            "entries": [{"modules": selector, **rule.to_json()} for selector, rule in self.entries],
        }


@dataclass(frozen=True)
class Binding:
    """What a composite does to one model: the rule of every (module, family), and the modules left with their gradient."""

    composite: Composite
    targets: tuple[Target, ...]
    rules: dict[Target, Rule]

    def rule(self, module: str, family: Family) -> Rule | None:
        """The rule bound to a module, or None for its own gradient."""
        return self.rules.get((module, family))

    def report(self) -> str:
        """A table module -> rule, gradient where no rule is bound."""
        rows = [
            f"{name:<28} {family:<11} {self.rules[name, family].name if (name, family) in self.rules else 'gradient (no rule)'}"
            for name, family in self.targets
        ]
        return "\n".join(
            [f"{self.composite.name}: {len(self.rules)} of {len(self.targets)} module families have a rule", *rows]
        )


def find_targets(model: TransformerBridge) -> tuple[Target, ...]:
    """Every (module, family) of the model that can take a rule."""
    anatomy = check_ready(model)
    targets: list[Target] = [(name, "norm") for name, _ in norm_modules(model)]
    for layer in range(anatomy.n_layers):
        targets.append((block_module(layer, "attn"), "attention"))
        if anatomy.attn_only:
            continue
        mlp = block_module(layer, "mlp")
        targets.append((mlp, "activation"))
        if anatomy.gated:
            targets.append((mlp, "product"))
        if anatomy.n_experts is not None:
            targets.append((mlp, "router"))
    if anatomy.final_soft_cap is not None:
        targets.append((UNEMBED, "softcap"))
    return tuple(targets)


GRADIENT = Composite("gradient")
"""No rules: plain gradients (attribution patching)."""

RELP = Composite(
    "relp", (("*", LNRule()), ("*", IdentityRule()), ("*", HalfRule()), ("*", RouterRule()), ("*", SoftcapRule()))
)
"""Relevance patching as in the paper: LN-rule, Identity-rule, Half-rule (and constants for routers and the final soft cap)."""

RELP_AH = Composite("relp_ah", (*RELP.entries, ("*", AHRule())))
"""`RELP` with attention patterns held constant too: relevance is conserved layer by layer."""

CP_LRP = Composite("cp_lrp", (("*", LNRule()), ("*", AHRule())))
"""Conservative propagation (Ali et al. 2022): constant norm scales and attention patterns, plain gradients elsewhere."""

PRESETS: dict[str, Composite] = {c.name: c for c in (GRADIENT, RELP, RELP_AH, CP_LRP)}


def find_composite(rules: str | Composite) -> Composite:
    """A composite, or the preset of that name; raises `UnknownNameError` with the nearest names."""
    if isinstance(rules, Composite):
        return rules
    if rules not in PRESETS:
        raise UnknownNameError("preset of rules", rules, PRESETS)
    return PRESETS[rules]
