"""The hub over real HTTP: first and cached load, revisions, and every way in which it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import build_module
from tests.models.hub_server import Hub, serve

Client = Callable[..., list[dict[str, Any]]]
MAIN, OLD, DAMAGED = "a" * 40, "b" * 40, "c" * 40


def files_of(folder: Path, seed: int) -> dict[str, bytes]:
    """A model's files, as `save_pretrained` writes them, with a pickle and code that must never be asked for."""
    build_module("llama", seed).save_pretrained(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    return {
        **files,
        "pytorch_model.bin": b"pickle",
        "modeling_own.py": b"raise SystemExit('code ran')",
        "notes.txt": b"x",
    }


def expected(seed: int) -> list[float]:
    with torch.no_grad():
        return build_module("llama", seed)(torch.tensor([[1, 2, 3]])).logits[0, -1, :5].tolist()


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    good, old = files_of(tmp_path / "good", 0), files_of(tmp_path / "old", 1)
    config = json.loads(good["config.json"])

    def changed(**settings: Any) -> dict[str, bytes]:
        return {**good, "config.json": json.dumps({**config, **settings}).encode()}

    packed = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    own = {"architectures": ["OwnForCausalLM"], "model_type": "own", "auto_map": {"AutoConfig": "modeling_own.Config"}}
    pickles = {name: data for name, data in good.items() if not name.endswith(".safetensors")}
    torn = {**good, "model.safetensors": good["model.safetensors"][:300]}
    return Hub(
        {
            "lab/good": {"main": (MAIN, good), "v1": (OLD, old)},
            "lab/pickles": {"main": (MAIN, pickles)},
            "lab/packed": {"main": (MAIN, changed(quantization_config=packed))},
            "lab/own-code": {"main": (MAIN, changed(**own))},
            "lab/with-map": {"main": (MAIN, changed(auto_map=own["auto_map"]))},
            "lab/no-config": {"main": (MAIN, {"notes.txt": b"x"})},
            "lab/torn": {"main": (MAIN, torn)},
            "lab/broken": {"main": (DAMAGED, {**old, "model.safetensors": old["model.safetensors"] + b" " * 7})},
        }
    )


@pytest.fixture
def client(tmp_path: Path) -> Client:
    def run(endpoint: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        env = {
            **os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "5", "HF_HUB_ETAG_TIMEOUT": "5", "PYTHONPATH": str(Path.cwd()),
        }  # fmt: skip
        env.pop("HF_TOKEN", None)
        done = subprocess.run(
            [sys.executable, "-m", "tests.models.hub_client"], input=json.dumps(cases), env=env, cwd=Path.cwd(),
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run


def test_loads_revisions_and_failures(hub: Hub, client: Client) -> None:
    names = ("lab/pickles", "lab/packed", "lab/own-code", "lab/with-map", "lab/no-config", "lab/torn", "lab/missing")
    with serve(hub):
        found = client(
            hub.address,
            [
                {"name": "lab/good"},
                {"name": "lab/good", "revision": "v1"},
                {"name": "lab/good", "revision": OLD},
                {"name": "lab/good", "revision": "nowhere"},
                {"name": "lab/good@v1"},
                {"name": "lab/good@v1", "revision": "main"},
                *({"name": name} for name in names),
                {"name": "lab/good", "offline": True},
                {"name": "lab/other", "offline": True},
                {"name": "too/many/parts"},
            ],
        )
        (
            first,
            tag,
            commit,
            nowhere,
            short,
            twice,
            pickles,
            packed,
            own,
            mapped,
            bare,
            torn,
            missing,
            offline,
            unseen,
            parts,
        ) = found
    assert first["logits"] == pytest.approx(expected(0), rel=1e-5)
    assert first["origin"] == {"hub": "lab/good", "revision": MAIN}
    assert tag["logits"] == commit["logits"] == pytest.approx(expected(1), rel=1e-5)
    assert tag["origin"] == commit["origin"] == {"hub": "lab/good", "revision": OLD}
    assert short == tag
    assert offline == first
    assert mapped["logits"] == pytest.approx(expected(0), rel=1e-5)  # the claimed class, not the author's
    for answer, error, words in (
        (nowhere, "NotFoundError", "no revision 'nowhere'"),
        (twice, "InputError", "one revision is needed"),
        (pickles, "NotFoundError", "safetensors files only"),
        (packed, "UnsupportedModelError", "4-bit weights packed by bitsandbytes"),
        (own, "UnsupportedModelError", "OwnForCausalLM"),
        (bare, "NotFoundError", "no config.json"),
        (torn, "ArtefactError", "truncated or damaged"),
        (missing, "NotFoundError", "does not have a model 'lab/missing'"),
        (unseen, "NotFoundError", "offline mode is on"),
        (parts, "InputError", "owner/name"),
    ):
        assert answer.get("error") == error, answer
        assert words in answer["message"]
    fetched = {line.rpartition("/")[2] for line in hub.asked if "/resolve/" in line}
    assert not fetched & {"pytorch_model.bin", "modeling_own.py", "notes.txt"}
    assert not [line for line in hub.asked if "lab/packed" in line and "safetensors" in line]


def test_a_cached_model_needs_no_hub_and_a_broken_download_goes_on(hub: Hub, client: Client) -> None:
    hub.broken = {"model.safetensors"}
    good = {"name": "lab/good"}
    steps = [good, {"tell": "mend"}, good, good, {"tell": "stop"}, good, {"name": "lab/never"}]
    with serve(hub):
        broken, whole, again, without, never = client(hub.address, steps)
    assert broken["error"] == "NotFoundError", broken
    assert "Run the same again" in broken["message"] or "interrupted" in broken["message"]
    assert whole["logits"] == pytest.approx(expected(0), rel=1e-5)
    assert again == without == whole
    mended = hub.asked.index("GET control/mend")
    fetched = [line for line in hub.asked[mended:] if line.startswith("GET") and "safetensors" in line]
    assert len(fetched) == 1, "what is in the cache is not downloaded again"
    assert never["error"] == "NotFoundError"
    assert "the hub cannot be reached" in never["message"]
