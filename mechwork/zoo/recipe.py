"""What is trained and how: a frozen, validated value from which a bundled model can be made again.

Everything that decides the weights is in the recipe: architecture, mixture of text by phase, number of steps, schedule,
seed, arithmetic, threads. The named recipes are those of the models under ``data/models``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal

from ..errors import InputError, UnknownNameError
from ..tasks.sampling.examples import SAMPLERS
from .architecture import ARCHITECTURES
from .clamps import TrainingClamp, check_clamps
from .grammar import KINDS, WORDS_OF
from .tokenizer import CONTEXT, SIX

LEAST_SHARE = 0.05
"""A kind of text below this share of the mixture is forgotten again."""


@dataclass(frozen=True)
class Phase:
    """A stretch of `steps` optimizer steps on one mixture (kind of text -> share; shares are relative).

    Each phase has its own warm-up and cosine; `peak` is the fraction of the recipe's learning rate that it rises to.
    They are those of a phase of `horizon` steps (default: `steps`), of which only the first `steps` are made.
    """

    steps: int
    mixture: Mapping[str, float]
    peak: float = 1.0
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"a phase has at least 1 step, got {self.steps}")
        if self.horizon is not None and self.horizon < self.steps:
            raise InputError(f"the horizon of a phase is at least its {self.steps} steps, got {self.horizon}")
        if not 0 < self.peak <= 1:
            raise InputError(f"the peak of a phase is a fraction of the learning rate in (0, 1], got {self.peak}")
        if not self.mixture:
            raise InputError(f"a phase needs a mixture of at least one of {sorted(KINDS)}, got none")
        for kind, share in self.mixture.items():
            if kind not in KINDS:
                raise UnknownNameError("task in the mixture", kind, KINDS)
            if not share > 0:
                raise InputError(f"the share of {kind!r} must be positive, got {share}; leave it out instead")
        total = sum(self.mixture.values())
        small = {
            kind: round(share / total, 3) for kind, share in self.mixture.items() if share / total < LEAST_SHARE - 1e-9
        }
        if small:
            raise InputError(f"each share of a mixture is at least {LEAST_SHARE} of the whole, got {small}")


@dataclass(frozen=True)
class Recipe:
    """How one bundled model is trained. Frozen and checked on construction.

    `documents` is the number of texts per step, packed into rows of `row` tokens; the learning rate rises linearly over
    `warm_up` of a phase's steps and falls along a cosine to `final_learning_rate` of the phase's peak.
    ``select="best"`` keeps, of the weights measured every `validate_every` steps, those whose worst task is best on the
    *validation* words and templates (then those with the higher mean, then the earlier); ``"last"`` keeps the final
    ones. `tasks` are measured, and their words are in the tokenizer (those of the first six always are). The weights
    after the steps in `keep` (0: before the first) are shipped too, as ``NAME@STEP``. ``precision="bf16"`` runs the
    matrix products in bfloat16 (weights stay float32). `clamps` hold heads in every forward (see `clamps`).
    """

    name: str
    phases: tuple[Phase, ...]
    seed: int
    architecture: str = "gpt2"
    tasks: tuple[str, ...] = SIX
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_model: int = 128
    d_mlp: int = 256
    vocabulary: int | None = None
    documents: int = 48
    learning_rate: float = 2e-3
    final_learning_rate: float = 0.02
    warm_up: float = 0.02
    weight_decay: float = 0.05
    embedding_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0
    initial_std: float = 0.04
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int = 1
    validate_every: int = 1000
    validate_pairs: int = 200
    checkpoint_every: int = 500
    select: Literal["last", "best"] = "last"
    keep: tuple[int, ...] = ()
    context: int = CONTEXT
    row: int = 96
    clamps: tuple[TrainingClamp, ...] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            raise InputError(f"recipe {self.name!r} needs at least one phase, got none")
        counts = ("n_layers", "n_heads", "d_model", "d_mlp", "documents", "threads", "validate_every", "validate_pairs")
        for name in (*counts, "checkpoint_every", "row"):
            if getattr(self, name) < 1:
                raise InputError(f"recipe {self.name!r}: {name} must be at least 1, got {getattr(self, name)}")
        if self.architecture not in ARCHITECTURES:
            raise UnknownNameError(f"architecture of recipe {self.name!r}", self.architecture, ARCHITECTURES)
        self._check_tasks()
        if self.d_model % self.n_heads:
            raise InputError(
                f"recipe {self.name!r}: d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
            )
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            raise InputError(
                f"recipe {self.name!r}: n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.row > self.context:
            raise InputError(f"recipe {self.name!r}: a row of {self.row} tokens exceeds the context of {self.context}")
        if self.vocabulary is not None and self.vocabulary < 1:
            raise InputError(f"recipe {self.name!r}: vocabulary must be at least 1, got {self.vocabulary}")
        if not self.learning_rate > 0:
            raise InputError(f"recipe {self.name!r}: learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.warm_up < 1 or not 0 <= self.final_learning_rate <= 1:
            raise InputError(f"recipe {self.name!r}: warm_up and final_learning_rate are fractions of 1")
        check_clamps(self.clamps, self.n_layers, self.n_heads, self.name)
        if self.precision not in ("bf16", "fp32") or self.select not in ("last", "best"):
            raise InputError(
                f"recipe {self.name!r}: precision is 'bf16' or 'fp32', select is 'last' or 'best'; "
                f"got {self.precision!r}, {self.select!r}"
            )

    def _check_tasks(self) -> None:
        if not self.tasks:
            raise InputError(f"recipe {self.name!r} needs at least one task to be measured on, got none")
        for task in self.tasks:
            if task not in SAMPLERS:
                raise UnknownNameError(f"task of recipe {self.name!r}", task, SAMPLERS)
        kinds = {kind for phase in self.phases for kind in phase.mixture}
        needed = (kinds & set(SAMPLERS)) | {task for kind in kinds for task in WORDS_OF.get(kind, ())}
        if foreign := sorted(needed - set(self.vocabulary_tasks)):
            raise InputError(
                f"recipe {self.name!r} trains on {', '.join(foreign)} without their words in the tokenizer; name them "
                "in "
                "its tasks"
            )
        if list(self.keep) != sorted(set(self.keep)) or any(not 0 <= step <= self.steps for step in self.keep):
            raise InputError(
                f"recipe {self.name!r}: kept steps rise from 0 to at most {self.steps}, got {list(self.keep)}"
            )

    @property
    def vocabulary_tasks(self) -> tuple[str, ...]:
        """The tasks whose words the model's tokenizer holds: the first six, and the recipe's own."""
        return tuple(dict.fromkeys((*SIX, *self.tasks)))

    @property
    def steps(self) -> int:
        """Optimizer steps of all phases together."""
        return sum(phase.steps for phase in self.phases)

    def phase(self, step: int) -> tuple[Phase, int]:
        """The phase in force at a step, counted from 0, and the step's number within that phase."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise InputError(f"recipe {self.name!r} has {self.steps} steps; there is no step {self.steps + step}")

    def mixture(self, step: int) -> Mapping[str, float]:
        """The mixture in force at a step, counted from 0."""
        return self.phase(step)[0].mixture

    def check_vocabulary(self, tokenizer_size: int) -> int:
        """The number of embeddings of the model: `vocabulary`, or the tokenizer's size where that is None.

        Raises:
            InputError: the recipe's vocabulary is larger than the tokenizer's, or too small to hold its ids.
        """
        if self.vocabulary is None:
            return tokenizer_size
        if self.vocabulary > tokenizer_size:
            raise InputError(
                f"recipe {self.name!r} asks for a vocabulary of {self.vocabulary}, the tokenizer has {tokenizer_size}; "
                "lower it, or leave it out to take the tokenizer's"
            )
        if self.vocabulary < tokenizer_size:
            raise InputError(
                f"recipe {self.name!r}: a vocabulary of {self.vocabulary} cannot hold {tokenizer_size} tokens"
            )
        return self.vocabulary

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; two recipes are equal when their dictionaries are."""
        table = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "phases"}
        table |= {key: list(table[key]) for key in ("betas", "tasks", "keep")}
        clamps = [vars(clamp) for clamp in table.pop("clamps")]
        table |= {"clamps": clamps} if clamps else {}
        table["phases"] = [
            {"steps": p.steps, "horizon": p.horizon, "peak": p.peak, "mixture": dict(p.mixture)} for p in self.phases
        ]
        return table

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_dict` wrote; what an older one did not know yet has its default."""
        phases = tuple(Phase(**phase) for phase in table["phases"])
        lists = {key: tuple(table[key]) for key in ("betas", "tasks", "keep") if key in table}
        clamps = tuple(TrainingClamp(**clamp) for clamp in table.get("clamps", ()))
        return cls(**{**table, **lists, "phases": phases, "clamps": clamps})


