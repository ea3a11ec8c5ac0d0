"""The shapes of model that a recipe can ask for, and what the loop and the measurements must know of each.

``gpt2``: learned positions, LayerNorm, GELU. ``llama``: RMSNorm, SwiGLU, rotary positions, grouped keys and values.
``attn-only``: a Llama with every MLP held at zero (its parameters are zero and never trained), so that attention alone
does the work; rotary positions, because learned ones let it find "the next position" without a previous-token head.
``neox``: attention and MLP side by side, partly rotary. ``gemma2``: norms after each block as well, soft caps, and a
sliding window in every second layer. ``mixtral``: a Llama whose MLPs are mixtures of four experts, two for each token.
All tie the unembedding to the embedding, but for ``neox``, whose class has its
own habit and is told to.

The Hugging Face classes are used as they are; a finished model loads with ``AutoModelForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers as hf
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from .recipe import Recipe

WINDOW = 16
"""Tokens that a sliding layer of ``gemma2`` sees, its own included."""

N_EXPERTS, N_CHOSEN = 4, 2
"""Experts of a layer of ``mixtral``, and how many each token goes to."""


@dataclass(frozen=True)
class Architecture:
    """One kind of model: how it is built, and where the attention's writes to the residual stream are made.

    `layers` is the path of the list of decoder layers; below one of them, `attention` is the path of the module whose
    output is added to the residual stream, `projection` that of the linear map from the heads' outputs, and `values`
    that of the map whose output has the values: alone, as the last third (``"thirds"``), or as the last third of each
    head's part (``"per head"``).
    """

    build: Callable[[Recipe, int], PreTrainedModel]
    layers: str
    attention: str
    projection: str
    values: str = "self_attn.v_proj"
    packed: str = "alone"


def _common(recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "initializer_range": recipe.initial_std, "bos_token_id": 0, "eos_token_id": 0,
        "pad_token_id": 0, "use_cache": False, "attn_implementation": "eager",
    }  # fmt: skip


def _sizes(recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    return {
        **_common(recipe, vocabulary), "max_position_embeddings": recipe.context, "hidden_size": recipe.d_model,
        "num_hidden_layers": recipe.n_layers, "num_attention_heads": recipe.n_heads, "intermediate_size": recipe.d_mlp,
        "tie_word_embeddings": True, "attention_dropout": 0.0,
    }  # fmt: skip


def _gpt2(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    config = hf.GPT2Config(
        **_common(recipe, vocabulary),
        n_positions=recipe.context,
        n_embd=recipe.d_model,
        n_layer=recipe.n_layers,
        n_head=recipe.n_heads,
        n_inner=recipe.d_mlp,
        activation_function="gelu_pytorch_tanh",  # the same function as "gelu_new", in one kernel
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return hf.GPT2LMHeadModel(config)


def _llama(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(**_sizes(recipe, vocabulary), num_key_value_heads=recipe.n_kv_heads or recipe.n_heads)
    )


def _attention_only(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    model = _llama(recipe, vocabulary)
    for layer in range(recipe.n_layers):
        for parameter in model.get_submodule(f"model.layers.{layer}.mlp").parameters():
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)
    return model


def _neox(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    return hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(**_sizes(recipe, vocabulary), hidden_dropout=0.0, use_parallel_residual=True)
    )


def _gemma2(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    d_head = recipe.d_model // recipe.n_heads
    config = hf.Gemma2Config(
        **_sizes(recipe, vocabulary),
        num_key_value_heads=recipe.n_kv_heads or recipe.n_heads,
        head_dim=d_head,
        query_pre_attn_scalar=d_head,
        sliding_window=WINDOW,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    return hf.Gemma2ForCausalLM(config)


def _mixtral(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    config = hf.MixtralConfig(
        **_sizes(recipe, vocabulary),
        num_key_value_heads=recipe.n_kv_heads or recipe.n_heads,
        num_local_experts=N_EXPERTS,
        num_experts_per_tok=N_CHOSEN,
        sliding_window=None,
    )
    model = hf.MixtralForCausalLM(config)
    model.set_experts_implementation("eager")  # the grouped kernels know no float64
    return model


ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(_gpt2, "transformer.h", "attn", "attn.c_proj", "attn.c_attn", "thirds"),
    "attn-only": Architecture(_attention_only, "model.layers", "self_attn", "self_attn.o_proj"),
    "llama": Architecture(_llama, "model.layers", "self_attn", "self_attn.o_proj"),
    "neox": Architecture(
        _neox, "gpt_neox.layers", "attention", "attention.dense", "attention.query_key_value", "per head"
    ),
    "gemma2": Architecture(_gemma2, "model.layers", "post_attention_layernorm", "self_attn.o_proj"),
    "mixtral": Architecture(_mixtral, "model.layers", "self_attn", "self_attn.o_proj"),
}


def build_model(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    """A freshly initialised model; the initial weights depend on the recipe only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return ARCHITECTURES[recipe.architecture].build(recipe, vocabulary).float()


