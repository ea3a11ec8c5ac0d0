"""Pairs of one prompt: the clean side runs with some writes, the corrupt side without them (or with others).

    effect of a place = m(run with the writes there) - m(run without), everything else as in the run that is patched

so `patch`, `attribute`, `score_edges`, circuits and lenses say through which places steering works: positive = what
the writes do at this place raises the metric. The pairs hold while the context is open:

    with steered_pairs(model, task, [Write(Site("resid_post", 3), Add(vector))]) as pairs:
        effects = patch(model, pairs, ["z", "mlp_out"])
        scores = score_edges(model, pairs, preset="eap-ig")

A write to the stream is carried by what wrote there last: at ``resid_post.l`` and ``resid_pre.l+1`` by the MLP of
layer l, at ``resid_pre.0`` by the input. Its effect on the stream is the same, and in the graph the write leaves
along that node's edges: the whole graph is the steered run, the empty circuit the run without. Between the two ends
(`ig_steps`) the writes are done to a share, x + share (write(x) - x). Source of the question: why a steering vector
works, asked with the tools of circuits. Cost: that of each write, at every forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError, UnknownNameError
from ..models.anatomy import check_ready
from ..models.borrow import borrow, hooked
from ..names import head_name, mlp_name
from ..provenance import hash_json, hash_tensors
from ..runs.record import check_task
from ..shapes import Tokens
from ..sites import SQUARE_KINDS, Site, hook_name
from ..tasks.marks import READY, is_marked, mark_tokens, marks_of, plain_tokens
from ..tasks.task import Task
from .files import encode_writes
from .positions import track_columns
from .replacements import Add
from .writes import Write

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("resid_pre", "resid_post", "mlp_out", "mlp_post", "z", "pattern")
"""Where a pair's writes may be: what they change reaches the stream through one node of the graph."""


@dataclass(eq=False)
class _Door:
    """Reads the marks of the forward that begins, and takes them off its tokens."""

    marks: Tensor | None = None
    other: Tensor | None = None
    share: float = 0.0
    known: tuple[int, ...] = ()
    nodes: tuple[str, ...] = ()
    streams: dict[str, Tensor] = field(default_factory=dict)

    def enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = None if args else next((name for name in ("input", "input_ids") if name in kwargs), None)
        tokens = args[0] if args else kwargs.get(name or "")
        self.streams.clear()
        self.marks = None
        if not isinstance(tokens, Tensor) or tokens.is_floating_point():
            return None
        self.marks = marks_of(tokens)
        plain = plain_tokens(tokens)
        return ((plain, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: plain})

    def weights(self, number: int) -> Float[Tensor, "batch pos"] | None:
        """To which share the writes `number` are done at each position; None: nowhere."""
        if self.marks is None:
            return None
        found = (self.marks == number).double()
        if self.other is not None and self.share:
            there = marks_of(self.other)[:, -found.shape[1] :].to(found.device) == number
            found = (1 - self.share) * found + self.share * there.double().expand_as(found)
        return found if bool(found.any()) else None


_doors: WeakKeyDictionary[Any, _Door] = WeakKeyDictionary()


