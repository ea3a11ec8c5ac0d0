"""Composites: ordered (selector, rule) lists. For every module and rule family the first match wins.

A selector is a glob on the bridge's module names (``"blocks.[3-5].attn"``, ``"ln_final"``, ``"*"``) or a kind of
module: ``"attn"``, ``"mlp"``, ``"ln1"``, ``"attn.q"``, ... meant in every block. A composite is a value: it is
compared, printed, recorded as JSON, and extended by putting a user's rules first.

    >>> composite = RELP.prepend(("ln_final", GradientRule("norm")))
    >>> [rule.name for _, rule in composite.entries][0]
    'GradientRule'
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import InputError, UnknownNameError
from .install import install
from .linear import AlphaBetaRule, EpsilonRule, GammaRule
from .rules import (
    AHRule,
    BilinearRule,
    Family,
    GradientRule,
    HalfRule,
    IdentityRule,
    LNRule,
    PassRule,
    RouterRule,
    Rule,
    SoftcapRule,
    TemperatureRule,
    family_of,
)
from .targets import Target, closed_targets, find_targets

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Entry = tuple[str, Rule]

RULES: dict[str, type[Rule]] = {
    rule.__name__: rule
    for rule in (
        LNRule, IdentityRule, HalfRule, AHRule, BilinearRule, TemperatureRule, RouterRule, SoftcapRule,
        PassRule, GradientRule, EpsilonRule, GammaRule, AlphaBetaRule,
    )
}  # fmt: skip
"""Every rule by its class name."""


@dataclass(frozen=True)
class Composite:
    """A named, ordered list of (selector, rule), and the two options of AtP* for estimates by gradient.

    `grad_drop`: magnitudes are averaged over backward passes each of which skips one layer; `query_key_fix`: patched
    queries and keys go through the softmax exactly. Both are steps of an estimator (`mechwork.attribute`), not rules of
    a module.
    """

    name: str
    entries: tuple[Entry, ...] = ()
    grad_drop: bool = False
    query_key_fix: bool = False

    def __post_init__(self) -> None:
        seen = set()
        for entry in self.entries:
            if not (
                isinstance(entry, tuple)
                and len(entry) == 2
                and isinstance(entry[0], str)
                and isinstance(entry[1], Rule)
            ):
                raise InputError(f"a composite is made of (glob on module names, rule) pairs; got {entry!r}")
            key = (entry[0], family_of(entry[1]))
            if key in seen:
                raise InputError(
                    f"composite {self.name!r} has two {key[1]} rules for {key[0]!r}, of which the second, {entry[1]}, "
                    "can never act. "
                    "Leave one out, or put a rule before a whole composite with prepend()."
                )
            seen.add(key)

    def prepend(self, *entries: Entry, name: str | None = None) -> Composite:
        """The composite with `entries` first, so that they win; what they replace exactly is left out."""
        replaced = {(selector, family_of(rule)) for selector, rule in entries}
        rest = tuple(entry for entry in self.entries if (entry[0], family_of(entry[1])) not in replaced)
        return Composite(name or f"{self.name}+", (*entries, *rest), self.grad_drop, self.query_key_fix)

    def bind(self, model: TransformerBridge, *, strict: bool = False) -> Binding:
        """Which module gets which rule.

        With `strict`, one small forward and backward pass checks that every bound rule really acts.

        Raises `InputError` for a selector that matches no module of its rule's family (``"*"`` excepted, which may find
        nothing to do), for a rule on a place it cannot reach, and in strict mode for rules without effect.
        """
        targets, closed = find_targets(model), closed_targets(model)
        bound: dict[Target, Rule] = {}
        unmatched = []
        for selector, rule in self.entries:
            family = family_of(rule)
            matches = [t for t in targets if t[1] == family and _selects(selector, t[0])]
            if not isinstance(rule, GradientRule):
                for target, why in closed.items():
                    if target[1] == family and _selects(selector, target[0]):
                        raise InputError(f"{rule} cannot act on {target[0]}: {why}")
            if not matches and selector != "*":
                names = [name for name, of in targets if of == family]
                raise InputError(
                    f"{rule.name} is bound to {selector!r}, which matches none of this model's {family} modules: "
                    f"{', '.join(names) or 'it has none'}"
                )
            if not matches:
                unmatched.append((selector, rule))
            for target in matches:
                bound.setdefault(target, rule)
        rules = {t: r for t, r in bound.items() if not isinstance(r, GradientRule)}
        binding = Binding(self, targets, rules, tuple(unmatched))
        if strict:
            from .probe import check_effect

            check_effect(model, binding)
        return binding

    @contextmanager
    def context(self, model: TransformerBridge, *, strict: bool = False) -> Iterator[Binding]:
        """Inside, backward passes through forwards run in this thread follow the rules; forwards are unchanged to the
        bit.

        Frozen models work: when nothing before it asks for gradients, the embedding does. Restores the model on exit,
            also
        after an exception. Survives `model.reset_hooks()`. Nested contexts on one model: the innermost alone is active.
        """
        binding = self.bind(model, strict=strict)
        with install(model, binding.rules):
            yield binding

    def to_json(self) -> dict[str, Any]:
        """The composite as JSON, for provenance and files."""
        options = {name: True for name in ("grad_drop", "query_key_fix") if getattr(self, name)}
        entries = [{"modules": selector, **rule.to_json()} for selector, rule in self.entries]
        return {"name": self.name, "entries": entries, **options}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Composite:
        """What `to_json` wrote; raises `InputError` or `UnknownNameError` for anything else."""
        try:
            entries = tuple((str(e["modules"]), build_rule(e)) for e in value["entries"])
            return cls(str(value["name"]), entries, bool(value.get("grad_drop")), bool(value.get("query_key_fix")))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"a composite as JSON has a name and entries of modules and rule; got {value!r}"
            ) from error


def build_rule(value: Mapping[str, Any]) -> Rule:
    """A rule from its JSON: ``{"rule": "GammaRule", "gamma": 0.1}``."""
    if value["rule"] not in RULES:
        raise UnknownNameError("rule", value["rule"], RULES)
    rule = RULES[value["rule"]]
    names = {f.name for f in fields(rule)}
    settings = {"of": value["family"]} if "of" in names else {name: value[name] for name in names if name in value}
    return rule(**settings)


def _selects(selector: str, name: str) -> bool:
    """Whether a selector means a module: a glob on its whole name, or its name inside a block."""
    inside = name.split(".", 2)[2] if name.startswith("blocks.") else name
    return fnmatch.fnmatchcase(name, selector) or fnmatch.fnmatchcase(inside, selector)


@dataclass(frozen=True)
class Binding:
    """What a composite does to one model: the rule of every (module, family), and the modules left with their gradient.

    `unmatched` are entries that found nothing to do in this model (a Half-rule where no MLP is gated).
    """

    composite: Composite
    targets: tuple[Target, ...]
    rules: dict[Target, Rule]
    unmatched: tuple[Entry, ...] = ()

    def rule(self, module: str, family: Family) -> Rule | None:
        """The rule bound to a module, or None for its own gradient."""
        return self.rules.get((module, family))

    def report(self) -> str:
        """A table module -> rule; modules without a rule keep their gradient, and entries that found nothing
        are named.
        """
        width = max(len(name) for name, _ in self.targets)
        rows = [
            f"{name:<{width}}  {family:<11} {self.rules.get((name, family), 'gradient (no rule)')}"
            for name, family in self.targets
        ]
        rows += [
            f"{selector:<{width}}  {family_of(rule):<11} {rule} matched nothing" for selector, rule in self.unmatched
        ]
        title = f"{self.composite.name}: {len(self.rules)} of {len(self.targets)} (module, family) places have a rule"
        return "\n".join([title, *rows])
