"""Steering writes against hand-written hooks in float64; what they promise to keep; caches, batches and undoing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.errors import InputError
from mechwork.interventions import (
    Add,
    Along,
    Blend,
    Boundary,
    Choice,
    Constant,
    From,
    Gated,
    KeepNorm,
    Limit,
    Reflect,
    Scale,
    Stretch,
    Turn,
    TurnTo,
    Write,
    Zero,
    intervene,
)
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed, crossed
from tests.reference import literal

SITE = Site("resid_post", 1)
WIDTH = 32


def plane(n: int = 2) -> Tensor:
    """`n` orthonormal rows."""
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(WIDTH, n, generator=generator, dtype=torch.float64)).Q.T


def by_hand(name: str) -> tuple[Any, Any]:
    """A write, and a loop over batch and position that does the same."""
    basis = plane()
    u, w = basis[0], basis[1]

    def along(move: Any) -> Any:
        return lambda x: x + (move(float(x @ u)) - float(x @ u)) * u

    def turned(x: Tensor, angle: float) -> Tensor:
        a, b = float(x @ u), float(x @ w)
        new = math.cos(angle) * a - math.sin(angle) * b, math.sin(angle) * a + math.cos(angle) * b
        return x + (new[0] - a) * u + (new[1] - b) * w

    scale, shift = torch.linspace(0, 2, WIDTH).double(), torch.linspace(-1, 1, WIDTH).double()
    rows, looks, biases = plane(3), 3 * plane(6)[3:], torch.tensor([0.1, -0.1, 0.0]).double()

    def picked(x: Tensor) -> int:
        scores = [float(w @ x) + float(b) for w, b in zip(looks, biases, strict=True)]
        return scores.index(max(scores))

    cases: dict[str, tuple[Any, Any]] = {
        "add": (Add(u, 3.0), lambda x: x + 3 * u),
        "project out": (Along(u[None], Zero()), along(lambda c: 0.0)),
        "project to": (Along(u[None], Constant(2.0)), along(lambda c: 2.0)),
        "mirror": (Along(u[None], Reflect(0.5)), along(lambda c: 1.0 - c)),
        "scale": (Along(u[None], Scale(-1.5)), along(lambda c: -1.5 * c)),
        "clamp": (Along(u[None], Limit(-0.1, 0.1)), along(lambda c: min(0.1, max(-0.1, c)))),
        "turn": (Along(basis, Turn(0.7)), lambda x: turned(x, 0.7)),
        "turn to": (Along(basis, TurnTo(2.0)), lambda x: turned(x, 2.0 - math.atan2(float(x @ w), float(x @ u)))),
        "stretch": (Stretch(scale, shift), lambda x: x * scale + shift),
        "half way": (Blend(Along(u[None], Constant(2.0)), 0.5), along(lambda c: (c + 2) / 2)),
        "target where below": (
            Gated(Along(u[None], Constant(1.0)), Boundary(u, 0.0)),
            lambda x: along(lambda c: 1.0)(x) if float(x @ u) < 0 else x,
        ),
        "mirror where above": (
            Gated(Along(u[None], Reflect(-1.0)), Boundary(u, -1.0, "above")),
            lambda x: along(lambda c: -2.0 - c)(x) if float(x @ u) > -1 else x,
        ),
        "dose of a target, norm kept": (
            KeepNorm(Blend(Along(u[None], Constant(9.0)), 0.3)),
            lambda x: (y := along(lambda c: c + 0.3 * (9 - c))(x)) * (float(x.norm()) / float(y.norm())),
        ),
        "one of three vectors": (Choice(rows, looks, biases, 2.0), lambda x: x + 2 * rows[picked(x)]),
    }
    return cases[name]


NAMES = (
    "add", "project out", "project to", "mirror", "scale", "clamp", "turn", "turn to", "stretch", "half way",
    "target where below",
    "mirror where above", "dose of a target, norm kept", "one of three vectors",
)  # fmt: skip


def loop(edit: Any) -> Any:
    def hook(activation: Tensor, hook: Any) -> Tensor:
        new = activation.clone()
        for row in range(new.shape[0]):
            for position in range(new.shape[1]):
                new[row, position] = edit(activation[row, position])
        return new

    return hook


@pytest.mark.parametrize(("family", "name"), crossed(NAMES, ("project to", "turn")))
def test_a_write_equals_its_literal_hook(family_model64: Any, tiny_task: Task, name: str) -> None:
    put, edit = by_hand(name)
    tokens = tiny_task.pairs.clean_tokens
    with borrowed(family_model64) as model, torch.no_grad():
        plain = model(tokens)
        with intervene(model, [Write(SITE, put)]):
            mine = model(tokens)
        theirs = model.run_with_hooks(tokens, fwd_hooks=[(literal.hook("resid_post", 1), loop(edit))])
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
        assert float((mine - plain).abs().max()) > 1e-6
        torch.testing.assert_close(model(tokens), plain, rtol=0, atol=0)


def test_what_writes_keep() -> None:
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    basis = plane()
    for put in (Along(basis, Turn(1.1)), Along(basis, TurnTo(0.3))):
        torch.testing.assert_close(put.place(x, 0).norm(dim=-1), x.norm(dim=-1))
    for put in (Along(basis, Zero()), Along(basis[:1], Constant(2.0)), Along(basis[:1], Limit(-0.1, 0.1))):
        once = put.place(x, 0)
        torch.testing.assert_close(put.place(once, 0), once)
        assert float((once - x).abs().max()) > 0.1
    mirror = Along(basis[:1], Reflect(0.4))
    torch.testing.assert_close(mirror.place(mirror.place(x, 0), 0), x)
    torch.testing.assert_close(Along(basis, Turn(-1.1)).place(Along(basis, Turn(1.1)).place(x, 0), 0), x)
    across = x - (x @ basis.T) @ basis
    moved = Along(basis, Scale(7.0)).place(x, 0)
    torch.testing.assert_close(moved - (moved @ basis.T) @ basis, across)


@pytest.mark.parametrize("name", ["turn", "mirror where above", *NAMES[-2:]])
def test_cached_generation_equals_generation_without(tiny_gpt2_64: Any, name: str) -> None:
    put, _ = by_hand(name)
    prompt = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    wheres = {"all": put, "prompt": From(put, 0, 5), "generated": From(put, 5)}
    found = {}
    for where, placed in wheres.items():
        with intervene(tiny_gpt2_64, [Write(SITE, placed)]):
            texts = [
                tiny_gpt2_64.generate(
                    prompt,
                    max_new_tokens=4,
                    do_sample=False,
                    use_past_kv_cache=cached,
                    verbose=False,
                    stop_at_eos=False,
                )
                for cached in (True, False)
            ]
            alone = tiny_gpt2_64.generate(
                prompt[:1], max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False
            )
        assert texts[0].tolist() == texts[1].tolist()
        assert alone[0].tolist() == texts[0][0].tolist()
        with torch.no_grad(), intervene(tiny_gpt2_64, [Write(SITE, placed)]):
            found[where] = tiny_gpt2_64(texts[0])
    assert float((found["all"] - found["generated"]).abs().max()) > 1e-6
    assert float((found["prompt"][:, 5:] - found["all"][:, 5:]).abs().max()) > 1e-6


def test_contracts() -> None:
    u = plane(1)[0]
    with pytest.raises(InputError, match="length 1"):
        Boundary(2 * u, 0.0)
    with pytest.raises(InputError, match="sides"):
        Boundary(u, 0.0, "left")
    with pytest.raises(InputError, match="lower limit"):
        Limit(1.0, 0.0)