@contextmanager
def steered_pairs(
    model: TransformerBridge,
    task: Task,
    writes: Sequence[Write],
    *,
    without: Sequence[Write] = (),
    prompts: str = "clean",
    positions: str = "all",
) -> Iterator[Task]:
    """The task's `prompts` (``"clean"`` or ``"corrupt"``) as pairs: clean = with `writes`, corrupt = with `without`.

    Answers, metric, spans and splits stay the task's. `positions`: ``"all"``, or a span (``"END"``) at which the
    writes are done. The yielded task holds inside the context, with this model alone; on exit the model is as it was.

    Raises `InputError` for no writes, the same writes on both sides, a place that is no node's (`KINDS`), writes
    limited by a mask (use `positions`), or a context inside another one.

    >>> with steered_pairs(model, task, [Write(direction.site, Add(direction.vector, 2.0))]) as pairs:
    ...     print(patch(model, pairs, ["z"]).top(5))
    """
    sides = _check(model, task, writes, without, prompts, positions)
    here = task.pairs if prompts == "clean" else task.pairs.corrupt_as_host()
    where = here.mask if positions == "all" else here.spans[positions]
    numbers = [name_writes(side) if side else 0 for side in sides]
    if numbers[0] == numbers[1]:
        raise InputError("the two sides of a pair differ in their writes; both got the same")
    tokens = [mark_tokens(here.clean_tokens, number, where) for number in numbers]
    pairs = replace(
        here, clean_tokens=tokens[0], corrupt_tokens=tokens[1], corrupt_lengths=here.lengths, corrupt_spans=here.spans,
        alone=False,
    )  # fmt: skip
    side = int(prompts == "corrupt")
    said = ", ".join(str(write.site) for write in writes)
    steered = replace(
        task,
        name=f"{task.name}, steered",
        pairs=pairs,
        description=f"Each {prompts} prompt with writes at {said}, and "
        + (f"with others at {', '.join(str(write.site) for write in without)}." if without else "without."),
        texts=tuple((both[side], both[side]) for both in task.texts),
    )
    n_heads = check_ready(model).n_heads
    nodes = [node for group in sides for write in group for node in _nodes(write.site, n_heads)]
    door = _Door(known=tuple(number for number in numbers if number), nodes=tuple(dict.fromkeys(nodes)))
    with borrow(model), track_columns(model) as columns:
        hooks: list[tuple[str, Callable[..., Any]]] = []
        for number, group in zip(numbers, sides, strict=True):
            for write in group:
                hooks += _hooks(door, number, write, lambda: columns.start)
        handle = model.register_forward_pre_hook(door.enter, with_kwargs=True)
        try:
            READY[model], _doors[model] = door.known, door
            with hooked(model, hooks):
                yield steered
        finally:
            READY.pop(model, None)
            _doors.pop(model, None)
            handle.remove()


@contextmanager
def between_sides(model: TransformerBridge, donor: Tokens, share: float) -> Iterator[None]:
    """Inside, forwards of a host's tokens do the writes of both sides: the donor's to `share`, its own to the rest.

    Nothing where no token carries writes: the path between two prompts is one of embeddings.
    """
    door = _doors.get(model)
    if door is None:
        yield
        return
    before = door.other, door.share
    door.other, door.share = donor, share
    try:
        yield
    finally:
        door.other, door.share = before


def carrying_nodes(model: TransformerBridge) -> tuple[str, ...]:
    """The nodes whose own writes differ in the pairs that are open now: where paths of the graph begin."""
    door = _doors.get(model)
    return () if door is None else door.nodes


def name_writes(writes: Sequence[Write]) -> int:
    """A number from 1 to 2^30 by what the writes are; raises `InputError` for a function of one's own."""
    tree, tensors, _ = encode_writes(writes)
    text = hash_json([tree, hash_tensors({name: tensor.cpu() for name, tensor in tensors.items()})])
    return int(text[:8], 16) % (1 << 30) + 1


