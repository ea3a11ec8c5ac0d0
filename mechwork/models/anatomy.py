"""What a model is made of, read from the loaded bridge: the facts that every method needs and no method should look up.

An architecture is claimed when it stands in `CLAIMED` *and* its blocks have the parts this file knows; everything else
is refused by name, never treated approximately.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError, UnsupportedModelError
from ..sites import (
    BLOCK_NORMS,
    FINAL_NORM,
    HEAD_NORMS,
    MLP_KINDS,
    SITE_KINDS,
    SQUARE_KINDS,
    Site,
    block_module,
    hook_name,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CLAIMED = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Olmo2ForCausalLM",
    "MixtralForCausalLM",
    "OlmoeForCausalLM",
    "Qwen3MoeForCausalLM",
    "Phi3ForCausalLM",
    "OPTForCausalLM",
    "GPTJForCausalLM",
    "FalconForCausalLM",
)
"""Hugging Face architectures on which every fast method is tested against its literal form."""

NATIVE = "TransformerLensNative"
"""TransformerLens' own small models (`TransformerBridge.boot_native`): also claimed, with or without norms and MLPs."""

ELEMENTWISE = ("gelu", "gelu_new", "relu", "silu", "swish")
"""Activations of native MLPs that act on each neuron alone, as the rules and the literal forms take for granted."""

NormPlace = Literal["pre", "post", "both"]


