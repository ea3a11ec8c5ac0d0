"""Prompts begin as the tokenizer begins them, unless somebody chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mechwork.errors import InputError
from mechwork.models import load_model
from mechwork.models.identity import identify_model
from mechwork.tasks.encode import tokenise


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer that has a beginning-of-sequence token and does not put it anywhere."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp("bos")
    words = {"<s>": 0, "a": 1, "b": 2, "<unk>": 3}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", unk_token="<unk>").save_pretrained(place)
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    return place


def test_the_tokenizer_decides_and_a_choice_goes_first(folder: Path) -> None:
    model = load_model(folder)
    assert tokenise(model, "a b") == [1, 2]
    assert identify_model(model)["prepend_bos"] is False
    assert tokenise(load_model(folder, prepend_bos=True), "a b") == [0, 1, 2]
    assert tokenise(load_model(model, prepend_bos=True), "a b") == [0, 1, 2]


def test_bundled_models_keep_their_habit() -> None:
    model = load_model("gpt2-6l")
    assert tokenise(model, " a")[0] == model.tokenizer.bos_token_id
    assert load_model("gpt2-6l", prepend_bos=False).cfg.default_prepend_bos is False
    assert load_model("gpt2-6l").cfg.default_prepend_bos is True
    assert load_model("neox-6l").cfg.default_prepend_bos is False


def test_a_token_that_is_not_there_is_refused() -> None:
    model = load_model("gpt2-6l")
    model.tokenizer.bos_token = None
    with pytest.raises(InputError, match="has none"):
        load_model(model, prepend_bos=True)
