"""Tensors of a GGUF file as the parameters of a fresh module: dequantised once, row by row, in the asked dtype.

    load_gguf(path, dtype)    the module and its tokenizer; no `quantization_config`, so the module can be saved

A piece of rows is read, dequantised to float32 by the `gguf` package and rounded into its place; beside the weights
only one piece and at most one tensor exist. llama.cpp's own layout is undone: it interleaves the rotary halves of
Llama's queries and keys, stores GPT-2's matrices transposed, and Gemma's gains as 1 + w. Cost: one pass over the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import ArtefactError, NotFoundError
from .config import build_config
from .header import GgufHeader, TensorEntry, import_gguf, read_header

PIECE = 1 << 21
"""Numbers dequantised at once; the package's float32 temporaries are a few times as many bytes."""

IGNORED = ("rope_freqs.weight",)
"""Tensors that the config already accounts for."""


def load_gguf(path: Path, dtype: torch.dtype, *, with_tokenizer: bool = True) -> tuple[nn.Module, Any, GgufHeader]:
    """Module with the file's weights, tokenizer (None where the file has none, or none is wanted), header.

    Everything that can be refused is refused before the first tensor is read.
    """
    header = read_header(path)
    config = build_config(header)
    module = _empty_module(config, dtype)
    places = _find_places(header, module)
    tokenizer = load_gguf_tokenizer(header) if with_tokenizer else None
    state = {}
    with path.open("rb", buffering=0) as file:
        for parameter, entry in places.items():
            filled = _fill(header, file, entry, dtype)
            state[parameter] = _undo_layout(header, entry.name, filled, config)
    module.load_state_dict(state, strict=False, assign=True)
    module.tie_weights()  # pyright: ignore[reportCallIssue]
    return module.eval(), tokenizer, header


def read_tensor(header: GgufHeader, name: str) -> Float[Tensor, "..."]:
    """One tensor in float32, in the file's own layout."""
    with header.path.open("rb", buffering=0) as file:
        return _fill(header, file, header.tensors[name], torch.float32)


def load_gguf_tokenizer(header: GgufHeader) -> Any:
    """The tokenizer inside the file; None where there is none."""
    from transformers import PreTrainedTokenizerFast

    if not header.metadata.get("tokenizer.ggml.tokens"):
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(header.path.parent), gguf_file=header.path.name)
    except (ValueError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        kind = header.metadata.get("tokenizer.ggml.model")
        raise NotFoundError(
            f"{header.path.name} has a tokenizer of kind {kind!r} that transformers cannot rebuild ({error}). Hand one "
            "over: load_model(path, tokenizer=AutoTokenizer.from_pretrained(...))."
        ) from error


def _empty_module(config: Any, dtype: torch.dtype) -> nn.Module:
    """A module of the config whose parameters have no memory yet; buffers (rotary tables) are real."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    module.tie_weights()
    return module


def _find_places(header: GgufHeader, module: nn.Module) -> dict[str, TensorEntry]:
    """Parameter name -> its tensor in the file. Raises `ArtefactError` where names or shapes do not fit."""
    package = import_gguf()
    names = {name: arch for arch, name in package.MODEL_ARCH_NAMES.items()}
    config: Any = module.config
    table = package.get_tensor_name_map(names[header.architecture], config.num_hidden_layers)
    places, missing = {}, []
    for parameter, value in module.named_parameters():
        base, _, ending = parameter.rpartition(".")
        name = f"{table.get_name(base)}.{ending}"
        entry = header.tensors.get(name)
        if entry is None:
            missing.append(name)
            continue
        turned = tuple(reversed(entry.shape)) if _is_transposed(header, name) else entry.shape
        if turned != tuple(value.shape):
            raise ArtefactError(
                f"tensor {name!r} of {header.path.name} has shape {turned}; the metadata ask for {tuple(value.shape)}. "
                "The file is damaged or was converted by another program version."
            )
        places[parameter] = entry
    if missing:
        raise ArtefactError(f"{header.path.name} lacks the tensors {', '.join(missing[:5])}; it is incomplete")
    unused = header.tensors.keys() - {entry.name for entry in places.values()} - set(IGNORED)
    if unused:
        raise ArtefactError(
            f"{header.path.name} has tensors that a {type(module).__name__} has no place for: "
            f"{', '.join(sorted(unused)[:5])}. Reading the rest would be another model."
        )
    return places


def _fill(header: GgufHeader, file: Any, entry: TensorEntry, dtype: torch.dtype) -> Tensor:
    """The tensor, dequantised piece by piece into memory of the asked dtype."""
    from numpy import frombuffer

    package = import_gguf()
    kind = package.GGMLQuantizationType[entry.quantisation]
    width = entry.shape[-1]
    out = torch.empty(entry.shape, dtype=dtype)
    rows, row_bytes = out.view(-1, width), width // entry.block[0] * entry.block[1]
    step = max(1, PIECE // width)
    file.seek(entry.offset)
    for start in range(0, len(rows), step):
        n = min(step, len(rows) - start)
        data = file.read(n * row_bytes)
        if len(data) < n * row_bytes:
            raise ArtefactError(f"{header.path.name} ended inside the tensor {entry.name!r}; download it again")
        blocks = frombuffer(data, dtype=np.uint8).reshape(n, row_bytes)
        if entry.quantisation in ("F32", "F16"):
            blocks = blocks.view(np.float32 if entry.quantisation == "F32" else np.float16).astype(np.float32)
            rows[start : start + n] = torch.from_numpy(blocks)
        else:
            rows[start : start + n] = torch.from_numpy(package.dequantize(blocks, kind))
    return out


def _is_transposed(header: GgufHeader, name: str) -> bool:
    return header.architecture == "gpt2" and name.startswith("blk.") and name.endswith(TRANSPOSED)


TRANSPOSED = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")


def _undo_layout(header: GgufHeader, name: str, tensor: Tensor, config: Any) -> Tensor:
    """The tensor as Hugging Face has it."""
    if _is_transposed(header, name):
        return tensor.T.contiguous()
    if header.architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        axes = "(head pair half)", "(head half pair)"
        rest = " d_model" if tensor.ndim == 2 else ""
        return rearrange(tensor, f"{axes[0]}{rest} -> {axes[1]}{rest}", head=heads, half=2).contiguous()
    if header.architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return tensor.sub_(1)
    return tensor
