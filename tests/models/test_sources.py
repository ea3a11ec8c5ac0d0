"""Lists of checkpoints: what they may be, that they run one after the other, and what is refused before the first is
loaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import mechwork as mw
from mechwork.ablation import study_formation, telemetry_over_training
from mechwork.comparison import divergence_over_training, find_divergence, separation_over_training
from mechwork.directions import Examples, fit_direction, measure_separation
from mechwork.errors import InputError, NotFoundError
from mechwork.models.sources import find_checkpoints, read_shape
from mechwork.sites import Site
from tests.families import build_module, build_task
from tests.models import gguf_files


def test_folders_and_files_are_followed(tmp_path: Path) -> None:
    module = gguf_files.build("llama")
    module.save_pretrained(tmp_path / "early")
    gguf_files.write(gguf_files.build("llama", seed=1), tmp_path / "late.gguf")
    sources = [tmp_path / "early", tmp_path / "late.gguf"]
    task = build_task(n_pos=6)
    found = telemetry_over_training(sources, lambda model: task, steps=[100, 200])
    assert found.steps == (100, 200)
    assert found.model == f"{sources[0]} to {sources[1]}"
    first, last = (one.perplexity for one in found.found)
    assert first != last
    assert find_checkpoints(sources, None).steps == (0, 1)


def test_formation_takes_a_list() -> None:
    names = ["attn-only-2l@0", "attn-only-2l@500"]
    by_list = study_formation(names, steps=[0, 500], n=4)
    by_name = study_formation("attn-only-2l", steps=[0, 500], n=4)
    assert by_list.rows == by_name.rows
    assert by_list.heads == by_name.heads


def two_sources(folder: Path) -> list[Path]:
    """A folder and a GGUF file of one shape."""
    gguf_files.build("llama").save_pretrained(folder / "early")
    gguf_files.write(gguf_files.build("llama", seed=1), folder / "late.gguf")
    return [folder / "early", folder / "late.gguf"]


def test_divergence_follows_a_list(tmp_path: Path) -> None:
    sources, task = two_sources(tmp_path), build_task(n_pos=6)
    a, b = (mw.load_model(source) for source in sources)
    literal = find_divergence(a, b, task, n_null=1)
    for against, steps, names in (("previous", (200,), sources), ("last", (100,), sources[::-1])):
        found = divergence_over_training(sources, lambda model: task, [100, 200], against=against, n_null=1)
        assert found.steps == steps
        assert found.found[0].names == tuple(str(name) for name in names)
        distances = [row.distance for row in found.found[0].rows]
        assert distances == pytest.approx([row.distance for row in literal.rows], rel=1e-6)
        assert min(distances) > 0.01
    again = [*sources, sources[0]]
    back = divergence_over_training(again, lambda model: task, n_null=1)
    first = divergence_over_training(again, lambda model: task, against="first", n_null=1)
    assert back.found[1].names == (str(sources[1]), str(sources[0]))
    assert max(row.distance for row in first.found[1].rows) == 0.0
    assert len(back.to_dataframe()) == 2 * len(literal.rows)


def test_separation_follows_a_list(tmp_path: Path) -> None:
    sources = two_sources(tmp_path)
    examples = Examples.of_task(build_task(n=12, n_pos=6))
    sites = [Site("resid_post", 0), Site("mlp_out", 2)]
    found = separation_over_training([*sources, sources[0]], lambda model: examples, sites, n_controls=2)
    units = []
    for source in sources:
        model = mw.load_model(source)
        units.append([fit_direction(model, examples, site).unit.double() for site in sites])
        direct = measure_separation(model, examples, sites, "mean_difference", n_controls=2)
        mine = [row for row in found.rows if row.step == sources.index(source)]
        assert [(row.site, row.accuracy, row.control) for row in mine] == [
            (one.site, one.accuracy, one.control) for one in direct
        ]
    for j, site in enumerate(sites):
        rows = [row for row in found.rows if row.site == site]
        between = float(units[0][j] @ units[1][j])
        assert abs(between) < 0.9
        assert rows[0].cosine_previous != rows[0].cosine_previous
        assert [row.cosine_previous for row in rows[1:]] == pytest.approx([between, between], abs=1e-5)
        assert [row.cosine_last for row in rows] == pytest.approx([1, between, 1], abs=1e-5)


def test_lists_that_are_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechwork.comparison import over_training

    def never(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(over_training, "load_model", never)
    gguf_files.write(gguf_files.build("llama"), tmp_path / "a.gguf")
    build_module("gpt2").save_pretrained(tmp_path / "b")
    sites = [Site("resid_post", 0)]
    for run in (
        lambda sources: divergence_over_training(sources, lambda model: build_task()),
        lambda sources: separation_over_training(sources, lambda model: Examples.of_task(build_task()), sites),
    ):
        with pytest.raises(InputError, match="checkpoints of one training have one architecture"):
            run([tmp_path / "a.gguf", tmp_path / "b"])
        with pytest.raises(InputError, match="at least two checkpoints"):
            run([tmp_path / "a.gguf"])
        with pytest.raises(NotFoundError, match="no model at"):
            run([tmp_path / "a.gguf", tmp_path / "nowhere"])
    with pytest.raises(InputError, match="reference of a checkpoint"):
        divergence_over_training([tmp_path / "a.gguf"], lambda model: build_task(), against="next")
    with pytest.raises(InputError, match="way to fit a direction"):
        separation_over_training("attn-only-2l", lambda model: Examples.of_task(build_task()), sites, how="x")
    with pytest.raises(InputError, match="sites is a list"):
        separation_over_training("attn-only-2l", lambda model: Examples.of_task(build_task()), [])


def test_what_does_not_fit_together(tmp_path: Path) -> None:
    gguf_files.write(gguf_files.build("llama"), tmp_path / "a.gguf")
    build_module("gpt2").save_pretrained(tmp_path / "b")
    assert read_shape(str(tmp_path / "b")) == "GPT2LMHeadModel with 3 layers of width 32 and 4 heads"
    with pytest.raises(InputError, match=r"LlamaForCausalLM with 3 layers of width 64.*GPT2LMHeadModel"):
        find_checkpoints([tmp_path / "a.gguf", tmp_path / "b"], None)
    with pytest.raises(NotFoundError, match="no model at"):
        find_checkpoints([tmp_path / "a.gguf", tmp_path / "nowhere"], None)
    with pytest.raises(InputError, match="one step for each"):
        find_checkpoints([tmp_path / "a.gguf"], [1, 2])
    with pytest.raises(InputError, match="one step for each"):
        find_checkpoints([], None)
    with pytest.raises(InputError, match="no checkpoints"):
        find_checkpoints("gpt2-6l", None)
    with pytest.raises(InputError, match="at least two checkpoints"):
        study_formation([tmp_path / "a.gguf"])
    assert mw.load_model(tmp_path / "a.gguf").cfg.n_layers == 3
