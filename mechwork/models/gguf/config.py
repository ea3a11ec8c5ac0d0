"""Metadata of a GGUF file -> the Hugging Face config of the same model, for architectures on which this is exact.

llama.cpp names architectures in its own way: Llama and Mistral are both "llama". What the metadata leave to the reader
(scale of Gemma's attention, which of its layers are local) is llama.cpp's own rule, stated where it is used. What
cannot be told exactly (experts, other rotary scalings) is refused by name. Cost: the header only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...errors import ArtefactError, UnsupportedModelError
from .header import GgufHeader

Settings = dict[str, Any]


def build_config(header: GgufHeader) -> Any:
    """The Hugging Face config; raises `UnsupportedModelError` for architectures outside `GGUF_CLAIMED`."""
    from transformers import AutoConfig

    check_claimed_gguf(header)
    _check_sizes(header)
    settings = GGUF_CLAIMED[header.architecture](header)
    architecture = settings.pop("architecture")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    ids = {f"{name}_token_id": header.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in SPECIAL.items()}
    return AutoConfig.for_model(
        str(settings.pop("model_type")),
        **settings,
        **ids,
        architectures=[architecture],
        vocab_size=header.tensors["token_embd.weight"].shape[0] if tokens is None else len(tokens),
        tie_word_embeddings="output.weight" not in header.tensors,
    )


SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}


def check_claimed_gguf(header: GgufHeader) -> None:
    """Refuses by name, before any tensor is read."""
    name = header.architecture
    if name not in GGUF_CLAIMED:
        raise UnsupportedModelError(
            f"{header.path.name} holds the architecture {name!r}; from GGUF mechwork claims {', '.join(GGUF_CLAIMED)}. "
            "If mechwork claims the model itself, load it as a folder in Hugging Face format or by its hub name."
        )
    if header.get("expert_count"):
        raise UnsupportedModelError(
            f"{header.path.name} holds a {name} model with {header.get('expert_count')} experts, which mechwork does "
            "not "
            "read from GGUF. Load it as a folder in Hugging Face format or by its hub name."
        )


def _check_sizes(header: GgufHeader) -> None:
    """Raises `ArtefactError` when the metadata ask for more than the file has tensors for."""
    blocks = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if "token_embd.weight" not in header.tensors or len(blocks) != header.need("block_count"):
        raise ArtefactError(
            f"{header.path.name} promises {header.need('block_count')} blocks and holds {len(blocks)}, "
            f"{'with' if 'token_embd.weight' in header.tensors else 'without'} an embedding. "
            "The file is incomplete; download it again."
        )


def _sizes(header: GgufHeader) -> Settings:
    """Settings that Llama and its descendants share."""
    n_heads = header.need("attention.head_count")
    if not isinstance(n_heads, int) or not isinstance(header.get("attention.head_count_kv", 1), int):
        raise UnsupportedModelError(
            f"{header.path.name} has another number of heads in every layer; mechwork claims models with one."
        )
    if n_heads < 1:
        raise ArtefactError(f"{header.path.name} promises {n_heads} heads; the file is damaged. Download it again.")
    return {
        "hidden_size": header.need("embedding_length"),
        "num_hidden_layers": header.need("block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": header.get("attention.head_count_kv", n_heads),
        "head_dim": header.get("attention.key_length", header.need("embedding_length") // n_heads),
        "intermediate_size": header.need("feed_forward_length"),
        "max_position_embeddings": header.need("context_length"),
        "rms_norm_eps": header.need("attention.layer_norm_rms_epsilon"),
    }


def _rope(header: GgufHeader, theta: float) -> Settings:
    """Rotary settings: plain, or scaled linearly. Raises `UnsupportedModelError` for other scalings."""
    kind = header.get("rope.scaling.type", "none")
    factor = float(header.get("rope.scaling.factor", 1.0) or 1.0)
    if kind not in ("none", "linear"):
        raise UnsupportedModelError(
            f"{header.path.name} scales its rotary positions by {kind!r}; from GGUF mechwork claims none and 'linear'. "
            "Load the model as a folder in Hugging Face format or by its hub name."
        )
    base = {"rope_theta": float(header.get("rope.freq_base", theta))}
    return {"rope_type": "default", **base} if factor == 1.0 else {"rope_type": "linear", "factor": factor, **base}


LLAMA3_FACTORS = (8.0, 32.0)
"""Scalings of Llama 3.1 and 3.2, of which the file keeps only the divisors (``rope_freqs.weight``)."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_divisors(theta: float, head_dim: int, factor: float) -> list[float]:
    """What Llama 3's scaling divides each rotary frequency by: 1 for fast ones, `factor` for slow ones, between them
    smooth.
    """
    low, high, length = (
        LLAMA3["low_freq_factor"],
        LLAMA3["high_freq_factor"],
        LLAMA3["original_max_position_embeddings"],
    )
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / head_dim)
        smooth = min(1.0, max(0.0, (length / wavelength - low) / (high - low)))
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def _llama3_rope(header: GgufHeader, rope: Settings, head_dim: int) -> Settings:
    """`rope` with Llama 3's scaling, recognised by the divisors that the file holds."""
    from .weights import read_tensor

    divisors = read_tensor(header, "rope_freqs.weight").tolist()
    for factor in LLAMA3_FACTORS:
        expected = llama3_divisors(rope["rope_theta"], head_dim, factor)
        if len(expected) == len(divisors) and all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(expected, divisors, strict=True)
        ):
            return {**rope, **LLAMA3, "rope_type": "llama3", "factor": factor}
    raise UnsupportedModelError(
        f"{header.path.name} divides its rotary frequencies by factors that are not those of Llama 3.1 or 3.2. "
        "Load the model as a folder in Hugging Face format or by its hub name."
    )


