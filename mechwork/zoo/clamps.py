"""Heads that are held while a model trains: their pattern, or what they move, is given and not computed.

| ``what`` | ``to`` | in every forward, of training and of measuring |
|---|---|---|
| ``pattern`` | ``uniform`` | the head looks equally at all tokens that it sees |
| ``pattern`` | ``previous`` | ... at the token before, the first at itself |
| ``pattern``, ``z`` | a model | it has the pattern, or the output, that a finished model has on the same text |
| ``z`` | ``zero`` | it writes nothing |

A model is a bundled name (``attn-only-2l@500``) or a file of weights (``step-002500.safetensors``) of the same shape.
With pattern P given, the head's output is P v, so that gradients go round the clamp: through values and output, never
into the queries and keys of that head (their weight decay goes on). Source: Singh et al. 2024 (arXiv:2404.07129), who
clamp while training. Cost: 1 forward of each model that is clamped to, per forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from .. import bundled
from ..artefact import read_tensors
from ..errors import InputError, UnknownNameError
from ..files import existing, sha256
from ..names import head_name, parse_place
from .architecture import attention_projections, build_model, split_values, value_makers

if TYPE_CHECKING:
    from .recipe import Recipe

RULES = {"pattern": ("uniform", "previous"), "z": ("zero",)}
"""What is clamped -> what it can be clamped to beside a model."""


@dataclass(frozen=True)
class TrainingClamp:
    """One head (``a0.h1``) or all heads of a layer (``a0``), what of them is held, and at what (see the table)."""

    target: str
    what: str = "pattern"
    to: str = "uniform"

    def __post_init__(self) -> None:
        place = parse_place(self.target)
        if place.what not in ("head", "attn") or place.side or place.query or place.at or place.layer is None:
            raise InputError(f"clamped while training are heads, 'a0.h1', or a layer's, 'a0'; got {self.target!r}")
        if self.what not in RULES:
            raise UnknownNameError("activation of a head", self.what, RULES)
        if self.to in {rule for rules in RULES.values() for rule in rules} - set(RULES[self.what]):
            raise InputError(
                f"{self.what} is clamped to {', '.join(RULES[self.what])} or a model; got {self.to!r}. Another `what`?"
            )

    @property
    def of_model(self) -> bool:
        """Whether the values are those of another model."""
        return self.to not in RULES[self.what]

    def heads(self, n_heads: int) -> list[tuple[int, int]]:
        """(layer, head) of everything that is held."""
        place = parse_place(self.target)
        assert place.layer is not None
        return [(place.layer, head) for head in (place.index or range(n_heads))]


def check_clamps(clamps: tuple[TrainingClamp, ...], n_layers: int, n_heads: int, name: str) -> None:
    """Raises `InputError` for heads that the model does not have, or one that is held twice."""
    found = [place for clamp in clamps for place in clamp.heads(n_heads)]
    for layer, head in found:
        if layer >= n_layers or head >= n_heads:
            raise InputError(
                f"recipe {name!r} has {n_layers} layers of {n_heads} heads; there is no {head_name(layer, head)} to "
                "clamp"
            )
    if twice := sorted({head_name(*place) for place in found if found.count(place) > 1}):
        raise InputError(f"recipe {name!r}: a head is clamped once, {', '.join(twice)} are more often")


def load_donors(recipe: Recipe, vocabulary: int) -> dict[str, PreTrainedModel]:
    """The models that the recipe's clamps take values from, by name.

    Raises `InputError` for weights of another shape, `NotFoundError` or `ArtefactError` for a file that is not there or
    damaged.
    """
    donors = {}
    for name in sorted({clamp.to for clamp in recipe.clamps if clamp.of_model}):
        donor = build_model(replace(recipe, clamps=()), vocabulary)
        tensors = read_tensors(_file_of(name))[1]
        mine = {key: parameter.shape for key, parameter in donor.named_parameters()}
        if {key: value.shape for key, value in tensors.items()} != mine:
            raise InputError(
                f"recipe {recipe.name!r} clamps heads to those of {name}, whose weights have other names or shapes "
                "than the recipe's; clamp to a model of the same shape"
            )
        with torch.no_grad():
            for key, parameter in donor.named_parameters():
                parameter.copy_(tensors[key])
        donors[name] = donor.requires_grad_(False).eval()
    return donors


def donor_hashes(recipe: Recipe) -> dict[str, str]:
    """Name -> sha256 of the weights that clamps are taken from: part of what makes a run this one."""
    return {clamp.to: sha256(_file_of(clamp.to)) for clamp in recipe.clamps if clamp.of_model}


def _file_of(name: str) -> Path:
    base, _, step = name.partition("@")
    if base in bundled.model_names():
        return bundled.checkpoint_file(base, int(step)) if step else bundled.path("models", base, "model.safetensors")
    return existing(Path(name).expanduser())


@contextmanager
def clamped(
    model: PreTrainedModel, clamps: tuple[TrainingClamp, ...], donors: Mapping[str, PreTrainedModel]
) -> Iterator[None]:
    """Inside, every forward of `model` has these heads clamped; outside it is as it was."""
    handles = []
    if clamps:
        held = _Held(model, clamps, donors)
        handles.append(model.base_model.register_forward_pre_hook(held.prepare, with_kwargs=True))
        for layer in held.heads:
            handles.append(value_makers(model)[layer].register_forward_hook(held.keep_values(layer)))
            handles.append(attention_projections(model)[layer].register_forward_pre_hook(held.replace(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Held:
    """The hooks of one `clamped`, and what the forward that runs has given them."""

    def __init__(
        self, model: PreTrainedModel, clamps: tuple[TrainingClamp, ...], donors: Mapping[str, PreTrainedModel]
    ) -> None:
        self.model, self.donors = model, donors
        self.n_heads = int(model.config.num_attention_heads)
        self.heads: dict[int, dict[int, TrainingClamp]] = {}
        for clamp in clamps:
            for layer, head in clamp.heads(self.n_heads):
                self.heads.setdefault(layer, {})[head] = clamp
        self.seen: Callable[[int], Bool[Tensor, "row pos pos2"]] = self._unprepared
        self.patterns: dict[str, Any] = {}
        self.outputs: dict[str, list[Tensor]] = {}
        self.values: dict[int, Tensor] = {}

    def _unprepared(self, layer: int) -> Any:
        raise AssertionError(f"layer {layer} ran outside of the model")

    def prepare(self, _module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward: who sees whom, and what the donors do with the same tokens."""
        tokens = args[0] if args else kwargs["input_ids"]
        mask = kwargs.get("attention_mask")
        self.seen = lambda layer: _visible(self.model, layer, mask, tokens.shape[0], tokens.shape[1])
        for name, donor in self.donors.items():
            outputs: list[Tensor] = []

            def keep(_module: object, inputs: tuple[Tensor, ...], outputs: list[Tensor] = outputs) -> None:
                outputs.append(inputs[0].unflatten(-1, (self.n_heads, -1)))

            handles = [module.register_forward_pre_hook(keep) for module in attention_projections(donor)]
            try:
                with torch.no_grad(), torch.autocast("cpu", enabled=False):
                    whole = {**kwargs, "output_attentions": True}
                    self.patterns[name] = donor.base_model(*args, **whole).attentions
            finally:
                for handle in handles:
                    handle.remove()
            self.outputs[name] = outputs

    def keep_values(self, layer: int) -> Callable[..., None]:
        def hook(_module: object, _inputs: object, output: Tensor) -> None:
            self.values[layer] = split_values(self.model, output)

        return hook

    def replace(self, layer: int) -> Callable[..., tuple[Any, ...]]:
        def hook(_module: object, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            z = inputs[0].unflatten(-1, (self.n_heads, -1))
            parts = list(z.unbind(dim=-2))
            for head, clamp in self.heads[layer].items():
                parts[head] = self._output(layer, head, clamp).to(z.dtype)
            return (torch.stack(parts, dim=-2).flatten(-2), *inputs[1:])

        return hook

    def _output(self, layer: int, head: int, clamp: TrainingClamp) -> Float[Tensor, "row pos d_head"]:
        values = self.values[layer][..., head, :]
        if clamp.what == "z":
            return self.outputs[clamp.to][layer][..., head, :] if clamp.of_model else torch.zeros_like(values)
        pattern = self.patterns[clamp.to][layer][:, head] if clamp.of_model else _pattern(clamp.to, self.seen(layer))
        return pattern.to(values.dtype) @ values


def _visible(model: PreTrainedModel, layer: int, mask: Any, n: int, width: int) -> Bool[Tensor, "row pos pos2"]:
    """Which keys a query of a layer sees: what the mask of the forward says, causal, and near in a sliding layer."""
    kinds = getattr(model.config, "layer_types", None)
    if isinstance(mask, dict):
        assert kinds is not None
        mask = mask[kinds[layer]]
    seen = torch.ones(width, width, dtype=torch.bool).tril()
    if kinds is not None and kinds[layer] == "sliding_attention":
        seen = seen.triu(1 - int(model.config.sliding_window))
    whole = seen.expand(n, width, width)
    return whole & (mask[:, 0] == 0) if isinstance(mask, Tensor) and mask.ndim == 4 else whole


def _pattern(rule: str, seen: Bool[Tensor, "row pos pos2"]) -> Float[Tensor, "row pos pos2"]:
    if rule == "uniform":
        return seen.double() / seen.sum(dim=-1, keepdim=True)
    width = seen.shape[-1]
    before = torch.diag(torch.ones(width - 1, dtype=torch.float64), -1) * seen
    return before + torch.eye(width, dtype=torch.float64) * (1 - before.sum(dim=-1, keepdim=True))
