"""What every writer adds to the residual stream, in a run or as the difference of two runs.

Writes come from the cached `z` (times W_O), `mlp_out` and the stream entering block 0: no split-QKV flags, no hook per
head. They are laid out ``[writer, batch, pos, d_model]``, so that a layer's heads are filled by one batched product.

Post-norm models (Gemma-2, OLMo-2) normalise the *sum* of the heads before it is added. A head's write is then its share
of that sum at the scale of its own run, so that head writes always add up to `attn_out` exactly. Heads of a layer are
thereby
coupled: one that leads nowhere still moves the scale of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import InputError, UnsupportedModelError
from ...interventions.pairs import carrying_nodes
from ...interventions.routing import expert_writes
from ...models.anatomy import block_norm
from ...models.pulse import beat
from ...runs.record import Run, align_donor, check_task
from ...runs.writes import head_writes
from ...sites import MLP_KINDS
from ...tasks.marks import is_marked
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from .space import EdgeSpace

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WRITER_KINDS = ("resid_pre", "z", "mlp_out")
"""Site kinds from which writers are made (without MLPs: see `writer_kinds`)."""

Writes = Float[Tensor, "writer batch pos d_model"]
"""What every writer adds to the residual stream."""


def writer_kinds(space: EdgeSpace) -> tuple[str, ...]:
    """The writer kinds that a model of this graph has."""
    kinds = tuple(kind for kind in WRITER_KINDS if not (space.attn_only and kind in MLP_KINDS))
    kinds = (*kinds, "mlp_in") if space.n_experts else kinds
    return (*kinds, "embed") if space.split_input else kinds


def stream_kinds(space: EdgeSpace) -> tuple[str, ...]:
    """The kinds at which readers read the stream."""
    return ("resid_pre",) if space.parallel or space.attn_only else ("resid_pre", "resid_mid")


def require_aligned(task: Task) -> None:
    """Raises `InputError` unless the prompts of every pair have one length."""
    if not task.pairs.aligned:
        raise InputError(
            "this compares writes position by position, so the two prompts of a pair need the same length. Reword the "
            "longer one, or use score_edges and evaluate, which align them by spans."
        )


def require_correspondence(task: Task) -> None:
    """Raises `InputError` unless the tokens of every pair correspond: by position, or by spans."""
    if not task.pairs.aligned and not task.pairs.spans:
        require_aligned(task)


def edge_space(
    model: TransformerBridge,
    task: Task,
    *,
    split_input: bool = False,
    split_experts: bool = False,
    aligned: bool | None = True,
) -> EdgeSpace:
    """The graph of a model, after the checks that every method on edges makes.

    Raises `UnsupportedModelError` for models whose attention output is not a sum over heads; `InputError` for a task of
    another model, for pairs of unequal length (unless `aligned` is False, or None and spans say what corresponds), for
    a split input where no positions are added to it, and for split experts of a model without or of steered pairs.
    """
    anatomy = check_task(model, task)
    if split_input and getattr(model, "pos_embed", None) is None:
        raise InputError(
            f"{anatomy.architecture} adds no embedding of positions to the stream, so its input has one part. Leave "
            "split_input out."
        )
    if split_experts and anatomy.n_experts is None:
        raise InputError(f"{anatomy.architecture} has no experts; its MLPs are one node each. Leave split_experts out.")
    if aligned:
        require_aligned(task)
    elif aligned is None:
        require_correspondence(task)
    if anatomy.norm_place != "pre" and any(block.attn.b_O is not None for block in model.blocks):
        raise UnsupportedModelError(
            f"edges need head writes that add up; {anatomy.architecture} adds an output bias under a post-norm"
        )
    marked = is_marked(task.pairs.clean_tokens) or is_marked(task.pairs.corrupt_tokens)
    if split_experts and marked:
        raise InputError("writes of steered pairs are carried by the MLP as one node; score them without split_experts")
    sources = carrying_nodes(model) if marked else ()
    return EdgeSpace.of(anatomy, split_input=split_input, split_experts=split_experts, sources=sources)


def splits_of(settings: Mapping[str, Any]) -> dict[str, bool]:
    """`EdgeSpace.splits` among the settings of a unit of work."""
    return {name: settings[name] for name in ("split_input", "split_experts")}


def input_writes(
    space: EdgeSpace, stream: Float[Tensor, "batch pos d_model"], embed: Float[Tensor, "batch pos d_model"] | None
) -> Writes:
    """The stream entering block 0 as its writers: whole, or as `embed` and the rest, which is what positions add."""
    if not space.split_input:
        return stream.unsqueeze(0)
    assert embed is not None
    return torch.stack([embed, stream - embed])


def _embed(run: Run, space: EdgeSpace, positions: slice) -> Tensor | None:
    return run.layers["embed"][0][:, positions].detach() if space.split_input else None


def record_writers(model: TransformerBridge, space: EdgeSpace, run: Run, positions: slice = slice(None)) -> Writes:
    """The writes of all writers in a recorded run."""
    stream = run.layers["resid_pre"][0][:, positions].detach()
    writes = stream.new_empty(space.n_writers, *stream.shape)
    writes[: space.n_inputs] = input_writes(space, stream, _embed(run, space, positions))
    for layer in range(space.n_layers):
        z = run.layers["z"][layer][:, positions].detach()
        head_writes(model, layer, z, out=writes[space.head_writers(layer)])
        beat()
    for layer in space.mlps:
        if space.n_experts:
            mlp_in = run.layers["mlp_in"][layer][:, positions].detach()
            writes[space.mlp_writers(layer)] = expert_writes(model, layer, mlp_in).to(writes)
        else:
            writes[space.mlp_writers(layer)] = run.layers["mlp_out"][layer][:, positions].detach()
    return writes


def move_run(donor: Run, host: Run, pairs: PromptPairs) -> Run:
    """The donor's activations at the host's positions (`pairs` has the host as its clean side), its logits as they are.

    Where a host token corresponds to nothing, the host's own activation: nothing comes from the donor there. The donor
    itself for pairs of equal length.
    """
    if pairs.aligned:
        return donor
    index = pairs.alignment().to(donor.logits.device)
    layers = {
        kind: [align_donor(theirs, own, index) for theirs, own in zip(found, host.layers[kind], strict=True)]
        for kind, found in donor.layers.items()
    }
    return Run(donor.logits, layers)


def write_differences(
    model: TransformerBridge, space: EdgeSpace, donor: Run, host: Run, positions: slice = slice(None)
) -> Writes:
    """Writes of `donor` minus those of `host`, in at least float32. One projection per layer where heads are not
    normalised.
    """

    def difference(kind: str, layer: int) -> Tensor:
        a, b = (run.layers[kind][layer][:, positions].detach() for run in (donor, host))
        return a.to(torch.promote_types(a.dtype, torch.float32)) - b.to(a.device)

    first = difference("resid_pre", 0)
    writes = first.new_empty(space.n_writers, *first.shape)
    writes[: space.n_inputs] = input_writes(space, first, difference("embed", 0) if space.split_input else None)
    for layer in range(space.n_layers):
        rows, weight = space.head_writers(layer), model.blocks[layer].attn.W_O.detach()
        if block_norm(model, layer, "ln1_post") is None and weight.dtype == writes.dtype:
            head_writes(model, layer, difference("z", layer), out=writes[rows])
        else:
            ends = (head_writes(model, layer, run.layers["z"][layer][:, positions].detach()) for run in (donor, host))
            torch.sub(*(end.to(writes) for end in ends), out=writes[rows])
        beat()
    for layer in space.mlps:
        rows = space.mlp_writers(layer)
        if space.n_experts:
            inputs = (run.layers["mlp_in"][layer][:, positions].detach() for run in (donor, host))
            torch.sub(*(expert_writes(model, layer, x).to(writes) for x in inputs), out=writes[rows])
        else:
            writes[rows] = difference("mlp_out", layer)
    return writes
