"""A word-level tokenizer in the form of a byte-level BPE without merges.

Every word of the grammar is one token, written as GPT-2 writes it (``"ĠMary"`` is " Mary"); a word outside the
vocabulary falls apart into bytes, so that any text can be encoded. Numbers are cut into pairs of digits, so that a year
is a century token and a two-digit token, as it mostly is in GPT-2. ``<|endoftext|>`` (id 0) opens every document and
pads.

The saved folder loads offline through ``AutoTokenizer.from_pretrained(folder)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .. import bundled
from ..errors import InputError
from .grammar import strings, template_texts

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 128

SIX = ("ioi", "greater_than", "pronoun", "agreement", "docstring", "induction")
"""The tasks whose words every tokenizer of ours holds."""

_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@cache
def grammar_vocabulary(tasks: tuple[str, ...] = SIX) -> tuple[str, ...]:
    """Every pre-token that the text of `tasks` and the filler can produce, sorted (byte-level spelling)."""
    pre = _pre_tokenizer()
    found: set[str] = set()
    for text in template_texts(tasks):
        found.update(piece for piece, _ in pre.pre_tokenize_str(text))
    for file in ("names", *tasks, "filler"):
        content = bundled.load_json("tasks", f"{file}.json")
        lists = [content.get(key) for key in ("words", "answers", "pronouns", "female", "male", "invented")]
        for word in strings(lists):
            found.update(piece for piece, _ in pre.pre_tokenize_str(f" {word}"))
    for word in bundled.load_json("tasks", "docstring.json")["words"]["description"]:
        found.update(piece for piece, _ in pre.pre_tokenize_str(word))  # it follows the quotes without a space
    found.update(f"{n:02d}" for n in range(100))
    return tuple(sorted(found))


def build_tokenizer(words: Iterable[str] | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer over `words` (byte-level spelling); by default over the text of the first six tasks.

    Ids: 0 is ``<|endoftext|>``, then the 256 bytes, then the words in the given order. Encoding through the returned
    object with ``add_special_tokens=True`` (the default) puts ``<|endoftext|>`` first.
    """
    vocabulary = {END_OF_TEXT: 0}
    for piece in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[piece] = len(vocabulary)
    for word in grammar_vocabulary() if words is None else words:
        if word == END_OF_TEXT:
            raise InputError(f"{END_OF_TEXT} is reserved and cannot be a word of the vocabulary")
        vocabulary.setdefault(word, len(vocabulary))
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True, fuse_unk=False))
    core.pre_tokenizer = _pre_tokenizer()
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([END_OF_TEXT])
    core.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A $B", special_tokens=[(END_OF_TEXT, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files into `folder` so that ``AutoTokenizer`` finds them."""
    tokenizer.save_pretrained(str(folder))
