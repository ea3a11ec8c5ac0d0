"""A list of models that are points of one training: folders, GGUF files, hub names (``owner/name@revision``), bundled
checkpoints, first to last.

They are loaded one at a time; what does not fit together is found beforehand, from configs and headers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import bundled
from ..errors import InputError, NotFoundError
from .stores import STORES, find_in_store


@dataclass(frozen=True)
class Checkpoints:
    """Names for `load_model`, and the step of training (or place in the list) of each."""

    label: str
    sources: tuple[str, ...]
    steps: tuple[int, ...]


def find_checkpoints(name: str | Path | Sequence[str | Path], steps: Sequence[int] | None) -> Checkpoints:
    """The checkpoints of a bundled model (all, or those after `steps`), or a list of sources, whose steps count from 0.

    Raises:
        InputError: a name without checkpoints, an empty list, sources of different architecture or width, steps that do
            not fit.
        NotFoundError: a source that looks local and is not there.
    """
    if isinstance(name, str | Path):
        known = bundled.checkpoints(str(name)) if str(name) in bundled.model_names() else []
        chosen = list(steps) if steps is not None else known
        if not known or not chosen:
            raise InputError(
                f"{name} has no checkpoints. Give a bundled model that has, or a list of folders, GGUF files or hub "
                "names."
            )
        return Checkpoints(str(name), tuple(f"{name}@{step}" for step in chosen), tuple(chosen))
    sources = tuple(str(source) for source in name)
    if not sources or (steps is not None and len(steps) != len(sources)):
        raise InputError(f"a list of checkpoints needs one step for each; got {len(sources)} and steps={steps}")
    shapes = {source: read_shape(source) for source in sources}
    known_shapes = {source: shape for source, shape in shapes.items() if shape is not None}
    first = next(iter(known_shapes), None)
    for source, shape in known_shapes.items():
        if first is not None and shape != known_shapes[first]:
            raise InputError(
                f"checkpoints of one training have one architecture: {first} is {known_shapes[first]}, {source} is "
                f"{shape}"
            )
    return Checkpoints(
        f"{sources[0]} to {sources[-1]}", sources, tuple(steps) if steps is not None else tuple(range(len(sources)))
    )


def read_shape(source: str) -> str | None:
    """Architecture, layers, width and heads of a source, without its weights; None for the hub, which is not asked."""
    base = source.partition("@")[0]
    store, separator, rest = source.partition(":")
    if base in bundled.model_names():
        return _of_config(bundled.verified_model(base) / "config.json")
    if separator and store in STORES:
        return _of_gguf(find_in_store(store, rest))
    path = Path(source).expanduser()
    if (path / "config.json").is_file():
        return _of_config(path / "config.json")
    if path.is_file() or path.suffix.lower() == ".gguf":
        return _of_gguf(path)
    if path.is_dir() or source.startswith((".", "/", "~")):
        raise NotFoundError(f"no model at {source}: a folder with a config.json or a GGUF file is needed")
    return None


def _of_config(file: Path) -> str:
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    layers = config.get("num_hidden_layers", config.get("n_layer", config.get("num_layers")))
    width = config.get("hidden_size", config.get("n_embd"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    return f"{(config.get('architectures') or ['?'])[0]} with {layers} layers of width {width} and {heads} heads"


def _of_gguf(path: Path) -> str:
    from .gguf import read_header
    from .gguf.config import build_config

    config = build_config(read_header(path))
    shape = f"{config.num_hidden_layers} layers of width {config.hidden_size} and {config.num_attention_heads} heads"
    return f"{config.architectures[0]} with {shape}"
