"""Loading: names, folders, modules, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from mechwork.errors import InputError, NotFoundError, UnsupportedModelError
from mechwork.models.anatomy import check_ready
from mechwork.models.load import load_model
from mechwork.sites import Site
from tests.families import build_module


def test_a_folder_gives_the_modules_logits(family: str, tmp_path: Path) -> None:
    module = build_module(family)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    with torch.no_grad():
        expected = module(tokens).logits
    module.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    with torch.no_grad():
        logits = model(tokens)
    assert float((logits - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert load_model(model) is model


def test_bundled_model_is_ready() -> None:
    model = load_model("gpt2-6l", dtype=torch.float64)
    assert next(model.parameters()).dtype == torch.float64
    assert model.cfg.n_layers == 6


@pytest.mark.parametrize("name", ["gpt2-6", "no-such-model", "./nowhere"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(NotFoundError, match="gpt2-6l"):
        load_model(name)


def test_a_hub_name_without_network() -> None:
    with pytest.raises(NotFoundError, match="offline mode"):
        load_model("openai-community/gpt2")


def test_folders_without_config_or_safetensors(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config\.json"):
        load_model(tmp_path)
    build_module("gpt2").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(NotFoundError, match="safetensors files only"):
        load_model(tmp_path)


def test_architectures_that_are_not_claimed(tmp_path: Path) -> None:
    config = hf.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=20)
    with pytest.raises(UnsupportedModelError, match="BloomForCausalLM"):
        load_model(hf.BloomForCausalLM(config))
    with pytest.raises(UnsupportedModelError, match="config"):
        load_model(torch.nn.Linear(2, 2))


def test_sites_are_checked_against_the_anatomy(tiny_gpt2: Any) -> None:
    anatomy = check_ready(tiny_gpt2)
    anatomy.check_site(Site("z", 2, head=3))
    for site, message in (
        (Site("z", 3), "0 to 2"),
        (Site("z", 0, head=4), "0 to 3"),
        (Site("mlp_pre_linear", 0), "no site"),
    ):
        with pytest.raises(InputError, match=message):
            anatomy.check_site(site)
    for wrong in (lambda: Site("z"), lambda: Site("embed", 1), lambda: Site("resid_pre", 0, head=1)):
        with pytest.raises(InputError):
            wrong()
    with pytest.raises(InputError, match="TransformerBridge is needed"):
        check_ready(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]


OTHERS = {
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(n_layer=1, n_head=2, hidden_size=8, vocab_size=20)),
    "deepseek": lambda: hf.DeepseekV3ForCausalLM(
        hf.DeepseekV3Config(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=8,
        intermediate_size=8, vocab_size=20, n_routed_experts=2, num_experts_per_tok=1, n_group=1, topk_group=1)
    ),
    "gpt-oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=8,
        intermediate_size=8, vocab_size=20, num_local_experts=2, head_dim=4)
    ),
    "falcon, other blocks": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, vocab_size=20, alibi=True)
    ),
    "qwen3 moe, dense layers": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, hidden_size=8,
        moe_intermediate_size=8, intermediate_size=8, vocab_size=20, num_experts=2, num_experts_per_tok=1,
        mlp_only_layers=[0])
    ),
    "opt, norms after": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, word_embed_proj_dim=8, ffn_dim=8,
        vocab_size=20, max_position_embeddings=16, do_layer_norm_before=False)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(OTHERS))
def test_architectures_that_would_be_silently_wrong_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="claim"):
        load_model(OTHERS[name]().eval())


def python_tokenizer(**special: str) -> Any:
    """A tokenizer made in Python: no files, and no name of where it came from."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<s>", "a", "b"])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)


@pytest.mark.parametrize("special", [{}, {"bos_token": "<s>"}, {"bos_token": "<s>", "eos_token": "<s>"}])
def test_a_tokenizer_made_in_python(special: dict[str, str]) -> None:
    tokenizer = python_tokenizer(**special)
    before = dict(tokenizer.init_kwargs)
    assert "name_or_path" not in before
    model = load_model(build_module("gpt2"), tokenizer=tokenizer)
    assert model.tokenizer.init_kwargs == before
    assert model.to_tokens("a b").tolist() == [[2, 3]]
    if special:
        model = load_model(build_module("gpt2"), tokenizer=python_tokenizer(**special), prepend_bos=True)
        assert model.to_tokens("a b").tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("packing", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4-bit weights packed by bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8-bit weights packed by bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "4-bit weights packed by gptq"),
        ({"quant_method": "awq", "bits": 8}, "8-bit weights packed by awq"),
    ],
)
def test_packed_weights_are_refused_before_they_are_read(packing: dict[str, Any], words: str, tmp_path: Path) -> None:
    module = build_module("gpt2")
    module.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": packing}))
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(UnsupportedModelError, match=f"{words}.*GGUF"):
        load_model(tmp_path)
    module.config.quantization_config = packing
    with pytest.raises(UnsupportedModelError, match=words):
        load_model(module)


def test_a_module_of_whole_numbers_is_refused() -> None:
    module = build_module("gpt2")
    module.lm_head.weight = torch.nn.Parameter(torch.zeros(97, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="has dtype int8"):
        load_model(module)
