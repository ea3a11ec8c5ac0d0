"""LM Studio's, Ollama's and the hub's own folders: what is listed, what a name finds, what is said when it does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mechwork.errors import ArtefactError, NotFoundError
from mechwork.models.load import load_model
from mechwork.models.stores import OLLAMA_MODEL, list_hub_cache, list_lmstudio, list_ollama
from tests.models import gguf_files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return tmp_path


def put_lmstudio(home: Path, repository: str, file: str) -> None:
    folder = home / ".lmstudio" / "models" / repository
    folder.mkdir(parents=True, exist_ok=True)
    gguf_files.write(gguf_files.build("llama"), folder / file, "Q8_0")


def put_ollama(home: Path, name: str, tag: str, namespace: str = "library") -> Path:
    models = home / ".ollama" / "models"
    (models / "blobs").mkdir(parents=True, exist_ok=True)
    gguf_files.write(gguf_files.build("llama"), home / "new.gguf", "Q4_0")
    digest = hashlib.sha256((home / "new.gguf").read_bytes()).hexdigest()
    (home / "new.gguf").replace(models / "blobs" / f"sha256-{digest}")
    layers = [{"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:00"}]
    layers.append({"mediaType": OLLAMA_MODEL, "digest": f"sha256:{digest}"})
    manifest = models / "manifests" / "registry.ollama.ai" / namespace / name / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return manifest


def test_lmstudio(home: Path) -> None:
    with pytest.raises(NotFoundError, match="At hand: nothing"):
        load_model("lmstudio:lab/tiny")
    put_lmstudio(home, "lab/tiny", "tiny-Q8_0.gguf")
    put_lmstudio(home, "lab/two", "a.gguf")
    put_lmstudio(home, "lab/two", "b.gguf")
    (home / ".lmstudio" / "models" / "lab" / "tiny" / "mmproj-f16.gguf").write_bytes(b"a projector")
    names = [one.name for one in list_lmstudio()]
    assert names == ["lmstudio:lab/tiny", "lmstudio:lab/two/a.gguf", "lmstudio:lab/two/b.gguf"]
    for name in names[:2]:
        assert load_model(name).cfg.n_layers == 3
    with pytest.raises(NotFoundError, match=r"2 GGUF files; name one: lmstudio:lab/two/a\.gguf"):
        load_model("lmstudio:lab/two")
    with pytest.raises(NotFoundError, match=r"nearest: lmstudio:lab/tiny"):
        load_model("lmstudio:lab/tinny")
    for wrong in ("lmstudio:tiny", "lmstudio:lab/../secret"):
        with pytest.raises(NotFoundError, match="PUBLISHER/REPO"):
            load_model(wrong)


def test_ollama(home: Path) -> None:
    put_ollama(home, "tiny", "latest")
    broken = put_ollama(home, "many", "1b")
    put_ollama(home, "many", "3b")
    put_ollama(home, "own", "q4", namespace="me")
    names = [one.name for one in list_ollama()]
    assert names == ["ollama:many:1b", "ollama:many:3b", "ollama:tiny:latest", "ollama:me/own:q4"]
    for name in ("ollama:tiny", "ollama:many:3b", "ollama:me/own"):
        assert load_model(name).cfg.n_layers == 3
    with pytest.raises(NotFoundError, match="several tags; name one: ollama:many:1b, ollama:many:3b"):
        load_model("ollama:many")
    with pytest.raises(NotFoundError, match="At hand: ollama:many:1b"):
        load_model("ollama:many:70b")
    broken.write_text('{"layers": [{"mediaType": "%s", "digest": "sha256:../../x"}]}' % OLLAMA_MODEL)  # noqa: UP031
    assert [one.name for one in list_ollama()] == names[1:]


def test_a_manifest_that_lies_is_an_error(home: Path) -> None:
    from mechwork.models.stores import _blob

    manifest = put_ollama(home, "tiny", "latest")
    manifest.write_text(json.dumps({"layers": [{"mediaType": OLLAMA_MODEL, "digest": "sha256:../x"}]}))
    with pytest.raises(ArtefactError, match="no sha256"):
        _blob(manifest)
    manifest.write_text(json.dumps({"layers": [{"mediaType": OLLAMA_MODEL, "digest": "sha256:00"}]}))
    with pytest.raises(NotFoundError, match="missing"):
        _blob(manifest)
    manifest.write_text("[]")
    with pytest.raises(ArtefactError, match="names no model file"):
        _blob(manifest)


def test_the_hub_cache_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--lab--tiny" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert list_hub_cache() == []
    (snapshot / "model.safetensors").write_bytes(b"12345")
    assert [(one.name, one.n_bytes) for one in list_hub_cache()] == [("lab/tiny", 5)]
