"""Doses by an earlier place, moves along a curve, the guard against overflow, and interventions in files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.errors import ArtefactError, InputError, MetricError
from mechwork.interventions import (
    Add,
    Along,
    Blend,
    Boundary,
    Condition,
    Constant,
    Curve,
    Dosed,
    Doses,
    From,
    Gated,
    Highlight,
    Intervention,
    LookOnly,
    Routing,
    Slide,
    Stretch,
    Turn,
    Write,
    Zero,
    guard_overflow,
    intervene,
    load_writes,
    replace_at,
    save_writes,
)
from mechwork.models.identity import identify_model
from mechwork.provenance import build_provenance
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model

FIVE = ["gpt2", "neox", "llama", "gemma2", "mixtral"]
WIDTH = 32
READ = Site("resid_post", 0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plane(n: int = 2) -> Tensor:
    return torch.linalg.qr(draw(WIDTH, n, seed=1)).Q.T.contiguous()


def doses(n: int = 2) -> Doses:
    return Doses(
        draw(WIDTH), draw(WIDTH).abs() + 0.5, draw(4, WIDTH) / 4, draw(4), draw(n + 1, 4, seed=2), draw(n + 1, seed=3)
    )


def curve() -> Curve:
    knots = torch.tensor([0.0, 1.0, 2.5, 3.0], dtype=torch.float64)
    return Curve(knots, 3 * draw(4, 2, seed=4), plane(), draw(WIDTH, seed=5))


def by_hand(d: Doses, x: Tensor, i: int) -> float:
    """One position's dose of write `i`, number by number."""
    hidden = [
        math.tanh(sum(float(d.W_in[h,
        k]) * (float(x[k]) - float(d.mean[k])) / float(d.spread[k]) for k in range(WIDTH)) + float(d.b_in[h]))
        for h in range(4)
    ]  # fmt: skip
    out = [sum(float(d.W_out[o, h]) * hidden[h] for h in range(4)) + float(d.b_out[o]) for o in (0, i + 1)]
    gate, weight = (1 / (1 + math.exp(-o)) for o in out)
    return gate * 2 * weight


@pytest.mark.parametrize("family", FIVE, indirect=True)
def test_doses_equal_a_loop_over_positions(family_model64: Any, tiny_task: Task) -> None:
    tokens, d, v = tiny_task.pairs.clean_tokens, doses(), 5 * draw(WIDTH, seed=6)
    put = Dosed(READ, d, (Write(Site("attn_out", 1), Add(v)), Write(Site("resid_post", 2), Along(plane(), Zero()))))
    found: list[Tensor] = []

    def loop(i: int, change: Any) -> Any:
        def hook(x: Tensor, hook: Any) -> Tensor:
            new = x.clone()
            for row in range(x.shape[0]):
                for position in range(x.shape[1]):
                    old = x[row, position]
                    new[row, position] = old + by_hand(d, found[0][row, position], i) * (change(old) - old)
            return new

        return hook

    basis = plane()
    hooks = [
        ("blocks.0.hook_resid_post", lambda x, hook: found.append(x.clone())),
        ("blocks.1.hook_attn_out", loop(0, lambda x: x + v)),
        ("blocks.2.hook_resid_post", loop(1, lambda x: x - (x @ basis.T) @ basis)),
    ]
    with borrowed(family_model64) as model, torch.no_grad():
        plain = model(tokens)
        with intervene(model, [put]):
            mine = model(tokens)
        torch.testing.assert_close(mine, model.run_with_hooks(tokens, fwd_hooks=hooks), rtol=0, atol=1e-10)
        assert float((mine - plain).abs().max()) > 1e-2
        assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("family", FIVE, indirect=True)
def test_a_slide_equals_a_search_over_the_curve(family_model64: Any, tiny_task: Task) -> None:
    tokens, c = tiny_task.pairs.clean_tokens, curve()
    times = torch.linspace(0, 3, 30_001, dtype=torch.float64)
    along = c.at(times)

    def literal(x: Tensor, hook: Any) -> Tensor:
        new = x.clone()
        for row in range(x.shape[0]):
            for position in range(x.shape[1]):
                inside = ((x[row, position] - along) @ c.basis.T).norm(dim=-1)
                t = times[inside.argmin()]
                new[row, position] += 0.5 * (c.at((t + 0.7).clamp(max=3.0)) - c.at(t))
        return new

    with borrowed(family_model64) as model, torch.no_grad():
        plain = model(tokens)
        with intervene(model, [Write(READ, Slide(c, by=0.7, share=0.5))]):
            mine = model(tokens)
        theirs = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", literal)])
        torch.testing.assert_close(mine, theirs, rtol=0, atol=5e-3)  # the literal search has steps of 1e-4
        assert float((mine - plain).abs().max()) > 0.1


