"""Axis names and tensor aliases, spelled once.

Axes are named alike in jaxtyping strings, einops patterns and result axes:
``batch layer pos head query_pos key_pos d_model d_head d_mlp d_vocab writer reader``.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
"""Token ids, right-padded."""

Logits = Float[Tensor, "batch pos d_vocab"]
"""Next-token logits at every position."""

PositionMask = Bool[Tensor, "batch pos"]
"""Which positions of each prompt belong to something (a span, the real prompt, a patched cell)."""

PerExample = Float[Tensor, " batch"]
"""One number per pair; metrics are never averaged before they are returned."""

EdgeMatrix = Float[Tensor, "writer reader"]
"""One number per (writer, reader) cell of an edge space."""

EdgeMask = Bool[Tensor, "writer reader"]
"""Which cells of an edge space are edges, or belong to a circuit."""
