"""The numbers that peers' own code computed on `gpt2_random` (see data/README.md for their conventions)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechwork.models.load import load_model
from mechwork.tasks.task import Task

DATA = Path(__file__).parent / "data"


@cache
def arrays(what: str, tag: str) -> dict[str, np.ndarray]:
    """`what`: nodes or edges; `tag`: f32 or f64."""
    return dict(np.load(DATA / f"gpt2_random_{what}_{tag}.npz"))


@cache
def names() -> Any:
    return json.loads((DATA / "gpt2_random_edges_f32.json").read_text())


@cache
def model(tag: str) -> Any:
    return load_model(DATA / "gpt2_random", dtype=torch.float32 if tag == "f32" else torch.float64)


@cache
def task() -> Task:
    pairs = json.loads((DATA / "gpt2_random_pairs.json").read_text())
    answers = torch.tensor(pairs["answers"])
    clean, corrupt = torch.tensor(pairs["clean_tokens"]), torch.tensor(pairs["corrupt_tokens"])
    return Task.from_tokens(clean, corrupt, answers[:, 0], answers[:, 1], name="gpt2_random")


def assert_agrees(mine: torch.Tensor, theirs: np.ndarray, tolerance: float) -> None:
    """Largest difference within `tolerance` of the largest reference value, which must not be zero."""
    expected = torch.from_numpy(np.asarray(theirs)).double()
    assert tuple(mine.shape) == tuple(expected.shape)
    scale = float(expected.abs().max())
    assert scale > 0
    assert float((mine.double() - expected).abs().max()) <= tolerance * scale
