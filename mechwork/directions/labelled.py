"""Prompts with labels of any kind: several classes, one of which may be "neither", or a number per prompt.

`Examples` has two classes, because a direction has two ends. Here nothing is made binary by itself: two classes are
chosen in words (`between`, `against_rest`), and what is fitted to all of them is in `classes` (means, boundaries) and
`ridge` (numbers).

    data = Labelled.of_tokens(prompts, ["female", "male", "neither", ...])
    fit_classes(model, data, Site("resid_post", 3))
    fit_direction(model, data.between("female", "male"), Site("resid_post", 3))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arguments import checked
from ..display import Readable
from ..errors import InputError, UnknownNameError
from ..provenance import hash_tensors
from ..shapes import PositionMask, Tokens
from ..tasks.padding import TokenBatch, token_rows
from .examples import Examples

LEAST = 2
"""Prompts that a class needs, so that it can be fitted and tested."""


@dataclass(frozen=True, eq=False)
class Labelled(Readable):
    """`n` right-padded prompts. With `classes` (their names), `targets` are the number of each prompt's class; without,
    they are what is predicted. `where` marks the positions whose vectors are averaged; groups are never split.

    Raises `InputError` for one class only, a class with fewer than two prompts, numbers that are not finite or all
    the same, and unequal lengths.
    """

    tokens: Tokens
    targets: Float[Tensor, " batch"] | Int[Tensor, " batch"]
    where: PositionMask
    groups: Int[Tensor, " batch"]
    classes: tuple[str, ...] = ()
    name: str = "labelled prompts"

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if {len(self.targets), len(self.where), len(self.groups)} != {n} or self.where.shape != self.tokens.shape:
            raise InputError(
                f"every prompt has one label, one group and a row of positions; got {n} prompts, {len(self.targets)} "
                f"labels, {len(self.groups)} groups, positions {tuple(self.where.shape)}"
            )
        if not bool(self.where.any(dim=1).all()):
            raise InputError("every prompt needs at least one position to be read at; got one without")
        if not self.classes:
            if not bool(self.targets.double().isfinite().all()):
                row = int((~self.targets.double().isfinite()).nonzero()[0])
                raise InputError(f"targets are finite numbers; that of prompt {row} is {float(self.targets[row])}")
            if not float(self.targets.double().std()) > 0:
                raise InputError("targets that are all the same say nothing; give prompts with different ones")
            return
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise InputError(f"two classes or more, each with its own name, are needed; got {list(self.classes)}")
        counts = Counter(self.targets.tolist())
        for number, name in enumerate(self.classes):
            if counts.pop(number, 0) < LEAST:
                raise InputError(f"every class needs at least {LEAST} prompts; {name!r} has fewer")
        if counts:
            raise InputError(f"labels are numbers of classes, 0 to {len(self.classes) - 1}; got {sorted(counts)}")

    @classmethod
    @checked
    def of_tokens(
        cls,
        prompts: TokenBatch,
        labels: Sequence[str] | Sequence[float],
        groups: Sequence[int] | None = None,
        *,
        everywhere: bool = False,
        name: str = "labelled prompts",
    ) -> Labelled:
        """Token ids of any length, read at the last token or `everywhere`. Labels that are texts are classes, in the
        order in which they first occur; labels that are numbers are targets (for classes by number, give texts).

        Raises `InputError` for labels of both kinds, or truth values (which have `Examples`).
        """
        prompts = token_rows(prompts)
        if not prompts or any(not len(prompt) for prompt in prompts):
            raise InputError("every prompt needs at least one token; got an empty prompt or no prompts")
        if len(labels) != len(prompts):
            raise InputError(f"every prompt has one label; got {len(prompts)} prompts and {len(labels)} labels")
        texts = [isinstance(label, str) for label in labels]
        if any(texts) != all(texts):
            raise InputError("labels are all texts (classes) or all numbers (targets); got both")
        if any(isinstance(label, bool) for label in labels):
            raise InputError("two classes, True and False, are what Examples.of_tokens takes; here classes have names")
        width = max(len(prompt) for prompt in prompts)
        tokens = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        columns = torch.arange(width)
        where = columns < lengths[:, None] if everywhere else columns == lengths[:, None] - 1
        own = torch.tensor(list(range(len(prompts)) if groups is None else groups))
        if not all(texts):
            return cls(tokens, torch.tensor([float(label) for label in labels]).double(), where, own, (), name)
        classes = tuple(dict.fromkeys(str(label) for label in labels))
        numbers = torch.tensor([classes.index(str(label)) for label in labels])
        return cls(tokens, numbers, where, own, classes, name)

    @classmethod
    def of_parts(cls, parts: dict[str, Examples | Labelled], name: str = "labelled prompts") -> Labelled:
        """All prompts of several sets, the name of the set being the class. Groups of different sets are different."""
        if len(parts) < 2:
            raise InputError(f"two classes or more are needed; got {list(parts)}")
        width = max(part.tokens.shape[1] for part in parts.values())
        tokens, where, groups, numbers, first = [], [], [], [], 0
        for number, part in enumerate(parts.values()):
            short = width - part.tokens.shape[1]
            tokens.append(torch.nn.functional.pad(part.tokens, (0, short)))
            where.append(torch.nn.functional.pad(part.where, (0, short)))
            own = part.groups.unique(return_inverse=True)[1]
            groups.append(own + first)
            first += int(own.max()) + 1
            numbers.append(torch.full((len(part.tokens),), number))
        return cls(torch.cat(tokens), torch.cat(numbers), torch.cat(where), torch.cat(groups), tuple(parts), name)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[Tensor, " n"]) -> Labelled:
        """Some prompts; classes that are left without prompts are no classes of it."""
        targets, classes = self.targets[rows], self.classes
        if classes:
            left = [number for number in range(len(classes)) if bool((targets == number).any())]
            targets = torch.tensor([left.index(number) for number in targets.tolist()])
            classes = tuple(classes[number] for number in left)
        return Labelled(self.tokens[rows], targets, self.where[rows], self.groups[rows], classes, self.name)

    def rows_of(self, name: str) -> Int[Tensor, " n"]:
        """The prompts of a class."""
        return (self.targets == self.number_of(name)).nonzero().flatten()

    def number_of(self, name: str) -> int:
        """The number of a class; raises `InputError` for targets without classes, `UnknownNameError` for another."""
        if not self.classes:
            raise InputError("these targets are numbers, not classes")
        if name not in self.classes:
            raise UnknownNameError("class", name, self.classes)
        return self.classes.index(name)

    def between(self, positive: str, negative: str) -> Examples:
        """Two of the classes, the others left out."""
        if positive == negative:
            raise InputError(f"two different classes are needed; got {positive!r} twice")
        rows = torch.cat([self.rows_of(positive), self.rows_of(negative)])
        labels = self.targets[rows] == self.number_of(positive)
        return Examples(self.tokens[rows], labels, self.where[rows], self.groups[rows], f"{positive} or {negative}")

    def against_rest(self, positive: str) -> Examples:
        """One class against all others together."""
        labels = self.targets == self.number_of(positive)
        return Examples(self.tokens, labels, self.where, self.groups, f"{positive} or not")

    def split_rows(self, share: float = 0.7, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Rows of two parts that share no group; raises `InputError` for fewer than two groups."""
        groups = self.groups.unique()
        if len(groups) < 2 or not 0 < share < 1:
            raise InputError(f"a split takes two groups or more and a share in (0, 1); got {len(groups)} and {share}")
        order = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
        first = order[: min(max(1, math.floor(share * len(groups) + 0.5)), len(groups) - 1)]
        inside = torch.isin(self.groups, first)
        return inside.nonzero().flatten(), (~inside).nonzero().flatten()

    def shuffled(self, generator: torch.Generator) -> Labelled:
        """The control: the labels of the groups dealt out again by lot, prompts of a group in their order."""
        order = torch.randperm(len(self), generator=generator)
        return replace(self, targets=self.targets[order], name=f"control of {self.name}")

    def sha256(self) -> str:
        """Of tokens, labels, positions and groups."""
        tensors = {"tokens": self.tokens, "targets": self.targets, "where": self.where, "groups": self.groups}
        return hash_tensors(tensors)