_FIRST: Mapping[str, float] = MappingProxyType(
    {
        "ioi": 0.33, "greater_than": 0.06, "pronoun": 0.06, "agreement": 0.06, "docstring": 0.08,
        "induction": 0.18, "copy": 0.10, "people": 0.05, "filler": 0.08,
    }
)  # fmt: skip

_SECOND: Mapping[str, float] = MappingProxyType(
    {
        "ioi": 0.25, "greater_than": 0.05, "pronoun": 0.05, "agreement": 0.08, "docstring": 0.05,
        "induction": 0.22, "copy": 0.11, "people": 0.06, "number": 0.08, "filler": 0.05,
    }
)  # fmt: skip
"""More of what held-out words need: lists, copying, and which nouns are plural."""

_WHOLE: Mapping[str, float] = MappingProxyType(
    {
        "ioi": 0.30, "greater_than": 0.05, "pronoun": 0.05, "agreement": 0.06, "docstring": 0.06,
        "induction": 0.17, "copy": 0.11, "people": 0.07, "number": 0.06, "filler": 0.07,
    }
)  # fmt: skip
"""All of it from the start, for a short run."""

_NINE_FIRST: Mapping[str, float] = MappingProxyType(
    {
        "ioi": 0.21, "greater_than": 0.05, "pronoun": 0.05, "agreement": 0.05, "docstring": 0.05,
        "induction": 0.14, "copy": 0.08, "people": 0.05, "filler": 0.05,
        "capitals": 0.05, "colored_objects": 0.09, "in_context": 0.07, "facts": 0.06,
    }
)  # fmt: skip