def _check(
    model: TransformerBridge, task: Task, writes: Sequence[Write], without: Sequence[Write], prompts: str,
    positions: str,
) -> tuple[list[Write], list[Write]]:  # fmt: skip
    anatomy = check_ready(model)
    check_task(model, task)
    if prompts not in ("clean", "corrupt"):
        raise UnknownNameError("side of a pair", prompts, ("clean", "corrupt"))
    if prompts == "corrupt":
        task.pairs.require_corrupt()
    if model in _doors or is_marked(task.pairs.clean_tokens):
        raise InputError(
            "a model has one pair of writes at a time; leave the context that is open, or give both sides to one: "
            "steered_pairs(model, task, writes, without=others)"
        )
    spans = task.pairs.spans if prompts == "clean" else task.pairs.corrupt_spans
    if positions != "all" and positions not in spans:
        raise UnknownNameError("span", positions, ("all", *spans))
    for name, side in (("writes", writes), ("without", without)):
        if not isinstance(side, Sequence) or not all(isinstance(write, Write) for write in side):
            raise InputError(f"{name} is a list of Write(site, replacement); got {side!r}")
    if not writes:
        raise InputError("the clean side has at least one write; got none")
    for write in (*writes, *without):
        write.check(model)
        if write.site.kind not in KINDS:
            raise InputError(
                f"the writes of a pair are at {', '.join(KINDS)}, which reach the stream through one node; got "
                f"{write.site}. To steer the stream use resid_post"
            )
        if write.site.kind in ("resid_pre", "resid_post") and anatomy.attn_only and _carrier(write.site) is not None:
            raise InputError(
                "a write to the stream is carried by the MLP before it, and this model has none; write at resid_pre.0 "
                "or at heads (z)"
            )
        width = {"z": anatomy.d_head}.get(write.site.kind, anatomy.d_model)
        size = write.replacement.vector.shape[-1:] if isinstance(write.replacement, Add) else ()
        if size and write.site.kind not in ("mlp_post", "pattern") and size[0] not in (1, width):
            raise InputError(
                f"vectors at {write.site} have {width} numbers in this model; got {size[0]}: was it fitted in another "
                "model?"
            )
        if write.where is not None:
            raise InputError("the writes of a pair hold where `positions` says; leave out the mask of the write")
    return list(writes), list(without)


def _carrier(site: Site) -> int | None:
    """The layer whose MLP carries a write to the stream; None: the input does."""
    assert site.layer is not None
    layer = site.layer if site.kind == "resid_post" else site.layer - 1
    return None if layer < 0 else layer


def _nodes(site: Site, n_heads: int) -> list[str]:
    """The nodes that carry a write at a site; none where the input does."""
    if site.kind in ("resid_pre", "resid_post"):
        carrier = _carrier(site)
        return [] if carrier is None else [mlp_name(carrier)]
    assert site.layer is not None
    if site.kind in ("mlp_out", "mlp_post"):
        return [mlp_name(site.layer)]
    return [head_name(site.layer, head) for head in (range(n_heads) if site.head is None else [site.head])]


def _hooks(door: _Door, number: int, write: Write, start: Callable[[], int]) -> list[tuple[str, Callable[..., Any]]]:
    """What does `write` at the positions marked `number`."""
    carrier = _carrier(write.site) if write.site.kind in ("resid_pre", "resid_post") else None

    def put(activation: Tensor, hook: Any) -> Tensor | None:
        weights = door.weights(number)
        if weights is None:
            return None
        return _part(activation, write.apply(activation, start()), weights, square=write.site.kind in SQUARE_KINDS)

    if carrier is None:
        return [(hook_name(write.site), put)]

    def keep(name: str) -> Callable[..., None]:
        def store(activation: Tensor, hook: Any) -> None:
            if door.marks is not None:
                door.streams[name] = activation

        return store

    def put_stream(mlp_out: Tensor, hook: Any) -> Tensor | None:
        weights = door.weights(number)
        if weights is None:
            return None
        before = (door.streams[f"pre.{carrier}"] + door.streams[f"attn.{carrier}"]).to(mlp_out.device)
        return _part(mlp_out, write.apply(before + mlp_out, start()) - before, weights, square=False)

    names = {"pre": "resid_pre", "attn": "attn_out"}
    hooks: list[tuple[str, Callable[..., Any]]] = [
        (hook_name(Site(kind, carrier)), keep(f"{name}.{carrier}")) for name, kind in names.items()
    ]
    return [*hooks, (hook_name(Site("mlp_out", carrier)), put_stream)]


def _part(old: Tensor, new: Tensor, weights: Float[Tensor, "batch pos"], *, square: bool) -> Tensor:
    """`new` where the weight is 1, `old` where it is 0, and a mixture between."""
    shape = (len(weights), 1, -1, 1) if square else (*weights.shape, *[1] * (old.ndim - 2))
    weights = weights.to(old.device).reshape(shape)
    mixed = new if bool(((weights == 0) | (weights == 1)).all()) else old + weights.to(old) * (new - old)
    return torch.where(weights != 0, mixed, old)
