"""Whether prompts begin with the beginning-of-sequence token: by default exactly when ``tokenizer(text)`` puts it
there.

A model that was trained without it can lose much by it (a 135-million-parameter Llama: IOI accuracy .91 without,
.78 with).
``load_model(..., prepend_bos=True)`` and ``--bos`` / ``--no-bos`` choose by hand. The choice is kept in the model's
``cfg.default_prepend_bos``, which every tokenisation reads, and stands in the provenance of the model.
Bundled models keep the habit that they were trained and published with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import bundled
from ..errors import InputError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def follow_tokenizer(model: TransformerBridge, tokenizer: Any) -> None:
    """Set the model's habit to what `tokenizer`, as it was before it was wrapped, does by itself."""
    if tokenizer is not None and str(model.cfg.model_name).partition("@")[0] not in bundled.model_names():
        ids = tokenizer("a")["input_ids"]
        model.cfg.default_prepend_bos = bool(ids) and ids[0] == tokenizer.bos_token_id


def choose_bos(model: TransformerBridge, *, prepend_bos: bool | None) -> None:
    """Set the model's habit by hand; raises `InputError` for a token that its tokenizer does not have."""
    if prepend_bos and getattr(model.tokenizer, "bos_token_id", None) is None:
        raise InputError("prepend_bos=True needs a tokenizer with a beginning-of-sequence token; this one has none")
    if prepend_bos is not None:
        model.cfg.default_prepend_bos = prepend_bos
