"""What the classic tasks share: drawing examples whose words the given model has as single tokens.

Half of the pairs (the larger half of an odd number) come from the task's training words and templates, the other half
from its held-out ones; ``task.train`` and ``task.test`` are disjoint in both. Pairs are a pure function of the
arguments and of the tokenizer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ..errors import InputError, check_seed, check_whole
from .build import build_task
from .encode import require_tokenizer
from .rows import TextPair
from .sampling.examples import Example, task_data
from .sampling.lexicon import Lexicon, Split
from .sampling.templates import Filled, slots
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@runtime_checkable
class Draw(Protocol):
    """A sampler of the grammar; `template` overrides the split's own templates."""

    def __call__(self, rng: random.Random, lexicon: Lexicon, template: str | None = None) -> Example: ...


def classic_task(
    model: TransformerBridge,
    name: str,
    draw: Draw,
    *,
    n: int,
    seed: int,
    spans: Sequence[str],
    needs: Mapping[str, int],
    template: str | None = None,
    slots_needed: Sequence[str] = (),
) -> Task:
    """`n` pairs of the task called `name`.

    `spans` are the slots to keep as named spans (the last token of a prompt is always ``END``); `needs` says how many
    words of which `Lexicon` list the sampler draws from at least; `slots_needed` is what a user's `template` must
    mention.

    Raises:
        InputError: `n` is not positive, the template lacks a slot, or the tokenizer breaks up too many words.
    """
    if check_whole("n", n) < 1:
        raise InputError(f"n must be at least 1 pair; got {n}")
    check_seed(seed)
    if template is not None and (missing := [slot for slot in slots_needed if slot not in slots(template)]):
        raise InputError(
            f"a template for {name} must mention {', '.join(f'{{{s}}}' for s in slots_needed)}; "
            f"{template!r} lacks {', '.join(f'{{{s}}}' for s in missing)}"
        )
    tokenizer = require_tokenizer(model)
    lengths: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in lengths:
            lengths[text] = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        return lengths[text]

    pairs: list[TextPair] = []
    sizes: dict[Split, int] = {"train": n - n // 2, "test": n // 2}
    for split, size in sizes.items():
        lexicon, rng = Lexicon(split, count), random.Random(f"{name}/{split}/{seed}")
        if size:
            for words, least in needs.items():
                lexicon.need(words, least, name)
        pairs += [_text_pair(draw(rng, lexicon, template), spans, split) for _ in range(size)]
    data = task_data(name)
    return build_task(model, name, pairs, description=data["description"], citation=data["citation"])


def _text_pair(example: Example, spans: Sequence[str], split: str) -> TextPair:
    def named(filled: Filled) -> dict[str, tuple[int, int]]:
        return {name: place for name, place in filled.spans.items() if name in spans and place[1] < len(filled.text)}

    return TextPair(
        clean=example.clean.text,
        corrupt=example.corrupt.text,
        correct=example.correct,
        incorrect=example.incorrect,
        spans=named(example.clean),
        corrupt_spans=named(example.corrupt),
        template=example.template,
        split=split,
    )
