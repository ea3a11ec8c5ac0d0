"""Ray: the same bits, lost workers and machines, poison, a killed or stopped driver, a full object store, bad input.

Faults are tried with actors that load no model (`actors`), so that a new one is there in a second or two.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.errors import ArtefactError, InputError, MechworkError, UnitError
from mechwork.execute import Ledger, executor
from mechwork.execute import ray as engine
from mechwork.execute.drive import run_units
from mechwork.execute.executors import Execution, current_execution
from mechwork.execute.ledger import EVENTS
from mechwork.execute.unit import ModelRef, Unit, Work
from mechwork.provenance import package_version
from mechwork.tasks.metrics import Metric
from tests.execute import actors
from tests.execute.test_operations import CALLS, check_equal, small
from tests.execute.work import find_numbers, numbers
from tests.gate import fewer

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'mechwork[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours

ROOT = Path(__file__).resolve().parents[2]
QUIET = {
    **os.environ,
    "RAY_DASHBOARD_AGENT_CHECK_PARENT_INTERVAL_S": "1",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_register_timeout_seconds": "600",
}
"""Ray's agents look every second whether their node is alive; nobody kills workers when others need memory, or because
they take long to start on a busy machine.
"""


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One Ray for the file; executors find it and leave it."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)  # the actors of the tests are found there
    ray.init(
        address="local", num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False,
        logging_level="error", object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def _squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors that square numbers."""
    monkeypatch.setattr(engine, "_Inside", actors.Squares)


def lines(log: Path) -> list[tuple[int, int]]:
    """(number, process) of every unit that was begun."""
    return [(int(a), int(b)) for a, b in map(str.split, log.read_text().splitlines())] if log.exists() else []


def test_the_bits_of_the_serial_run() -> None:
    model, task = small()
    with executor("ray", workers=2) as found:
        for name in fewer(("patch", "study", "curve, mean"), ("curve, mean",)):
            check_equal(find_numbers(CALLS[name](model, task)), serial(name))
        assert len(vars(found)["_actors"]) == 2, "actors stay from one call to the next"


def serial(name: str) -> dict[str, torch.Tensor]:
    with executor("local"):
        return find_numbers(CALLS[name](*small()))


@pytest.mark.usefixtures("_squares")
def test_workers_killed_at_ten_random_moments(tmp_path: Path) -> None:
    n, log, dice = 80, tmp_path / "log", random.Random(3)
    work, units = actors.squares(n, log, seconds=0.1)
    at, killed, due = set(dice.sample(range(1, 60), 10)), list[int](), 0
    with executor("ray", workers=2, attempts=11), Ledger(tmp_path / "l", work.identity()) as ledger:
        found = []
        for result in run_units(work, units, nowhere, ledger=ledger):
            found.append(result)
            due += len(found) in at
            alive = [pid for _, pid in lines(log)[-4:] if pid not in killed]
            if due and alive:
                due -= 1
                time.sleep(0.1 * dice.random())
                killed.append(dice.choice(alive))
                os.kill(killed[-1], signal.SIGKILL)
    assert numbers(found) == [i**2 for i in range(n)]
    assert len(set(killed)) == 10
    done = [event["unit"] for event in events(tmp_path / "l") if event["event"] == "done"]
    assert sorted(done) == sorted(unit.key for unit in units), "every unit is finished once, and only once"
    assert len(lines(log)) <= n + 2 * 10, "a killed worker costs what it held, and nothing that had finished"


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]


def nowhere(unit: Unit) -> Any:
    raise AssertionError("units run on the workers")


@pytest.mark.usefixtures("_squares")
@pytest.mark.parametrize("how", ["raise", "die"])
def test_a_poison_unit_is_given_up_and_named_at_the_end(how: str, tmp_path: Path) -> None:
    log, found = tmp_path / "log", []
    work, units = actors.squares(17, log, poison=5, how=how)
    says = rf"1 units failed 3 times each.*{units[5].key[:12]}"
    with (
        executor("ray", workers=2),
        Ledger(tmp_path / "l", work.identity()) as ledger,
        pytest.raises(UnitError, match=says),
    ):
        found.extend(run_units(work, units, nowhere, ledger=ledger))
    assert numbers(found) == [i**2 for i in range(17) if i != 5]
    ran = [number for number, _ in lines(log)]
    assert ran.count(5) == 3
    assert len(ran) == 19, "innocent units run once"


N_UNITS = 60
"""Of which some are left when the driver hears its signal."""

DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test in the background of a shell ignores it
from pathlib import Path
import ray
from mechwork.execute import Ledger, executor, ray as engine
from mechwork.execute.drive import run_units
from tests.execute import actors
engine._Inside = actors.Squares
folder = Path(sys.argv[1])
work, units = actors.squares(60, folder / "log", seconds=0.2)
with executor("ray", workers=1), Ledger(folder / "l", work.identity()) as ledger:
    for unit, values in run_units(work, units, None, ledger=ledger):
        print(int(values["square"]), flush=True)
