"""Demonstrations: prompts that show a relation by examples ("big: small, rich: poor, hot:"), and the same with less to
learn from.

prompts | what is left of the relation:

- as they are | everything
- `shuffled()` | the examples' second words exchanged within every prompt: which words come, not which belongs to which
  (Todd et al. 2024)
- `bare()` | the query alone
- `of_task(task, corrupt=True)` | another relation is shown; the answer asked for is still the first one's
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..display import Readable
from ..errors import InputError
from ..provenance import hash_tensors
from ..shapes import Tokens
from ..tasks.encode import single_token, tokenise
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Demonstrations(Readable):
    """`batch` right-padded prompts, read at their last token; `answers` is the token wanted there.

    `images` are the positions of the examples' second words; the examples stand from position `first` to before
    `query`. Raises `InputError` for shapes or positions that do not belong together.
    """

    tokens: Tokens
    lengths: Int[Tensor, " batch"]
    answers: Int[Tensor, " batch"]
    images: Int[Tensor, "batch shots"]
    first: Int[Tensor, " batch"]
    query: Int[Tensor, " batch"]
    name: str = "demonstrations"

    def __post_init__(self) -> None:
        n, inside = len(self.tokens), self.lengths <= self.tokens.shape[1]
        sizes = {len(x) for x in (self.lengths, self.answers, self.images, self.first, self.query)}
        ordered = (self.first >= 0) & (self.first <= self.query) & (self.query < self.lengths) & inside
        within = ((self.images >= self.first[:, None]) & (self.images < self.query[:, None])).all(dim=1)
        if n == 0 or sizes != {n} or not bool((ordered & within).all()):
            raise InputError(
                "every prompt has a length, an answer, its examples' second words, and examples before the query; got "
                f"{n} prompts, sizes {sorted(sizes)}, "
                f"{int((~(ordered & within)).sum()) if sizes == {n} else 'unknown'} out of order"
            )

    @classmethod
    def of_task(cls, task: Task, *, corrupt: bool = False) -> Demonstrations:
        """The prompts of a task whose spans are ``X1 Y1 X2 Y2 ... QUERY``, like `in_context`; the answers are the clean
        prompts' right ones.

        Raises `InputError` for other spans, or second words of several tokens, which cannot be exchanged.
        """
        pairs = task.pairs.corrupt_as_host() if corrupt else task.pairs
        shots = sum(1 for name in pairs.spans if name.startswith("Y") and name[1:].isdigit())
        missing = [name for name in ("X1", "Y1", "QUERY") if name not in pairs.spans]
        if missing:
            raise InputError(
                f"demonstrations have the spans X1 Y1 X2 Y2 ... QUERY; {task.name} lacks {', '.join(missing)}. Use "
                "in_context, or "
                "Demonstrations.of_words with words of your own"
            )
        masks = [pairs.spans[f"Y{i}"] for i in range(1, shots + 1)]
        if any(bool((mask.sum(dim=1) != 1).any()) for mask in masks):
            raise InputError("the examples' second words must be one token each, so that they can be exchanged")
        places = [mask.int().argmax(dim=1) for mask in (*masks, pairs.spans["X1"], pairs.spans["QUERY"])]
        name = f"{task.name}{', another relation shown' if corrupt else ''}"
        answers = pairs.correct[:, 0]
        return cls(
            pairs.clean_tokens, pairs.lengths, answers, torch.stack(places[:shots], dim=1), places[-2], places[-1], name
        )

    @classmethod
    def of_words(
        cls,
        model: TransformerBridge,
        words: Sequence[tuple[str, str]],
        *,
        shots: int = 4,
        n: int = 32,
        opening: str = "Words:",
        link: str = ":",
        end: str = ",",
        seed: int = 0,
        name: str = "words",
    ) -> Demonstrations:
        """`n` prompts "OPENING X1 LINK Y1 END X2 LINK Y2 END ... QUERY LINK", `shots` examples and the query drawn from
        `words`.

        Raises `InputError` for fewer than `shots` + 1 pairs of words, words that are not one token, or prompts that do
        not fit the context.
        """
        if shots < 1 or len(words) < shots + 1 or n < 1:
            raise InputError(
                f"{shots} examples and a query need {shots + 1} pairs of words, at least 1 example and 1 prompt; got "
                f"{len(words)} pairs and n={n}"
            )
        broken = [word for pair in words for word in pair if single_token(model, f" {word}") is None]
        if broken:
            raise InputError(
                f"every word is one token of this model after a space; these are not: {', '.join(broken[:8])}"
            )
        start, joint, stop = tokenise(model, opening), *(_ids(model, text) for text in (link, end))
        example = 2 + len(joint) + len(stop)
        width, n_ctx = len(start) + shots * example + 1 + len(joint), int(model.cfg.n_ctx)
        if width > n_ctx:
            most = (n_ctx - len(start) - 1 - len(joint)) // example
            raise InputError(
                f"{shots} demonstrations make prompts of {width} tokens, and the model's context has {n_ctx}: at most "
                f"{most} fit"
            )
        rng, rows, answers = random.Random(seed), [], []
        for _ in range(n):
            *shown, asked = rng.sample(list(words), shots + 1)
            row = list(start)
            for x, y in shown:
                row += [*_ids(model, f" {x}"), *joint, *_ids(model, f" {y}"), *stop]
            rows.append([*row, *_ids(model, f" {asked[0]}"), *joint])
            answers += _ids(model, f" {asked[1]}")
        images = torch.tensor([len(start) + i * example + 1 + len(joint) for i in range(shots)]).expand(n, -1)
        return cls(
            torch.tensor(rows), torch.full((n,), width), torch.tensor(answers), images,
            torch.full((n,), len(start)), torch.full((n,), len(start) + shots * example), name,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def shots(self) -> int:
        return self.images.shape[1]

    def shuffled(self, seed: int = 0) -> Demonstrations:
        """Every example with the second word of another one. Raises `InputError` for fewer than two examples."""
        if self.shots < 2:
            raise InputError(f"second words are exchanged between examples, so two are needed; got {self.shots}")
        generator = torch.Generator().manual_seed(seed)
        tokens = self.tokens.clone()
        for row, places in enumerate(self.images):
            order = torch.randperm(self.shots, generator=generator)
            turned = order.roll(1)  # a cycle through all examples: none keeps its own
            tokens[row, places[order]] = self.tokens[row, places[turned]]
        return replace(self, tokens=tokens, name=f"{self.name}, shuffled")

    def bare(self) -> Demonstrations:
        """The prompts without their examples."""
        rows = [
            torch.cat([row[:first], row[query:length]])
            for row, first, query, length in zip(self.tokens, self.first, self.query, self.lengths, strict=True)
        ]
        return replace(
            self,
            tokens=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
            lengths=torch.tensor([len(row) for row in rows]),
            images=self.images[:, :0],
            query=self.first,
            name=f"{self.name}, no demonstrations",
        )

    def check_fit(self, model: TransformerBridge) -> None:
        """Raises `InputError` when the prompts are longer than the model's context, or hold ids outside its
        vocabulary.
        """
        longest, n_ctx, d_vocab = int(self.lengths.max()), int(model.cfg.n_ctx), int(model.cfg.d_vocab)
        if longest > n_ctx:
            raise InputError(
                f"demonstrations must fit the model's context of {n_ctx} tokens; the longest prompt has {longest}. "
                "Show fewer examples"
            )
        largest = max(int(self.tokens.max()), int(self.answers.max()))
        if largest >= d_vocab or min(int(self.tokens.min()), int(self.answers.min())) < 0:
            raise InputError(
                f"token ids of this model are 0 to {d_vocab - 1}; got {largest}. Made for another tokenizer?"
            )

    def final(self, x: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch *rest"]:
        """An activation at the last token of each prompt."""
        return x[torch.arange(len(x), device=x.device), self.lengths.to(x.device) - 1]

    def ends(self) -> Tensor:
        """True at the last token of each prompt, ``[batch, pos]``."""
        return torch.arange(self.tokens.shape[1]) == self.lengths[:, None] - 1

    def sha256(self) -> str:
        """Of tokens, lengths and answers."""
        return hash_tensors({"tokens": self.tokens, "lengths": self.lengths, "answers": self.answers})


def _ids(model: TransformerBridge, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
