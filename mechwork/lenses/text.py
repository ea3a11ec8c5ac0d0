"""Text for lenses: any stream of documents, packed into batches of rows, from any cursor, always in the same order.

source | what it is:

- a recipe's name (``"gpt2-12l"``) | text of that bundled model's own training mixture, made on the fly, without end
- a path, or several | ``.txt`` (documents between blank lines), ``.jsonl`` (column ``text``), ``.safetensors`` (token
  shards: integer tensors ``[n]`` or ``[row, pos]``)
- a sequence or a Hugging Face dataset | of texts, of rows with a column ``text``, or of lists of token ids; streamed
  data sets are read again from the start on resume
- a function without arguments | that returns such an iterable, for data that should not be held

Packing: ``"documents"`` gives each document rows of its own (long ones cut), sorted by length inside a batch so that
little is padding; ``"concatenate"`` cuts the stream of all documents, each opened by the beginning-of-sequence token
where there is one, into rows without any padding.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..artefact import read_tensors
from ..display import Readable
from ..errors import InputError, NotFoundError, UnknownNameError
from ..models.anatomy import read_anatomy
from ..models.borrow import borrows
from ..provenance import Provenance, hash_json, hash_tensors
from ..tasks.encode import plain_ids, prepends_bos, require_tokenizer
from .prompts import Prompts

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PACKINGS = ("documents", "concatenate")
Row = list[int]


@dataclass(frozen=True, eq=False)
class TextStream(Readable):
    """Rows of token ids in a fixed order. `open_rows(n)` starts at row n; `facts` say what the text is."""

    open_rows: Callable[[int], Iterator[Row]]
    facts: Provenance
    endless: bool

    def rows(self, start: int, n: int) -> list[Row]:
        """Rows `start` to `start + n` (fewer when the text ends)."""
        return list(islice(self.open_rows(start), n))

    def odd_rows(self, n: int) -> TextStream:
        """The rows held out of training that did not decide when to stop: every other one of the first `n`."""
        facts = {**self.facts, "rows": f"odd ones of the first {n}"}
        return TextStream(lambda start: islice(self.open_rows(0), 1 + 2 * start, n, 2), facts, endless=False)

    def batches(self, start: int, n_tokens: int, first: int = 0) -> Iterator[tuple[list[Row], int]]:
        """Batches of at least `n_tokens` tokens, each with the cursor after it; a finite text begins again at row
        `first`.
        """
        cursor, batch, size = start, [], 0
        rows = self.open_rows(cursor)
        while True:
            row = next(rows, None)
            if row is None:
                if cursor <= first:
                    raise InputError("the text has no rows left to train on; give more text or hold out less")
                rows, cursor = self.open_rows(first), first
                continue
            batch.append(row)
            cursor, size = cursor + 1, size + len(row)
            if size >= n_tokens:
                yield batch, cursor
                batch, size = [], 0


def pad(rows: Sequence[Row]) -> Prompts:
    """Rows as one right-padded batch."""
    width = max(map(len, rows))
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return Prompts(tokens, mask)


def forward_batches(rows: Sequence[Row], n_tokens: int) -> Iterator[Prompts]:
    """The rows, shortest first (ties in the given order), in padded batches of about `n_tokens` cells."""
    return map(pad, row_batches(rows, n_tokens))


def row_batches(rows: Sequence[Row], n_tokens: int) -> Iterator[list[Row]]:
    """The rows of each of `forward_batches`."""
    batch: list[Row] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(row) > n_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@borrows
def open_text(
    model: TransformerBridge, source: Any, *, packing: str = "", width: int = 0, column: str = "text", seed: int = 0
) -> TextStream:
    """A stream of rows for `model` from any source (see the module's table).

    `width`: longest row (default: the model's context, at most 512); `packing`: documents for a recipe's text,
    concatenate otherwise; `seed`: of a recipe's text. Raises `InputError` for empty text, a missing column or token ids
    outside the vocabulary; `NotFoundError` for a missing file.
    """
    anatomy = read_anatomy(model)
    width = width or min(anatomy.n_ctx, 512)
    if not 2 <= width <= anatomy.n_ctx:
        raise InputError(f"rows have 2 to {anatomy.n_ctx} tokens, the model's context; got width={width}")
    if packing and packing not in PACKINGS:
        raise UnknownNameError("packing", packing, PACKINGS)
    if isinstance(source, str) and not _is_there(source):
        return _recipe_stream(model, source, width, packing or "documents", seed)
    documents, facts = _documents(source, column)
    begin = [model.tokenizer.bos_token_id] if model.tokenizer is not None and prepends_bos(model) else []

    def encode(document: Any) -> Row:
        ids = plain_ids(model, document) if isinstance(document, str) else _ids(document)
        if ids and not 0 <= min(ids) <= max(ids) < anatomy.d_vocab:
            raise InputError(
                f"token ids of this model are 0 to {anatomy.d_vocab - 1}; the text has {min(ids)} to {max(ids)}"
            )
        return [*begin, *ids] if ids and isinstance(document, str) else ids

    pack = _pack_documents if (packing or "concatenate") == "documents" else _concatenate

    def open_rows(start: int) -> Iterator[Row]:
        return islice(pack(map(encode, documents()), width), start, None)

    if next(open_rows(0), None) is None:
        raise InputError("the text is empty: not one token. Give texts, token ids, or files with some.")
    return TextStream(open_rows, {**facts, "width": width, "packing": packing or "concatenate"}, endless=False)


def _pack_documents(documents: Iterable[Row], width: int) -> Iterator[Row]:
    for ids in documents:
        for start in range(0, len(ids), width):
            if len(piece := ids[start : start + width]) > 1:
                yield piece


def _concatenate(documents: Iterable[Row], width: int) -> Iterator[Row]:
    """Whole rows only, but for a text shorter than one row."""
    held, yielded = [], False
    for ids in documents:
        held += ids
        while len(held) >= width:
            yield held[:width]
            held, yielded = held[width:], True
    if not yielded and len(held) > 1:
        yield held


def _recipe_stream(model: TransformerBridge, name: str, width: int, packing: str, seed: int) -> TextStream:
    """Text of a bundled model's last training phase; document i depends on (seed, i) only."""
    from ..zoo.grammar import step_documents
    from ..zoo.recipe import RECIPES

    if name not in RECIPES:
        raise NotFoundError(f"no text {name!r}: it is neither a file nor a recipe ({', '.join(RECIPES)})")
    mixture, tokenizer = RECIPES[name].phases[-1].mixture, require_tokenizer(model)
    n, begin = 64, [tokenizer.bos_token_id]
    pack = _pack_documents if packing == "documents" else _concatenate

    def documents(block: int) -> Iterator[Row]:
        while True:
            texts = [
                "".join(text for text, _ in document)
                for document in step_documents(mixture, n, seed + 1_000_003, block)
            ]
            yield from ([*begin, *ids][:width] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
            block += 1

    def open_rows(start: int) -> Iterator[Row]:
        if packing == "documents":  # one row per document, so that the cursor is a document's number
            return islice(pack(documents(start // n), width), start % n, None)
        return islice(pack(documents(0), width), start, None)

    return TextStream(open_rows, {"recipe": name, "seed": seed, "width": width, "packing": packing}, endless=True)


def _documents(source: Any, column: str) -> tuple[Callable[[], Iterator[Any]], Provenance]:
    """A function that reads all documents from the start, and what is known about them."""
    if isinstance(source, str | Path) or (
        isinstance(source, list | tuple) and source and all(isinstance(s, Path) for s in source)
    ):
        files = [Path(source)] if isinstance(source, str | Path) else list(source)
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise NotFoundError(
                f"no text at {', '.join(map(repr, missing))}: no such file. Name one, or give texts in a list."
            )
        facts = {"files": [{"name": f.name, "bytes": f.stat().st_size} for f in files]}
        return lambda: (document for file in files for document in _read_file(file, column)), facts
    if isinstance(source, Tensor):
        if not source.ndim:
            raise InputError(f"text as a tensor is token ids [row, pos]; got one number, {source.item()}")
        return lambda: iter(source.reshape(-1, source.shape[-1]).tolist()), {
            "tokens": list(source.shape),
            "sha256": hash_tensors({"tokens": source}),
        }
    if callable(source):
        make = cast(Callable[[], Iterable[Any]], source)
        return lambda: (_document(item, column) for item in _made(make())), {
            "function": getattr(source, "__name__", "function")
        }
    if isinstance(source, Iterator) or not hasattr(source, "__iter__"):
        raise InputError(
            f"text is read more than once, so it must be possible to start again; got {type(source).__name__}. "
            "Give a list, a data set, files, or a function that returns an iterator."
        )
    documents: Iterable[Any] = source
    facts: Provenance = {"documents": type(source).__name__}
    if isinstance(source, list | tuple):
        facts |= {
            "n": len(source),
            "sha256": hash_json([item if isinstance(item, str) else str(item) for item in source]),
        }
    return lambda: (_document(item, column) for item in documents), facts


def _made(found: Any) -> Iterable[Any]:
    """What a user's function returned, if it is documents."""
    if isinstance(found, str) or not hasattr(found, "__iter__"):
        raise InputError(f"a function that gives text returns an iterator of documents; it returned {found!r:.80}")
    return found


def _ids(document: Any) -> Row:
    """A document that is no text, as token ids."""
    try:
        if not isinstance(document, bytes | bool):
            return list(map(operator.index, document.tolist() if isinstance(document, Tensor) else document))
    except TypeError:
        pass
    raise InputError(f"a document is a text or a list of token ids; got {document!r:.80}")


def _document(item: Any, column: str) -> Any:
    if isinstance(item, dict):
        if column not in item:
            raise InputError(
                f"rows of this data set have {', '.join(map(str, item))}; none is {column!r}. Name one with column=..."
            )
        return item[column]
    return item


def _read_file(file: Path, column: str) -> Iterator[Any]:
    if file.suffix == ".safetensors":
        for name, tensor in sorted(read_tensors(file)[1].items()):
            if tensor.is_floating_point():
                raise InputError(f"token shards hold integers; {name} of {file.name} is {tensor.dtype}")
            yield from (tensor[None] if tensor.ndim == 1 else tensor.reshape(-1, tensor.shape[-1])).tolist()
    elif file.suffix in (".jsonl", ".ndjson"):
        with file.open(encoding="utf-8") as stream:
            yield from (_document(json.loads(line), column) for line in stream if line.strip())
    else:
        with file.open(encoding="utf-8") as stream:
            yield from _paragraphs(stream)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line)
        elif held:
            yield "".join(held).rstrip("\n")
            held = []
    if held:
        yield "".join(held).rstrip("\n")


def _is_there(name: str) -> bool:
    """Whether a file has that name; no for what no file can be called."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False