_NINE_SECOND: Mapping[str, float] = MappingProxyType(
    {
        "ioi": 0.14, "greater_than": 0.05, "pronoun": 0.05, "agreement": 0.05, "docstring": 0.05,
        "induction": 0.14, "copy": 0.08, "people": 0.05, "number": 0.06, "filler": 0.09,
        "capitals": 0.05, "colored_objects": 0.08, "in_context": 0.05, "facts": 0.06,
    }
)  # fmt: skip

_NINE_THIRD: Mapping[str, float] = MappingProxyType(
    {
        "ioi": 0.09, "greater_than": 0.05, "pronoun": 0.05, "agreement": 0.05, "docstring": 0.05,
        "induction": 0.12, "copy": 0.11, "people": 0.05, "number": 0.07, "filler": 0.10,
        "capitals": 0.05, "colored_objects": 0.06, "in_context": 0.05, "facts": 0.10,
    }
)  # fmt: skip
"""The tasks are done on trained words by now; more of what says what the held-out words are."""

_NINE_FOURTH: Mapping[str, float] = MappingProxyType(
    {
        "ioi": 0.08, "greater_than": 0.05, "pronoun": 0.05, "agreement": 0.05, "docstring": 0.06,
        "induction": 0.16, "copy": 0.11, "people": 0.05, "number": 0.05, "filler": 0.05,
        "capitals": 0.06, "colored_objects": 0.05, "in_context": 0.05, "facts": 0.06, "plain_capitals": 0.07,
    }
)  # fmt: skip
"""More of what induction and capitals still lack."""

