"""The host run as a frame to step in: any rows of the residual stream can enter at any block and any position.

A patched run differs from its host only from the patched layer on and, under causal attention, only from the patched
position on. So the frame keeps the host's residual stream, the keys and values of every layer, and the arguments each
attention module was called with; a *step* runs one block on the columns ``start ..`` alone, attending over the host's
keys and values before them. Rows are ``copies x pairs`` with the copies outermost, so that many patched runs share one
step. The block's modules are the model's own (norms, attention with rotary embedding, soft caps, windows and
q/k-norm, experts); only their wiring is spelled here:

    pre or both:  mid = x + [post](attn(norm(x)));   y = mid + [post](mlp(norm(mid)))
    post:         mid = x + norm(attn(x));           y = mid + norm(mlp(mid))
    parallel:     y = x + attn(norm(x)) + mlp(norm'(x))

`Frame.check` runs the first pair through it and compares with the recorded run, so that an architecture whose wiring
differs (a scaled residual) is found out before any number is reported. Cost of recording: the host's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UnsupportedModelError
from ..models.anatomy import ModelAnatomy, mlp_norm_name, read_anatomy
from ..models.borrow import borrow, hooked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CACHE_ARGUMENTS = ("past_key_values", "layer_past")
"""What attention modules call their cache of keys and values."""

Hooks = Sequence[tuple[str, Any]]


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """How the host called one layer's attention: its arguments without the hidden states, and the keys and values.

    Keys and values are ``[batch, kv_head, pos, d_head]``, after rotation and norm. `by_name`: hidden states go by name.
    """

    arguments: dict[str, Any]
    cache_argument: str
    by_name: bool
    keys: Float[Tensor, "batch kv_head pos d_head"]
    values: Float[Tensor, "batch kv_head pos d_head"]

    def at(self, start: int, stop: int, rows: int) -> dict[str, Any]:
        """The arguments for queries at columns ``start .. stop`` of `rows` rows, over the host's keys before
        `start`.
        """
        sliced: dict[str, Any] = {}
        for name, value in self.arguments.items():
            if name == "attention_mask" and value is not None:
                value = value[..., start:stop, :stop]
                value = value if len(value) == 1 else value.repeat(rows // len(value), 1, 1, 1)
            elif name == "position_ids" and value is not None:
                value = value[..., start:stop]
            elif name == "position_embeddings" and value is not None:
                value = tuple(part[:, start:stop] for part in value)
            sliced[name] = value
        sliced[self.cache_argument] = _Extend(self.keys, self.values, start) if start else None
        return sliced


class _Keep:
    """Stands in for the cache while the host runs, and keeps the keys and values of one layer."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.kept = keys.detach(), values.detach()
        return keys, values


class _Extend:
    """Stands in for the cache in a step: the host's keys and values before `start`, then the step's own."""

    def __init__(self, keys: Tensor, values: Tensor, start: int) -> None:
        self.before = keys[:, :, :start], values[:, :, :start]

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        copies = len(keys) // len(self.before[0])
        before = (part if copies == 1 else part.repeat(copies, 1, 1, 1) for part in self.before)
        return tuple(torch.cat(pair, dim=2) for pair in zip(before, (keys, values), strict=True))  # pyright: ignore[reportReturnType]


