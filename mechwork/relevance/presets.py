"""Named composites, and the names by which papers call rules and composites."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError, UnknownNameError
from .composite import RULES, Composite
from .linear import EpsilonRule
from .rules import AHRule, BilinearRule, HalfRule, IdentityRule, LNRule, RouterRule, Rule, SoftcapRule, TemperatureRule

GRADIENT = Composite("gradient")
"""No rules: plain gradients (attribution patching)."""

RELP = Composite(
    "relp", (("*", LNRule()), ("*", IdentityRule()), ("*", HalfRule()), ("*", RouterRule()), ("*", SoftcapRule()))
)
"""Relevance patching as in the paper: LN-rule, Identity-rule, Half-rule (and constants for routers and the final soft
cap).
"""

RELP_AH = Composite("relp_ah", (*RELP.entries, ("*", AHRule())))
"""`RELP` with attention patterns held constant too: relevance is conserved layer by layer."""

CP_LRP = Composite("cp_lrp", (("*", LNRule()), ("*", AHRule())))
"""Conservative propagation (Ali et al. 2022): constant norm scales and attention patterns, plain gradients elsewhere.
"""

ATTNLRP = Composite("attnlrp", (*RELP.entries, ("*", BilinearRule())))
"""AttnLRP (Achtibat et al. 2024): `RELP` with the uniform rule on both products of attention and the softmax's
gradient.
"""

GIM = Composite(
    "gim",
    (("*", LNRule()), ("*", TemperatureRule(2.0)), ("*", BilinearRule()), ("*", HalfRule())),
)
"""Gradient Interaction Modifications (Edin et al. 2025), with its authors' settings: softmax gradients at temperature
2, products share their gradient (q/4, k/4, v/2, gates/2), frozen norms.
"""

ATP_STAR = Composite("atp_star", grad_drop=True, query_key_fix=True)
"""AtP* (Kramár et al. 2024): plain gradients, GradDrop, and queries and keys put through the softmax exactly."""

PRESETS: dict[str, Composite] = {c.name: c for c in (GRADIENT, RELP, RELP_AH, CP_LRP, ATTNLRP, GIM, ATP_STAR)}
"""Every preset by name."""

ALIASES = {
    "relp+ah": "relp_ah",
    "cp-lrp": "cp_lrp",
    "cp_LRP": "cp_lrp",
    "attnLRP": "attnlrp",
    "AttnLRP": "attnlrp",
    "atp*": "atp_star",
    "atp": "gradient",
}
"""Papers' and packages' own names of composites."""

RULE_ALIASES: dict[str, Rule] = {
    "LN-rule": LNRule(),
    "Identity-rule": IdentityRule(),
    "Half-rule": HalfRule(),
    "AH-rule": AHRule(),
    "0-rule": EpsilonRule(0.0),
    "epsilon": EpsilonRule(1e-6),
}
"""Papers' own names of rules, as accepted in a list of rules."""


def find_composite(rules: str | Composite | Sequence[str | Rule]) -> Composite:
    """A composite; the preset of that name; or a list of rules, by value or by name, each for every module it fits.

    >>> find_composite(["LN-rule", "Identity-rule", "Half-rule"]).entries == RELP.entries[:3]
    True

    Raises `UnknownNameError` with the nearest names, and `InputError` for anything else.
    """
    if isinstance(rules, Composite):
        return rules
    if isinstance(rules, str):
        name = ALIASES.get(rules, rules)
        if name not in PRESETS:
            raise UnknownNameError("preset of rules", rules, PRESETS)
        return PRESETS[name]
    entries = tuple(("*", _find_rule(rule)) for rule in rules)
    return Composite("+".join(str(rule) for _, rule in entries) or "gradient", entries)


def _find_rule(rule: str | Rule) -> Rule:
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str):
        raise InputError(f"rules are a composite, a preset's name, or a list of rules and their names; got {rule!r}")
    if rule in RULE_ALIASES:
        return RULE_ALIASES[rule]
    if rule not in RULES:
        raise UnknownNameError("rule", rule, (*RULE_ALIASES, *RULES))
    return RULES[rule]()
