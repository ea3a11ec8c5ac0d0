"""Every kind of ablation of every kind of target against hooks written by hand, in float64, on five families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mechwork.ablation import AblationSpec, ablate, fit_ablation
from mechwork.ablation.spec import KINDS
from mechwork.tasks.task import Task
from tests.families import borrowed, build_model, build_task
from tests.reference import ablation as literal

FIVE = ("gpt2", "llama", "neox", "gemma2", "mixtral")
SPAN = {"A": [3, 4]}


@pytest.fixture(scope="module", params=FIVE)
def model(request: pytest.FixtureRequest) -> Any:
    built = build_model(request.param)
    with torch.no_grad():
        built.run_with_cache(torch.tensor([[1, 2, 3]]))
    return built


@pytest.fixture(scope="module")
def task() -> Task:
    """Positions, spans and prompts have means of their own, so that a mean over a wrong axis would show; there are more
    prompts than positions, so that one count in place of the other would.
    """
    return build_task(n=12, spans=[SPAN] * 12)


def logits_of(model: Any, task: Task, spec: AblationSpec) -> Tensor:
    with borrowed(model), torch.no_grad(), fit_ablation(model, spec, task).applied(model, task.pairs):
        return model(task.pairs.clean_tokens)


def assert_same(model: Any, task: Task, found: Tensor, expected: Tensor) -> None:
    with torch.no_grad():
        plain = model(task.pairs.clean_tokens)
    assert float((expected - plain).abs().max()) > 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


WHOLE = ("zero", "mean", "mean_by_position", "mean_by_span", "corrupt", "constant")


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("target", ["a1.h2", "a1", "m0"])
def test_heads_attention_and_mlps(model: Any, task: Task, kind: str, target: str) -> None:
    site, layer = {"a1.h2": ("z", 1), "a1": ("attn_out", 1), "m0": ("mlp_out", 0)}[target]
    new = literal.table(model, task, site, layer, kind)

    def edit(x: Tensor) -> None:
        if target == "a1.h2":
            x[:, :, 2] = new[:, :, 2]
        else:
            x[:] = new

    expected = literal.run_with(model, task.pairs.clean_tokens, site, layer, edit)
    assert_same(model, task, logits_of(model, task, AblationSpec([target], kind, value=0.7)), expected)


@pytest.mark.parametrize("kind", WHOLE)
def test_sets_of_neurons(model: Any, task: Task, kind: str) -> None:
    if model.cfg.num_experts:
        pytest.skip("a block of experts has no neurons of its own")
    new = literal.table(model, task, "mlp_post", 1, kind)

    def edit(x: Tensor) -> None:
        for neuron in (3, 17):
            x[:, :, neuron] = new[:, :, neuron]

    expected = literal.run_with(model, task.pairs.clean_tokens, "mlp_post", 1, edit)
    assert_same(model, task, logits_of(model, task, AblationSpec(["m1.n3+17"], kind, value=0.7)), expected)


@pytest.mark.parametrize("kind", ["zero", "mean", "corrupt"])
def test_positions_and_spans(model: Any, task: Task, kind: str) -> None:
    """With positions, a mean is over the tokens at those positions."""
    pairs = task.pairs
    values = literal.cache_of(model, pairs.clean_tokens, "z", 0)
    new = literal.table(model, task, "z", 0, kind)
    if kind == "mean":
        here = [values[b, p] for b in range(len(pairs)) for p in (1, 3, 4)]
        new[:] = sum(here) / len(here)

    def edit(x: Tensor) -> None:
        for p in (1, 3, 4):
            x[:, p, 1] = new[:, p, 1]

    expected = literal.run_with(model, pairs.clean_tokens, "z", 0, edit)
    assert_same(model, task, logits_of(model, task, AblationSpec(["a0.h1"], kind, positions=["A", 1])), expected)


@pytest.mark.parametrize("n", [9, 12])
def test_resample_takes_another_prompt_of_the_same_length(model: Any, n: int) -> None:
    """Fewer prompts than positions, and more."""
    task = build_task(n=n)
    fitted = fit_ablation(model, AblationSpec(["a1.h2"], "resample", seed=3), task)
    order = fitted.tables["order"].tolist()
    assert sorted(order) == list(range(n))
    assert all(a != b for a, b in enumerate(order))
    values = literal.cache_of(model, task.pairs.clean_tokens, "z", 1)

    def edit(x: Tensor) -> None:
        for row, other in enumerate(order):
            x[row, :, 2] = values[other, :, 2]

    expected = literal.run_with(model, task.pairs.clean_tokens, "z", 1, edit)
    with torch.no_grad(), fitted.applied(model, task.pairs):
        found = model(task.pairs.clean_tokens)
    assert_same(model, task, found, expected)
    with torch.no_grad(), fitted.applied(model, task.pairs[4:7], first_row=4):
        torch.testing.assert_close(model(task.pairs.clean_tokens[4:7]), expected[4:7], rtol=0, atol=1e-9)


def test_noise_has_the_asked_spread_and_is_repeatable(model: Any, task: Task) -> None:
    spec = AblationSpec(["m0"], "noise", strength=2.0, seed=5)
    fitted = fit_ablation(model, spec, task)
    sd = literal.deviation(model, task, "mlp_out", 0)
    torch.testing.assert_close(fitted.tables["mlp_out.0"], sd, rtol=0, atol=1e-9)
    name = literal.HOOKS["mlp_out"].format(0)
    plain = literal.cache_of(model, task.pairs.clean_tokens, "mlp_out", 0)
    with torch.no_grad(), fitted.applied(model, task.pairs):
        seen = [model.run_with_cache(task.pairs.clean_tokens)[1]["blocks.0.hook_resid_post"] for _ in range(2)]
    assert torch.equal(*seen)
    assert name in model.hook_dict
    mid = model.run_with_cache(task.pairs.clean_tokens)[1]["blocks.0.hook_resid_post"] - plain
    noise = (seen[0] - mid - plain) / (2.0 * sd)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.05)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.06)


@pytest.mark.parametrize("kind", ["zero", "mean", "mean_by_position", "corrupt"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_attention_edges(model: Any, task: Task, kind: str, renormalise: bool) -> None:
    new = literal.table(model, task, "pattern", 1, kind if kind == "corrupt" else "zero")
    pattern = literal.cache_of(model, task.pairs.clean_tokens, "pattern", 1)
    if kind == "mean_by_position":
        new = pattern.mean(dim=0, keepdim=True).expand_as(pattern)
    if kind == "mean":
        here = [pattern[b, 2, 9, k] for b in range(12) for k in (3, 4)]
        new = torch.full_like(pattern, float(sum(here) / len(here)))

    def edit(x: Tensor) -> None:
        for b in range(12):
            old = x[b, 2, 9].clone()
            for k in (3, 4):
                x[b, 2, 9, k] = new[b, 2, 9, k]
            if renormalise:
                others = [k for k in range(10) if k not in (3, 4)]
                left = old[others].sum()
                x[b, 2, 9, others] = old[others] * (old.sum() - x[b, 2, 9, 3] - x[b, 2, 9, 4]) / left

    expected = literal.run_with(model, task.pairs.clean_tokens, "pattern", 1, edit)
    found = logits_of(model, task, AblationSpec(["a1.h2[9->A]"], kind, renormalise=renormalise))
    with torch.no_grad():
        plain = model(task.pairs.clean_tokens)
    assert float((expected - plain).abs().max()) > 1e-7
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["zero", "mean", "corrupt"])
def test_directions(model: Any, task: Task, kind: str) -> None:
    basis = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)).double()
    q = torch.linalg.qr(basis.T)[0].T
    new = literal.table(model, task, "resid_pre", 2, kind)

    def edit(x: Tensor) -> None:
        for row in q:
            x += ((new - x) @ row)[..., None] * row

    expected = literal.run_with(model, task.pairs.clean_tokens, "resid_pre", 2, edit)
    spec = AblationSpec(["resid_pre.2@d"], kind, directions={"d": basis})
    assert_same(model, task, logits_of(model, task, spec), expected)


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_experts(family: str, kind: str, task: Task) -> None:
    model = build_model(family)
    value = None
    if kind == "mean":
        writes: list[Tensor] = []
        block = model.blocks[1].mlp.original_component

        def see(module: Any, args: Any, output: Tensor) -> None:
            hidden, index, weights = args
            for token, slot in (index == 2).nonzero().tolist():
                gate, up = (module.gate_up_proj[2] @ hidden[token]).chunk(2)
                writes.append(module.down_proj[2] @ (module.act_fn(gate) * up) * weights[token, slot])

        handle = block.experts.register_forward_hook(see)
        with torch.no_grad():
            model(task.pairs.clean_tokens)
        handle.remove()
        value = torch.stack(writes).mean(dim=0)
    expected = literal.without_expert(model, task.pairs.clean_tokens, 1, 2, value)
    assert_same(model, task, logits_of(model, task, AblationSpec(["m1.e2"], kind)), expected)
    result = ablate(model, task, AblationSpec(["m1.e2"], kind))
    assert "tokens were routed to it" in result.notes[0]


def test_an_expert_that_nothing_is_routed_to_is_reported(task: Task) -> None:
    model = build_model("mixtral")
    short = build_task(n=1, n_pos=2)
    routed: dict[int, set[int]] = {layer: set() for layer in range(3)}
    handles = [
        model.blocks[layer].mlp.original_component.experts.register_forward_pre_hook(
            lambda module, args, layer=layer: routed[layer].update(args[1].flatten().tolist())
        )
        for layer in range(3)
    ]
    with torch.no_grad():
        model(short.pairs.clean_tokens)
    for handle in handles:
        handle.remove()
    names = [(layer, expert) for layer in range(3) for expert in range(4)]
    assert any(expert not in routed[layer] for layer, expert in names)
    for layer, expert in names:
        result = ablate(model, short, AblationSpec([f"m{layer}.e{expert}"], "zero"))
        assert ("changed nothing" in str(result)) == (expert not in routed[layer])
        assert (result.effect == 0) == (expert not in routed[layer])


def test_optimal_constants_hurt_less_than_means(model: Any, task: Task) -> None:
    task = task[list(range(8))]
    fitted = [fit_ablation(model, AblationSpec(["a1.h2", "m0"], kind), task) for kind in ("mean", "optimal")]
    mean, optimal = (ablate(model, task, one) for one in fitted)
    assert optimal.kl < mean.kl
    assert set(fitted[1].tables) == {"z.1", "mlp_out.0"}


def test_every_kind_is_here() -> None:
    assert {*WHOLE, "resample", "noise", "optimal"} == set(KINDS)


@pytest.mark.parametrize("kind", ["mean", "noise"])
def test_absolute_positions_in_cache_and_generation(model: Any, task: Task, kind: str) -> None:
    """What generation with a key-value cache chooses token by token is what one whole forward of the same text says."""
    prompts = task.pairs.clean_tokens[:2, :6]
    spec = AblationSpec(["a1.h2", "m0"], kind, positions=[2, 3, 7], seed=2)
    fitted = fit_ablation(model, spec, task)
    with torch.no_grad():
        free = model.generate(prompts, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
    with borrowed(model), torch.no_grad(), fitted.applied(model):
        made = model.generate(prompts, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
        logits = model(made)
        cached, _ = model.run_with_cache(made)
    assert torch.equal(cached, logits)
    assert torch.equal(logits[:, 5:-1].argmax(dim=-1), made[:, 6:])
    assert free.shape == made.shape


# ---- positions, where the answer tells where the write was ----------------------------------------------------------


def last_layer(family: str) -> list[str]:
    """Targets of the last block whose write at a position reaches the logits at that position alone."""
    return ["m2", "a2", "a2.h1", "resid_post.2@x", *(["m2.e0", "m2.e1"] if family == "mixtral" else ["m2.n3"])]


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_positions_limit_what_is_ablated(family: str) -> None:
    """In the last block: at the end the answer moves as if all positions were ablated, elsewhere it does not move."""
    from tests.families import build_hard_task

    model, task = build_model(family), build_hard_task()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1)).double()
    moved = 0.0
    for target in last_layer(family):
        given = {"x": direction} if "@x" in target else {}
        found = {
            name: ablate(model, task, AblationSpec([target], "zero", positions=where, directions=given)).per_example
            for name, where in (("all", None), ("end", ["END"]), ("S", ["S"]))
        }
        torch.testing.assert_close(found["end"], found["all"], rtol=0, atol=1e-5, msg=target)
        assert float(found["S"].abs().max()) < 1e-9, target
        moved = max(moved, float(found["all"].abs().max()))
        assert float(found["all"].abs().max()) > 1e-4 or ".e" in target, target
    assert moved > 1e-2


@pytest.mark.parametrize("seed", range(6))
def test_a_row_is_never_resampled_from_itself(seed: int) -> None:
    """A reference of two prompts, run in the other order: each row gets the other's values."""
    model, whole = build_model("gpt2"), build_task(n=2)
    swapped = whole[[1, 0]]
    fitted = fit_ablation(model, AblationSpec(["a1"], "resample", seed=seed), whole)
    found = ablate(model, swapped, fitted).ablated_per_example
    other = literal.cache_of(model, whole.pairs.clean_tokens, "attn_out", 1)  # of the other prompt, row by row
    logits = literal.run_with(model, swapped.pairs.clean_tokens, "attn_out", 1, lambda x: x.copy_(other))
    torch.testing.assert_close(found, swapped.metric(logits, swapped.pairs), rtol=0, atol=1e-9)


