"""The table of agreements: what it holds, prints and refuses."""

from __future__ import annotations

from typing import Any

import pytest

import mechwork as mw
from mechwork.errors import InputError
from mechwork.patching import study_agreement
from mechwork.relevance import RELP, GradientRule
from mechwork.tasks.task import Task
from tests.families import build_task


def test_rows_are_the_agreements_of_the_parts(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    tasks = [tiny_task, build_task(seed=1, name="other")]
    own = RELP.prepend(("ln_final", GradientRule("norm")), name="own")
    seen: list[str] = []
    study = study_agreement(
        tiny_gpt2_64, tasks, rules=["gradient", own], sites=["resid_pre", "z"], progress=lambda *a: seen.append(a[2])
    )
    assert study.tasks == ("custom", "other")
    assert study.sites == ("resid_pre", "z")
    assert study.rules == ("gradient", "own")
    exact = mw.patch(tiny_gpt2_64, tasks[1], ["z"])
    expected = mw.attribute(tiny_gpt2_64, tasks[1], ["z"], rules=own).agreement(exact)["z"]
    found = study.rows["other", "z", "own"]
    assert (found.pearson, found.relative_error) == pytest.approx((expected.pearson, expected.relative_error), rel=1e-9)
    assert expected.relative_error > 0
    mean = (study.rows["custom", "z", "own"].pearson + expected.pearson) / 2
    assert study.mean("z", "own")[0] == pytest.approx(mean)
    table = study.table()
    assert table.count("*") == 4 + 2
    assert table.splitlines()[-1].startswith("mean")
    assert len(study.to_dataframe()) == 8
    assert len(seen) == 2


def test_bad_studies_are_refused(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="different names"):
        study_agreement(tiny_gpt2, [tiny_task, tiny_task])
    with pytest.raises(InputError, match="different names"):
        study_agreement(tiny_gpt2, [])
    with pytest.raises(InputError, match="nearest: relp"):
        study_agreement(tiny_gpt2, [tiny_task], rules=["rellp"])