@contextmanager
def keep_attention_calls(model: TransformerBridge) -> Iterator[list[AttentionCall | None]]:
    """Inside, one forward fills the yielded list with one `AttentionCall` per layer."""
    calls: list[AttentionCall | None] = [None] * len(model.blocks)
    keepers = [_Keep() for _ in model.blocks]

    def before(keeper: _Keep) -> Any:
        def swap(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            names = [name for name in CACHE_ARGUMENTS if name in kwargs]
            return args, {**kwargs, **dict.fromkeys(names, keeper)}

        return swap

    def after(layer: int, keeper: _Keep) -> Any:
        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            names = [name for name in CACHE_ARGUMENTS if name in kwargs]
            if names and keeper.kept is not None:
                rest = {
                    name: _one_row(value) for name, value in kwargs.items() if name not in ("hidden_states", names[0])
                }
                calls[layer] = AttentionCall(rest, names[0], "hidden_states" in kwargs, *keeper.kept)

        return note

    with borrow(model), ExitStack() as undo:
        for layer, (block, keeper) in enumerate(zip(model.blocks, keepers, strict=True)):
            attn: Any = block.attn
            undo.callback(attn.register_forward_pre_hook(before(keeper), with_kwargs=True).remove)
            undo.callback(attn.register_forward_hook(after(layer, keeper), with_kwargs=True).remove)
        yield calls


def _one_row(value: Any) -> Any:
    """A mask whose rows are all alike as one row that broadcasts; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim == 4 and len(value) > 1 and bool((value == value[:1]).all()):
        return value[:1]
    return value


@dataclass(frozen=True, eq=False)
class Frame:
    """A recorded host run, ready for stepping. `resid_pre` has one entry per layer and the final residual
    stream last.
    """

    model: TransformerBridge
    anatomy: ModelAnatomy
    resid_pre: list[Float[Tensor, "batch pos d_model"]]
    calls: list[AttentionCall]

    @property
    def n_layers(self) -> int:
        return len(self.calls)

    def attend(
        self, layer: int, x: Float[Tensor, "row column d_model"], start: int, hooks: Hooks = ()
    ) -> Float[Tensor, "row column d_model"]:
        """What attention of `layer` adds to the stream at columns ``start ..`` for rows entering the block with `x`."""
        call = self.calls[layer]
        x = x.to(call.keys.device)
        arguments = call.at(start, start + x.shape[1], len(x))
        normed = self.norm(layer, "ln1", x)
        attn: Any = self.model.blocks[layer].attn
        with hooked(self.model, list(hooks)):
            output = attn(hidden_states=normed, **arguments) if call.by_name else attn(normed, **arguments)
        return self.norm(layer, "ln1_post", output[0] if isinstance(output, tuple) else output)

    def project(self, layer: int, z: Float[Tensor, "row column head d_head"]) -> Float[Tensor, "row column d_model"]:
        """What attention of `layer` adds to the stream when its heads put out `z`."""
        output: Any = self.model.blocks[layer].attn.o
        return self.norm(layer, "ln1_post", output.original_component(z.flatten(2)))

    def feed(
        self, layer: int, mid: Float[Tensor, "row column d_model"], hooks: Hooks = ()
    ) -> Float[Tensor, "row column d_model"]:
        """What the MLP of `layer` adds to the stream; `mid` is the stream it reads (``resid_pre`` in parallel
        blocks).
        """
        mlp: Any = self.model.blocks[layer].mlp
        with hooked(self.model, list(hooks)):
            output = mlp(self.norm(layer, mlp_norm_name(self.model, layer), mid))
        return self.norm(layer, "ln2_post", output[0] if isinstance(output, tuple) else output)

    def step(
        self,
        layer: int,
        x: Float[Tensor, "row column d_model"],
        start: int,
        only: Int[Tensor, "row n_columns"] | None = None,
    ) -> Float[Tensor, "row column2 d_model"]:
        """One block on columns ``start ..``. `only`: the columns of each row (counted from `start`) whose output is
        needed.
        """
        x = x.to(self.calls[layer].keys.device)
        attn_out = self.attend(layer, x, start)
        if only is not None:
            x, attn_out = take_columns(x, only), take_columns(attn_out, only)
        mid = x + attn_out
        return self.feed(layer, x) + mid if self.anatomy.parallel else mid + self.feed(layer, mid)

    def check(self) -> None:
        """Raises `UnsupportedModelError` when stepping the first pair does not give its recorded run."""
        start = self.resid_pre[0].shape[1] // 2
        one = Frame(
            self.model, self.anatomy, [x[:1] for x in self.resid_pre], [_first_row(call) for call in self.calls]
        )
        x = one.resid_pre[0][:, start:]
        for layer in range(self.n_layers):
            x = one.step(layer, x, start)
        expected = one.resid_pre[-1][:, start:]
        # At least float32's: some attention (GPT-J) computes in float32 inside, whatever the model's dtype.
        eps = max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps)
        tolerance = min(2000 * eps, 0.05) * float(expected.abs().max())
        difference = float((x - expected.to(x.device)).abs().max())
        if not difference <= tolerance:
            raise UnsupportedModelError(
                f"blocks of {self.anatomy.architecture} cannot be run one by one: the stream comes out wrong by "
                f"{difference:.2g}. "
                "Patch with tricks=Tricks(suffix=False), which runs whole forwards."
            )

    def norm(self, layer: int, name: str, x: Tensor) -> Tensor:
        """`x` through the norm of that name, or as it is where the block has none there."""
        block: Any = self.model.blocks[layer]
        return getattr(block, name).original_component(x) if name in block.submodules else x


def _first_row(call: AttentionCall) -> AttentionCall:
    arguments = {
        name: value[:1] if isinstance(value, Tensor) and value.ndim == 4 else value
        for name, value in call.arguments.items()
    }
    return AttentionCall(arguments, call.cache_argument, call.by_name, call.keys[:1], call.values[:1])


def take_columns(
    x: Float[Tensor, "row column d"], columns: Int[Tensor, "row n_columns"]
) -> Float[Tensor, "row n_columns d"]:
    """Some columns of each row."""
    return x[torch.arange(len(x), device=x.device)[:, None], columns.to(x.device)]


def build_frame(
    model: TransformerBridge,
    resid_pre: list[Float[Tensor, "batch pos d_model"]],
    calls: Sequence[AttentionCall | None],
) -> Frame:
    """The frame of a run recorded inside `keep_attention_calls`; checked.

    `resid_pre` of every layer and the last layer's ``resid_post``. Raises `UnsupportedModelError` when an attention
    module was not called as this file knows (no cache, unknown tensors among its arguments), or the check fails.
    """
    known = {"attention_mask", "position_ids", "position_embeddings"}
    made = [call for call in calls if call is not None]
    for call in made:
        strange = [n for n, v in call.arguments.items() if n not in known and _holds_tensor(v)]
        if strange:
            raise UnsupportedModelError(f"attention of {model.cfg.architecture} takes tensors unknown here: {strange}")
    if any(getattr(getattr(block, "mlp", None), "name", "") is None for block in model.blocks):
        raise UnsupportedModelError(
            f"the MLP of {model.cfg.architecture} is no module of its own that could be run alone"
        )
    if len(made) != len(model.blocks):
        raise UnsupportedModelError(f"attention of {model.cfg.architecture} keeps no cache of keys and values")
    frame = Frame(model, read_anatomy(model), resid_pre, made)
    frame.check()
    return frame


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensor, value)))
