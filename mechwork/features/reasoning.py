"""Propositions over features, rules over propositions, and steering by what follows: ActivationReasoning.

    score_p(t) = sum_j w_j f_j(t),   w_j = mean f_j positive - mean f_j negative of p's features;   p holds at t:
    score_p(t) > threshold_p                                               (the best balanced accuracy on examples)
    "so far": p held at t or before it, in this prompt;   "token": at t itself
    rules  "bridge and san_francisco -> golden_gate"   are applied until nothing new follows
    h(t) -> h(t) + |h(t)| sum_c s_c d_c    for every conclusion c that holds, d_c = unit of sum_j w_j W_dec[j]

(Helff et al. 2025: concepts of one or several features, thresholds by balanced accuracy, rules by forward chaining,
shifts in units of the state's length. Concepts as decision trees are in `concept_trees`; its fuzzy order matching is
not here.) Bodies are written with and, or, not and brackets; what no rule and no feature says is false, so a name is
never derived from its own negation. Concepts that have no features of their own are composed by rules, and can be
steered by none.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..directions import Examples, best_threshold
from ..directions.fit import by_lot
from ..display import Readable
from ..errors import InputError
from ..interventions import Columns
from ..models.anatomy import check_ready
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from ..shapes import Tokens
from ..sites import hook_name
from .coder import SparseCoder, as_vectors, working
from .concepts import record_concept
from .feature_set import FeatureSet
from .record import record_features

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SCOPES = ("so_far", "token")


@dataclass(frozen=True)
class Proposition:
    """A concept: its features with their weights, and the score above which it holds. `accuracy` is balanced, on
    held-out prompts; `control` the same with labels by lot.
    """

    name: str
    features: tuple[int, ...]
    weights: tuple[float, ...]
    threshold: float
    accuracy: float = float("nan")
    control: float = float("nan")

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise InputError(f"propositions are named like variables (letters, digits, _); got {self.name!r}")
        if not self.features or len(self.features) != len(self.weights):
            raise InputError(f"{self.name} needs features with one weight each; got {self.features} and {self.weights}")


@dataclass(frozen=True)
class Implication:
    """``body -> head``, both as text; see `Implication.parse`."""

    body: str
    head: str

    @classmethod
    def parse(cls, text: str) -> Implication:
        """A rule like ``"a and not (b or c) -> d"``; raises `InputError` for anything else."""
        body, arrow, head = (part.strip() for part in text.partition("->"))
        if not arrow or not head.isidentifier():
            raise InputError(f"a rule is a body, -> and one name, like 'a and not b -> c'; got {text!r}")
        rule = cls(body, head)
        rule.names()
        return rule

    def names(self) -> dict[str, bool]:
        """Names in the body -> whether one of their places is under an odd number of `not`."""
        found: dict[str, bool] = {}

        def walk(node: ast.expr, *, negated: bool) -> None:
            if isinstance(node, ast.Name):
                found[node.id] = found.get(node.id, False) or negated
            elif isinstance(node, ast.BoolOp):
                for part in node.values:
                    walk(part, negated=negated)
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                walk(node.operand, negated=not negated)
            else:
                raise InputError(f"bodies are names with and, or, not and brackets; got {self.body!r}")

        walk(self._tree(), negated=False)
        return found

    def holds(self, facts: Mapping[str, Bool[Tensor, "*batch"]]) -> Bool[Tensor, "*batch"]:
        """Where the body is true."""

        def value(node: ast.expr) -> Tensor:
            if isinstance(node, ast.Name):
                return facts[node.id]
            if isinstance(node, ast.UnaryOp):
                return ~value(node.operand)
            assert isinstance(node, ast.BoolOp)
            parts = torch.stack([value(part) for part in node.values])
            return parts.all(dim=0) if isinstance(node.op, ast.And) else parts.any(dim=0)

        return value(self._tree())

    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.body, mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise InputError(f"bodies are names with and, or, not and brackets; got {self.body!r}") from error

    def __str__(self) -> str:
        return f"{self.body} -> {self.head}"


@dataclass(frozen=True, eq=False)
class Reasoner(Result, what="rules over features"):
    """Propositions at one place, and rules over them; raises `InputError` for rules about names that nothing says, two
    propositions of one name, or a name that depends on its own negation.
    """

    place: str
    propositions: tuple[Proposition, ...]
    rules: tuple[Implication, ...] = ()
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = [p.name for p in self.propositions]
        if not own or len(set(own)) != len(own):
            raise InputError(f"propositions have one name each, and there is at least one; got {own}")
        known = {*own, *(rule.head for rule in self.rules)}
        for rule in self.rules:
            if strange := sorted(set(rule.names()) - known):
                raise InputError(
                    f"{rule}: nothing says whether {', '.join(strange)}; known are {', '.join(sorted(known))}"
                )
        self._strata()

    @property
    def names(self) -> tuple[str, ...]:
        """Propositions, then what only rules conclude."""
        own = [p.name for p in self.propositions]
        return (*own, *(h for h in dict.fromkeys(rule.head for rule in self.rules) if h not in own))

    def with_rules(self, *texts: str) -> Reasoner:
        """The same propositions with these rules."""
        return replace(self, rules=tuple(Implication.parse(text) for text in texts))

    def infer(self, held: Bool[Tensor, "*batch proposition"]) -> Bool[Tensor, "*batch name"]:
        """All that follows, in the order of `names`; rules are applied until nothing new does."""
        facts = {name: torch.zeros_like(held[..., 0]) for name in self.names}
        for i, p in enumerate(self.propositions):
            facts[p.name] = held[..., i]
        for level in self._strata():
            rules = [rule for rule in self.rules if rule.head in level]
            changed = True
            while changed:
                changed = False
                for rule in rules:
                    new = facts[rule.head] | rule.holds(facts)
                    changed = changed or not torch.equal(new, facts[rule.head])
                    facts[rule.head] = new
        return torch.stack([facts[name] for name in self.names], dim=-1)

    def scores(self, f: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch proposition"]:
        """score_p of every proposition."""
        return torch.stack(
            [f[..., list(p.features)] @ torch.tensor(p.weights).to(f) for p in self.propositions], dim=-1
        )

    def held(self, f: Float[Tensor, "*batch feature"]) -> Bool[Tensor, "*batch proposition"]:
        """Which propositions hold."""
        scores = self.scores(f)
        return scores > torch.tensor([p.threshold for p in self.propositions]).to(scores)

    def detect(
        self, model: TransformerBridge, features: FeatureSet, tokens: Tokens, scope: str = "so_far"
    ) -> Bool[Tensor, "batch pos name"]:
        """What holds and follows at every position, in the order of `names`. Cost: 1 forward."""
        features.check(model)
        held = self.held(record_features(model, tokens, [features[self.place]])[0].features)
        return self.infer(_scoped(held, _check_scope(scope)))

    def write(self, features: FeatureSet, strengths: Mapping[str, float], scope: str = "so_far") -> Reasoning:
        """Steering by conclusions: name -> s_c, in units of the state's length; negative suppresses.

        Raises `InputError` for names without features of their own, or a transcoder.
        """
        coder = features[self.place]
        if coder.reads != coder.writes:
            raise InputError(f"reasoning steers where it reads; the coder at {self.place} writes elsewhere")
        own = {p.name: p for p in self.propositions}
        if not strengths or not set(strengths) <= set(own):
            raise InputError(
                f"what is steered has features of its own: {', '.join(own)}; got {', '.join(strengths) or 'nothing'}. "
                "Conclude one of them from the composed concept"
            )
        rows = []
        for name, strength in strengths.items():
            p = own[name]
            vector = torch.tensor(p.weights).double() @ working(coder.W_dec[list(p.features)]).double().cpu()
            rows.append(strength * vector / vector.norm().clamp(min=1e-30))
        return Reasoning(self, coder, tuple(strengths), torch.stack(rows), _check_scope(scope))

    def control(self, features: FeatureSet, seed: int = 0) -> Reasoner:
        """The same rules, weights and thresholds over other features by lot."""
        generator = torch.Generator().manual_seed(seed)
        order = iter(torch.randperm(features[self.place].n_features, generator=generator).tolist())
        taken = {j for p in self.propositions for j in p.features}
        drawn = [replace(p, features=tuple(next(j for j in order if j not in taken) for _ in p.features))
                 for p in self.propositions]  # fmt: skip
        return replace(self, propositions=tuple(drawn))

    def _strata(self) -> list[set[str]]:
        """Names in levels, so that what is negated is settled before; raises `InputError` where that cannot be."""
        level = dict.fromkeys(self.names, 0)
        for _ in range(len(level) + 1):
            changed = False
            for rule in self.rules:
                for name, negated in rule.names().items():
                    least = level[name] + int(negated)
                    if level[rule.head] < least:
                        level[rule.head], changed = least, True
            if not changed:
                return [{n for n, at in level.items() if at == k} for k in range(max(level.values()) + 1)]
        raise InputError(f"a name depends on its own negation in the rules {'; '.join(map(str, self.rules))}")

    def _table(self) -> Table:
        """One row per proposition."""
        return {
            "proposition": [p.name for p in self.propositions],
            "features": [", ".join(f"f{j}" for j in p.features) for p in self.propositions],
            "threshold": [p.threshold for p in self.propositions],
            "accuracy": [p.accuracy for p in self.propositions],
            "by lot": [p.control for p in self.propositions],
        }

    def __str__(self) -> str:
        told = [
            f"{p.name}: {', '.join(f'f{j}' for j in p.features)} of {self.place}, balanced accuracy {p.accuracy:.3f} "
            f"(by lot {p.control:.3f})"
            for p in self.propositions
        ]
        return "\n".join([*told, *map(str, self.rules)])


@dataclass(frozen=True, eq=False)
class Reasoning(Readable):
    """The intervention of `Reasoner.write`: `shifts` ``[conclusion, d]`` for the names `steered`, in state lengths."""

    reasoner: Reasoner
    coder: SparseCoder
    steered: tuple[str, ...]
    shifts: Float[Tensor, "conclusion d"]
    scope: str = "so_far"

    def check(self, model: TransformerBridge) -> None:
        """Raises `InputError` when the model has no such place."""
        check_ready(model).check_writable(self.coder.writes)

    def hooks(self, columns: Columns) -> list[Any]:
        """One hook; what held before a forward with a key-value cache is kept from the forwards before it."""
        before: list[Tensor] = []

        def put(activation: Tensor, hook: Any) -> Tensor:
            x = working(as_vectors(activation))
            held = self.reasoner.held(self.coder.encode(x))
            if self.scope == "so_far":
                if columns.start and (not before or len(before[0]) != len(held)):
                    raise InputError("what held so far is not known: run the prompts first, whole")
                held = _scoped(held, self.scope, before[0] if columns.start else None)
                before[:] = [held[:, -1]]
            names = self.reasoner.names
            follows = self.reasoner.infer(held)[..., [names.index(name) for name in self.steered]]
            shift = follows.to(x) @ self.shifts.to(x) * x.norm(dim=-1, keepdim=True)
            return (x + shift).reshape(activation.shape).to(activation.dtype)

        return [(hook_name(self.coder.writes), put)]


@borrows
def fit_propositions(
    model: TransformerBridge,
    features: FeatureSet,
    place: str,
    concepts: Mapping[str, Examples],
    n_features: int = 3,
    *,
    seed: int = 0,
) -> Reasoner:
    """A proposition per concept, of the `n_features` features whose means differ most in spreads; no rules yet.

    Fitted on 70 % of each concept's groups and judged on the others. Cost: 1 forward of all prompts. Raises
    `InputError` for no concepts or features, and what `Examples.split` raises.

    >>> concepts = {"plural": concept_of_answer(model, agreement, " are")}
    >>> reasoner = fit_propositions(model, features, "resid_post.3", concepts)
    >>> reasoner = reasoner.with_rules("not plural -> singular")
    """
    features.check(model)
    coder = features[place]
    if not concepts or not 1 <= n_features <= coder.n_features:
        raise InputError(f"reasoning needs concepts, and 1 to {coder.n_features} features of each; got {n_features}")
    found = []
    for name, examples in concepts.items():
        f = record_concept(model, FeatureSet((coder,), features.model), examples)[0][0].double()
        one = _proposition(name, f, examples, n_features, seed)
        lot = _proposition(name, f, by_lot(examples, torch.Generator().manual_seed(seed)), n_features, seed)
        found.append(replace(one, control=lot.accuracy))
    facts = build_provenance(
        method="propositions over features", model=identify_model(model), features=features.describe(), seed=seed,
        examples={name: examples.sha256() for name, examples in concepts.items()},
    )  # fmt: skip
    return Reasoner(place, tuple(found), (), facts)


def _proposition(name: str, f: Float[Tensor, "prompt feature"], examples: Examples, n: int, seed: int) -> Proposition:
    labels = examples.labels
    fitted, difference, spread = tell_apart(name, f, examples, seed)
    chosen = (difference / spread).argsort(descending=True, stable=True)[:n]
    scores = f[:, chosen] @ difference[chosen]
    threshold = best_threshold(scores[fitted], labels[fitted])
    right = (scores > threshold) == labels
    accuracy = sum(float(right[~fitted & side].double().mean()) for side in (labels, ~labels)) / 2
    return Proposition(name, tuple(chosen.tolist()), tuple(difference[chosen].tolist()), threshold, accuracy)


def tell_apart(
    name: str, f: Float[Tensor, "prompt feature"], examples: Examples, seed: int
) -> tuple[Bool[Tensor, " prompt"], Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """Which prompts are fitted, and of those the difference of the classes' means and their summed spreads. Raises
    `InputError` where a part has one class only.
    """
    fitted = torch.isin(examples.groups, examples.split(seed=seed)[0].groups.unique())
    labels = examples.labels
    sides = [f[fitted & side] for side in (labels, ~labels)]
    if not all(len(side) for side in (*sides, f[~fitted & labels], f[~fitted & ~labels])):
        raise InputError(f"{name} needs prompts of both classes among those fitted and those held out; give more")
    spread = sides[0].std(dim=0, unbiased=False) + sides[1].std(dim=0, unbiased=False) + 1e-6
    return fitted, sides[0].mean(dim=0) - sides[1].mean(dim=0), spread


def _check_scope(scope: str) -> str:
    if scope not in SCOPES:
        raise InputError(f"what holds is asked of {' or '.join(SCOPES)}; got {scope!r}")
    return scope


def _scoped(
    held: Bool[Tensor, "batch pos n"], scope: str, before: Bool[Tensor, "batch n"] | None = None
) -> Bool[Tensor, "batch pos n"]:
    """Held at the position, or at it or before it."""
    if scope == "token":
        return held
    running = held.int().cummax(dim=1).values.bool()
    return running if before is None else running | before[:, None]
