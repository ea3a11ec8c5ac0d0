"""Damaged, hostile, foreign and newer files of every kind: always one `ArtefactError`, never a number, never anything
else.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mechwork.ablation import Ablation, AblationSpec
from mechwork.artefact import read_artefact, write_artefact
from mechwork.checkpoint import Checkpoint
from mechwork.circuits import AttributionGraph, Circuit
from mechwork.circuits.graph.files import load_tensors, read_mib, save_tensors, write_mib
from mechwork.directions import Direction
from mechwork.edits import WeightEdit
from mechwork.edits.edit import LowRankChange
from mechwork.errors import ArtefactError, NotFoundError
from mechwork.features import FeatureSet
from mechwork.features.activations import Relu
from mechwork.features.coder import SparseCoder
from mechwork.files import read_json
from mechwork.interventions import Write, load_writes, save_writes
from mechwork.interventions.replacements import Add
from mechwork.lenses import TunedLens
from mechwork.lenses.translators import BiasOnly
from mechwork.sites import Site
from tests.artefacts.made import make, result_classes
from tests.render import synthetic

DEEP = "[" * 100_000 + "]" * 100_000


@dataclass(frozen=True)
class Kind:
    """How a kind of file is made in a folder, and read; `file` is what is damaged, `read` gets the file or its
    folder.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]


def _result(cls: Any) -> Kind:
    return Kind(lambda folder: make(cls).save(folder / "it"), cls.load)


def _direction(folder: Path) -> Path:
    return Direction(torch.ones(4), Site("resid_pre", 1), centre=torch.zeros(4), provenance={"n": 1}).save(
        folder / "it"
    )


def _edit(folder: Path) -> Path:
    return WeightEdit({"W_out.0": LowRankChange(torch.ones(4, 1), torch.ones(1, 3))}, "abc").save(folder / "it")


def _ablation(folder: Path) -> Path:
    model = {"name": "m", "anatomy": {}, "weights_sha256": "0"}
    return Ablation(AblationSpec(["a1.h0"]), {"z.1": torch.ones(2, 4)}, model).save(folder / "it")


def _spec(folder: Path) -> Path:
    return AblationSpec(["resid_pre.1@x"], directions={"x": torch.ones(4)}).save(folder / "it")


def _writes(folder: Path) -> Path:
    return save_writes(folder / "it", [Write(Site("resid_pre", 1), Add(torch.ones(4)))])


def _lens(folder: Path) -> Path:
    model = {"name": "m", "n_layers": 2, "d_model": 4}
    TunedLens(BiasOnly(), "resid_pre", {"bias": torch.ones(2, 4)}, model).save(folder)
    return folder / "lens.json"


def _features(folder: Path) -> Path:
    site = Site("resid_post", 0)
    coder = SparseCoder(site, site, torch.ones(4, 6), torch.ones(6), torch.ones(6, 4), torch.ones(4), Relu())
    FeatureSet((coder,)).save(folder)
    return folder / "features.json"


def _training(folder: Path) -> Path:
    _CHECKPOINT(folder).save({"x": torch.ones(3)}, {"step": 1})
    return folder / "checkpoint.safetensors"


def _CHECKPOINT(folder: Path) -> Checkpoint:
    return Checkpoint(folder, {"recipe": {"seed": 1}})


KINDS: dict[str, Kind] = {
    **{what: _result(cls) for what, cls in result_classes().items() if cls.__name__ not in ("Circuit",
    "AttributionGraph")},
    "circuit": Kind(lambda folder: synthetic.circuit().save(folder / "it.json"), Circuit.load),
    "circuit tensors": Kind(lambda folder: save_tensors(synthetic.circuit(), folder / "it"), load_tensors),
    "circuit of EAP-IG": Kind(lambda folder: write_mib(synthetic.circuit(), folder / "it.json", d_model=8), read_mib),
    "attribution graph": Kind(lambda folder: make(AttributionGraph).save(folder / "it.json"), AttributionGraph.load),
    "direction": Kind(_direction, Direction.load),
    "weight edit": Kind(_edit, WeightEdit.load),
    "ablation": Kind(_ablation, Ablation.load),
    "ablation spec": Kind(_spec, AblationSpec.load),
    "interventions": Kind(_writes, load_writes),
    "tuned lens": Kind(_lens, lambda file: TunedLens.load(file.parent)),
    "features": Kind(_features, lambda file: FeatureSet.load(file.parent)),
    "checkpoint": Kind(_training, lambda file: _CHECKPOINT(file.parent).load()),
}  # fmt: skip


