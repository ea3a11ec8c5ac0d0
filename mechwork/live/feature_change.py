"""Sparse features as places of a session: read, and scaled (0 takes one out).

A feature is written ``resid_post.3/f17``, as in `mechwork.features`; ``@END`` or ``@5`` behind it narrows it.

    y' = y + (factor - 1) f_17 W_dec[17]

The control beside it does the same to random other features of the coder that are active there.
"""

from __future__ import annotations

import random
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from ..ablation.record import position_mask
from ..errors import InputError
from ..features import Attenuate, FeatureWrite, SparseCoder, intervene_features, record_features
from ..tasks.task import Task
from .desk import Desk, Install
from .parts import PrintedCode, check_number

_FEATURE = re.compile(r"([a-z_]+\.\d{1,4})/f(\d{1,7})(?:@(\w+))?")


def parse_feature(desk: Desk, place: str) -> tuple[SparseCoder, int, str]:
    """The coder, the feature's number and the position; raises `InputError` for what this session does not have."""
    if desk.features is None:
        raise InputError(
            "this session has no sparse features; give some: mw.explore(model, task, features=...), or mechwork serve "
            "--features"
        )
    found = _FEATURE.fullmatch(place)
    if found is None:
        raise InputError(f"a feature is written resid_post.3/f17, with @END or @5 for one position; got {place!r:.60}")
    coder = desk.features[found[1]]
    return coder, coder.check_feature(int(found[2])), found[3] or ""


def record_coder(desk: Desk, pair: Task, coder: SparseCoder) -> Float[Tensor, "batch pos feature"]:
    """Activations on the pair's clean prompt, in whatever state the model is. Cost: 1 forward."""
    return record_features(desk.model, pair.pairs.clean_tokens, [coder])[0].features


@dataclass(frozen=True)
class FeatureAt:
    """Multiply one feature: 0 takes it out, 1 leaves it, 2 doubles it."""

    place: str
    factor: float = 0.0

    name: ClassVar[str] = "feature"

    @property
    def key(self) -> str:
        return f"{self.name} {self}"

    @property
    def _site(self) -> str:
        return self.place.partition("/")[0]

    @property
    def first_layer(self) -> int:
        return 0  # a coder may read another block than it writes

    def check(self, desk: Desk, pair: Task) -> None:
        """Raises `InputError` for a feature or a position that is not there, or a factor out of range."""
        _, _, at = parse_feature(desk, self.place)
        check_number("a factor", self.factor)
        if at:
            n = int(pair.pairs.lengths[0])
            if at.isdecimal() and int(at) >= n:
                raise InputError(f"this prompt has positions 0 to {n - 1}; got {self.place}")
            position_mask(at, pair.pairs, n)

    def controls(self, desk: Desk, pair: Task, n: int) -> list[Any]:
        """The same to `n` random other features of the coder that are active there. Cost: 1 forward."""
        coder, own, at = parse_feature(desk, self.place)
        active = record_coder(desk, pair, coder) > 0
        if at:
            there = position_mask(at, pair.pairs, active.shape[1]).to(active.device)
            active &= there.expand(active.shape[:2])[..., None]
        active = active.flatten(0, 1).any(dim=0).nonzero().flatten().tolist()
        others = [i for i in active if i != own]
        random.Random(f"{desk.seed}/{self.place}").shuffle(others)
        behind = f"@{at}" if at else ""
        return [replace(self, place=f"{self._site}/f{i}{behind}") for i in others[:n]]

    def bind(self, desk: Desk, pair: Task) -> Install:
        coder, feature, at = parse_feature(desk, self.place)
        width = pair.pairs.clean_tokens.shape[1]
        where = None if not at else position_mask(at, pair.pairs, width).expand(len(pair.pairs), width)
        write = FeatureWrite(coder, Attenuate((feature,), 1 - self.factor), where)

        def install() -> AbstractContextManager[None]:
            return intervene_features(desk.model, [write])

        return install

    def code(self, suffix: str = "") -> PrintedCode:
        """The change as Python; it uses `features`."""
        feature, _, at = self.place.partition("/f")[2].partition("@")
        where = "None" if not at else f"position_mask({at!r}, pair.pairs, width).expand(len(pair), width)"
        lines = ["width = pair.pairs.clean_tokens.shape[1]"] if at else []
        put = f"Attenuate(({feature},), {1 - self.factor!r})"
        lines.append(f"write{suffix} = FeatureWrite(features[{self._site!r}], {put}, {where})")
        imports = ["from mechwork.features import Attenuate, FeatureWrite, intervene_features"]
        if at:
            imports.append("from mechwork.ablation.record import position_mask")
        return PrintedCode(tuple(imports), tuple(lines), f"intervene_features(model, [write{suffix}])")
