"""Blocks that run again in the backward pass: the same coefficients to the bit, one forward more, and less memory; no
attention pattern outlives its layer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import score_edges, score_positions
from mechwork.errors import InputError
from mechwork.patching import attribute
from mechwork.relevance import attribute_tokens, find_composite
from mechwork.runs import record_run
from mechwork.runs.attention import attention_between
from mechwork.runs.remake import remade_blocks
from mechwork.tasks.task import Task
from tests.families import CHOSEN, UNLIKE, build_hard_task, build_model, build_task
from tests.gate import fewer
from tests.patching.test_attribution_passes import one_pair
from tests.patching.test_memory import measured

SITES = ["resid_pre", "z", "mlp_out"]


class Count:
    """How often the first block's attention ran."""

    def __init__(self, model: Any) -> None:
        self.n, self.handle = 0, model.blocks[0].attn.register_forward_hook(self.ran)

    def ran(self, *_: Any) -> None:
        self.n += 1


@pytest.mark.parametrize("family", fewer(CHOSEN, UNLIKE))
@pytest.mark.parametrize("settings", [{"rules": "relp"}, {"rules": "attnlrp", "ig_steps": 2, "direction": "noise"}])
def test_the_numbers_are_equal_to_the_bit(family_model64: Any, settings: dict[str, Any]) -> None:
    model, task = family_model64, build_hard_task()[:1]
    whole = attribute(model, task, SITES, **settings)
    count = Count(model)
    again = attribute(model, task, SITES, memory_budget=one_pair(model, task, SITES), **settings)
    count.handle.remove()
    assert count.n == (3 if settings["rules"] == "relp" else 6)  # 2 forwards and a rerun; 2 and 2, and 2 reruns
    for kind in SITES:
        assert float(whole[kind].values.abs().max()) > 1e-3
        assert torch.equal(again[kind].per_example, whole[kind].per_example)


@pytest.mark.parametrize("family", fewer(CHOSEN, ["gemma2"]))
def test_edges_and_tokens(family_model64: Any) -> None:
    model, task = family_model64, build_hard_task()[:1]
    cases: list[tuple[Any, dict[str, Any]]] = [
        (score_edges, {"rules": "gradient", "ig_steps": 2, "ablation": "zero"}),
        (score_positions, {"preset": "relp", "positions": "spans"}),
    ]
    for score, settings in cases:
        whole, again = (score(model, task, memory_budget=size, **settings).values for size in (2**30, 1000))
        assert float(whole.abs().max()) > 1e-3
        torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-11)
    ids = task.pairs.clean_tokens[0].tolist()
    whole, again = (
        attribute_tokens(model, ids, (5, 6), memory_budget=size).values for size in ("1GB", fits(model, ids))
    )
    assert torch.equal(whole, again)


def fits(model: Any, ids: list[int]) -> int:
    """The least budget for relevance of these tokens."""
    with pytest.raises(InputError, match="the backward pass of the prompt") as refusal:
        attribute_tokens(model, ids, (5, 6), memory_budget=1)
    return int(str(refusal.value).split("prompt, ")[1].split(" bytes")[0].replace(",", ""))


def test_pairs_that_share_a_beginning(tiny_gpt2_64: Any) -> None:
    """Their first columns are a cache of keys and values, which the second run must find as the first did."""
    clean = [[3, 5, 7, 9, 11, 2, 4]]
    task = Task.from_tokens(clean, [[3, 5, 7, 9, 12, 2, 4]], [20], [21])
    whole, again = (score_edges(tiny_gpt2_64, task, preset="eap", memory_budget=size).values for size in (2**30, 1000))
    assert float(whole.abs().max()) > 1e-3
    torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-11)


def test_a_backward_pass_after_the_end_is_refused(tiny_gpt2_64: Any) -> None:
    task = build_task(n=1)
    with remade_blocks(tiny_gpt2_64):
        run = record_run(tiny_gpt2_64, task.pairs, ["resid_pre"], grad=True)
    with pytest.raises(RuntimeError, match="inside `remade_blocks`"):
        torch.autograd.grad(run.logits.sum(), run.layers["resid_pre"][0])
    assert all("forward" not in vars(block) for block in tiny_gpt2_64.blocks)
    with remade_blocks(tiny_gpt2_64, when=False):
        assert all("forward" not in vars(block) for block in tiny_gpt2_64.blocks)


def test_a_deep_graph_takes_one_block(tiny_gpt2: Any) -> None:
    model = build_model("llama", torch.float32)
    task = Task.from_tokens([list(range(60))], [[1, *range(1, 60)]], [20], [21])
    peaks = []
    for remade in (False, True):
        with find_composite("relp").context(model), measured(model) as meter, remade_blocks(model, when=remade):
            run = record_run(model, task.pairs, ["resid_pre"], grad=True, n_tail=1)
            torch.autograd.grad(run.logits.sum(), run.layers["resid_pre"])
        peaks.append(meter.peak)
    assert peaks[1] < 0.6 * peaks[0]  # one of three blocks, and the streams


def test_no_pattern_outlives_its_layer(tiny_gpt2: Any) -> None:
    n = 60
    task = Task.from_tokens([list(range(n))], [[1, *range(1, n)]], [20], [21], spans=[{"A": [3], "END": [n - 1]}])
    one, alive = 4 * n * n * tiny_gpt2.cfg.n_heads, list[int]()

    def squares(stream: Any, hook: Any) -> None:
        alive.append(sum(size == one for size in meter.alive.values()))

    hooks = [(f"blocks.{layer}.hook_resid_post", squares) for layer in range(3)]
    with tiny_gpt2.hooks(fwd_hooks=hooks), measured(tiny_gpt2) as meter:
        found = attention_between(tiny_gpt2, task, [("END", "A")])["END", "A"]
        assert len(alive) == 3
        run = record_run(tiny_gpt2, task.pairs, ["pattern"], n_tail=1)
    assert alive == [0, 0, 0, 1, 2, 3]  # the first run keeps none, the second each
    torch.testing.assert_close(found, torch.stack([p[0, :, n - 1, 3] for p in run.layers["pattern"]]).double())
