"""The null of a comparison: what any change of the weights of that size does.

    A + noise,   of every parameter W:  |noise_W| = |W_B - W_A|,   direction by lot

Training changes weights in particular directions; noise of the same size in every parameter says how much of a
difference in activations comes from the size alone. The model is lent: its weights come back to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import InputError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def distinct_parameters(model: TransformerBridge) -> dict[str, nn.Parameter]:
    """Name -> parameter, every number once: bridges show a joint query-key-value matrix and its three parts as
    parameters of one storage.
    """
    groups: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(parameter.untyped_storage().data_ptr(), []).append((name, parameter))
    chosen: dict[str, nn.Parameter] = {}
    for group in groups.values():
        whole = [(n, p) for n, p in group if p.numel() * p.element_size() == p.untyped_storage().nbytes()]
        chosen.update(dict(whole[:1] or group))
    return chosen


def weight_distances(model_a: TransformerBridge, model_b: TransformerBridge) -> dict[str, float]:
    """Parameter name -> |W_B - W_A|, each number once; raises `InputError` when names or shapes differ."""
    a, b = distinct_parameters(model_a), distinct_parameters(model_b)
    unlike = [name for name in a.keys() | b.keys() if name not in a or name not in b or a[name].shape != b[name].shape]
    if unlike:
        raise InputError(
            "the two models have parameters of one list of names and shapes; differing: "
            f"{', '.join(sorted(unlike)[:4])}"
        )
    return {name: float((b[name].detach().cpu().double() - a[name].detach().cpu().double()).norm()) for name in a}


@contextmanager
def with_noise(model: TransformerBridge, sizes: dict[str, float], seed: int) -> Iterator[None]:
    """Inside, every parameter has noise of its size added; on exit, also after an exception, its own numbers again."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: parameter for name, parameter in distinct_parameters(model).items() if sizes[name]}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_((before[name].cpu().double() + draw * (sizes[name] / draw.norm())).to(parameter))
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)