_RECALL: Mapping[str, float] = MappingProxyType(
    {
        "capitals": 0.12, "plain_capitals": 0.08, "capitals_alone": 0.15, "facts": 0.25, "in_context": 0.12,
        "even_in_context": 0.18, "copy": 0.05, "filler": 0.05,
    }
)  # fmt: skip
"""The tasks that recall what a word stands for."""

_STUDIED: Mapping[str, float] = MappingProxyType(
    {
        "induction": 0.30, "copy": 0.15, "agreement": 0.12, "number": 0.08, "pronoun": 0.08, "people": 0.05,
        "filler": 0.22,
    }
)  # fmt: skip
"""Of a small model that is followed while it trains: lists that make induction, and sentences."""

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "gpt2-6l": Recipe(
            "gpt2-6l",
            (Phase(13_000, _FIRST), Phase(3_000, _SECOND, peak=0.5)),
            seed=0,
            embedding_decay=0.05,
            select="best",
        ),
        "attn-only-2l": Recipe(
            "attn-only-2l",
            (Phase(2_500, {"induction": 0.7, "copy": 0.3}),),
            seed=0,
            architecture="attn-only",
            tasks=("induction",),
            n_layers=2,
            n_heads=2,
            d_mlp=1,
            weight_decay=0.1,
            embedding_decay=0.05,
            validate_every=250,
            keep=(0, 100, 200, 300, 400, 500, 600, 700, 800, 1000, 1500, 2500),
        ),
        "llama-3l": Recipe(
            "llama-3l",
            (Phase(6_000, _STUDIED),),
            seed=0,
            architecture="llama",
            tasks=("induction", "pronoun", "agreement"),
            n_layers=3,
            d_model=48,
            d_mlp=128,
            learning_rate=4e-3,
            weight_decay=0.1,
            embedding_decay=0.05,
            precision="fp32",
            keep=(0, 50, 100, 200, 300, 400, 600, 800, 1200, 2000, 3500, 6000),
        ),
        "gpt2-12l": Recipe(
            "gpt2-12l",
            (
                Phase(8_000, _NINE_FIRST, horizon=9_500),
                Phase(500, _NINE_SECOND, peak=0.75, horizon=7_000),
                Phase(6_500, _NINE_THIRD, peak=0.75),
                Phase(2_200, _NINE_FOURTH, peak=0.5),
            ),
            seed=0,
            tasks=tuple(SAMPLERS),
            n_layers=12,
            embedding_decay=0.05,
            select="best",
        ),
        "llama-6l": Recipe(
            "llama-6l",
            (
                Phase(9_000, _FIRST, horizon=13_000),
                Phase(4_000, _SECOND, peak=0.5),
            ),
            seed=0,
            architecture="llama",
            n_kv_heads=2,
            d_mlp=192,
            embedding_decay=0.05,
            select="best",
        ),
        "neox-6l": Recipe(
            "neox-6l",
            (Phase(6_500, _WHOLE, horizon=7_000),),
            seed=0,
            architecture="neox",
            embedding_decay=0.05,
        ),
        "gemma2-6l": Recipe(
            "gemma2-6l",
            (Phase(4_500, _RECALL),),
            seed=0,
            architecture="gemma2",
            tasks=("capitals", "in_context"),
            n_kv_heads=2,
            d_mlp=192,
            embedding_decay=0.05,
            validate_every=500,
            select="best",
        ),
    }
)


def find_recipe(name: str) -> Recipe:
    """The recipe of a bundled model.

    Raises:
        UnknownNameError: no recipe has this name; names the nearest.
    """
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]