def test_a_curve_is_the_natural_spline_and_knows_its_positions() -> None:
    import numpy as np

    c = curve()
    torch.testing.assert_close(c.coordinates(c.knots), c.points)
    step = 1e-4
    inner = torch.tensor([1.0, 2.5], dtype=torch.float64)
    for t in inner:  # value, slope and bend are continuous at the inner knots
        left, middle, right = (c.coordinates((t + k * step)[None])[0] for k in (-1, 0, 1))
        torch.testing.assert_close((middle - left) / step, (right - middle) / step, rtol=1e-2, atol=1e-2)
    for end, inside in ((0.0, 1), (3.0, -1)):  # no bend at the ends
        points = [c.coordinates(torch.tensor([end + inside * k * 1e-3], dtype=torch.float64))[0] for k in range(3)]
        bend = (points[0] - 2 * points[1] + points[2]) / 1e-6
        assert float(bend.abs().max()) < 0.1
    times = torch.tensor(np.linspace(0.05, 2.95, 41))
    torch.testing.assert_close(c.position(c.at(times)), times, rtol=0, atol=1e-4)
    assert float(c.distance(c.at(times)).max()) < 1e-3
    x = draw(7, WIDTH, seed=8)
    there = Slide(c, to=2.0)(x)
    offset = x - c.at(c.position(x))
    torch.testing.assert_close(there, c.at(torch.full((7,), 2.0, dtype=torch.float64)) + offset)
    far = (x - c.at(c.position(x))).norm(dim=-1)
    some = float(far.median())
    near = Slide(c, to=2.0, within=some)(x)
    assert torch.equal(near[far > some], x[far > some])
    assert torch.equal(near[far <= some], there[far <= some])
    straight = Curve(torch.tensor([0.0, 1.0]), torch.tensor([[0.0], [2.0]]), plane(1).float(), torch.zeros(WIDTH))
    assert straight.position(straight.at(torch.tensor([0.25, 5.0, -1.0]))).tolist() == pytest.approx(
        [0.25, 1.0, 0.0], abs=1e-5
    )


@pytest.mark.parametrize("name", ["doses", "condition", "slide"])
def test_cached_generation_equals_generation_without(tiny_gpt2_64: Any, name: str) -> None:
    add = (Write(Site("resid_post", 1), Add(20 * draw(WIDTH, seed=6))),)
    puts: dict[str, Intervention] = {
        "doses": Dosed(READ, doses(1), add),
        "condition": Dosed(READ, Condition(draw(WIDTH, seed=9), at=-8.0), add),
        "slide": Write(READ, From(Slide(curve(), to=3.0), 2)),
    }
    prompt = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]])
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}
    with borrowed(tiny_gpt2_64) as model, torch.no_grad():
        plain, cache = model.run_with_cache(prompt)
        doses_given = Condition(draw(WIDTH, seed=9), at=-8.0)(cache["blocks.0.hook_resid_post"])
        assert 0 < float(doses_given.mean()) < 1  # some positions are steered, some are not
        with intervene(model, [puts[name]]):
            texts = [model.generate(prompt, use_past_kv_cache=cached, **settings) for cached in (True, False)]
            assert torch.equal(*texts)
            assert torch.equal(model.generate(prompt[:1], **settings)[0], texts[0][0])
            moved, cached = model(prompt), model.run_with_cache(prompt)[0]
            torch.testing.assert_close(moved, cached, rtol=0, atol=1e-12)
            torch.testing.assert_close(model(prompt[1:])[0], moved[1], rtol=0, atol=1e-10)
        assert float((moved - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FIVE, indirect=True)
@pytest.mark.parametrize("outside", [False, True])
def test_overflow_is_refused_with_the_layer(family_model: Any, tiny_task: Task, outside: bool) -> None:
    from contextlib import ExitStack

    tokens = tiny_task.pairs.clean_tokens
    with borrowed(family_model) as model, torch.no_grad():
        huge = [Write(Site("resid_post", 1), Add(torch.ones(WIDTH), 1e39))]
        entered = [intervene(model, huge), guard_overflow(model, "add at strength 1e39")]
        with (
            pytest.raises(MetricError, match=r"add at strength 1e39 overflows float32 .*first in layer 1\."),
            ExitStack() as stack,
        ):
            for context in reversed(entered) if outside else entered:
                stack.enter_context(context)
            model(tokens)
        with guard_overflow(model):
            assert bool(model(tokens).isfinite().all())


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, "6.55e"), (torch.bfloat16, "3.39e")])
def test_half_precision_overflows_where_float32_does_not(dtype: torch.dtype, largest: str) -> None:
    model = build_model("gpt2", dtype)
    size = 1e5 if dtype == torch.float16 else 1e38
    name = str(dtype).removeprefix("torch.")
    huge = [Write(Site("mlp_out", 1), Stretch(torch.ones(WIDTH), torch.full((WIDTH,), 0.6 * size)))] * 6
    with torch.no_grad(), intervene(model, huge):
        model(torch.tensor([[1, 2, 3]]))  # the model itself says nothing
        with (
            pytest.raises(MetricError, match=rf"overflows {name} \(largest number {largest}.*first in layer 1\."),
            guard_overflow(model),
        ):
            model(torch.tensor([[1, 2, 3]]))


