"""Properties that a small change of the code breaks and that nothing else noticed (`python -m tests.mutants`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.ablation import AblationSpec
from mechwork.errors import InputError
from mechwork.interventions.replacements import Constant
from mechwork.interventions.writes import as_interventions, is_replacement
from mechwork.lenses.lens import LOGIT_LENS
from mechwork.lenses.text import row_batches
from mechwork.patching.subspace import Subspace
from mechwork.sites import Site
from mechwork.tasks.task import Task
from tests.families import D_VOCAB, rounding


def test_a_list_is_said_again_from_its_start_and_the_answer_comes_next(bundled_model: Any) -> None:
    task = mw.tasks.induction(bundled_model, n=24, seed=5)
    for (clean, corrupt), (right, wrong) in zip(task.texts, task.answer_texts, strict=True):
        first = clean.index(clean[-1])
        n = next(k for k in range(1, first + 2) if k > first or clean[-k - 1] != clean[first - k])
        again = clean[-n:]  # with the words of the template before it, where it says them twice
        again = again[again.index(":") + 1 :] if ":" in again else again
        assert clean[clean.index(":") + 1] == again[0], "the words said again are not the list's first ones"
        assert clean[first + 1] == right
        assert corrupt[corrupt.index(corrupt[-1]) + 1] == wrong
        assert clean[:-1] == corrupt[:-1]


def test_the_end_of_prompts_without_spans_is_their_last_column(tiny_gpt2: Any, tiny_task: Task) -> None:
    at_end, at_nine, everywhere = (
        mw.ablate(tiny_gpt2, tiny_task, AblationSpec(["m0"], "zero", positions=where)).per_example
        for where in (["END"], [9], None)
    )
    assert torch.equal(at_end, at_nine)
    assert not torch.allclose(at_end, everywhere, atol=10 * rounding(tiny_gpt2))


def test_effects_on_each_of_several_metrics_are_those_of_the_metric_alone(tiny_gpt2: Any, tiny_task: Task) -> None:
    both = mw.patch(tiny_gpt2, tiny_task, ["mlp_out"], metrics=["logit_difference", "log_probability"])
    for name in both.metrics:
        alone = mw.patch(tiny_gpt2, tiny_task.with_metric(name), ["mlp_out"])
        found = both.under(name)
        assert found.metrics[0] == name
        torch.testing.assert_close(found["mlp_out"].values, alone["mlp_out"].values, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="metric of these effects"):
        both.under("probability")


def test_an_answer_of_no_token_among_others_is_refused() -> None:
    with pytest.raises(InputError, match="at least one token"):
        Task.from_tokens([[1, 2]], [[1, 3]], [[[5, 6], []]], [[[7, 8]]], metric="sequence_difference")


def test_a_subspace_has_a_direction() -> None:
    with pytest.raises(InputError, match="orthonormal columns"):
        Subspace(torch.zeros(4, 0))
    assert Subspace(torch.eye(4)[:, :1]).basis.shape == (4, 1)


def test_batches_of_rows_hold_every_row_once_and_not_more_than_fits() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = [[i] * int(torch.randint(1, 12, (), generator=draw)) for i in range(40)]
    for most in (1, 7, 24, 60, 10_000):
        batches = list(row_batches(rows, most))
        assert sorted(row[0] for batch in batches for row in batch) == list(range(40))
        for batch, after in zip(batches, [*batches[1:], None], strict=True):
            assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= most
            assert after is None or (len(batch) + 1) * len(after[0]) > most, "a row more would have fitted"


def test_an_interval_lies_around_the_median_and_grows_with_its_level(tiny_gpt2: Any) -> None:
    drawn = torch.randint(D_VOCAB, (10, 8), generator=torch.Generator().manual_seed(2))
    rows = mw.lenses.open_text(tiny_gpt2, drawn, packing="documents")
    measured = mw.lenses.evaluate_lens(tiny_gpt2, LOGIT_LENS, rows)
    point, half, wide = (measured.interval("kl", level=level) for level in (1e-9, 0.5, 0.95))
    torch.testing.assert_close(point[0], point[1], rtol=1e-6, atol=0)
    assert bool(((wide[0] <= half[0]) & (half[0] <= point[0]) & (point[0] <= half[1]) & (half[1] <= wide[1])).all())
    assert bool((wide[0] < wide[1]).any())


def test_a_replacement_is_written_at_a_site_and_interventions_say_theirs() -> None:
    place = Site("resid_pre", 1)
    written = as_interventions(place, Constant(1.0))
    assert is_replacement(Constant(1.0))
    assert not is_replacement(written)
    assert [write.site for write in written] == [place]  # pyright: ignore[reportAttributeAccessIssue]
    assert as_interventions(Site("mlp_out", 0), written) == written
