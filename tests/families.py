"""Tiny random models of every architecture family that mechwork claims, with weights at which bugs show.

Freshly initialised weights make a transformer almost linear and its gains and biases trivial, so a wrong scale or a
forgotten bias would pass. Here every matrix is drawn at 1.5 / sqrt(fan in), gains and biases are perturbed, soft caps
are low enough to bend, and sliding windows are shorter than the prompts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers as hf
from transformers.pytorch_utils import Conv1D

from mechwork.models.load import load_model
from mechwork.provenance import hash_weights
from mechwork.tasks.task import Task
from tests import gate

D_VOCAB = 97
N_POS = 10
SLIDING_WINDOW = 5

_GPT2: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": D_VOCAB}
_NEOX: dict[str, Any] = {
    "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48,
    "max_position_embeddings": 64, "vocab_size": D_VOCAB,
}  # fmt: skip
_LLAMA: dict[str, Any] = {**_NEOX, "num_key_value_heads": 2}
_GEMMA: dict[str, Any] = {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": SLIDING_WINDOW}
_CAPS: dict[str, Any] = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}

_NO_SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_OPT: dict[str, Any] = {
    "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48,
    "max_position_embeddings": 64, "vocab_size": D_VOCAB,
}  # fmt: skip
_FALCON: dict[str, Any] = {
    "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "max_position_embeddings": 64,
    "vocab_size": D_VOCAB,
}  # fmt: skip

FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_NEOX)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(sliding_window=SLIDING_WINDOW, **_LLAMA)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_LLAMA)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(head_dim=8, **_LLAMA)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_GEMMA, **_CAPS)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_GEMMA)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**_LLAMA)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **_LLAMA)),
    "olmoe": lambda: hf.OlmoeForCausalLM(hf.OlmoeConfig(num_experts=4, num_experts_per_tok=2, **_LLAMA)),
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48, norm_topk_prob=True, **_LLAMA)
    ),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**_NO_SPECIAL, **_LLAMA)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**_OPT)),
    "gptj": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(rotary_dim=4, **_NO_SPECIAL, **_GPT2)),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**_NO_SPECIAL, **_FALCON)),
}
"""Family name -> a freshly initialised Hugging Face module: 3 layers, 4 heads (2 key/value heads; Falcon 1), d_model
32.
"""

UNLIKE = ("gpt2", "gemma2", "mixtral")
"""Families that differ most: learned positions and biases; grouped queries, post-norms and soft caps; experts."""


CHOSEN = os.environ.get(gate.FAMILIES, ",".join(FAMILIES)).split(",")
"""The families that run here: of a gate its own, otherwise all."""


def crossed(cases: Iterable[Any], everywhere: Collection[Any]) -> list[tuple[str, Any]]:
    """(family, case) pairs: the cases of `everywhere` in every family, the others, whose logic no family changes, in
    `UNLIKE`.
    """
    return [(family, case) for case in cases for family in CHOSEN if case in everywhere or family in UNLIKE]


_NATIVE: dict[str, Any] = {"n_layers": 3, "n_heads": 4, "d_model": 32, "d_head": 8, "n_ctx": 64, "d_vocab": D_VOCAB}
_MLP: dict[str, Any] = {"d_mlp": 48, "act_fn": "gelu"}

NATIVE: dict[str, dict[str, Any]] = {
    "no norms": {**_NATIVE, **_MLP, "normalization_type": None},
    "attention only": {**_NATIVE, "attn_only": True, "normalization_type": None},
    "attention only, norms": {**_NATIVE, "attn_only": True, "normalization_type": "LN"},
    "bidirectional": {**_NATIVE, **_MLP, "act_fn": "relu", "normalization_type": None,
    "attention_dir": "bidirectional"},
    "gated": {
        **_NATIVE, "d_mlp": 48, "act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS",
        "positional_embedding_type": "rotary", "n_key_value_heads": 2,
    },
}  # fmt: skip
"""TransformerLens' own models: what it is -> its configuration. Not among `FAMILIES`, which are Hugging Face modules.
"""


def build_native(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A native model with redrawn weights, loaded as a user would load it, set up by one forward pass."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import boot_native

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = boot_native(TransformerBridgeConfig(**NATIVE[name]))
        _redraw(model)
    model = load_model(model, dtype=dtype)
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    return model


def build_module(family: str, seed: int = 0) -> Any:
    """A Hugging Face module of the family with redrawn weights; a pure function of its arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = FAMILIES[family]().eval()
        _redraw(module)
    return module


