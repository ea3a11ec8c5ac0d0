"""GGUF files made by the tests: a Hugging Face module written the way llama.cpp's converter lays it out.

The layout is written down here a second time, independently of the reader: rotary halves of Llama's queries and keys
interleaved, GPT-2's matrices transposed, Gemma's gains stored as 1 + w. `dequantised` puts what quantisation leaves of
the weights back into the module, which makes it the literal form of the loaded file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as hf

WIDTH = 64
"""Rows are quantised in blocks of 32, so every width is a multiple of it."""

D_VOCAB = 96

_SMALL: dict[str, Any] = {
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": WIDTH,
    "intermediate_size": 96, "max_position_embeddings": 64, "vocab_size": D_VOCAB,
}  # fmt: skip
_ROPE: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}
_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

SHAPES: dict[str, Any] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_SMALL, **_ROPE, tie_word_embeddings=False)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_SMALL, **_ROPE, sliding_window=None)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_SMALL, **_ROPE)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_SMALL, **_ROPE, head_dim=128, tie_word_embeddings=True)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**_SMALL, **_IDS, head_dim=256, query_pre_attn_scalar=256, sliding_window=5)
    ),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **{**_SMALL, "num_hidden_layers": 7}, **_IDS, head_dim=256, query_pre_attn_scalar=256, sliding_window=5,
            layer_types=["full_attention" if i == 5 else "sliding_attention" for i in range(7)],
        )
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_layer=3, n_head=4, n_embd=WIDTH, n_positions=1024, vocab_size=D_VOCAB, **_IDS)
    ),
}  # fmt: skip
"""Shapes that are written. Settings that transformers' own reader takes from its defaults have those values here."""

TYPES = {
    "F16": gguf.GGMLQuantizationType.F16,
    "Q8_0": gguf.GGMLQuantizationType.Q8_0,
    "Q4_0": gguf.GGMLQuantizationType.Q4_0,
    "Q4_1": gguf.GGMLQuantizationType.Q4_1,
}


def build(shape: str, seed: int = 0) -> Any:
    """A module of the shape with weights at which bugs show."""
    from tests.families import _redraw

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = SHAPES[shape]().eval()
        _redraw(module)
    return module


def architecture_of(module: Any) -> str:
    kind = str(module.config.model_type)
    return {"mistral": "llama", "gemma3_text": "gemma3"}.get(kind, kind)


def write(
    module: Any, path: Path, quantisation: str = "F16", *, tokens: int | None = D_VOCAB,
    metadata: dict[str, Any] | None = None
) -> dict[str, np.ndarray]:  # fmt: skip
    """Writes the file and returns, by Hugging Face name, the numbers that the stored weights stand for."""
    architecture, config = architecture_of(module), module.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("mistral" if config.model_type == "mistral" else "test")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        _write_modern(writer, config, architecture)
    if tokens:
        _write_tokens(writer, tokens)
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_uint32(key, value)
    stored = {}
    table = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture], config.num_hidden_layers
    )
    for name, parameter in module.named_parameters():
        base, _, ending = name.rpartition(".")
        gguf_name = f"{table.get_name(base)}.{ending}"
        there, back = layout(architecture, gguf_name, config)
        array = there(parameter.detach().float().numpy())
        kind = TYPES[quantisation] if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(gguf_name, data, raw_dtype=kind)
        stored[name] = np.ascontiguousarray(back(gguf.dequantize(data, kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _write_modern(writer: Any, config: Any, architecture: str) -> None:
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    if architecture in ("qwen3", "gemma2", "gemma3"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope.get("full_attention", rope)["rope_theta"]))
    if architecture.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _write_tokens(writer: Any, n: int) -> None:
    """A byte-level vocabulary: letters of the byte alphabet, a few merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    tokens = [*[chr(code) for code in range(97, 123)], "Ġ", "th", "he", "Ġa"]
    tokens += [letter for letter in letters if letter not in tokens][: n - len(tokens) - 1]
    tokens.append("<|end|>")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (n - 1) + [3])
    writer.add_token_merges(["t h", "h e", "Ġ a"])
    writer.add_bos_token_id(n - 1)
    writer.add_eos_token_id(n - 1)
    writer.add_add_bos_token(False)


def layout(architecture: str, name: str, config: Any) -> tuple[Any, Any]:
    """How llama.cpp stores a tensor, and the way back."""
    if architecture == "gpt2" and name.startswith("blk.") and name.endswith(
        ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    ):  # fmt: skip
        return np.transpose, np.transpose
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        n_heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads

        def interleave(x: np.ndarray) -> np.ndarray:
            return x.reshape(n_heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

        def halves(x: np.ndarray) -> np.ndarray:
            return x.reshape(n_heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

        return interleave, halves
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return (lambda x: x + 1), (lambda x: x - 1)
    return (lambda x: x), (lambda x: x)


@torch.no_grad()
def dequantised(module: Any, stored: dict[str, np.ndarray]) -> Any:
    """The module with the numbers that its file stands for."""
    for name, parameter in module.named_parameters():
        parameter.copy_(torch.from_numpy(stored[name]))
    return module
