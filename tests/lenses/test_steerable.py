"""Steerable against decodable: outcomes by the limits, lenses' accuracies by hand, a direction that steers where no
lens reads it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.directions import Demonstrations, Direction, Examples, best_threshold, fit_function_vector
from mechwork.errors import ArtefactError, InputError, UnknownNameError
from mechwork.lenses import LOGIT_LENS, compare_steering_and_decoding, join_tables, load_lens
from mechwork.lenses.steerable import OUTCOMES, PROBES, SteerableRow, _by_probe
from mechwork.sites import Site
from tests.families import build_task


def row(success: float, accuracy: float, random: float = 0.1, turned: float = 0.9) -> SteerableRow:
    return SteerableRow("t", Site("resid_post", 0), success, "add", turned, random, {"lens": accuracy}, 0.5)


def test_the_four_outcomes() -> None:
    cases = ((0.9, 0.9), (0.9, 0.6), (0.2, 0.9), (0.2, 0.6))
    assert tuple(row(*case).outcome("lens") for case in cases) == OUTCOMES
    assert row(0.6, 0.9, turned=0.5).outcome("lens") == "decodable, not steerable"  # the answer is gone, not turned
    assert row(0.9, 0.9, random=0.95).outcome("lens") == "decodable, not steerable"
    with pytest.raises(UnknownNameError, match="decoder"):
        row(0.9, 0.9).outcome("probe")


def test_a_limit_that_no_strength_keeps_is_said(tiny_gpt2_64: Any) -> None:
    train, other = build_task(n=10), build_task(n=4, seed=2)
    table = compare_steering_and_decoding(
        tiny_gpt2_64, train, build_task(n=6, seed=1), others=[other], strengths=[1.0], methods=["add"], n_random=1,
        directions=[Direction(torch.ones(32, dtype=torch.float64), Site("resid_post", 1))], n_controls=0, max_kl=0.0,
    )  # fmt: skip
    assert table.rows[0].reached_by == "no admissible strength"
    assert table.rows[0].success == 0
    assert "no admissible strength at resid_post.1" in str(table)
    assert "not known" in str(table)


def test_a_lens_is_read_as_by_hand(tiny_gpt2_64: Any) -> None:
    train, test = build_task(n=10), build_task(n=10, seed=1)
    table = compare_steering_and_decoding(
        tiny_gpt2_64, train, test, others=[build_task(n=4, seed=2)], strengths=[1.0], methods=["add"], n_controls=1
    )
    assert [r.site.layer for r in table.rows] == [0, 1, 2]

    def scores(part: Any) -> torch.Tensor:
        found = []
        for tokens in (part.pairs.clean_tokens, part.pairs.corrupt_tokens):
            with torch.no_grad():
                cache = tiny_gpt2_64.run_with_cache(tokens)[1]
                logits = tiny_gpt2_64.ln_final(cache["blocks.1.hook_resid_post"])[:, -1] @ tiny_gpt2_64.W_U
            answers = part.pairs.correct[:, 0], part.pairs.incorrect[:, 0]
            found.append(logits.gather(1, answers[0][:, None]) - logits.gather(1, answers[1][:, None]))
        return torch.cat(found)[:, 0]

    clean = torch.arange(20) < 10
    above = scores(test) > best_threshold(scores(train), clean)
    expected = (above[clean].double().mean() + (~above[~clean]).double().mean()) / 2
    assert table.rows[1].decoded["logit lens"] == pytest.approx(float(expected))
    assert float(scores(test).std()) > 1e-3
    assert sum(table.counts("linear probe").values()) == 3
    assert len(join_tables([table, table]).rows) == 6
    assert len(table.to_dataframe()) == 9
    assert "two-layer probe" in str(table)


@pytest.mark.parametrize("name", sorted(PROBES))
def test_a_probe_that_tells_the_classes_apart_is_right_throughout(tiny_gpt2_64: Any, name: str) -> None:
    """Half of the prompts end in one token, half in another: balanced accuracy 1, and .5 where they are mixed up."""
    tokens = build_task(n=24).pairs.clean_tokens.repeat_interleave(2, 0)
    labels, where = torch.arange(48) % 2 == 0, torch.zeros_like(tokens, dtype=torch.bool)
    tokens[:, -1], where[:, -1] = torch.where(labels, 5, 60), True
    examples = Examples(tokens, labels, where, torch.arange(48) // 2)
    site = Site("resid_post", 0)
    assert _by_probe(tiny_gpt2_64, PROBES[name], site, examples, examples, 0) == 1.0
    turned = replace(examples, labels=torch.arange(48) % 4 < 2)
    assert _by_probe(tiny_gpt2_64, PROBES[name], site, examples, turned, 0) == 0.5


def test_the_function_vector_steers_before_it_can_be_read() -> None:
    """After layer 0 of gemma2-6l nothing tells the relations apart yet, and the vector put in there brings French."""
    model = mw.load_model("gemma2-6l")
    task = mw.tasks.in_context(model, n=48, relation="french")
    shown = Demonstrations.of_task(task.train)
    french = fit_function_vector(model, shown, shown.bare(), n_heads=4, site=Site("resid_post", 0))
    table = compare_steering_and_decoding(
        model, task.train, task.test, directions=[french.direction], others=[mw.tasks.capitals(model, n=32).test],
        lenses={"logit lens": LOGIT_LENS, "full lens": load_lens(model)}, methods=["add"], n_controls=1, max_kl=100.0,
    )  # fmt: skip
    assert {table.rows[0].outcome(name) for name in table.decoders} == {"steerable, not decodable"}


def test_contracts(tiny_gpt2: Any, bundled_model: Any) -> None:
    train = build_task(n=8)
    with pytest.raises(InputError, match="block's exit"):
        compare_steering_and_decoding(
            tiny_gpt2, train, train, directions=[Direction(torch.ones(32), Site("mlp_out", 1))], others=[train]
        )
    with pytest.raises(ArtefactError):
        compare_steering_and_decoding(tiny_gpt2, train, train, lenses={"a": load_lens(bundled_model)}, others=[train])
    with pytest.raises(InputError, match="joined"):
        join_tables([])
    assert replace(row(0.9, 0.9), random=0.0).steerable


def test_the_table_is_drawn() -> None:
    import mechwork.render  # noqa: F401 - registers the drawings
    from mechwork.lenses import SteerableTable

    html = SteerableTable((row(0.9, 0.6),), 1.0, {}).to_html()
    assert "steerable, not decodable" in html
    assert "0.900" in html or "0.90" in html