def _shape(model: PreTrainedModel) -> Architecture:
    kind = str(model.config.model_type)
    return ARCHITECTURES[{"gpt_neox": "neox"}.get(kind, kind)]


def _below_layers(model: PreTrainedModel, choose: Callable[[Architecture], str]) -> list[nn.Module]:
    shape = _shape(model)
    return [layer.get_submodule(choose(shape)) for _, layer in model.get_submodule(shape.layers).named_children()]


def attention_writers(model: PreTrainedModel) -> list[nn.Module]:
    """Per layer, the module whose output is what attention adds to the residual stream."""
    return _below_layers(model, lambda shape: shape.attention)


def attention_projections(model: PreTrainedModel) -> list[nn.Module]:
    """Per layer, the linear map that takes the heads' outputs, side by side, to the residual stream."""
    return _below_layers(model, lambda shape: shape.projection)


def value_makers(model: PreTrainedModel) -> list[nn.Module]:
    """Per layer, the module whose output has the values of its heads (see `split_values`)."""
    return _below_layers(model, lambda shape: shape.values)


def split_values(
    model: PreTrainedModel, output: Float[Tensor, "row pos width"]
) -> Float[Tensor, "row pos head d_head"]:
    """The values of every query head, from the output of one of `value_makers`; grouped heads share theirs."""
    config, packed = model.config, _shape(model).packed
    n_heads = int(config.num_attention_heads)
    if packed == "per head":
        return output.unflatten(-1, (n_heads, 3, -1))[..., 2, :]
    if packed == "thirds":
        return output.chunk(3, dim=-1)[2].unflatten(-1, (n_heads, -1))
    n_groups = int(getattr(config, "num_key_value_heads", None) or n_heads)
    return output.unflatten(-1, (n_groups, -1)).repeat_interleave(n_heads // n_groups, dim=-2)


def _additive(allowed: Bool[Tensor, "row pos pos"]) -> Float[Tensor, "row 1 pos pos"]:
    """0 where a token may look, the most negative float elsewhere."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def document_mask(model: PreTrainedModel, document: Int[Tensor, "row pos"]) -> Any:
    """What the model takes as ``attention_mask`` so that a token sees its own document only, and nothing later.

    A model with sliding layers takes one mask per kind of layer.
    """
    same = (document[:, :, None] == document[:, None, :]).tril()
    window = getattr(model.config, "sliding_window", None)
    if not window:
        return _additive(same)
    near = torch.ones_like(same).triu(1 - window)
    return {"full_attention": _additive(same), "sliding_attention": _additive(same & near)}


def unembed(model: PreTrainedModel, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of final residual states, soft cap included, in float32 or wider."""
    logits = model.get_output_embeddings()(hidden)  # pyright: ignore[reportOptionalCall]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits
