"""Prompts through the tokenizer's own chat template: turns of system, user and assistant, then what the model says.

    task = from_chat(model, [{"clean": "What is the capital of Peru?", "corrupt": "What is the capital of Chad?",
                              "correct": "Lima", "incorrect": "N'Djamena"}], metric="sequence_difference")

A side of a pair is a text (the user's one turn) or a list of messages ``{"role": ..., "content": ...}``: a system turn
first if any, then user and assistant in turn. A last assistant message is the beginning of the answer: it follows the
generation prompt and is not closed. Every turn's content is a span, ``system user assistant`` (later ones ``user2``
...); what the template adds between them is a gap span, ``user+``. The template writes its own special tokens, so none
is put before it. The template's text stands in the task's provenance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .encode import require_tokenizer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

ROLES = ("system", "user", "assistant")

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Rendered:
    """A prompt's text as the template writes it, and the character ranges of its turns."""

    text: str
    turns: dict[str, tuple[int, int]]


def chat_template(model: TransformerBridge) -> str:
    """The template's text; raises `InputError`, with the reason, for a tokenizer without one."""
    tokenizer = require_tokenizer(model)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise InputError(
            f"a chat needs a tokenizer with a chat template; that of {model.cfg.model_name} has none (it was not tuned "
            "to follow one, or its files lack chat_template). Write the prompts out and leave chat out, or load a chat "
            "model."
        )
    return str(template)


def read_messages(side: Any, where: str, *, system: str | None = None, assistant: str | None = None) -> Messages:
    """One side of a pair as messages; `system` and `assistant` go before and after a text. Raises `InputError` for
    roles out of order and turns without text.
    """
    if isinstance(side, str):
        turns = [("system", system), ("user", side), ("assistant", assistant)]
        side = [{"role": role, "content": text} for role, text in turns if text is not None]
    elif system is not None or assistant is not None:
        raise InputError(f"{where}: a list of messages has its own system and assistant turns; leave the columns empty")
    if not isinstance(side, Sequence) or not all(isinstance(m, Mapping) for m in side):
        raise InputError(f"{where}: a side of a chat is a text or a list of messages (role, content); got {side!r:.80}")
    for message in side:
        text = message.get("content")
        if set(message) != {"role", "content"} or message["role"] not in ROLES or not isinstance(text, str) or not text:
            raise InputError(
                f"{where}: a message has a role ({', '.join(ROLES)}) and a content that is not empty; got "
                f"{dict(message)!r:.120}"
            )
    roles = [message["role"] for message in side]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(spoken)):
        raise InputError(
            f"{where}: turns are a system turn if any, then user and assistant in turn, user first; got "
            f"{', '.join(roles) or 'none'}"
        )
    return side


def render(model: TransformerBridge, messages: Messages, answers: Sequence[str], where: str) -> Rendered:
    """The prompt of some messages; raises `InputError` for a turn or an answer that the template does not write as it
    is.
    """
    chat_template(model)
    begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    given = messages[:-1] if begun else messages
    text = _apply(model, given, where, open_turn=True) + begun
    turns: dict[str, tuple[int, int]] = {}
    counts: dict[str, int] = dict.fromkeys(ROLES, 0)
    cursor = 0
    for message in messages:
        role, content = message["role"], message["content"]
        start = text.find(content, cursor) if message in given else len(text) - len(begun)
        if start < 0:
            raise InputError(
                f"{where}: the chat template does not write this {role} turn as it is: {content!r:.80}. Take white "
                "space off its ends, or leave the turn out where the template has no such role."
            )
        counts[role] += 1
        cursor = start + len(content)
        turns[role if counts[role] == 1 else f"{role}{counts[role]}"] = (start, cursor)
    for answer in answers:
        whole = _apply(model, [*given, {"role": "assistant", "content": begun + answer}], where, open_turn=False)
        if not whole.startswith(text + answer):
            raise InputError(
                f"{where}: the chat template swallows part of the answer {answer!r} after {text[-24:]!r}. Give it as "
                "it is written there (often without a leading space)."
            )
    return Rendered(text, turns)


def _apply(model: TransformerBridge, messages: Messages, where: str, *, open_turn: bool) -> str:
    from jinja2.exceptions import TemplateError

    tokenizer: Any = model.tokenizer
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=open_turn
        )
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: the chat template refuses these turns: {error}") from error
