"""What every test shares: offline, one thread per worker, seeds that are printed, and tiny models that are only
borrowed.

| fixture | what it gives |
|---|---|
| `seed` | an integer that depends on the test's name only; printed when the test fails; `MECHWORK_SEED` overrides it |
| `family` | the name of an architecture family; parametrises the test over all of them |
| `family_model`, `family_model64` | its tiny random model in float32 / float64 |
| `tiny_gpt2`, `tiny_gpt2_64` | the GPT-2 one alone |
| `tiny_task` | three random pairs of ten tokens that fit every tiny model |
| `bundled_model` | ``gpt2-6l`` as a user loads it |
| `browser`, `open_page` | a headless Chromium, one per worker (playwright runs once in a process), and pages in it |

Models are built once per worker and lent to each test; a test that gives one back with hooks, flags or weights changed
fails. A test that wants to change a model builds its own with `tests.families.build_model`.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start

import hypothesis.core
import pytest
import torch

from mechwork.models.load import load_model
from mechwork.tasks.task import Task
from tests import gate
from tests.browser import artefacts, browser, open_page  # noqa: F401 - fixtures, once for all folders
from tests.families import CHOSEN, borrowed, build_model, build_task

SEED = os.environ.get("MECHWORK_SEED", "")
"""What draws begin with; where it is not set, each test has a seed of its own that never changes."""

hypothesis.settings.register_profile("mechwork", deadline=None, derandomize=not SEED, max_examples=50, database=None)
hypothesis.settings.load_profile("mechwork")
if SEED:
    hypothesis.core.global_force_seed = int(SEED)


def pytest_configure(config: pytest.Config) -> None:
    """One torch thread: tiny models gain nothing from more, and lose a hundredfold when a core is busy elsewhere."""
    torch.set_num_threads(1)


def pytest_report_header() -> str:
    """So that a run of a shard, whose seed varies, can be repeated."""
    return f"MECHWORK_SEED={SEED}" if SEED else "MECHWORK_SEED is not set: the seeds of every run"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a shard of the gate (see `tests.gate`) only its own tests."""
    wanted, root = os.environ.get(gate.SHARD, ""), config.rootpath
    chosen = {}
    for item in items:
        path = item.path.relative_to(root).as_posix()
        shard = gate.shard_of(path, set(getattr(item, "fixturenames", ())))
        chosen[item.nodeid] = gate.kept(shard, wanted, f"{path}::{getattr(item, 'originalname', item.name)}")
    if dropped := [item for item in items if not chosen[item.nodeid]]:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if chosen[item.nodeid]]


@pytest.fixture(autouse=True, scope="session")
def _offline() -> Iterator[None]:
    """No test reaches the network: connecting anywhere but to this machine is an error."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and str(address[0]) not in {"127.0.0.1", "::1", "localhost"}:
            raise OSError(f"tests run offline; something connects to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        yield


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed that differs between tests, is the same in every run, and is reported when the test fails."""
    value = int(SEED or zlib.crc32(request.node.nodeid.encode()) % 10_000)
    torch.manual_seed(value)
    print(f"seed {value}; repeat with MECHWORK_SEED={value}")  # pytest shows what a failing test printed
    return value


@pytest.fixture(params=CHOSEN)
def family(request: pytest.FixtureRequest) -> str:
    """Every architecture family in turn (of the quick gate three)."""
    return request.param


@cache
def _shared(family: str, dtype: torch.dtype) -> Any:
    return _run_once(build_model(family, dtype))


def _run_once(model: Any) -> Any:
    """A bridge finishes setting itself up in its first forward pass, which must not look like somebody's change."""
    with torch.no_grad():
        model.run_with_cache(torch.tensor([[1, 2, 3]]))
    return model


@pytest.fixture
def family_model(family: str) -> Iterator[Any]:
    """The family's tiny random model in float32."""
    with borrowed(_shared(family, torch.float32)) as model:
        yield model


@pytest.fixture
def family_model64(family: str) -> Iterator[Any]:
    """The family's tiny random model in float64."""
    with borrowed(_shared(family, torch.float64)) as model:
        yield model


@pytest.fixture
def tiny_gpt2() -> Iterator[Any]:
    """The tiny random GPT-2 in float32."""
    with borrowed(_shared("gpt2", torch.float32)) as model:
        yield model


@pytest.fixture
def tiny_gpt2_64() -> Iterator[Any]:
    """The tiny random GPT-2 in float64."""
    with borrowed(_shared("gpt2", torch.float64)) as model:
        yield model


@pytest.fixture
def tiny_task() -> Task:
    """Three random pairs of ten tokens, for any tiny model."""
    return build_task()


@cache
def _bundled() -> Any:
    return _run_once(load_model("gpt2-6l"))


@pytest.fixture
def bundled_model() -> Iterator[Any]:
    """The bundled trained model, loaded once per worker."""
    with borrowed(_bundled()) as model:
        yield model