def build_model(family: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """The same as a `TransformerBridge`, loaded as a user would load it."""
    return load_model(build_module(family, seed), dtype=dtype)


@torch.no_grad()
def _redraw(module: torch.nn.Module) -> None:
    conv = {id(m.weight) for m in module.modules() if isinstance(m, Conv1D)}
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    for parameter in module.parameters():
        if parameter.ndim < 2:
            parameter.add_(0.3 * torch.randn_like(parameter))
        elif id(parameter) in embeddings:
            parameter.copy_(torch.randn_like(parameter))
        else:
            fan_in = parameter.shape[0] if id(parameter) in conv else parameter.shape[-1]
            parameter.copy_(torch.randn_like(parameter) * 1.5 / fan_in**0.5)


def build_task(n: int = 3, n_pos: int = N_POS, seed: int = 0, **settings: Any) -> Task:
    """Random pairs of `n_pos` tokens that differ at one to three positions, answers among the first tokens."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(D_VOCAB, (n, n_pos), generator=generator)
    corrupt = clean.clone()
    for row in range(n):
        n_differing = int(torch.randint(1, 4, (), generator=generator))
        places = torch.randperm(n_pos - 1, generator=generator)[:n_differing]
        corrupt[row, places] = (clean[row, places] + 1 + row) % D_VOCAB
    answers = torch.stack([torch.randperm(D_VOCAB, generator=generator)[:2] for _ in range(n)])
    return Task.from_tokens(clean, corrupt, answers[:, 0], answers[:, 1], **settings)


def build_hard_task(n: int = 6, seed: int = 0, *, aligned: bool = True, **settings: Any) -> Task:
    """Pairs at which code that is right on `build_task` goes wrong, for every family of `FAMILIES`.

    Prompts of 7 to 11 tokens, the longest not first and later pairs shorter than earlier ones; spans ``S`` (two or
    three tokens) and ``V`` (one or two) at other columns in every row; one to three right and one or two wrong answers;
    the number of differing tokens and their columns differ from row to row. Not `aligned`: some corrupt prompts are
    longer than their clean ones and than every clean one, some shorter, with spans of other widths.
    """
    draw = torch.Generator().manual_seed(seed + 1)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=draw))

    rows: dict[str, list[Any]] = {"clean": [], "corrupt": [], "right": [], "wrong": [], "spans": [], "others": []}
    for i in range(n):
        length, s, v = 7 + (3 * i + 2) % 5, 2 + i % 2, 1 + (i + 1) % 2
        at = 1 + i % 2
        spans = {"S": list(range(at, at + s)), "V": list(range(length - v - 1, length - 1))}
        clean = torch.randint(D_VOCAB, (length,), generator=draw).tolist()
        longer = 0 if aligned else (1, -1, 2, 0)[i % 4]
        others = {"S": list(range(at, at + s + longer)), "V": [p + longer for p in spans["V"]]}
        fresh = torch.randint(D_VOCAB, (length + longer,), generator=draw).tolist()
        corrupt = [*clean[:at], *fresh[at : at + s + longer], *clean[at + s :]]
        for column in range(at, at + s + longer):
            if column < length and corrupt[column] == clean[column]:
                corrupt[column] = (corrupt[column] + 1) % D_VOCAB
        answers = torch.randperm(D_VOCAB, generator=draw)[:5].tolist()
        rows["clean"].append(clean)
        rows["corrupt"].append(corrupt)
        rows["right"].append(answers[: 1 + pick(0, 3)])
        rows["wrong"].append(answers[3 : 4 + i % 2])
        rows["spans"].append(spans)
        rows["others"].append(others)
    return Task.from_tokens(
        rows["clean"], rows["corrupt"], rows["right"], rows["wrong"], spans=rows["spans"], corrupt_spans=rows["others"],
        **settings,
    )  # fmt: skip


def alone(task: Task, row: int) -> Task:
    """The pair `row` as a task of its own, without the padding and the answers of the others.

    Made from its prompts and not by ``task[[row]]``, so that slicing is no part of what is compared.
    """
    pairs = task.pairs
    lengths = int(pairs.lengths[row]), int(pairs.corrupt_lengths[row])
    tables = pairs.spans, pairs.corrupt_spans
    spans = [
        {name: mask[row, :length].nonzero().flatten().tolist() for name, mask in table.items() if bool(mask[row].any())}
        for table, length in zip(tables, lengths, strict=True)
    ]
    answers = [[int(a) for a in side[row] if int(a) >= 0] for side in (pairs.correct, pairs.incorrect)]
    return Task.from_tokens(
        [pairs.clean_tokens[row, : lengths[0]].tolist()],
        [pairs.corrupt_tokens[row, : lengths[1]].tolist()],
        [answers[0]],
        [answers[1]],
        spans=spans[:1] if tables[0] else None,
        corrupt_spans=spans[1:] if tables[1] else None,
        metric=task.metric,
    )


def rounding(model: Any) -> float:
    """What float64 results of other shapes may differ by.

    GPT-J's attention and RMSNorm (as Hugging Face writes it) compute in float32 inside, whose last digit depends on how
    a processor sums rows of another shape.
    """
    if model.cfg.architecture == "GPTJForCausalLM":
        return 1e-5
    return 1e-6 if "RMS" in str(model.cfg.normalization_type) else 1e-9


def padded(model: Any, tolerance: float) -> float:
    """`tolerance`, for prompts that ran at another width: OPT takes its softmax in float32 (as Hugging Face writes it),
    whose last digit depends on the number of columns.
    """
    return max(tolerance, 1e-5) if model.cfg.architecture == "OPTForCausalLM" else tolerance


def kv_head(model: Any, head: int) -> int:
    """`head`, or the last key/value head of a model that has fewer (Falcon has one)."""
    return min(head, (model.cfg.n_key_value_heads or model.cfg.n_heads) - 1)


@contextmanager
def borrowed(model: Any) -> Iterator[Any]:
    """The model; on exit asserts that nothing about it has changed: hooks, flags, training mode, gradients, weights."""
    before = _state(model)
    yield model
    after = _state(model)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert not changed, f"the model was borrowed and came back changed: {', '.join(changed[:8])}"


def _state(model: Any) -> dict[str, Any]:
    state: dict[str, Any] = {"weights": hash_weights(model)}
    for name, parameter in model.named_parameters():
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f"gradient of {name}"] = parameter.grad is not None
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        state[f"hooks of {name}"] = tuple(len(table) for table in hooks)
        state[f"training mode of {name}"] = module.training
        state[f"forward of {name}"] = "forward" in vars(module)
    state |= {f"setting {key}": value for key, value in vars(model.cfg).items() if isinstance(value, bool | int | str)}
    return state
