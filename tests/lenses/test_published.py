"""Published lenses: read without unpickling, equal to what torch itself wrote, and nothing but tensors is accepted."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mechwork as mw
from mechwork.lenses import import_lens, read_archive, read_lens
from mechwork.lenses.published import unembedding_text_hash
from mechwork.lenses.states import lens_sites, record_states
from mechwork.models.anatomy import read_anatomy
from tests.families import D_VOCAB, build_model

TOKENS = torch.randint(D_VOCAB, (2, 9), generator=torch.Generator().manual_seed(3))


def publish(
    folder: Path, model: Any, *, bias: bool = True, dtype: torch.dtype = torch.float32, **facts: Any
) -> torch.nn.ModuleList:
    """What the published package writes: a ModuleList's state dict, and its configuration."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(32, 32, bias=bias, dtype=dtype) for _ in range(3)])
    folder.mkdir(exist_ok=True)
    torch.save(layers.state_dict(), folder / "params.pt")
    config = {
        "base_model_name_or_path": "x/y",
        "d_model": 32,
        "num_hidden_layers": 3,
        "bias": bias,
        "unembed_hash": unembedding_text_hash(model),
        "lens_type": "linear_tuned_lens",
    }
    (folder / "config.json").write_text(json.dumps({**config, **facts}))
    return layers


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2"])
@pytest.mark.parametrize("bias", [True, False])
def test_an_imported_lens_adds_its_linear_layer(tmp_path: Path, family: str, bias: bool) -> None:
    model = build_model(family, torch.float32)
    layers = publish(tmp_path / "lens", model, bias=bias)
    lens = import_lens(model, tmp_path / "lens")
    sites = lens_sites(read_anatomy(model))
    for layer, site, x in zip(layers, sites, record_states(model, TOKENS, sites), strict=False):
        torch.testing.assert_close(lens.translate(x, site), x + layer(x).detach(), rtol=1e-5, atol=1e-5)
    assert float(read_lens(model, TOKENS, lens).kl[0].mean()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_archives_of_every_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = OrderedDict(
        a=torch.randn(3, 4).to(dtype),
        b=torch.randn(5).to(dtype),
        c=torch.randn(4, 6).to(dtype).T,
        d=torch.randn(8, 8).to(dtype)[2:4, ::2],
    )
    torch.save(tensors, tmp_path / "params.pt")
    found = read_archive(tmp_path / "params.pt")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
    torch.save({"p": torch.nn.Parameter(tensors["a"])}, tmp_path / "parameter.pt")
    assert torch.equal(read_archive(tmp_path / "parameter.pt")["p"], tensors["a"])


class Evil:
    """Pickles that run a command when they are unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


def test_nothing_in_an_archive_is_executed(tmp_path: Path) -> None:
    """Also where the call is hidden under a known name."""
    for number, content in enumerate(
        [{"a": Evil(tmp_path / "ran")}, Evil(tmp_path / "ran"), {"a": torch.optim.SGD}, {"a": print}]
    ):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(mw.errors.ArtefactError, match="refused"):
            read_archive(tmp_path / f"{number}.pt")
    for opcodes in (
        b"cos\nsystem\n(S'touch x'\ntR.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"(S'a'\ni__builtin__\neval\n.",
    ):
        with zipfile.ZipFile(tmp_path / "crafted.pt", "w") as archive:
            archive.writestr("x/data.pkl", opcodes)
        with pytest.raises(mw.errors.ArtefactError, match="refused"):
            read_archive(tmp_path / "crafted.pt")
    assert not (tmp_path / "ran").exists()


def test_other_archives_are_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(mw.errors.ArtefactError):
        read_archive(tmp_path / "list.pt")
    torch.save({"a": torch.zeros(2, dtype=torch.long)}, tmp_path / "long.pt")
    with pytest.raises(mw.errors.ArtefactError, match="LongStorage"):
        read_archive(tmp_path / "long.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(mw.errors.ArtefactError, match="no zip archive"):
        read_archive(tmp_path / "old.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(mw.errors.ArtefactError, match="no zip archive"):
        read_archive(tmp_path / "pickle.pt")
    torch.save({"a": torch.zeros(4)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in good.namelist():
            cut.writestr(name, good.read(name)[:4] if name.endswith("/data/0") else good.read(name))
    with pytest.raises(mw.errors.ArtefactError, match="does not fit"):
        read_archive(tmp_path / "cut.pt")
    with pytest.raises(mw.errors.NotFoundError):
        read_archive(tmp_path / "nowhere.pt")


def test_lenses_of_other_models_are_refused(tmp_path: Path) -> None:
    model = build_model("gpt2", torch.float32)
    publish(tmp_path / "lens", model)
    with pytest.raises(mw.errors.ArtefactError, match="unembedding is not this model's"):
        import_lens(build_model("gpt2", torch.float32, seed=1), tmp_path / "lens")
    assert (
        import_lens(build_model("gpt2", torch.float32, seed=1), tmp_path / "lens", check_unembedding=False).n_places
        == 3
    )
    publish(tmp_path / "wide", model, d_model=64)
    with pytest.raises(mw.errors.ArtefactError, match="width 64"):
        import_lens(model, tmp_path / "wide")
    publish(tmp_path / "other", model, lens_type="conv")
    with pytest.raises(mw.errors.ArtefactError, match="linear tuned lenses"):
        import_lens(model, tmp_path / "other")
    with pytest.raises(mw.errors.NotFoundError, match="is missing"):
        import_lens(model, tmp_path)
    (tmp_path / "lens" / "params.pt").unlink()
    with pytest.raises(mw.errors.NotFoundError, match="neither"):
        import_lens(model, tmp_path / "lens")
    save_file({"0.weight": torch.zeros(32, 32)}, tmp_path / "lens" / "params.safetensors")
    with pytest.raises(mw.errors.ArtefactError, match="lacks translators"):
        import_lens(model, tmp_path / "lens")
    save_file({f"{i}.weight": torch.zeros(32, 32) for i in range(3)}, tmp_path / "lens" / "params.safetensors")
    assert float(import_lens(model, tmp_path / "lens").parts["weight"].abs().max()) == 0


def test_the_package_never_unpickles() -> None:
    """No call of torch.load or of pickle's loaders in the whole package."""
    import ast

    folder = Path(mw.__file__).parent
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
            ):
                assert (node.func.value.id, node.func.attr) not in {
                    ("torch", "load"),
                    ("pickle", "load"),
                    ("pickle", "loads"),
                }, file


def test_importing_the_reader_needs_no_pickle() -> None:
    script = "import mechwork.lenses.archive as a; print('pickle' in vars(a))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