@dataclass(frozen=True)
class ModelAnatomy:
    """The parts of a decoder-only transformer. Sizes are counts; `soft cap` values are None where there is none.

    `norm_kind` is that of the blocks; a model without norms counts as `norm_place` "pre". `attn_only` blocks have no
    MLP. Attention is `causal`, except in native models made for compiled programs, where every position sees all.
    """

    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int
    n_ctx: int
    parallel: bool
    gated: bool
    n_experts: int | None
    norm_kind: Literal["layer", "rms", "none"]
    norm_place: NormPlace
    qk_norm: bool
    open_attention: bool
    """Whether scores and pattern can be written; where the wrapped module runs attention by itself they can only be
    read.
    """
    attn_soft_cap: float | None
    final_soft_cap: float | None
    attn_only: bool = False
    causal: bool = True

    @property
    def group_size(self) -> int:
        """Query heads per key/value head."""
        return self.n_heads // self.n_kv_heads

    def has_site(self, kind: str) -> bool:
        """Whether this architecture has the kind of site."""
        if self.attn_only and kind in MLP_KINDS:
            return False
        if kind == "resid_mid":
            return not self.parallel
        if kind == "mlp_pre_linear":
            return self.gated and self.n_experts is None
        if kind in ("mlp_pre", "mlp_post"):
            return self.n_experts is None
        if kind == "router_logits":
            return self.n_experts is not None
        return kind in SITE_KINDS

    def check_site(self, site: Site) -> None:
        """Raises `InputError` when the model has no such place."""
        if not self.has_site(site.kind):
            missing = (
                "its blocks have no MLP"
                if self.attn_only
                else "its attention and MLP run in parallel"
                if site.kind == "resid_mid"
                else "it has no experts"
                if site.kind == "router_logits"
                else "its MLP has no such tensor"
            )
            raise InputError(
                f"{self.architecture} has no site {site.kind!r}: {missing}. Use another kind, e.g. 'resid_pre'."
            )
        if site.layer is not None and not 0 <= site.layer < self.n_layers:
            raise InputError(f"layers of this model are 0 to {self.n_layers - 1}; got {site}")
        heads = self.n_kv_heads if site.kind in ("k", "v") else self.n_heads
        if site.head is not None and not 0 <= site.head < heads:
            raise InputError(f"heads at {site.kind!r} are 0 to {heads - 1}; got {site}")

    def check_writable(self, site: Site) -> None:
        """Raises `InputError` when the model has no such place, or writing there would silently do nothing."""
        self.check_site(site)
        if site.kind in SQUARE_KINDS and not self.open_attention:
            raise InputError(
                f"{self.architecture} computes attention inside the wrapped module: {site.kind!r} can be read there, "
                "not written. "
                "Write 'q', 'k', 'v' or 'z' instead."
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm or RMSNorm as numbers: ``gain * centre(x) / scale(x) + bias``, in at least float32."""

    centred: bool
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    eps: float

    def centre(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        return x - x.mean(dim=-1, keepdim=True) if self.centred else x

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """The denominator: root mean square of the (centred) input."""
        return (self.centre(x).pow(2).mean(dim=-1, keepdim=True) + self.eps).sqrt()

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        x = x.to(self.gain.device)
        y = self.gain * self.centre(x) / self.scale(x)
        return y if self.bias is None else y + self.bias

    def detached(self) -> Norm:
        """The same numbers outside any autograd graph."""
        return Norm(self.centred, self.gain.detach(), None if self.bias is None else self.bias.detach(), self.eps)

    def linear(
        self, x: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*#batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The norm's linear part at a given scale, without bias: how a *share* of the input comes out."""
        return self.gain * self.centre(x.to(self.gain.device)) / scale.to(self.gain.device)


def read_norm(component: Any) -> Norm:
    """The numbers of a bridge's normalisation module, its parameters live (their gradients are the bias account)."""
    original = component.original_component
    eps = getattr(original, "eps", None)
    if eps is None:
        eps = getattr(original, "variance_epsilon", None)
    if eps is None:
        eps = component.config.eps
    weight = component.weight
    gain = 1.0 + weight if component.uses_weight_offset else weight
    return Norm(not component.uses_rms_norm, gain, getattr(original, "bias", None), float(eps))


def heads_share_scale(model: TransformerBridge, layer: int) -> bool:
    """Whether the heads of a layer are coupled by a norm over all of them: after attention, or on queries and keys
    (OLMo 2, OLMoE).
    """
    block = model.blocks[layer]
    if block_norm(model, layer, "ln1_post") is not None:
        return True
    norms = [getattr(block.attn, name) for name in HEAD_NORMS if name in block.attn.submodules]
    return any(read_norm(norm).gain.numel() > int(model.cfg.d_head) for norm in norms)


def block_norm(model: TransformerBridge, layer: int, name: str) -> Norm | None:
    """Norm ``ln1``, ``ln2``, ``ln1_post`` or ``ln2_post`` of a block; None when the block has none there."""
    block = model.blocks[layer]
    if name not in block.submodules or not normalises(getattr(block, name)):
        return None
    return read_norm(getattr(block, name)).detached()


def mlp_norm_name(model: TransformerBridge, layer: int) -> str:
    """The norm whose output the MLP reads: its own, or the one that attention and MLP of a parallel block share."""
    submodules = model.blocks[layer].submodules
    return "ln1" if "ln1" in submodules and "ln2" not in submodules else "ln2"


def final_norm(model: TransformerBridge) -> Norm | None:
    """The norm before the unembedding; None when there is none."""
    norm = getattr(model, FINAL_NORM)
    return read_norm(norm).detached() if normalises(norm) else None


def normalises(component: Any) -> bool:
    """Whether a bridge's norm slot holds a norm: models without norms have an identity there."""
    return not isinstance(component.original_component, nn.Identity)


def read_anatomy(model: TransformerBridge) -> ModelAnatomy:
    """The anatomy of a loaded bridge; raises `UnsupportedModelError`, saying what is missing, for others."""
    cfg = model.cfg
    architecture = str(cfg.architecture)
    if architecture == NATIVE:
        _check_native(cfg)
    elif architecture not in CLAIMED:
        raise UnsupportedModelError(
            f"mechwork claims {', '.join((*CLAIMED, NATIVE))}; this model is {architecture}. Its parts have not been "
            "tested against "
            "literal forms, so results could be silently wrong."
        )
    else:
        _check_variant(architecture, cast(Any, model.original_model).config)
    if getattr(cfg, "use_split_qkv_input", False) or getattr(cfg, "use_attn_in", False):
        raise InputError(
            "split query, key and value inputs bypass the norms' own modules. Call "
            "model.set_use_split_qkv_input(False) and "
            "model.set_use_attn_in(False); mechwork splits nothing and has every head's edges all the same."
        )
    block = model.blocks[0]
    parts = set(block.submodules)
    attn_only = architecture == NATIVE and "mlp" not in parts
    if "attn" not in parts or not (attn_only or "mlp" in parts):
        raise UnsupportedModelError(
            f"every block needs attention and an MLP; {architecture} has {', '.join(sorted(parts))}"
        )
    pre, post = "ln1" in parts, "ln1_post" in parts
    if not (pre or post):
        raise UnsupportedModelError(
            f"{architecture} blocks have no norm that mechwork knows; found {', '.join(sorted(parts))}"
        )
    kinds = ("resid_pre", "attn_out", "q", "k", "v", "z", *(() if attn_only else ("mlp_out", "mlp_in")))
    names = {hook_name(Site(kind, 0)) for kind in kinds}
    missing = sorted(names - set(model.hook_dict))
    if missing:
        raise UnsupportedModelError(f"{architecture} lacks the hook points {', '.join(missing)}")
    return ModelAnatomy(
        architecture=architecture,
        n_layers=int(cfg.n_layers),
        n_heads=int(cfg.n_heads),
        n_kv_heads=int(cfg.n_key_value_heads or cfg.n_heads),
        d_model=int(cfg.d_model),
        d_head=int(cfg.d_head),
        d_vocab=int(cfg.d_vocab),
        n_ctx=int(cfg.n_ctx),
        parallel=bool(cfg.parallel_attn_mlp),
        gated=bool(cfg.gated_mlp),
        n_experts=int(cfg.num_experts) if cfg.num_experts else None,
        norm_kind=_norm_kind(getattr(block, "ln1" if pre else "ln1_post")),
        norm_place="both" if pre and post else "pre" if pre else "post",
        qk_norm="q_norm" in block.attn.submodules,
        open_attention=_open_attention(block.attn),
        attn_soft_cap=_cap(cfg.attn_scores_soft_cap),
        final_soft_cap=_cap(cfg.output_logits_soft_cap),
        attn_only=attn_only,
        causal=architecture != NATIVE or cfg.attention_dir == "causal",
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "OPTForCausalLM": {"do_layer_norm_before": True, "_remove_final_layer_norm": False},
    "FalconForCausalLM": {
        "new_decoder_architecture": False,
        "alibi": False,
        "parallel_attn": True,
        "multi_query": True,
    },
    "Qwen3MoeForCausalLM": {"decoder_sparse_step": 1, "mlp_only_layers": []},
}
"""Settings of an architecture under which it is claimed; its other variants have other blocks."""


def _check_variant(architecture: str, config: Any) -> None:
    for setting, claimed in VARIANTS.get(architecture, {}).items():
        if getattr(config, setting, claimed) != claimed:
            raise UnsupportedModelError(
                f"{architecture} is claimed with {setting}={claimed}; this model has "
                f"{setting}={getattr(config, setting)}, "
                "whose blocks have not been tested against literal forms."
            )
    if architecture == "OPTForCausalLM" and config.word_embed_proj_dim != config.hidden_size:
        raise UnsupportedModelError(
            "OPT is claimed without projections around its embedding; this model projects "
            f"{config.word_embed_proj_dim} to {config.hidden_size}"
        )


def _check_native(cfg: Any) -> None:
    """Raises `UnsupportedModelError` for native models with parts that have no literal form."""
    if str(cfg.normalization_type).lower() not in ("none", "ln", "rms"):
        raise UnsupportedModelError(
            f"native models have normalization_type None, 'LN' or 'RMS'; got {cfg.normalization_type!r}"
        )
    if not cfg.attn_only and str(cfg.act_fn).lower() not in ELEMENTWISE:
        raise UnsupportedModelError(f"native MLPs have act_fn {', '.join(ELEMENTWISE)}; got {cfg.act_fn!r}")


def _norm_kind(component: Any) -> Literal["layer", "rms", "none"]:
    if not normalises(component):
        return "none"
    return "rms" if component.uses_rms_norm else "layer"


def norm_modules(model: TransformerBridge) -> Iterator[tuple[str, nn.Module]]:
    """Every normalisation module with the bridge's dotted name: block norms, q/k-norms, the final norm."""
    for layer, block in enumerate(model.blocks):
        for name in BLOCK_NORMS:
            if name in block.submodules and normalises(getattr(block, name)):
                yield block_module(layer, name), getattr(block, name)
        for name in HEAD_NORMS:
            if name in block.attn.submodules:
                yield block_module(layer, "attn", name), getattr(block.attn, name)
    if normalises(getattr(model, FINAL_NORM)):
        yield FINAL_NORM, getattr(model, FINAL_NORM)


def check_ready(model: TransformerBridge) -> ModelAnatomy:
    """The anatomy, after checking that results would be meaningful: evaluation mode, finite weights are the caller's
    own.

    Raises `InputError` for a model in training mode (dropout would make every number random).
    """
    if not hasattr(model, "hook_dict") or not hasattr(model, "blocks"):
        raise InputError(
            f"a TransformerBridge is needed; got {type(model).__name__}. Use mechwork.load_model(...), which also "
            "wraps Hugging Face modules."
        )
    if model.training:
        raise InputError("the model is in training mode, where dropout makes results random. Call model.eval() first.")
    return read_anatomy(model)


def device_of(model: TransformerBridge) -> torch.device:
    """The device the model's inputs go to."""
    return next(model.parameters()).device


def layer_devices(model: TransformerBridge) -> list[torch.device]:
    """The device of every block's weights: more than one for a model that was loaded by `device_map`."""
    return [next(block.parameters()).device for block in model.blocks]


def dtype_of(model: TransformerBridge) -> torch.dtype:
    """The dtype of the model's parameters."""
    return next(model.parameters()).dtype


def _open_attention(attn: Any) -> bool:
    """TransformerLens' plain attention bridge hands the whole computation to the wrapped module."""
    from transformer_lens.model_bridge.generalized_components import AttentionBridge

    return type(attn) is not AttentionBridge


def _cap(value: Any) -> float | None:
    return float(value) if value is not None and float(value) > 0 else None
