"""Behaviour at a generated position: the model's own continuation is fixed first, then the next token is explained.

Both prompts of a pair are followed by the same tokens, those that the model itself writes after the clean prompt. The
correct answer is what it writes next, the incorrect one what it would write there after the corrupt prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError
from ..models.anatomy import device_of
from ..models.borrow import borrows, run_tail
from .build import build_task
from .chat import chat_template
from .encode import require_tokenizer, tokenise
from .rows import TextPair, draw_split, text_pairs
from .task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MOST = 32
"""Generated tokens after which no difference is looked for any more."""


@borrows
def from_generation(
    model: TransformerBridge,
    pairs: Sequence[Mapping[str, Any]],
    *,
    at: int | None = None,
    chat: bool = False,
    system: str | None = None,
    name: str = "generated",
) -> Task:
    """A task about the `at`-th token that the model writes by itself (greedily; 1: right after the prompt).

    `pairs` are rows as in a file (`mechwork.tasks.rows`) without answers: ``clean``, ``corrupt``, and if wanted
    ``split``, ``spans``, and in a `chat` ``assistant``. Without `at`, each pair is taken at the first generated token
    that differs between its two prompts, at most the 32nd. Metric: logit difference of the two tokens. Cost per pair:
    two forwards of one prompt per generated token.

    Raises `InputError` where both prompts go on alike, where the text ends before, and where the tokenizer cuts the
    prompt with its continuation otherwise than the model wrote it.

    >>> task = mw.tasks.from_generation(model, [{"clean": "Tom and Ann met. Tom", "corrupt": "Sam and Ann met. Sam"}])
    >>> task.answer_texts  # what it writes, and what it would write after the corrupt prompt
    """
    if at is not None and (not isinstance(at, int) or not 1 <= at <= MOST):
        raise InputError(f"at counts generated tokens, 1 to {MOST}; got {at!r}")
    tokenizer = require_tokenizer(model)
    template = chat_template(model) if chat else ""
    bare = [{"correct": "a", "incorrect": "b", **row} for row in pairs]
    given, said = draw_split(text_pairs(bare, model if chat else None, system=system), name)
    made, wanted = [], []
    for row, pair in enumerate(given):
        begun, answers = _continue(model, pair, at, row)
        text = tokenizer.decode(begun)
        words = [str(tokenizer.decode([token])) for token in answers]
        made.append(
            replace(
                pair, clean=pair.clean + text, corrupt=pair.corrupt + text, correct=(words[0],), incorrect=(words[1],)
            )
        )
        wanted.append([*tokenise(model, pair.clean, complete=pair.complete), *begun])
    where = "where they differ first" if at is None else f"{at}"
    description = f"the model's own continuation, greedy, at generated token {where}" + (f"; {said}" if said else "")
    task = replace(build_task(model, name, made, description=description), chat_template=template)
    for row, ids in enumerate(wanted):
        built = task.pairs.clean_tokens[row][task.pairs.mask[row]].tolist()
        if built != ids:
            raise InputError(
                f"pair {row}: the tokenizer cuts the prompt with its continuation {made[row].clean[-40:]!r} otherwise "
                "than the model wrote it. Choose another at, or give the beginning of the answer in the prompt."
            )
    return task


@torch.no_grad()
def _continue(model: TransformerBridge, pair: TextPair, at: int | None, row: int) -> tuple[list[int], tuple[int, int]]:
    """What both prompts are followed by, and the next token after the clean and after the corrupt one."""
    tokenizer = require_tokenizer(model)
    sides = [tokenise(model, text, complete=pair.complete) for text in (pair.clean, pair.corrupt)]
    begun: list[int] = []
    for place in range(1, (at or MOST) + 1):
        if max(map(len, sides)) + len(begun) > int(model.cfg.n_ctx):
            raise InputError(f"pair {row}: prompt and continuation leave the context of {model.cfg.n_ctx} tokens")
        clean, corrupt = (_next(model, [*ids, *begun]) for ids in sides)
        if place == at or (at is None and clean != corrupt):
            if clean == corrupt:
                raise InputError(
                    f"pair {row}: at generated token {at} both prompts go on with {tokenizer.decode([clean])!r} (after "
                    f"{tokenizer.decode(begun)!r}), so there is nothing to explain. Leave at out to take the first "
                    "token that differs."
                )
            return begun, (clean, corrupt)
        if clean == tokenizer.eos_token_id:
            raise InputError(
                f"pair {row}: the model's answer ends after {len(begun)} tokens: {tokenizer.decode(begun)!r}"
            )
        begun.append(clean)
    raise InputError(
        f"pair {row}: both prompts go on alike for {MOST} tokens: {tokenizer.decode(begun)!r}. Use prompts that differ "
        "in what the model makes of them."
    )


def _next(model: TransformerBridge, ids: list[int]) -> int:
    return int(run_tail(model, torch.tensor([ids], device=device_of(model)), 1)[0, -1].argmax())
