"""Which columns of the prompt a forward pass is at.

With a key-value cache, as in generation, a forward holds the new tokens only: its column 0 is the prompt's column
*start*. Everything that depends on the position reads *start* here, so that positions are absolute: columns of the
token matrix, counted from the first token of the prompt (or its padding).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..runs.frame import CACHE_ARGUMENTS

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass
class Columns:
    """`start`: how many columns were run before the forward that is going on."""

    start: int = 0


@contextmanager
def track_columns(model: TransformerBridge) -> Iterator[Columns]:
    """Inside, the yielded object says at every moment where the current forward starts."""
    columns = Columns()

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caches = [kwargs[name] for name in CACHE_ARGUMENTS if kwargs.get(name) is not None]
        columns.start = int(caches[0].get_seq_length()) if caches else 0

    handle = cast(Any, model.original_model).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield columns
    finally:
        handle.remove()