def refused(kind: Kind, file: Path, what: str) -> None:
    try:
        found = kind.read(file)
    except ArtefactError as error:
        text = str(error)
        assert len(text) > 20, text
        assert str(file.parent.name) in text or str(file.name) in text or "graph" in text, text
        return
    raise AssertionError(f"{what}: read as {found!r:.200}")


@pytest.mark.parametrize("name", KINDS)
def test_files_that_are_not_what_they_should_be(name: str, tmp_path: Path) -> None:
    """Missing, a folder, empty, text, too deep, truncated anywhere, one byte changed anywhere, another kind, a newer
    version.
    """
    kind = KINDS[name]
    file = kind.write(tmp_path)
    assert kind.read(file) is not None
    whole = file.read_bytes()
    draw = random.Random(name)
    for content in (
        b"",
        b"no",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        DEEP.encode(),
        b'{"format": ' + DEEP.encode() + b"}",
    ):
        file.write_bytes(content)
        refused(kind, file, f"{content[:20]!r}")
    for cut in (1, 8, 9, *(draw.randrange(1, len(whole)) for _ in range(6)), len(whole) - 3):
        file.write_bytes(whole[:cut])
        refused(kind, file, f"cut at {cut}")
    if file.suffix == ".safetensors":  # JSON for people to edit is not sealed
        for at in (0, 8, *(draw.randrange(len(whole)) for _ in range(12)), len(whole) - 1):
            changed = bytearray(whole)
            changed[at] ^= 1 << draw.randrange(8)
            file.write_bytes(changed)
            refused(kind, file, f"byte {at}")
    file.unlink()
    if name != "checkpoint":
        refused(kind, file, "missing")
        with pytest.raises(NotFoundError):
            kind.read(file)
    file.mkdir()
    refused(kind, file, "a folder")


@pytest.mark.parametrize(
    "name", [name for name, kind in KINDS.items() if name not in ("circuit of EAP-IG", "attribution graph")]
)
def test_other_kinds_newer_versions_and_mistyped_facts(name: str, tmp_path: Path) -> None:
    """Well-formed files, sealed anew after each change, as somebody with bad intent would."""
    kind = KINDS[name]
    file = kind.write(tmp_path)
    header = _open(file)
    for change in (
        {"what": "something"},
        {"what": 3},
        {"format": 99},
        {"format": "1"},
        {"format": True},
        {"format": None},
        {"format": 1e300},
    ):
        _put(file, {**header, **change})
        refused(kind, file, f"{change}")
    facts = header["facts"]
    changes: list[Any] = [None, [], 7, {}, DEEP[:10]]
    places = [path for path in _places(facts) if not _free(path)]
    for path in random.Random(name).sample(places, min(24, len(places))):
        for new in (None, [], {"x": 1}, "zzz", -1, 10**30, [[]]):
            if type(_at(facts, path)) is type(new) or (new is None and path):
                continue
            _put(file, {**header, "facts": _with(facts, path, new)})
            _sound_or_refused(kind, file)
    for new in changes:
        _put(file, {**header, "facts": new})
        refused(kind, file, f"facts {new!r}")