"""


@pytest.mark.parametrize("sent", fewer([signal.SIGKILL, signal.SIGINT], [signal.SIGINT]), ids=lambda sent: sent.name)
def test_a_driver_that_is_stopped_leaves_nothing_and_goes_on(sent: int, tmp_path: Path) -> None:
    import psutil

    folder, log = tmp_path, tmp_path / "log"
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)], cwd=ROOT, env=QUIET | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 150
    while len(lines(log)) < 8:
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(driver.pid).children(recursive=True)
    assert {pid for _, pid in lines(log)} <= {child.pid for child in children}
    driver.send_signal(sent)
    driver.wait(90)
    _, alive = psutil.wait_procs(children, timeout=90)
    names = [child.name() for child in alive]
    for child in alive:
        child.kill()
    assert not names, "processes outlived their driver"
    finished = {path.stem for path in (folder / "l" / "results").iterdir()}
    assert 4 <= len(finished) < N_UNITS
    work, units = actors.squares(N_UNITS, log, seconds=0.2)
    begun = len(lines(log))
    with Ledger(folder / "l", work.identity()) as ledger:  # begun on Ray, taken up here
        assert numbers(list(run_units(work, units, here(work), ledger=ledger))) == [i**2 for i in range(N_UNITS)]
    again = {units[number].key for number, _ in lines(log)[begun:]}
    assert not again & finished, "a finished unit was run again"


def here(work: Work) -> Any:
    return lambda unit: actors.square(work, unit)


@pytest.mark.usefixtures("_squares")
def test_the_object_store_nearly_full(tmp_path: Path) -> None:
    kept = [ray.put(torch.rand(4_000_000).numpy()) for _ in range(6)]  # 96 of 100 MiB
    work, units = actors.squares(17, tmp_path / "log")
    large = Work(work.operation, work.model, work.settings, {**work.data, "more": {"x": torch.rand(8_000_000)}})
    units = [large.unit(slice(i, i + 1)) for i in range(17)]
    with executor("ray", workers=2):
        assert numbers(list(run_units(large, units, nowhere))) == [i**2 for i in range(17)]
    assert len(kept) == 6


TWO_NODES = """
import json, sys
from pathlib import Path
import ray, torch
from ray.cluster_utils import Cluster
import mechwork as mw
from mechwork.execute import executor, ray as engine
from mechwork.execute.drive import run_units
from tests.execute import actors

node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
cluster.wait_for_nodes()
same = True
if sys.argv[2] == "with a model":
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=8, seed=1)
    with executor("local"):
        serial = mw.score_edges(model, task, batch_size=2).values
    with executor("ray", workers=2, address=cluster.address):
        same = torch.equal(mw.score_edges(model, task, batch_size=2).values, serial)
engine._Inside = actors.Squares
log = Path(sys.argv[1]) / "log"
work, units = actors.squares(100_000, log, seconds=0.1)  # the second worker may be late: more than are run
values, before, left = [], set(), 30
with executor("ray", workers=2, address=cluster.address):
    for unit, found in run_units(work, units, None):
        values.append(int(found["square"]))
        if before:
            left -= 1
        elif len(seen := {line.split()[1] for line in log.read_text().splitlines()}) == 2:
            before = seen
            cluster.remove_node(second, allow_graceful=False)
        if not left:
            break
cluster.shutdown()
print(json.dumps({"values": values, "workers": len(before), "same": same}))
"""


@pytest.mark.parametrize("what", fewer(["without", "with a model"], ["without"]))
def test_a_cluster_of_two_machines_one_of_which_goes(what: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path), what], cwd=ROOT, env=QUIET | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["same"], "two machines give the bits of one process"
    assert said["workers"] == 2, "each machine, of one core, had a worker"
    assert said["values"] == [i**2 for i in range(len(said["values"]))]
    assert len(said["values"]) > 30, "the other goes on"


def test_bad_input_is_one_message_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for settings, says in (
        ({"gpus_per_worker": 8}, "1 workers of 8 GPUs, each on one machine, need 8 GPUs; the cluster has 0"),
        ({"workers": 4}, "4 workers need a CPU core each; the cluster has 3"),
    ):
        given: Any = settings
        with pytest.raises(InputError, match=says), executor("ray", **given):
            pass
    model, task = small()
    with executor("ray", workers=1):
        own = Metric("own", lambda logits, pairs: pairs.final(logits)[:, 0])
        with pytest.raises(InputError, match="'own' is a function of this process; use one of"):
            mw.patch(model, task, ["mlp_out"], metrics=[own])
        with pytest.raises(InputError, match="made in the process that holds it"):
            mw.patch(mw.load_model(model.original_model), task, ["mlp_out"])
    reference = ModelRef.of(model)
    for changed, says in (
        ({"weights_sha256": "1" * 64}, "gpt2-6l has other weights here"),
        ({"source": str(tmp_path / "nowhere")}, "no model '.*nowhere'"),
    ):
        work, _ = actors.squares(3, tmp_path / "log")
        other = Work("patch.block", ModelRef(**{**vars(reference), **changed}), work.settings, work.data)
        with executor("ray", workers=1), pytest.raises(MechworkError, match=says):
            list(run_units(other, [other.unit(slice(0, 1))], nowhere))
    assert not (tmp_path / "log").exists()


def test_addresses_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    for address, says in (
        ("127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
        ("somewhere", "HOST:PORT of a running Ray cluster, or 'auto'; got 'somewhere'"),
        ("127.0.0.1:99999", "nothing answers at"),
    ):
        with pytest.raises(InputError, match=says):
            engine.check_answers(address)
    engine.check_answers("auto")
    assert time.monotonic() - begun < 30
    engine.check_version(package_version("mechwork"))
    with pytest.raises(ArtefactError, match=r"a worker has mechwork .*, and the process that sends work 0\.0\.1"):
        engine.check_version("0.0.1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'mechwork\[ray\]'"), executor("ray"):
        pass


def test_the_execution_in_force_is_put_back() -> None:
    with executor("ray", workers=1):
        assert current_execution().executor.kind == "ray"
    assert isinstance(current_execution(), Execution)
    assert current_execution().executor.kind == "local"
    assert ray.is_initialized(), "a Ray that was there before is left as it was"
