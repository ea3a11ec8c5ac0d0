"""Models that other programs keep on this machine: LM Studio, Ollama, the Hugging Face cache.

    lmstudio:PUBLISHER/REPO[/FILE.gguf]   ~/.lmstudio/models/PUBLISHER/REPO/*.gguf
    ollama:NAME[:TAG]                     ~/.ollama/models/{manifests/REGISTRY/NAMESPACE/NAME/TAG, blobs/sha256-...}
    owner/name                            the Hugging Face cache

Only file names and Ollama's small manifests are read here. Ollama's own `OLLAMA_MODELS` moves its folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtefactError, NotFoundError, nearest

OLLAMA_MODEL = "application/vnd.ollama.image.model"
"""Media type of the layer that is the GGUF file."""


@dataclass(frozen=True)
class StoredModel:
    """A model at hand: the name under which `load_model` takes it, its file or folder, its size in bytes."""

    name: str
    path: Path
    n_bytes: int


def lmstudio_folder() -> Path:
    """LM Studio's models; older versions keep them in ``~/.cache/lm-studio/models``."""
    new, old = Path.home() / ".lmstudio" / "models", Path.home() / ".cache" / "lm-studio" / "models"
    return old if old.is_dir() and not new.is_dir() else new


def ollama_folder() -> Path:
    """Ollama's models."""
    return Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models").expanduser()


def list_lmstudio() -> list[StoredModel]:
    """Every GGUF file of LM Studio; the name says the file where a repository has several."""
    found = []
    for repository in sorted(lmstudio_folder().glob("*/*")):
        files = _whole_files(repository)
        for file in files:
            name = f"lmstudio:{repository.parent.name}/{repository.name}"
            found.append(StoredModel(name if len(files) == 1 else f"{name}/{file.name}", file, file.stat().st_size))
    return found


def _whole_files(repository: Path) -> list[Path]:
    """GGUF files of language models: not the projectors of models that see."""
    return sorted(file for file in repository.glob("*.gguf") if not file.name.startswith("mmproj"))


def list_ollama() -> list[StoredModel]:
    """Every name and tag of Ollama whose GGUF file is there."""
    manifests, found = ollama_folder() / "manifests", []
    for manifest in sorted(manifests.glob("*/*/*/*")):
        if not manifest.is_file():
            continue
        namespace, name, tag = manifest.relative_to(manifests).parts[1:]
        short = name if namespace == "library" else f"{namespace}/{name}"
        try:
            blob = _blob(manifest)
        except (ArtefactError, NotFoundError):
            continue
        found.append(StoredModel(f"ollama:{short}:{tag}", blob, blob.stat().st_size))
    return found


def _blob(manifest: Path) -> Path:
    """The GGUF file of a manifest."""
    try:
        layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
        digest = next(str(layer["digest"]) for layer in layers if layer["mediaType"] == OLLAMA_MODEL)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ArtefactError(f"Ollama's manifest {manifest} names no model file; pull the model again") from error
    kind, _, number = digest.partition(":")
    if kind != "sha256" or not number.isalnum():
        raise ArtefactError(
            f"Ollama's manifest {manifest} names the file {digest!r}, which is no sha256; pull it again"
        )
    blob = ollama_folder() / "blobs" / f"sha256-{number}"
    if not blob.is_file():
        raise NotFoundError(f"Ollama's file {blob.name} is missing; pull the model again")
    return blob


def list_hub_cache() -> list[StoredModel]:
    """Models of the Hugging Face cache that have safetensors."""
    from huggingface_hub import constants

    found = []
    for repository in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        weights = {file.resolve() for file in repository.glob("snapshots/*/*.safetensors")}
        if weights:
            name = repository.name.removeprefix("models--").replace("--", "/", 1)
            found.append(StoredModel(name, repository, sum(file.stat().st_size for file in weights if file.is_file())))
    return found


def _find_lmstudio(name: str) -> Path:
    parts = name.strip("/").split("/")
    folder = lmstudio_folder()
    if not 2 <= len(parts) <= 3 or any(part in ("", ".", "..") for part in parts):
        raise NotFoundError(
            f"LM Studio's models are named lmstudio:PUBLISHER/REPO; got {name!r}. At hand: {_at_hand('lmstudio')}"
        )
    files = _whole_files(folder / parts[0] / parts[1])
    if len(parts) == 3:
        files = [file for file in files if file.name == parts[2]]
    if not files:
        raise NotFoundError(
            f"LM Studio has no model {name!r} in {folder}{_nearest('lmstudio', name)}. At hand: {_at_hand('lmstudio')}"
        )
    if len(files) > 1:
        names = ", ".join(f"lmstudio:{name}/{file.name}" for file in files)
        raise NotFoundError(f"lmstudio:{name} has {len(files)} GGUF files; name one: {names}")
    return files[0]


def _find_ollama(name: str) -> Path:
    wanted = [one for one in list_ollama() if one.name in (f"ollama:{name}", f"ollama:{name}:latest")]
    if not wanted:
        tags = [one for one in list_ollama() if one.name.rpartition(":")[0] == f"ollama:{name}"]
        if len(tags) > 1:
            raise NotFoundError(f"ollama:{name} has several tags; name one: {', '.join(one.name for one in tags)}")
        wanted = tags
    if not wanted:
        raise NotFoundError(
            f"Ollama has no model {name!r} in {ollama_folder()}{_nearest('ollama', name)}. At hand: "
            f"{_at_hand('ollama')}"
        )
    return wanted[0].path


def _nearest(store: str, name: str) -> str:
    return nearest(f"{store}:{name}", [one.name for one in STORES[store][0]()])


def _at_hand(store: str) -> str:
    return ", ".join(one.name for one in STORES[store][0]()[:10]) or "nothing"


STORES: dict[str, tuple[Callable[[], list[StoredModel]], Callable[[str], Path]]] = {
    "lmstudio": (list_lmstudio, _find_lmstudio),
    "ollama": (list_ollama, _find_ollama),
}
"""Prefix of a name -> what lists the store, and what finds a file in it."""


def find_in_store(store: str, name: str) -> Path:
    """The GGUF file of a name like ``PUBLISHER/REPO`` or ``NAME:TAG``; raises `NotFoundError`, with what is at hand."""
    return STORES[store][1](name)
