"""The table of agreements: what it holds, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechwork as mw
from mechwork.errors import ArtefactError, InputError
from mechwork.patching import study_agreement
from mechwork.patching.sampled import measure_places
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
    assert list(dict.fromkeys(seen)) == [
        f"{what} {task}" for task in study.tasks for what in ("measuring", "gradient of", "own of")
    ]


def test_a_sample_is_a_part_of_the_whole_and_goes_on(tiny_gpt2_64: Any, tmp_path: Path) -> None:
    """Sampled effects and estimates are those of the whole study; further estimators measure nothing again."""
    clean = torch.randint(90, (3, 7), generator=torch.Generator().manual_seed(5))
    corrupt = clean.clone()
    corrupt[0, 3], corrupt[1, 2], corrupt[2, 5] = (clean[0, 3] + 1) % 90, (clean[1, 2] + 1) % 90, (clean[2, 5] + 1) % 90
    task = Task.from_tokens(clean, corrupt, [1, 2, 3], [4, 5, 6])
    kinds = ["resid_pre", "z"]
    found = measure_places(tiny_gpt2_64, task, kinds, n_places=5, seed=3)
    whole = mw.patch(tiny_gpt2_64, task, kinds)
    for kind in kinds:
        values = whole[kind].values.flatten()
        assert found.exact[kind] == pytest.approx(values[found.indexes[kind]].tolist(), rel=1e-9)
        assert len(set(found.indexes[kind])) == 5
        assert found.n_places[kind][0] == values.numel()
    assert found.n_places["resid_pre"] == (3 * 7, 3 * 5)
    assert float(whole["resid_pre"].values[:, :2].abs().max()) == 0
    assert float(whole["resid_pre"].values[:, 2].abs().min()) > 0
    settings: dict[str, Any] = {"sites": kinds, "n_places": 5, "seed": 3, "checkpoint": tmp_path}
    study_agreement(tiny_gpt2_64, [task], rules=["gradient"], **settings)
    file = tmp_path / "custom.json"
    facts = json.loads(file.read_text())
    facts["facts"]["exact"]["z"][0] = 7.0  # what is kept is used
    file.write_text(json.dumps(facts))
    seen: list[str] = []
    study = study_agreement(
        tiny_gpt2_64, [task], rules=["gradient", "relp"], progress=lambda *a: seen.append(a[2]), **settings
    )
    assert set(seen) == {"relp of custom"}
    kept = json.loads(file.read_text())["facts"]
    assert kept["exact"]["z"][0] == 7.0
    assert set(kept["estimates"]) == {"gradient", "relp"}
    row = study.rows["custom", "resid_pre", "relp"]
    a, b = np.array(kept["estimates"]["relp"]["values"]["resid_pre"]), np.array(kept["exact"]["resid_pre"])
    assert row.pearson == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-9)
    assert row.relative_error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-9)
    for low, value, high in (
        (row.pearson_interval[0], row.pearson, row.pearson_interval[1]),
        (row.error_interval[0], row.relative_error, row.error_interval[1]),
    ):
        assert low <= value <= high
    with pytest.raises(ArtefactError, match="another model, task or settings"):
        study_agreement(tiny_gpt2_64, [task], rules=["relp"], **{**settings, "seed": 4})
    file.write_text("{")
    with pytest.raises(ArtefactError, match="damaged"):
        study_agreement(tiny_gpt2_64, [task], rules=["relp"], **settings)


def test_means_over_tasks_and_costs(tiny_gpt2: Any, tiny_task: Task) -> None:
    tasks = [tiny_task, build_task(seed=1, name="other")]
    study = study_agreement(tiny_gpt2, tasks, rules=["gradient", "ig5", "atp_star", "relp-ig5"], sites=["mlp_out"])
    by_rules = {one.rules: one for one in study.means()}
    assert {rules: one.cost for rules, one in by_rules.items()} == {
        "gradient": 4, "ig5": 17, "atp_star": 8, "relp-ig5": 17,
    }  # fmt: skip
    rows = [study.rows[name, "mlp_out", "ig5"] for name in study.tasks]
    mean = by_rules["ig5"]
    assert mean.pearson == pytest.approx(sum(row.pearson for row in rows) / 2)
    assert min(row.pearson for row in rows) <= mean.pearson_interval[0] <= mean.pearson
    assert study.mean("mlp_out", "ig5")[1] == pytest.approx(mean.relative_error)


def test_bad_studies_are_refused(tiny_gpt2: Any, tiny_task: Task) -> None:
    with pytest.raises(InputError, match="different names"):
        study_agreement(tiny_gpt2, [tiny_task, tiny_task])
    with pytest.raises(InputError, match="different names"):
        study_agreement(tiny_gpt2, [])
    with pytest.raises(InputError, match="nearest: relp"):
        study_agreement(tiny_gpt2, [tiny_task], rules=["rellp"])
    for wrong in ({"n_places": 2}, {"n_places": 5, "screen": "relp"}):
        with pytest.raises(InputError, match="at least 3 places"):
            study_agreement(tiny_gpt2, [tiny_task], rules=["relp"], **wrong)  # pyright: ignore[reportArgumentType]