def everything() -> list[Intervention]:
    u = plane(1)
    return [
        Write(READ, Gated(Blend(Along(u, Constant(2.0)), 0.5), Boundary(u[0], 0.1, "above"))),
        Write(Site("z", 1, 2), Stretch(draw(8), draw(8)), torch.tensor([[True] * 5 + [False] * 5] * 3)),
        Write(Site("pattern", 1, 0), Highlight(torch.tensor([[True, False, True]]), 4.0)),
        Write(Site("attn_scores", 1, 1), LookOnly(torch.tensor([[True, False, True]]))),
        Write(Site("resid_pre", 2), From(Along(plane(), Turn(0.3)), 2, 6)),
        Write(READ, Slide(curve(), by=1.0)),
        Dosed(READ, doses(1), (Write(Site("mlp_out", 1), Add(draw(WIDTH), 3.0)),), 0.5),
    ]


def test_what_is_saved_does_the_same_and_fits_one_model(tiny_gpt2_64: Any, tiny_task: Task, tmp_path: Path) -> None:
    tokens = tiny_task.pairs.clean_tokens
    provenance = build_provenance(method="by hand", model=identify_model(tiny_gpt2_64))
    path = save_writes(tmp_path / "all", everything(), provenance)
    assert path.suffix == ".safetensors"
    again = load_writes(path, tiny_gpt2_64)
    with torch.no_grad():
        plain = tiny_gpt2_64(tokens)
        with intervene(tiny_gpt2_64, everything()):
            mine = tiny_gpt2_64(tokens)
        with intervene(tiny_gpt2_64, again):
            torch.testing.assert_close(
                tiny_gpt2_64(tokens), mine, rtol=1e-12, atol=1e-12
            )  # memory is aligned otherwise
    assert float((mine - plain).abs().max()) > 1e-2
    routing = [Routing(1, {0: 0.5}, on=(2,), off=(3,), first=2)]
    assert load_writes(save_writes(tmp_path / "r", routing)) == routing


def test_files_of_other_models_and_other_things_are_refused(tiny_gpt2_64: Any, tiny_gpt2: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = save_writes(tmp_path / "w", everything()[:1], {"model": identify_model(tiny_gpt2_64)})
    with pytest.raises(InputError, match="another model"):
        load_writes(path, tiny_gpt2)
    assert len(load_writes(path)) == 1
    (tmp_path / "text.safetensors").write_text("no")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"what": "something"})
    for name in ("text", "other", "missing"):
        with pytest.raises(ArtefactError):
            load_writes(tmp_path / f"{name}.safetensors")
    facts = '{"writes": [{"value": "Popen", "of": {}}], "provenance": {}}'
    bad = {"what": "mechwork interventions", "format": "1", "facts": facts}
    save_file({}, tmp_path / "bad.safetensors", metadata=bad)
    with pytest.raises(ArtefactError, match="Popen"):
        load_writes(tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="holds a function, which cannot be saved"):
        save_writes(tmp_path / "f", [Write(READ, lambda activation: activation)])


def test_contracts(tiny_gpt2_64: Any) -> None:
    c, late = curve(), Write(Site("resid_post", 1), Zero())
    for settings in ({}, {"to": 1.0, "by": 1.0}):
        with pytest.raises(InputError, match="`to` a place or `by` a step"):
            Slide(c, **settings)
    with pytest.raises(InputError, match="each above"):
        Curve(c.knots.flip(0), c.points, c.basis, c.centre)
    with pytest.raises(InputError, match="orthonormal"):
        Curve(c.knots, c.points, 2 * c.basis, c.centre)
    with pytest.raises(InputError, match="finite"):
        Curve(c.knots, c.points * torch.nan, c.basis, c.centre)
    with pytest.raises(InputError, match="too early: resid_post"):
        Dosed(Site("resid_post", 1), doses(1), (late,))
    with pytest.raises(InputError, match="no writes"):
        Dosed(READ, doses(1), ())
    with pytest.raises(InputError, match="sites with positions"):
        Dosed(Site("pattern", 0, 0), doses(1), (late,))
    with (
        pytest.raises(InputError, match="layers of this model"),
        intervene(tiny_gpt2_64, [Dosed(READ, doses(1), (Write(Site("resid_post", 7), Zero()),))]),
    ):
        pass
    x = draw(2, 3, WIDTH)
    assert torch.equal(replace_at(Slide(c, to=1.0, share=0.0), x, 0), x)
