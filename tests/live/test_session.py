"""A session without transport: every number is the one of the printed lines, to the bit; states go back and forth."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.cli import main
from mechwork.errors import InputError, UnknownNameError, VerificationError
from mechwork.features import load_features
from mechwork.live import (
    GESTURES,
    Ablate,
    Attention,
    Attribution,
    ChooseRow,
    EditPrompts,
    KeepEdges,
    Origin,
    Patch,
    PatchEach,
    ReadFeatures,
    ReadLens,
    Rescale,
    Restore,
    ScaleFeature,
    ScoreEdges,
    Session,
    Steer,
    ToggleParts,
    freeze,
    gesture_json,
    read_gesture,
)  # fmt: skip
from mechwork.runs.record import run_to_metric
from tests.gate import fewer


def say(session: Session, code: str) -> dict[str, Any]:
    """What printed Python leaves behind, run without the session."""
    scope: dict[str, Any] = {
        "mw": mw, "model": session.model, "task": session.task, "pair": session.desk.check(session.state.choice),
        "given": session.circuits.given, "scores": session.circuits.scores, "features": session.desk.features,
    }  # fmt: skip
    exec(code, scope)
    return scope


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest) -> Any:
    model = mw.load_model("gpt2-6l")
    task = mw.tasks.ioi(model, n=16, seed=0)
    made = Session(model, task, origin=Origin("ioi", 16, 0), features=load_features(model))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def from_the_beginning(session: Session) -> None:
    session.do(ChooseRow(0))
    session.do(Restore())


CHANGES = [
    Ablate("a4.h1"), Ablate("a4.h1@END"), Ablate("a4.h1", "zero"), Ablate("m3.n17+20"), Ablate("a2"), Ablate("l3"),
    Ablate("resid_pre.3@4", "zero"), Patch("a4.h1"), Patch("m2@END"), Patch("resid_pre.3@END"),
    Patch("resid_post.1@END"),
    Rescale("a4.h1", 0.5), Rescale("m2.n3@5", 3.0), Rescale("resid_post.2@END", 1.5), Steer(2, 1.0),
    Steer(3, 0.5, "mirror_below"), ScaleFeature("resid_post.3/f414", 0.0),
    ScaleFeature("resid_post.3/f414@END", 3.0), Patch("a4.h1@END"), Patch("m3.n17+20"),
]  # fmt: skip


@pytest.mark.parametrize("gesture", CHANGES, ids=str)
def test_the_printed_lines_give_the_same_numbers_to_the_bit(session: Session, gesture: Any) -> None:
    plain = session.desk.tell(session.state.choice).metric
    answer = session.do(gesture)
    assert say(session, answer.python)["metric"] == answer.data["metric"]
    assert answer.data["before"] == plain
    assert answer.data["change"] == answer.data["metric"] - plain != 0
    assert len(answer.data["controls"]) == 3
    assert all(control["metric"] != answer.data["metric"] for control in answer.data["controls"])


def test_controls_are_the_same_gesture_at_other_places(session: Session) -> None:
    answer = session.do(Ablate("a4.h1@END"))
    places = [control["place"] for control in answer.data["controls"]]
    assert sorted(places) == ["a4.h0@END", "a4.h2@END", "a4.h3@END"]
    for control in answer.data["controls"]:
        session.do(Restore())
        assert session.do(Ablate(control["place"])).data["metric"] == control["metric"]


def test_a_control_is_never_a_place_that_is_changed_already(session: Session) -> None:
    session.do(Ablate("a4.h1"))
    controls = session.do(Ablate("a4.h2")).data["controls"]
    assert len(controls) == 3
    assert "a4.h1" not in [control["place"] for control in controls]
    assert all(control["change"] for control in controls)


def test_gestures_add_up_and_go_back_and_forth(session: Session) -> None:
    begun = session.state
    one = session.do(Ablate("a4.h1"))
    two = session.do(Rescale("m2", 0.5))
    three = session.do(Patch("resid_pre.3@END"))
    assert two.data["before"] == one.data["metric"]
    assert len(session.state.changes) == 3
    assert say(session, session.python())["metric"] == three.data["metric"]
    again = session.do(Ablate("a4.h1", "zero"))  # in place of the first
    assert [change.place for change in session.state.changes] == ["m2", "resid_pre.3@END", "a4.h1"]
    assert again.data["before"] != three.data["metric"]
    for _ in range(4):
        assert session.undo()
    assert session.state == begun
    assert [session.redo() for _ in range(5)] == [True, True, True, True, False]
    assert session.desk.tell(session.state.choice, session.state.changes).metric == again.data["metric"]
    session.undo()
    session.do(Ablate("a1.h0"))
    assert not session.redo()


def test_views_are_those_of_the_state_reached(session: Session) -> None:
    plain = session.do(ReadLens(-1)).data
    session.do(Ablate("a4.h1"))
    changed = session.do(ReadLens(-1))
    found = say(session, changed.python)["result"]
    assert changed.data["p"] == found.top_probabilities[:, 0].tolist() != plain["p"]
    column = session.do(ReadLens(7))
    torch.testing.assert_close(torch.tensor(column.data["p"])[:, 0], torch.tensor(changed.data["p"])[:, 7])
    assert say(session, column.python)["result"].top_probabilities[:, 0].tolist() == column.data["p"]
    head = session.do(Attention("a5.h0"))
    assert say(session, head.python)["result"].patterns[0].tolist() == head.data["pattern"]
    features = session.do(ReadFeatures("resid_post.4"))
    assert say(session, features.python)["result"].values.tolist() == [
        row["value"] for row in features.data["features"]
    ]
    shares = session.do(Attribution())
    values = say(session, shares.python)["result"]
    assert shares.data["values"]["a5.h2"] == float(values["a5.h2"].mean())
    sweep = session.do(PatchEach())
    effects = say(session, sweep.python)["result"]
    assert sweep.data["values"]["a4.h1"] == float(effects["z"].values[4, 1])


def test_own_prompts_and_rows(session: Session) -> None:
    words = session.look()
    texts = ("When Mary and John went to the shop, John gave a drink to",
             "When Mary and John went to the shop, Mary gave a drink to", " Mary", " John")  # fmt: skip
    answer = session.do(EditPrompts(*texts))
    assert answer.data["answers"] == [" Mary", " John"]
    assert answer.data["clean"] != words["clean"]
    assert sum(answer.data["differs"]) == 1
    assert say(session, session.python())["metric"] == answer.data["metric"]
    patched = session.do(Patch("a4.h1"))
    assert patched.cli.startswith("mechwork ask ioi '{")
    assert say(session, session.python())["metric"] == patched.data["metric"]
    assert session.do(ChooseRow(3)).data["clean"] != answer.data["clean"]


def test_two_states_pinned(session: Session) -> None:
    session.pin("A")
    answer = session.do(Ablate("a4.h1"))
    session.pin("B")
    found = session.difference()
    assert found["change"] == answer.data["change"]
    assert found["words"][0]["a"] != found["words"][0]["b"]
    for view in (Attribution(), Attention("a5.h0"), ReadLens(7), ReadFeatures("resid_post.4")):
        b = session.do(view).data
        session.undo()
        a = session.do(view).data
        session.redo()
        moved = session.difference(view)
        if "values" in b:
            assert moved["values"] == {name: b["values"][name] - a["values"][name] for name in b["values"]}
        elif "pattern" in b:
            assert moved["pattern"][-1][0] == b["pattern"][-1][0] - a["pattern"][-1][0]
        elif "places" in b:
            assert (moved["a"][-1], moved["b"][-1]) == tuple([x["words"][-1][0][0], x["p"][-1][0][0]] for x in (a, b))
        else:
            now = {row["place"]: row["value"] for row in b["features"]}
            assert all(row["b"] == now.get(row["place"], 0.0) for row in moved["features"])
    with pytest.raises(InputError, match="compared in a view"):
        session.difference(Ablate("a4.h1"))
    session.do(ChooseRow(2))
    session.pins.pop("B")
    with pytest.raises(InputError, match="one pair of prompts"):
        session.difference()


def test_circuits_kept_and_pruned(session: Session) -> None:
    with pytest.raises(InputError, match="score them first"):
        session.do(KeepEdges(40))
    said: list[str] = []
    scored = session.do(ScoreEdges("relp"), lambda what, data: said.append(what))
    assert "working" in said
    assert say(session, scored.python)["scores"].top(1)[0][0] == scored.data["top"][0]["edge"]
    kept = session.do(KeepEdges(60))
    found = say(session, kept.python)["result"]
    assert found.faithfulness == kept.data["faithfulness"]
    assert list(found.random) == kept.data["random"]
    pair = session.desk.pair(session.state.choice)
    with session.circuits.circuit(session.state.circuit).run(session.model, pair, ablation="corrupt") as model:
        assert kept.data["pair"]["metric"] == float(pair.measure(run_to_metric(model, pair, pair.pairs), pair.pairs))
    node = kept.data["nodes"][-2]
    less = session.do(ToggleParts((node,)))
    assert node not in less.data["nodes"]
    assert say(session, less.python)["metric"] == less.data["faithfulness"]
    assert session.do(ToggleParts((node,))).data["faithfulness"] == kept.data["faithfulness"]
    with pytest.raises(InputError, match="nodes of this circuit"):
        session.do(ToggleParts(("a9.h9",)))


def command(answer: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the printed command says, as JSON."""
    words = shlex.split(answer.cli)
    assert words[0] == "mechwork"
    assert main([*words[1:], "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_prints_the_same_metric(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    answer = session.do(Ablate("a4.h1@END"))
    assert answer.cli.startswith("mechwork ablate set ioi --model gpt2-6l --targets a4.h1 --kind mean --positions END")
    assert main([*answer.cli.split()[1:], "--quiet"]) == 0
    assert f"-> {answer.data['metric']:.3f}" in capsys.readouterr().out


def test_every_gesture_has_a_command_that_answers_the_same_to_the_bit(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after another, so that each command also says what led to its state."""
    told = set()
    texts = ("When Mary and John went to the shop, John gave a drink to",
             "When Mary and John went to the shop, Mary gave a drink to", " Mary", " John")  # fmt: skip
    everything = (
        ChooseRow(2), Patch("a3.h2"), Ablate("m2", "zero"), Rescale("m3", 0.5), Steer(2, -1.0),
        ScaleFeature("resid_post.3/f414@END", 0.0), ReadLens(-1), Attention("a5.h0"), Attribution(),
        ReadFeatures("resid_post.4", 3), Restore("m3"), PatchEach(), ScoreEdges("eap-ig"), KeepEdges(50),
        ToggleParts(("a1.h0",)), ToggleParts(("a1.h1", "a1.h0")), EditPrompts(*texts), Ablate("a4.h1"),
    )  # fmt: skip
    few = (
        Ablate("a4.h1"),
        Steer(2, -1.0),
        ScoreEdges("relp"),
        KeepEdges(60),
        ToggleParts(("a4.h1",)),
        Attention("a5.h0"),
    )
    chosen = fewer(everything, few)
    for gesture in chosen:
        answer = session.do(gesture)
        said = command(answer, capsys)
        told.add(gesture.do)
        if "answers" in said:
            assert said["answers"][-1]["data"] == json.loads(json.dumps(answer.data)), gesture
            assert read_gesture(said["answers"][-1]["gesture"]) == gesture
        else:
            assert said["rows"][0]["ablated"] == answer.data["metric"], gesture
    assert told == set(GESTURES) or chosen is few


BAD = [
    (Ablate("a9.h1"), "layers of this model"), (Ablate("a4.h1", "resample"), "unknown ablation of a gesture"),
    (Ablate("logits"), "changes are made at"), (Ablate("a4.h1@99"), "positions 0 to"), (Ablate("m2.n99999"), "neurons"),
    (Ablate("resid_pre.2"), "ablated by zero, or patched"), (Patch("a4.h1<q>"), "changes are made at"),
    (Rescale("a4.h1", float("nan")), "from -100 to 100"), (Rescale("l3", 2.0), "are scaled"),
    (Steer(77), "layer"), (Steer(2, 1e9), "from -100 to 100"), (Steer(2, 1.0, "push"), "unknown way to steer"),
    (ChooseRow(99), "pairs 0 to 15"), (EditPrompts("The cat sat", "A", " Mary", " John"), "in common"),
    (EditPrompts("x" * 5000, "b", " Mary", " John"), "characters"), (ReadLens(99), "positions 0 to"),
    (EditPrompts("a " * 1000 + "b", "a " * 1000 + "c", " Mary", " John"), "tokens"),
    (EditPrompts("When Mary", "When John", " Maryland ho", " John"), "token"),
    (Attention("a9.h9"), "heads are written"),
    (Restore("a1.h1"), "changed are nothing"), (ScoreEdges("magic"), "magic"),
    (ScaleFeature("resid_post.3"), "is written resid_post.3/f17"), (ScaleFeature("z.3/f1"), "there are some at"),
    (ScaleFeature("resid_post.3/f9999"), "features"), (ReadFeatures("resid_post.9"), "there are some at"),
]  # fmt: skip


@pytest.mark.parametrize(("gesture", "message"), BAD, ids=lambda x: str(x)[:40])
def test_what_cannot_be_is_one_message_and_the_state_stays(session: Session, gesture: Any, message: str) -> None:
    before = session.state
    ran: list[int] = []
    handle = session.model.register_forward_pre_hook(lambda *_: ran.append(1))
    try:
        with pytest.raises(InputError, match=message):
            session.do(gesture)
    finally:
        handle.remove()
    assert session.state == before
    assert not ran, "refused before any forward"


def test_the_list_of_gestures_is_closed() -> None:
    gesture = Ablate("a4.h1", "zero")
    assert read_gesture(gesture_json(gesture)) == gesture
    assert read_gesture({"do": "toggle", "parts": ["a1.h1"]}) == ToggleParts(("a1.h1",))
    for wrong in ({"do": "ablate"}, {"do": "ablate", "place": 3}, {"do": "ablate", "place": "a1.h1", "run": "x"},
                  {"place": "a1.h1"}, [], "ablate", {"do": 3}):  # fmt: skip
        with pytest.raises(InputError):
            read_gesture(wrong)
    with pytest.raises(UnknownNameError, match="ablate"):
        read_gesture({"do": "ablat", "place": "a1.h1"})


def test_a_graph_or_scores_of_another_model_are_refused(session: Session) -> None:
    other = mw.load_model("attn-only-2l")
    task = mw.tasks.induction(other, n=8, seed=0)
    scores = mw.score_edges(other, task, preset="eap")
    givens: tuple[dict[str, Any], ...] = ({"circuit": scores.circuit(5)}, {"scores": scores})
    for given in givens:
        with pytest.raises(InputError, match="belongs to another graph"):
            Session(session.model, session.task, **given)
    with pytest.raises(InputError, match="pairs 0 to 15"):
        Session(session.model, session.task, row=99)
    assert session.do(ChooseRow(0)).data["metric"], "the session goes on"


def test_numbers_that_differ_are_not_frozen(session: Session) -> None:
    answer = session.do(Ablate("a4.h1"))
    page = freeze(session)
    assert "Without" in page
    for place in (answer.data, answer.data["controls"][1]):
        right = place["metric"]
        place["metric"] = right + 1e-6
        with pytest.raises(VerificationError):
            freeze(session)
        place["metric"] = right
    session.undo()


@pytest.mark.parametrize("name", ["gemma2", "mixtral"])
def test_other_families_give_the_bits_of_the_public_functions(name: str) -> None:
    from tests.families import build_model, build_task

    model = build_model(name)
    task = build_task()
    session = Session(model, task)
    try:
        for gesture in (Ablate("a1.h2", "zero"), Patch("a2.h1"), Rescale("a1", 0.5), Patch("resid_pre.2@3")):
            answer = session.do(gesture)
            assert say(session, session.python())["metric"] == answer.data["metric"], gesture
    finally:
        session.close()