def test_the_p_value_is_that_of_the_effect_per_pair() -> None:
    from mechwork.statistics import sign_flip_p

    model, task = build_model("gpt2"), build_task(n=8)
    found = ablate(model, task, AblationSpec(["m1"], "zero"))
    assert found.p_value() == pytest.approx(float(sign_flip_p(found.per_example[:, None])))
    assert found.accuracy_drop == pytest.approx((int(found.clean_correct.sum()) - int(found.ablated_correct.sum())) / 8)
    low, high = found.interval()
    assert low < found.effect < high


def test_experts_that_nothing_goes_to_are_named() -> None:
    model, task = build_model("mixtral"), build_task(n=2)
    with torch.no_grad():
        model.blocks[1].mlp.original_component.gate.weight.zero_()
        model.blocks[1].mlp.original_component.gate.weight[0] = 1  # all or nothing goes to expert 0
    fitted = fit_ablation(model, AblationSpec([f"m1.e{i}" for i in range(4)], "zero"), task)
    bound = fitted.bind(model, task.pairs)
    with torch.no_grad(), bound.installed(model):
        model(task.pairs.clean_tokens)
    routed = {f"m1.e{expert}" for (_, expert), n in bound.experts.routed.items() if n > 0}
    assert routed
    assert set(bound.never_routed) == {f"m1.e{i}" for i in range(4)} - routed
