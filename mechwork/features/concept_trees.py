"""Concepts as small decision trees over features: ActivationReasoning's third kind of concept, beside one and several.

    she  <-  (f12 > 0.3 and not f40 > 1.1) or f7 > 0.2

A tree is rules: every question is a proposition of one feature, every path to a leaf that says yes a conjunction of
them, so that what comes out is a `Reasoner`. Questions are asked of the `n_features` features whose means differ most;
the tree is scikit-learn's, classes weighed alike. Judged on prompts that it has not seen, beside labels by lot: a tree
of depth 3 has up to seven thresholds and fits a dozen prompts whatever they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..directions import Examples
from ..directions.fit import by_lot
from ..errors import InputError, check_whole
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance
from ..result import Result, Table
from .concepts import record_concept
from .feature_set import FeatureSet
from .reasoning import Implication, Proposition, Reasoner, tell_apart

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class ConceptTree:
    """A concept's tree: when it holds, as text, with balanced accuracy on held-out prompts and with labels by lot."""

    name: str
    holds: str
    n_questions: int
    accuracy: float
    control: float


@dataclass(frozen=True, eq=False)
class ConceptTrees(Result, what="concepts as trees"):
    """The trees, and the `reasoner` whose rules they are: its propositions are the questions."""

    reasoner: Reasoner
    trees: tuple[ConceptTree, ...]
    provenance: Provenance = field(default_factory=dict)

    def _table(self) -> Table:
        """One row per concept."""
        names = ("name", "holds", "n_questions", "accuracy", "control")
        return {name: [getattr(tree, name) for tree in self.trees] for name in names}

    def __str__(self) -> str:
        return "\n".join(
            f"{tree.name}: {tree.holds or 'never'}; balanced accuracy {tree.accuracy:.3f} (by lot {tree.control:.3f})"
            for tree in self.trees
        )


@borrows
def fit_concept_trees(
    model: TransformerBridge,
    features: FeatureSet,
    place: str,
    concepts: Mapping[str, Examples],
    *,
    depth: int = 2,
    n_features: int = 16,
    seed: int = 0,
) -> ConceptTrees:
    """A tree per concept, fitted on 70 % of its groups and judged on the others.

    Cost: 1 forward of all prompts. Raises `InputError` for no concepts, a depth that is not 1 to 4, or without
    scikit-learn (``mechwork[trees]``), and what `Examples.split` raises.

    >>> trees = fit_concept_trees(model, features, "resid_post.4", {"she": concept_of_answer(model, she, " she")})
    >>> trees.reasoner.detect(model, features, she.pairs.clean_tokens)
    """
    features.check(model)
    coder = features[place]
    if check_whole("depth", depth, least=1) > 4:
        raise InputError(f"a tree that can be read has a depth of 1 to 4; got {depth}")
    if not concepts or not 1 <= n_features <= coder.n_features:
        raise InputError(f"trees need concepts, and 1 to {coder.n_features} features to ask; got {n_features}")
    questions: list[Proposition] = []
    rules: list[Implication] = []
    trees: list[ConceptTree] = []
    for name, examples in concepts.items():
        f = record_concept(model, FeatureSet((coder,), features.model), examples)[0][0].double()
        lot = by_lot(examples, torch.Generator().manual_seed(seed))
        asked, paths, accuracy = _fit(name, f, examples, depth, n_features, seed)
        control = _fit(name, f, lot, depth, n_features, seed)[2]
        if not asked:
            raise InputError(f"no feature tells the examples of {name} apart; ask more features, or another place")
        questions += asked
        rules += [Implication.parse(f"{body} -> {name}") for body in paths]
        shown = {q.name: f"f{q.features[0]} > {q.threshold:.3g}" for q in asked}
        trees.append(ConceptTree(name, _words(paths, shown), len(asked), accuracy, control))
    facts = build_provenance(
        method="concepts as trees", model=identify_model(model), features=features.describe(), seed=seed, depth=depth,
        n_features=n_features, examples={name: examples.sha256() for name, examples in concepts.items()},
    )  # fmt: skip
    return ConceptTrees(Reasoner(place, tuple(questions), tuple(rules), facts), tuple(trees), facts)


def _fit(
    name: str, f: Float[Tensor, "prompt feature"], examples: Examples, depth: int, n: int, seed: int
) -> tuple[list[Proposition], list[str], float]:
    """Questions, paths to leaves that say yes, and balanced accuracy on what was held out."""
    try:
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise InputError("trees need scikit-learn: pip install 'mechwork[trees]'") from error
    labels = examples.labels
    fitted, difference, spread = tell_apart(name, f, examples, seed)
    chosen = (difference.abs() / spread).argsort(descending=True, stable=True)[:n]
    made: Any = DecisionTreeClassifier(max_depth=depth, class_weight="balanced", random_state=seed)
    made.fit(f[fitted][:, chosen].numpy(), labels[fitted].numpy())
    asked, paths = _read(name, made.tree_, chosen.tolist())
    said = _says(f, asked, paths)
    right = said == labels
    accuracy = sum(float(right[~fitted & side].double().mean()) for side in (labels, ~labels)) / 2
    return asked, paths, accuracy


def _read(name: str, tree: Any, features: list[int]) -> tuple[list[Proposition], list[str]]:
    """A fitted tree as questions (left: no, right: yes) and the paths to its leaves that say yes."""
    asked: list[Proposition] = []
    paths: list[str] = []

    def walk(node: int, path: list[str]) -> None:
        if tree.children_left[node] < 0:
            no, yes = tree.value[node][0]
            if yes > no and path:
                paths.append(" and ".join(path))
            return
        question = Proposition(
            f"{name}_{len(asked)}", (features[tree.feature[node]],), (1.0,), float(tree.threshold[node])
        )
        asked.append(question)
        walk(int(tree.children_left[node]), [*path, f"not {question.name}"])
        walk(int(tree.children_right[node]), [*path, question.name])

    walk(0, [])
    return asked, paths


def _says(f: Float[Tensor, "prompt feature"], asked: list[Proposition], paths: list[str]) -> Bool[Tensor, " prompt"]:
    facts = {q.name: f[:, q.features[0]] > q.threshold for q in asked}
    said = torch.zeros(len(f), dtype=torch.bool)
    for body in paths:
        said |= Implication(body, "it").holds(facts)
    return said


def _words(paths: list[str], shown: Mapping[str, str]) -> str:
    """The paths with features and thresholds in place of the questions' names."""
    bodies = []
    for path in paths:
        parts = [part.removeprefix("not ") for part in path.split(" and ")]
        negated = [part.startswith("not ") for part in path.split(" and ")]
        words = [f"not {shown[p]}" if no else shown[p] for p, no in zip(parts, negated, strict=True)]
        bodies.append(" and ".join(words))
    return " or ".join(f"({body})" if len(bodies) > 1 and " and " in body else body for body in bodies)
