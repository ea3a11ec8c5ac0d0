"""Text to token ids, as the model's tokenizer and its habit about the beginning of a prompt have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def require_tokenizer(model: TransformerBridge) -> Any:
    """The model's tokenizer; raises `InputError` for a model without one."""
    if model.tokenizer is None:
        raise InputError(
            "this model has no tokenizer, so text cannot become tokens. Give it one, load_model(..., tokenizer=...), "
            "or use Task.from_tokens with token ids."
        )
    return model.tokenizer


def prepends_bos(model: TransformerBridge) -> bool:
    """Whether prompts of this model start with a beginning-of-sequence token."""
    return bool(model.cfg.default_prepend_bos) and require_tokenizer(model).bos_token_id is not None


def plain_ids(model: TransformerBridge, text: str) -> list[int]:
    """Token ids of a text alone; raises `InputError` for half of a surrogate pair, which no tokenizer takes."""
    tokenizer = require_tokenizer(model)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"half of a surrogate pair is no character; got {text!r:.80}") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def tokenise(model: TransformerBridge, text: str, *, complete: bool = False) -> list[int]:
    """Token ids of a prompt, with the model's own habit about the beginning-of-sequence token (`complete`: none is put
    before it).
    """
    ids = plain_ids(model, text)
    return [model.tokenizer.bos_token_id, *ids] if prepends_bos(model) and not complete else ids


def single_token(model: TransformerBridge, word: str) -> int | None:
    """The id of `word` (with its leading space, if it has one) when the tokenizer knows it as one token."""
    ids = plain_ids(model, word)
    return ids[0] if len(ids) == 1 else None


def answer_token(
    model: TransformerBridge,
    text: str,
    where: str = "",
    remedy: str = "Use a shorter word, or check the leading space.",
) -> int:
    """The id of an answer; raises `InputError`, with its pieces, for text that is not a single token."""
    ids = plain_ids(model, text)
    if len(ids) != 1:
        pieces = [model.tokenizer.decode([i]) for i in ids]
        raise InputError(f"an answer must be a single token; {text!r}{where} is {len(pieces)}: {pieces}. {remedy}")
    return ids[0]