def _llama(header: GgufHeader) -> Settings:
    sizes = _sizes(header)
    sizes["head_dim"] = header.get("attention.key_length", header.get("rope.dimension_count", sizes["head_dim"]))
    rope = _rope(header, 10000.0)
    if "rope_freqs.weight" in header.tensors:
        rope = _llama3_rope(header, rope, sizes["head_dim"])
    if "mistral" in str(header.metadata.get("general.name", "")).lower():
        window = header.get("attention.sliding_window")
        return {"model_type": "mistral", "architecture": "MistralForCausalLM", **sizes, "rope_parameters": rope,
                "sliding_window": window}  # fmt: skip
    bias = "blk.0.attn_q.bias" in header.tensors
    return {"model_type": "llama", "architecture": "LlamaForCausalLM", **sizes, "rope_parameters": rope,
            "attention_bias": bias}  # fmt: skip


def _qwen2(header: GgufHeader) -> Settings:
    sizes = _sizes(header)
    sizes.pop("head_dim")
    return {"model_type": "qwen2", "architecture": "Qwen2ForCausalLM", **sizes,
            "rope_parameters": _rope(header, 1e4)}  # fmt: skip


def _qwen3(header: GgufHeader) -> Settings:
    return {"model_type": "qwen3", "architecture": "Qwen3ForCausalLM", **_sizes(header),
            "rope_parameters": _rope(header, 1e4)}  # fmt: skip


def _attention_scale(header: GgufHeader, sizes: Settings, layers_27b: int) -> int:
    """Gemma divides queries by the root of the head's width, its 27B models by that of width over heads (llama.cpp's
    rule).
    """
    if sizes["num_hidden_layers"] == layers_27b:
        return sizes["hidden_size"] // sizes["num_attention_heads"]
    return sizes["head_dim"]


def _gemma2(header: GgufHeader) -> Settings:
    sizes = _sizes(header)
    return {
        "model_type": "gemma2", "architecture": "Gemma2ForCausalLM", **sizes, "rope_parameters": _rope(header, 1e4),
        "query_pre_attn_scalar": _attention_scale(header, sizes, 46),
        "sliding_window": header.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": header.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.get("final_logit_softcapping", 30.0),
    }  # fmt: skip


def _gemma3(header: GgufHeader) -> Settings:
    """Every sixth layer is global; local ones have their own, unscaled rotary base (10,000)."""
    sizes = _sizes(header)
    local = {"rope_type": "default", "rope_theta": float(header.get("rope.freq_base_swa", 10_000.0))}
    return {
        "model_type": "gemma3_text", "architecture": "Gemma3ForCausalLM", **sizes,
        "rope_parameters": {"full_attention": _rope(header, 1e6), "sliding_attention": local},
        "query_pre_attn_scalar": _attention_scale(header, sizes, 62),
        "sliding_window": header.need("attention.sliding_window"),
        "final_logit_softcapping": header.get("final_logit_softcapping"),
    }  # fmt: skip


def _gpt2(header: GgufHeader) -> Settings:
    return {
        "model_type": "gpt2", "architecture": "GPT2LMHeadModel",
        "n_layer": header.need("block_count"), "n_positions": header.need("context_length"),
        "n_embd": header.need("embedding_length"), "n_head": header.need("attention.head_count"),
        "n_inner": header.get("feed_forward_length"),
        "layer_norm_epsilon": header.need("attention.layer_norm_epsilon"),
    }  # fmt: skip


GGUF_CLAIMED: dict[str, Callable[[GgufHeader], Settings]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
}
"""llama.cpp's architectures whose files are read; Mistral's models are "llama" there."""
