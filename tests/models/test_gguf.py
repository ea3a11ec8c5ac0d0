"""GGUF files: the same logits as transformers' own reader and as the literal form, and what is refused before the
tensors.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

import mechwork as mw
from mechwork.errors import ArtefactError, InputError, MechworkError, NotFoundError, UnsupportedModelError
from mechwork.models.gguf.config import build_config, llama3_divisors
from mechwork.models.gguf.header import read_header
from mechwork.models.identity import identify_model
from mechwork.models.load import load_model
from mechwork.patching import attribute
from tests.families import build_task
from tests.models import gguf_files

TOKENS = torch.tensor([[3, 1, 4, 15, 9, 26, 5, 35, 8, 9, 7]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model(TOKENS)
    return out if isinstance(out, torch.Tensor) else out.logits


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert float(b.std()) > 0.1, "logits that say nothing would agree"
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("quantisation", list(gguf_files.TYPES))
@pytest.mark.parametrize("shape", list(gguf_files.SHAPES))
def test_logits_are_those_of_the_weights_in_the_file(shape: str, quantisation: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    module = gguf_files.build(shape)
    stored = gguf_files.write(module, path, quantisation)
    model = load_model(path)
    assert distance(logits_of(model), logits_of(gguf_files.dequantised(module, stored))) < 1e-5
    assert type(model.original_model).__name__ == type(module).__name__
    assert not hasattr(model.original_model.config, "quantization_config")


@pytest.mark.parametrize("quantisation", list(gguf_files.TYPES))
@pytest.mark.parametrize(
    "shape", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"]
)  # its reader knows no Mistral
def test_logits_are_those_of_transformers_own_reader(shape: str, quantisation: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_files.write(gguf_files.build(shape), path, quantisation)
    theirs = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    assert distance(logits_of(load_model(path)), logits_of(theirs)) < 1e-5


def test_the_tokenizer_comes_along_and_results_say_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    gguf_files.write(gguf_files.build("llama"), path, "Q8_0")
    model = load_model(path, dtype="float64")
    assert model.tokenizer.convert_ids_to_tokens(model.tokenizer("the a")["input_ids"]) == ["th", "e", "Ġa"]
    assert model.to_tokens("a")[0].tolist() == model.tokenizer("a")["input_ids"]
    assert not model.cfg.tokenizer_prepends_bos
    import hashlib

    origin = {"gguf_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "quantisation": "Q8_0"}
    identity = identify_model(model)
    assert identity["origin"] == origin
    assert (identity["name"], identity["dtype"]) == ("tiny", "float64")
    scores = attribute(model, build_task(n_pos=6), ["resid_pre"])
    assert scores.provenance["model"]["origin"] == origin


def test_a_file_without_a_tokenizer_takes_one(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    gguf_files.write(gguf_files.build("llama"), path, tokens=None)
    model = load_model(path)
    assert model.tokenizer is None
    with pytest.raises(InputError, match=r"no tokenizer.*tokenizer="):
        mw.tasks.ioi(model, n=2)
    other = tmp_path / "other.gguf"
    gguf_files.write(gguf_files.build("llama"), other)
    tokenizer = load_model(other).tokenizer
    assert load_model(path, tokenizer=tokenizer).tokenizer("a")["input_ids"] == tokenizer("a")["input_ids"]


def test_a_tokenizer_that_cannot_be_rebuilt(tmp_path: Path) -> None:
    """It is refused with its kind before a tensor is read, and another one takes its place."""
    path, good = tmp_path / "model.gguf", tmp_path / "good.gguf"
    for file in (path, good):
        gguf_files.write(gguf_files.build("llama"), file)
    data = path.read_bytes()
    key = b"tokenizer.ggml.model"
    place = data.index(key) + len(key) + 4
    assert data[place + 8 : place + 12] == b"gpt2"
    path.write_bytes(data[: place + 8] + b"rwkv" + data[place + 12 :])
    with pytest.raises(NotFoundError, match=r"kind 'rwkv'.*load_model\(path, tokenizer="):
        load_model(path)
    tokenizer = load_model(good).tokenizer
    assert load_model(path, tokenizer=tokenizer).to_tokens("the a").shape[1] == 3


def test_llama_3_scaling_is_told_from_its_divisors(tmp_path: Path) -> None:
    """The divisors are transformers' own: plain frequencies over scaled ones."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}  # fmt: skip
    config = hf.LlamaConfig(**{**gguf_files._SMALL, "head_dim": 64}, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 1.0 / 5e5 ** (torch.arange(0, 64, 2).float() / 64)
    np.testing.assert_allclose(llama3_divisors(5e5, 64, 32.0), (plain / scaled).numpy(), rtol=1e-5)
    path = tmp_path / "scaled.gguf"
    for divisors, refused in (((plain / scaled).numpy(), False), (np.full(32, 3.0, np.float32), True)):
        writer = gguf.GGUFWriter(str(path), "llama")
        _tiny_metadata(writer, head_dim=64)
        writer.add_rope_freq_base(5e5)
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
        _write_out(writer)
        if refused:
            with pytest.raises(UnsupportedModelError, match="rotary frequencies"):
                build_config(read_header(path))
        else:
            assert build_config(read_header(path)).rope_parameters == rope


def _tiny_metadata(writer: Any, head_dim: int = 32) -> None:
    for add, value in (
        (writer.add_block_count, 1), (writer.add_context_length, 32), (writer.add_embedding_length, 64),
        (writer.add_feed_forward_length, 32), (writer.add_head_count, 2), (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_rope_dimension_count, head_dim),
    ):  # fmt: skip
        add(value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.zeros(64, np.float32))


def _write_out(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    gguf_files.write(gguf_files.build("llama"), path, "Q4_0")
    return path


def test_every_truncation_is_one_clear_error(whole: Path) -> None:
    data = whole.read_bytes()
    for size in [0, 3, 4, 20, 24, 30, *range(100, len(data) - 1, max(1, len(data) // 40)), len(data) - 40]:
        whole.write_bytes(data[:size])
        with pytest.raises(ArtefactError, match=r"not a GGUF file|truncated or damaged"):
            load_model(whole)


def test_flipped_bytes_of_the_header_never_crash(whole: Path) -> None:
    """A hostile header is refused by one of our errors, or leaves a model of the same shape: no hang, no huge
    memory.
    """
    data = bytearray(whole.read_bytes())
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.choice(2200, size=120, replace=False):
        changed = bytearray(data)
        changed[place] ^= 0xFF
        whole.write_bytes(bytes(changed))
        try:
            read = build_config(read_header(whole))
            assert read.num_hidden_layers == 3
        except MechworkError:
            refused += 1
    assert refused > 40


def test_lengths_that_lie_ask_for_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    for count in (1 << 40, (1 << 64) - 1):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, count, 1) + b"\0" * 64)
        with pytest.raises(ArtefactError, match="claims"):
            read_header(path)
    key = struct.pack("<Q", 1) + b"a"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 4, 1 << 60) + b"\0" * 64)
    with pytest.raises(ArtefactError, match="numbers in an array"):
        read_header(path)


def test_what_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    module = gguf_files.build("llama")
    gguf_files.write(module, path, metadata={"llama.expert_count": 8})
    with pytest.raises(UnsupportedModelError, match="8 experts"):
        load_model(path)
    gguf_files.write(module, path, metadata={"llama.rope.scaling.type": "yarn"})
    with pytest.raises(UnsupportedModelError, match="'yarn'"):
        load_model(path)
    writer = gguf.GGUFWriter(str(path), "bloom")
    _tiny_metadata(writer)
    _write_out(writer)
    with pytest.raises(UnsupportedModelError, match=r"'bloom'.*llama, qwen2"):
        load_model(path)
    gguf_files.write(module, path)
    data = path.read_bytes()
    place = data.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16
    for kind, message in ((7, "Q5_1"), (36, r"dequantised|ggml type"), (999, "unknown ggml type")):
        path.write_bytes(data[:place] + struct.pack("<I", kind) + data[place + 4 :])
        if kind != 7:  # Q5_1 is readable, and the bytes after it are not
            with pytest.raises(UnsupportedModelError, match=message):
                load_model(path)
    with pytest.raises(InputError, match="device_map"):
        load_model(path, device_map="auto")
    with pytest.raises(InputError, match="revision goes with a hub name"):
        load_model(path, revision="main")


def test_parts_of_a_split_file_are_named(whole: Path, tmp_path: Path) -> None:
    part = tmp_path / "big-00002-of-00003.gguf"
    gguf_files.write(gguf_files.build("llama"), part, metadata={"split.count": 3})
    with pytest.raises(NotFoundError, match=r"big-00001-of-00003\.gguf, big-00003-of-00003\.gguf.*--merge"):
        load_model(part)


def test_shapes_and_names_must_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gguf_files.write(gguf_files.build("llama"), path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xp.weight"))
    with pytest.raises(ArtefactError, match=r"lacks the tensors blk\.1\.ffn_up\.weight"):
        load_model(path)
    key = b"llama.feed_forward_length"
    place = data.index(key) + len(key) + 4
    path.write_bytes(data[:place] + struct.pack("<I", 64) + data[place + 4 :])
    with pytest.raises(ArtefactError, match="the metadata ask for"):
        load_model(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("a model? no, some words that are long enough to be read")
    with pytest.raises(ArtefactError, match="not a GGUF file"):
        load_model(text)
    with pytest.raises(NotFoundError, match="no GGUF file"):
        load_model(tmp_path / "nowhere.gguf")
    (tmp_path / "folder").mkdir()
    gguf_files.write(gguf_files.build("llama"), tmp_path / "folder" / "a.gguf")
    with pytest.raises(NotFoundError, match=r"a\.gguf"):
        load_model(tmp_path / "folder")


def test_a_home_folder_is_meant_by_a_tilde(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(whole.parent))
    assert load_model("~/model.gguf").cfg.n_layers == 3


def test_a_module_that_transformers_read_is_plain_again(whole: Path, tmp_path: Path) -> None:
    module = hf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=whole.name, dtype=torch.float32)
    assert hasattr(module.config, "quantization_config")
    expected = logits_of(load_model(whole))
    model = load_model(module)
    assert not hasattr(model.original_model.config, "quantization_config")
    assert distance(logits_of(model), expected) < 1e-5