@pytest.mark.parametrize(
    "name", [name for name in KINDS if name not in ("circuit", "circuit of EAP-IG", "attribution graph", "checkpoint")]
)
def test_numbers_that_are_not_what_they_should_be(name: str, tmp_path: Path) -> None:
    """Every tensor in turn: missing, of another rank or dtype, with NaN, with an index far out of range."""
    kind = KINDS[name]
    file = kind.write(tmp_path)
    header, tensors = _open(file), _tensors(file)
    for key, tensor in tensors.items():
        changed: list[Any] = [tensor.to(torch.complex64)]
        if name != "interventions":  # a vector may be one per position there
            changed.append(tensor[None])
        if key != "centre":  # directions have one or not
            changed.append(None)
        if tensor.is_floating_point():
            changed.append(torch.where(torch.arange(tensor.numel()).view_as(tensor) == 0, float("nan"), tensor))
            changed.append(torch.full_like(tensor, float("inf")))
        elif tensor.dtype != torch.bool and name in ("circuit tensors", "lens table"):
            changed.append(torch.full_like(tensor, -1))
            if not key.endswith("rank"):
                changed.append(torch.full_like(tensor, 10**6))
        for new in changed:
            if tensor.numel():
                _put(file, header, {k: v for k, v in {**tensors, key: new}.items() if v is not None})
                refused(kind, file, f"{key} {None if new is None else (tuple(new.shape), new.dtype)}")


def _sound_or_refused(kind: Kind, file: Path) -> None:
    """A fact may be one that any value fits (a name, a count); it must not fail otherwise."""
    with contextlib.suppress(ArtefactError):
        kind.read(file)


# ---- files taken apart and sealed again ------------------------------------------------------------------------------


def _beside(file: Path) -> Path:
    return file if file.suffix == ".safetensors" else file.with_suffix(".safetensors")


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    with safe_open(str(_beside(file)), framework="pt") as stream:
        return {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118 - not a mapping


def _open(file: Path) -> dict[str, Any]:
    if file.suffix == ".json":
        data = json.loads(file.read_text())
        return {"what": data.pop("what"), "format": data.pop("format"), "facts": data}
    with safe_open(str(file), framework="pt") as stream:
        return json.loads(stream.metadata()["mechwork"])


def _put(file: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> None:
    from mechwork.artefact import _digest, sha256

    numbers = _tensors(file) if tensors is None and _beside(file).is_file() else tensors or {}
    if file.suffix == ".json":
        if tensors is not None:
            save_file({k: v.contiguous() for k, v in numbers.items()}, _beside(file))
        facts = header["facts"]
        sealed = {"sha256": sha256(_beside(file))} if _beside(file).is_file() else {}
        content = (
            {**facts, **sealed, "what": header["what"], "format": header["format"]}
            if isinstance(facts, dict)
            else facts
        )
        file.write_text(json.dumps(content))
        return
    numbers = {k: v.contiguous() for k, v in numbers.items()}
    sealed = {**header, "sha256": _digest(header["facts"], numbers)}
    save_file(numbers, file, metadata={"mechwork": json.dumps(sealed)})


def _places(facts: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = facts.items() if isinstance(facts, dict) else enumerate(facts) if isinstance(facts, list) else ()
    return [at, *(place for key, item in inner for place in _places(item, (*at, key)))]


def _free(path: tuple[Any, ...]) -> bool:
    return not path or "provenance" in path


def _at(facts: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        facts = facts[key]
    return facts


def _with(facts: Any, path: tuple[Any, ...], new: Any) -> Any:
    facts = json.loads(json.dumps(facts))
    _at(facts, path[:-1])[path[-1]] = new
    return facts


# ---- the reader itself -----------------------------------------------------------------------------------------------


def test_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2).T}
    one = write_artefact(tmp_path / "1", "kind", {"x": [1, "ü", None]}, tensors)
    two = write_artefact(tmp_path / "2", "kind", {"x": [1, "ü", None]}, tensors)
    assert one.read_bytes() == two.read_bytes()
    assert read_artefact(one, "kind").facts == {"x": [1, "ü", None]}
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2"}


def test_a_huge_header_and_a_huge_json_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(ArtefactError, match="damaged"):
        read_artefact(file, "kind")
    monkeypatch.setattr("mechwork.files.JSON_BYTES", 10)
    (tmp_path / "x.json").write_text(json.dumps({"a": "b" * 20}))
    with pytest.raises(ArtefactError, match="JSON is read up to 10"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["a" * 300, "nul\0", ""])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError):
        read_artefact(f"{tmp_path}/{name}", "kind")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechwork import files

    file = files.write_json(tmp_path / "x.json", {"old": True})

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_json(file, {"new": True})
    assert read_json(file) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    shutil.rmtree(tmp_path)
