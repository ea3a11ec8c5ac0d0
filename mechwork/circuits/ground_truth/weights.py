"""Transformers whose weights are written by hand: named subspaces of the residual stream, and parts that read and write
them.

As in RASP compilers (Weiss et al. 2021; Lindner et al. 2023) every variable has a subspace of its own, so that who
writes and who reads it can be seen in the weights. Models have no norms, float64 weights and unscaled attention scores.

    >>> stream = NamedStream(token=3, pos=4, out=3)
    >>> stream.write("out", stream.read("token"))  # a d_model x d_model map that copies token to out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...models.load import load_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SHARP = 60.0
"""Attention scores of what is looked for, above the rest: exp(-60) is below the precision of float64."""


class NamedStream:
    """The residual stream as named subspaces, in order: ``NamedStream(token=3, pos=4)`` has d_model 7."""

    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        self.d_model = sum(sizes.values())
        self._start = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist()[:-1], strict=True))

    def read(self, name: str) -> Float[Tensor, "d_model size"]:
        """The map from the stream to the coordinates of a subspace."""
        start = self._start[name]
        return torch.eye(self.d_model, dtype=torch.float64)[:, start : start + self.sizes[name]]

    def write(self, name: str, values: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows d_model"]:
        """`values`, as coordinates of a subspace, in the stream."""
        return values.double() @ self.read(name).T


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """An attention head: scores ``(x q) . (y k)``, value ``y v``, which ``o`` writes to the stream. Without `q`,
    attention is uniform.
    """

    v: Float[Tensor, "d_model size"]
    o: Float[Tensor, "size d_model"]
    q: Float[Tensor, "d_model match"] | None = None
    k: Float[Tensor, "d_model match"] | None = None


@dataclass(frozen=True, eq=False)
class Mlp:
    """``relu(x w_in) w_out``: as in RASP compilers, thresholds come from a direction of the stream that is always 1."""

    w_in: Float[Tensor, "d_model d_mlp"]
    w_out: Float[Tensor, "d_mlp d_model"]


@dataclass(frozen=True, eq=False)
class BlockWeights:
    """The heads and the MLP of a layer."""

    heads: Sequence[HeadWeights] = ()
    mlp: Mlp | None = None


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A whole model: embeddings, blocks, unembedding. `causal` is off for programs whose positions see all others."""

    name: str
    embed: Float[Tensor, "d_vocab d_model"]
    pos: Float[Tensor, "n_ctx d_model"]
    unembed: Float[Tensor, "d_model d_vocab"]
    blocks: Sequence[BlockWeights] = field(default_factory=tuple)
    causal: bool = True

    def build(self) -> TransformerBridge:
        """The model, in float64 and ready to be analysed; blocks are filled up with heads and MLPs that write
        nothing.
        """
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge.sources import boot_native

        heads = [head for block in self.blocks for head in block.heads]
        mlps = [block.mlp for block in self.blocks if block.mlp is not None]
        n_heads = max(1, *(len(block.heads) for block in self.blocks))
        d_head = max(2, *(m.shape[1] for h in heads for m in (h.v, h.q) if m is not None))
        d_mlp = max([mlp.w_in.shape[1] for mlp in mlps], default=None)
        config = TransformerBridgeConfig(
            d_model=self.embed.shape[1],
            n_layers=len(self.blocks),
            n_heads=n_heads,
            d_head=d_head,
            n_ctx=len(self.pos),
            d_vocab=len(self.embed),
            d_mlp=d_mlp,
            act_fn="relu",
            attn_only=d_mlp is None,
            normalization_type=None,
            attention_dir="causal" if self.causal else "bidirectional",
            init_weights=False,
        )
        model: Any = boot_native(config, dtype=torch.float64, model_name=self.name)
        weights = {"tok_embed.weight": self.embed, "pos.weight": self.pos, "head.weight": self.unembed.T}
        weights["head.bias"] = torch.zeros(len(self.embed))
        for layer, block in enumerate(self.blocks):
            weights |= {f"layers.{layer}.attn.{name}": w for name, w in _attention(block, config).items()}
            if d_mlp is not None:
                weights |= {f"layers.{layer}.mlp.{name}": w for name, w in _mlp(block, config).items()}
        weights = {name: weight.double().contiguous() for name, weight in weights.items()}
        found = model.load_state_dict(weights, strict=False)  # the host lists some modules under two names
        assert not found.unexpected_keys, found.unexpected_keys
        return load_model(model)


def _attention(block: BlockWeights, config: Any) -> dict[str, Tensor]:
    """Weights of an attention layer in the host's spelling, heads one after another; unused ones are zero."""
    n_heads, d_head, d_model = config.n_heads, config.d_head, config.d_model
    parts = {name: torch.zeros(n_heads, d_head, d_model, dtype=torch.float64) for name in "qkv"}
    out = torch.zeros(d_model, n_heads, d_head, dtype=torch.float64)
    for i, head in enumerate(block.heads):
        size = head.v.shape[1]
        parts["v"][i, :size] = head.v.T
        out[:, i, :size] = head.o.T
        if head.q is not None and head.k is not None:
            size = head.q.shape[1]
            parts["q"][i, :size] = head.q.T * d_head**0.5  # the host divides scores by sqrt(d_head)
            parts["k"][i, :size] = head.k.T
    weights = {f"{name}.weight": part.flatten(0, 1) for name, part in parts.items()}
    weights |= {f"{name}.bias": torch.zeros(n_heads * d_head) for name in "qkv"}
    return {**weights, "o.weight": out.flatten(1), "o.bias": torch.zeros(d_model)}


def _mlp(block: BlockWeights, config: Any) -> dict[str, Tensor]:
    w_in = torch.zeros(config.d_mlp, config.d_model, dtype=torch.float64)
    w_out = torch.zeros(config.d_model, config.d_mlp, dtype=torch.float64)
    if block.mlp is not None:
        size = block.mlp.w_in.shape[1]
        w_in[:size], w_out[:, :size] = block.mlp.w_in.T, block.mlp.w_out.T
    zeros = {"fc_in.bias": torch.zeros(config.d_mlp), "fc_out.bias": torch.zeros(config.d_model)}
    return {"fc_in.weight": w_in, "fc_out.weight": w_out, **zeros}


def one_hot(index: int | Sequence[int], size: int) -> Float[Tensor, "*rows size"]:
    """Unit vectors."""
    return torch.eye(size, dtype=torch.float64)[torch.as_tensor(index)]


def copy_head(stream: NamedStream, source: str, target: str) -> dict[str, Tensor]:
    """`v` and `o` of a head that moves one subspace into another of the same size."""
    return {"v": stream.read(source), "o": stream.write(target, torch.eye(stream.sizes[source]))}
