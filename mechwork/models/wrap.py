"""A Hugging Face module and its tokenizer as a `TransformerBridge`: in place, raw weights, eager attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from ..errors import InputError, UnsupportedModelError
from .bos import follow_tokenizer
from .claims import check_claimed, check_plain, unpack_gguf_module
from .routers import open_routers

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def wrap_module(module: nn.Module, tokenizer: Any, name: str) -> TransformerBridge:
    """The module as a bridge. Refuses what is not claimed before anything about the module is changed."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module
    from transformer_lens.utilities.attn_implementation import force_eager_attention

    config = getattr(module, "config", None)
    if config is None:
        raise UnsupportedModelError(f"a Hugging Face model with a config is needed; {type(module).__name__} has none")
    check_claimed([type(module).__name__])
    unpack_gguf_module(module)
    check_plain(module)
    check_tokenizer(tokenizer)
    force_eager_attention(module)
    if hasattr(module, "set_experts_implementation"):  # the grouped kernels know no float64, and hide the experts
        module.set_experts_implementation("eager")  # pyright: ignore[reportCallIssue]
    with _read_once(tokenizer):
        model = build_bridge_from_module(
            module, type(module).__name__, hf_config=config, tokenizer=tokenizer, model_name=name
        )
    follow_tokenizer(model, tokenizer)
    open_routers(model)
    for block in model.blocks:
        attn: Any = block.attn
        attn.register_forward_hook(_forget_pattern)
    return model


def _forget_pattern(attn: Any, *_: Any) -> None:
    """Attention with queries, keys and values in one weight keeps its last pattern, which nobody reads: of a prompt of
    1,024 tokens 600 MB on GPT-2 small, and in a gradient pass the graph with it.
    """
    attn._pattern = None


def check_tokenizer(tokenizer: Any) -> None:
    """Raises `InputError` for what is not a Hugging Face tokenizer."""
    from transformers import PreTrainedTokenizerBase

    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"tokenizer is a Hugging Face tokenizer; got {type(tokenizer).__name__}. "
            "Use transformers.AutoTokenizer.from_pretrained(NAME_OR_FOLDER)."
        )


@contextmanager
def _read_once(tokenizer: Any) -> Iterator[None]:
    """Keeps TransformerLens from reading the tokenizer's files again, only to make it add BOS by itself.

    It does so unless `add_bos_token` is set. Told that it is, it keeps this tokenizer, asks what it really does with
    "a", and puts BOS before the tokens where one is wanted. A large vocabulary takes seconds to read, and a tokenizer
    that came from a GGUF file or from the caller has no files to read again. One made in Python has no name either,
    which TransformerLens takes for granted.
    """
    if tokenizer is None:
        yield
        return
    kept = tokenizer.init_kwargs
    tokenizer.init_kwargs = {"name_or_path": "", **kept, "add_bos_token": True}
    try:
        yield
    finally:
        tokenizer.init_kwargs = kept
