"""Jobs in turn: every request answered once, stale ones replaced, cancel between units; and threads beside a cell."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.errors import BusyError, Cancelled, InputError
from mechwork.live import Ablate, ChooseRow, Patch, PatchEach, ReadLens, Restore, Session, Worker
from mechwork.live.worker import MOST_WAITING
from mechwork.models.borrow import borrow
from mechwork.runs.record import record_run


@pytest.fixture(scope="module")
def session() -> Any:
    model = mw.load_model("gpt2-6l")
    made = Session(model, mw.tasks.ioi(model, n=16, seed=0))
    yield made
    made.close()
    assert "forward" not in vars(model), "plain forwards are as before"


@pytest.fixture
def worker(session: Session) -> Any:
    made = Worker(session)
    yield made
    made.close()
    session.do(Restore())


class Client:
    """Collects answers."""

    def __init__(self, worker: Worker, name: str = "one") -> None:
        self.worker, self.name, self.inbox = worker, name, queue.Queue()

    def ask(self, number: int, **message: Any) -> None:
        self.worker.ask(self.name, {"id": number, **message}, self.inbox.put)

    def ends(self, n: int) -> dict[int, dict[str, Any]]:
        """The last words on `n` requests."""
        found: dict[int, dict[str, Any]] = {}
        while len(found) < n:
            message = self.inbox.get(timeout=60)
            if message["what"] not in ("progress", "working"):
                assert message["id"] not in found, "answered once"
                found[message["id"]] = message
        return found


def test_twenty_clicks_at_once_are_one_or_two_computed(worker: Worker) -> None:
    client = Client(worker)
    with borrow(worker.session.model):  # nothing runs yet
        for i in range(20):
            client.ask(i, key="place", gesture={"do": "ablate", "place": f"a{i % 6}.h{i % 4}"})
        time.sleep(0.05)
    ends = client.ends(20)
    kinds = [ends[i]["what"] for i in range(20)]
    assert kinds[-1] == "result"
    assert kinds.count("result") <= 2
    assert kinds.count("replaced") >= 18
    assert ends[19]["answer"]["gesture"]["place"] == "a1.h3"
    assert ends[19]["look"]["state"]["changes"][-1]["place"] == "a1.h3"


def test_a_job_is_cancelled_between_units_and_the_session_goes_on(worker: Worker) -> None:
    client, other = Client(worker), Client(worker, "two")
    with borrow(worker.session.model):  # it runs, and waits for the model
        client.ask(1, gesture={"do": "score"})
        while client.inbox.get(timeout=60)["what"] != "working":
            pass
        other.worker.cancel("two", 1)  # another client's number stops nothing of this one
        assert worker._running is not None
        assert not worker._running.stop.is_set()
        worker.cancel("one", 1)
    assert client.ends(1)[1]["what"] == "cancelled"
    assert worker.session.circuits.scores is None
    client.ask(2, gesture={"do": "ablate", "place": "a4.h1"})
    assert client.ends(1)[2]["what"] == "result"
    model, pairs = worker.session.model, worker.session.task.pairs
    assert all(not point.fwd_hooks for point in model.hook_dict.values()), "the job's hooks are gone"
    assert torch.isfinite(record_run(model, pairs[:1], ["resid_pre"]).logits).all()


@pytest.mark.parametrize("gesture", [PatchEach(), ReadLens(-1), Ablate("a4.h1")], ids=lambda gesture: gesture.do)
def test_a_cancel_is_heard_at_any_block_and_leaves_nothing_behind(
    session: Session, gesture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that run say so, whichever way they are run; here each does, instead of one in a tenth of a second."""
    monkeypatch.setattr("mechwork.models.pulse.SECONDS", 0.0)
    session.do(Restore())
    right = session.do(Patch("a3.h2")).data["metric"]
    heard: list[int] = []
    session.undo()
    session.do(gesture, lambda what, data: heard.append(1))
    assert len(heard) > session.desk.anatomy.n_layers
    for n in (2, len(heard) // 2, len(heard) - 1):
        session.do(Restore())
        left = [n]

        def emit(what: str, data: dict[str, Any], left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] <= 0:
                raise Cancelled("stopped, as asked")

        before = session.state
        with pytest.raises(Cancelled):
            session.desk.forget()
            session.do(gesture, emit)
        assert session.state == before
        assert all(not point.fwd_hooks for point in session.model.hook_dict.values())
        assert session.do(Patch("a3.h2")).data["metric"] == right
    session.do(Restore())


def test_errors_limits_and_a_client_that_goes_away(worker: Worker) -> None:
    client = Client(worker)
    client.ask(1, gesture={"do": "ablate", "place": "a77.h1"})
    client.ask(2, gesture={"do": "explode"})
    client.ask(3, ask="undo")
    ends = client.ends(3)
    assert [ends[i]["what"] for i in (1, 2, 3)] == ["error", "error", "result"]
    assert "layers of this model" in ends[1]["message"]
    for wrong in ({"id": "x", "ask": "look"}, {"id": 4, "ask": "everything"}, {"id": 5}, {"id": True, "ask": "look"}):
        with pytest.raises(InputError):
            worker.ask("one", wrong, client.inbox.put)

    def gone(message: dict[str, Any]) -> None:
        raise ConnectionError("the tab was closed")

    worker.ask("three", {"id": 1, "gesture": {"do": "sweep"}}, gone)
    client.ask(6, ask="look")
    assert client.ends(1)[6]["what"] == "result"
    with borrow(worker.session.model):
        with pytest.raises(InputError, match="requests wait already"):
            for i in range(MOST_WAITING + 3):
                client.ask(100 + i, ask="look")
        worker.cancel("one")


def test_a_cell_beside_gestures_gets_no_wrong_answer_and_neither_do_they(session: Session) -> None:
    """Without turns, 13 of 16 gestures and 26 of 450 forwards were wrong (the prototype's measurement)."""
    model, pairs = session.model, session.task.pairs[:4]
    session.do(ChooseRow(0))
    right: dict[str, float] = {}
    for place in ("a4.h1", "a5.h0"):
        right[place] = session.do(Ablate(place)).data["metric"]
        session.do(Restore())
    patched = session.do(Patch("a3.h2")).data["metric"]
    session.do(Restore())
    plain, effects = model(pairs.clean_tokens), mw.attribute(model, session.task[:4], ["z"], rules="relp")["z"].values
    wrong: list[str] = []
    begun, done = threading.Event(), threading.Event()

    def cell() -> None:
        n = 0
        while not done.is_set() or n < 3:
            if not torch.equal(model(pairs.clean_tokens), plain):
                wrong.append("forward")
            if n % 5 == 0:
                found = mw.attribute(model, session.task[:4], ["z"], rules="relp")["z"].values
                if not torch.equal(found, effects):
                    wrong.append("attribute")
            n += 1
            begun.set()

    thread = threading.Thread(target=cell, name="the cell")
    thread.start()
    begun.wait(60)
    try:
        for _ in range(5):
            for place, metric in right.items():
                if session.do(Ablate(place)).data["metric"] != metric:
                    wrong.append(place)
                session.do(Restore())
            if session.do(Patch("a3.h2")).data["metric"] != patched:
                wrong.append("patch")
            session.do(Restore())
    finally:
        done.set()
        thread.join(60)
    assert not thread.is_alive()
    assert wrong == []


def test_a_gesture_waits_for_a_cell_that_holds_the_model_and_says_so(session: Session) -> None:
    said: list[str] = []
    held, release = threading.Event(), threading.Event()

    def cell() -> None:
        with borrow(session.model):
            held.set()
            release.wait(60)

    thread = threading.Thread(target=cell)
    thread.start()
    held.wait(60)
    with pytest.raises(BusyError):  # what mechwork itself runs is still refused at once
        mw.attribute(session.model, session.task[:2], ["z"], rules="relp")

    def emit(what: str, data: dict[str, Any]) -> None:
        said.append(str(data.get("words")))
        release.set()

    assert session.do(ChooseRow(0), emit).data["metric"]
    thread.join()
    assert said[0] == "waiting: other code is using the model"
