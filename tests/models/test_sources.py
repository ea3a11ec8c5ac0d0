"""Lists of checkpoints: what they may be, that they run one after the other, and what is refused before the first is
loaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import mechwork as mw
from mechwork.ablation import study_formation, telemetry_over_training
from mechwork.errors import InputError, NotFoundError
from mechwork.models.sources import find_checkpoints, read_shape
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


def test_what_does_not_fit_together(tmp_path: Path) -> None:
    gguf_files.write(gguf_files.build("llama"), tmp_path / "a.gguf")
    build_module("gpt2").save_pretrained(tmp_path / "b")
    assert read_shape(str(tmp_path / "b")) == "GPT2LMHeadModel with 3 layers of width 32"
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
