"""Pages of the newer results of patching: paths, neurons, embeddings, screened sweeps, illusion checks."""

from __future__ import annotations

from typing import Any

from mechwork.patching import check_illusion, neurons, patch, patch_paths
from mechwork.render import heatmap_figure, illusion_figure
from mechwork.sites import Site
from mechwork.tasks.task import Task


def test_every_shape_of_effects_is_drawn(tiny_gpt2: Any, tiny_task: Task) -> None:
    effects = patch(tiny_gpt2, tiny_task, ["embed", "mlp_post", "pattern"], neurons={0: [3, (4, 5)]}, positions="each")
    whole = patch(tiny_gpt2, tiny_task, ["embed", "mlp_post", "result"], neurons={0: [3]}, positions="all")
    paths = patch_paths(tiny_gpt2, tiny_task, ["a0.h1", "m0"], ["a1.h2<q>", "logits"])
    for effect in (*effects.values(), *whole.values(), *paths.values()):
        figure: Any = heatmap_figure(effect)
        assert len(figure.data) >= 1
        assert effect.to_html().startswith("<!")
    assert "a0.h1 -> a1.h2<q>" in str(heatmap_figure(paths["path"]).data[0]["customdata"])
    assert "m0.n4+5" in str(heatmap_figure(effects["mlp_post"]).layout["yaxis"]["ticktext"])


def test_screened_effects_say_what_was_measured(tiny_gpt2: Any, tiny_task: Task) -> None:
    html = patch(tiny_gpt2, tiny_task, ["resid_pre"], screen="gradient", verify_top=0.1, verify_random=0.2).to_html()
    assert "3 top cells and 6 random control cells measured exactly" in html
    assert "with 95 % confidence" in html


def test_illusion_checks_give_their_verdict(tiny_gpt2: Any, tiny_task: Task) -> None:
    check = check_illusion(tiny_gpt2, tiny_task, Site("mlp_post", 1), neurons(tiny_gpt2, [1, 2]), n_random=2)
    figure: Any = illusion_figure(check)
    assert len(figure.data[0]["x"]) == 7
    assert "neurons 1, 2" in check.to_html()
