"""Path patching against its literal form on every family, against TransformerLens where that works, and what
must hold.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformer_lens import patching as tl_patching

from mechwork.errors import InputError, UnsupportedModelError
from mechwork.patching import patch, patch_paths
from mechwork.patching.execute import can_step
from mechwork.tasks.task import Task
from tests.families import borrowed, crossed, kv_head, rounding
from tests.reference.paths import patch_path

WRITERS: list[Any] = ["input", "a0.h1", "m0", ("a0.h0", "a1.h3", "m1"), "a1.h2"]
READERS: list[Any] = [
    "a1.h2<q>",
    "a2.h1<k>",
    "a1.h0<v>",
    "m1",
    "m2",
    "logits",
    ("a1.h1<q>", "m1", "a2.h0<v>", "logits"),
]


def fitted(model: Any, group: Any) -> Any:
    """The readers, keys and values of heads that the model has."""
    if isinstance(group, tuple):
        return tuple(fitted(model, name) for name in group)
    return re.sub(r"h(\d+)<([kv])>", lambda found: f"h{kv_head(model, int(found[1]))}<{found[2]}>", group)


@pytest.mark.parametrize(("family", "direction"), crossed(["denoise", "noise"], ["denoise"]))
def test_equals_the_definition(family_model64: Any, tiny_task: Task, direction: str) -> None:
    if not can_step(family_model64, tiny_task):  # OPT
        with pytest.raises(UnsupportedModelError, match="run alone"):
            patch_paths(family_model64, tiny_task, WRITERS, READERS, direction=direction)
        return
    readers_here = [fitted(family_model64, group) for group in READERS]
    with borrowed(family_model64) as model:
        effect = patch_paths(model, tiny_task, WRITERS, readers_here, direction=direction)["path"]
    assert effect.values.shape == (5, 7)
    assert effect.labels["writer"][3] == "a0.h0 + a1.h3 + m1"
    for i, writers in enumerate(WRITERS):
        for j, readers in enumerate(readers_here):
            both = [[group] if isinstance(group, str) else list(group) for group in (writers, readers)]
            expected = patch_path(family_model64, tiny_task, direction, *both)
            torch.testing.assert_close(effect.per_example[:, i, j], expected, rtol=0, atol=rounding(family_model64))
    assert float(effect.values.abs().max()) > 1e-3
    assert not effect.values[4, 0].any(), "a head does not write to a query of its own layer"
    parallel = bool(family_model64.cfg.parallel_attn_mlp)
    assert bool(effect.values[4, 3].any()) != parallel, "nor to its own MLP where they run in parallel"


@pytest.mark.filterwarnings("ignore")
def test_equals_transformer_lens_where_it_works(family_model64: Any, tiny_task: Task) -> None:
    """It takes queries of models whose heads add to the stream directly; keys and values without grouped heads."""
    model, pairs = family_model64, tiny_task.pairs
    clean, corrupt = (model.run_with_cache(tokens)[1] for tokens in (pairs.clean_tokens, pairs.corrupt_tokens))
    for component in ("q", "k", "v"):
        try:
            theirs = tl_patching.get_act_patch_direct_path(
                model,
                pairs.corrupt_tokens,
                clean,
                corrupt,
                lambda logits: tiny_task.metric(logits, pairs).mean(),
                0,
                1,
                component,
                False,
            )
        except (ValueError, NotImplementedError):
            continue
        n_heads = theirs.shape[1]
        names = [f"a{layer}.h{head}<{component}>" for layer in (1, 2) for head in range(n_heads)]
        mine = patch_paths(model, tiny_task, ["a0.h1"], names)["path"]
        expected = theirs[1:].flatten() - mine.baseline.corrupt
        torch.testing.assert_close(mine.values[0], expected.to(mine.values), rtol=0, atol=2e-6)  # theirs are float32
        assert float(expected.abs().max()) > 1e-4


def test_all_direct_paths_at_once_are_the_whole_effect(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    """Through the logits alone the last MLP's path is its whole effect; input to everything at layer 0 is not more than
    that.
    """
    path = patch_paths(tiny_gpt2_64, tiny_task, ["m2"], ["logits"])["path"].per_example[:, 0, 0]
    whole = patch(tiny_gpt2_64, tiny_task, ["mlp_out"], positions="all")["mlp_out"].per_example[:, 2]
    torch.testing.assert_close(path, whole, rtol=0, atol=1e-9)


def test_saved_and_budgeted(tiny_gpt2_64: Any, tiny_task: Task, tmp_path: Any) -> None:
    whole = patch_paths(tiny_gpt2_64, tiny_task, WRITERS, READERS)
    with pytest.raises(InputError, match="memory_budget"):
        patch_paths(tiny_gpt2_64, tiny_task, WRITERS, READERS, memory_budget=100)
    small = patch_paths(tiny_gpt2_64, tiny_task, WRITERS, READERS, memory_budget=600_000)
    torch.testing.assert_close(small["path"].per_example, whole["path"].per_example, rtol=0, atol=1e-9)
    loaded = type(whole).load(whole.save(tmp_path / "paths"))
    assert loaded["path"].axes == ("writer", "reader")
    assert whole["path"].top(1)[0][0].startswith("path, writer ")


@pytest.mark.parametrize(
    ("writers", "readers", "message"),
    [
        (["a9.h0"], ["logits"], "writers of this model"),
        (["a0.h0"], ["a1.h0"], "readers of this model"),
        (["a0.h0"], ["a1.h0<x>"], "readers of this model"),
        ([], ["logits"], "writers is a list"),
        ("a0.h0", ["logits"], "writers is a list"),
        (["a0.h0"], [()], "at least one node"),
    ],
)
def test_unknown_nodes(tiny_gpt2: Any, tiny_task: Task, writers: Any, readers: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        patch_paths(tiny_gpt2, tiny_task, writers, readers)
