"""Chats through a template, the columns of files of pairs, drawn splits, and one prompt alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.discovery.explain import Explanation
from mechwork.discovery.stored_task import StoredTask
from mechwork.display import page
from mechwork.errors import InputError
from mechwork.interventions import Write, intervene
from mechwork.sites import Site
from mechwork.tasks import from_chat, from_file, from_prompt
from mechwork.tasks.encode import prepends_bos

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PAIR = {
    "clean": "When Mary and John went to the store, John gave a drink to",
    "corrupt": "When Mary and John went to the store, Mary gave a drink to",
    "correct": "Mary",
    "incorrect": "John",
}


@pytest.fixture
def chat_model(bundled_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(bundled_model.tokenizer, "chat_template", TEMPLATE, raising=False)
    return bundled_model


def token_texts(task: mw.Task, name: str, row: int = 0) -> str:
    texts, mask = task.prompt_texts(row)[0], task.pairs.spans[name][row]
    return "".join(text for text, inside in zip(texts, mask.tolist(), strict=False) if inside)


def test_a_chat_is_what_the_template_writes(chat_model: Any) -> None:
    rows = [{**PAIR, "assistant": "I say that", "correct": " Mary", "incorrect": " John", "spans": {"IO": "Mary and"},
             "corrupt_spans": {"IO": "Mary and"}}]  # fmt: skip
    task = from_chat(chat_model, rows, system="Be brief.", metric="sequence_difference")
    text = f"[system]Be brief.[end][user]{PAIR['clean']}[end][assistant]I say that"
    assert task.prompt(0).startswith(text)
    own = chat_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert task.pairs.prompt(0)[: len(own)] == own
    assert token_texts(task, "system").strip() == "Be brief."
    assert token_texts(task, "user").strip() == "When"
    assert token_texts(task, "IO").strip() == "Mary and"
    assert token_texts(task, "assistant").strip() == "I say"
    assert token_texts(task, "END").strip() == "that"
    assert task.provenance()["chat_template"] == TEMPLATE
    assert StoredTask.of(task).task().chat_template == TEMPLATE


def test_messages_and_later_turns(chat_model: Any) -> None:
    def turns(name: str) -> list[dict[str, str]]:
        said = ("user", "Who went?"), ("assistant", "Mary went."), ("user", f"Who came to {name}?")
        return [{"role": role, "content": text} for role, text in said]

    pair = {"clean": turns("Mary"), "corrupt": turns("John"), "correct": ["John", "Tom"], "incorrect": "Mary"}
    task = from_chat(chat_model, [pair], metric="sequence_probability")
    assert token_texts(task, "user").strip() == "Who went?"
    assert token_texts(task, "assistant").strip() == "Mary went."
    assert token_texts(task, "user2").strip() == "Who came to Mary?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": [{"role": "assistant", "content": "a"}]}, "user first"),
        ({"clean": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "system turn if any"),
        ({"clean": [{"role": "judge", "content": "a"}]}, "a message has a role"),
        ({"clean": [{"role": "user", "content": ""}]}, "not empty"),
        ({"clean": [{"role": "user", "content": "a"}], "assistant": "b"}, "leave the columns empty"),
        ({"clean": 3}, "a text or a list of messages"),
        ({"clean": None}, "needs a text in column 'clean'"),
        ({"clean": " spaces "}, "does not write this user turn as it is"),
        ({"correct": " Mary"}, "swallows part of the answer ' Mary'"),
    ],
)
def test_wrong_chats(chat_model: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_chat(chat_model, [{**PAIR, **change}])


def test_a_tokenizer_without_a_template(bundled_model: Any) -> None:
    with pytest.raises(InputError, match="has none"):
        from_chat(bundled_model, [PAIR])


def test_a_template_that_refuses(chat_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_model.tokenizer, "chat_template", "{{ raise_exception('no system turn') }}")
    with pytest.raises(InputError, match="refuses these turns: no system turn"):
        from_chat(chat_model, [PAIR])


def test_splits_are_drawn_and_said(bundled_model: Any, tmp_path: Path) -> None:
    names = ("Mary", "Tom", "Anna", "John", "Paul", "Lucy")
    rows = [
        {"clean": f"When {a} and {b} went to the store, {b} gave a drink to",
         "corrupt": f"When {a} and {b} went to the store, {a} gave a drink to",
         "correct": f" {a}", "incorrect": f" {b}"}
        for a, b in zip(names, names[1:] + names[:1], strict=True)
    ]  # fmt: skip
    csv = tmp_path / "pairs.csv"
    cells = [[json.dumps(v) for v in row.values()] for row in rows]
    csv.write_text("\n".join(",".join(line) for line in [list(rows[0]), *cells]), encoding="utf-8")
    task = from_file(bundled_model, csv, metric="first_token")
    assert "split drawn by prompt: 3 to find, 3 held out" in task.description
    assert (len(task.train), len(task.test)) == (3, 3)
    assert task.splits == from_file(bundled_model, csv, metric="first_token").splits
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps(rows[0]))
    assert "test pairs are the train pairs" in from_file(bundled_model, few, metric="first_token").description


def test_a_list_of_answers_in_csv(bundled_model: Any, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    cells = [PAIR["clean"], PAIR["corrupt"], '[" Mary", " Tom"]', " John"]
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    file.write_text(f"clean,corrupt,correct,incorrect\n{quoted}\n", encoding="utf-8")
    task = from_file(bundled_model, file)
    assert task.answer_texts == ((" Mary, Tom".replace(", Tom", ",  Tom"), " John"),)
    assert task.pairs.correct.shape == (1, 2)


def test_one_prompt_is_explained(bundled_model: Any, tmp_path: Path) -> None:
    look = mw.explain(bundled_model, PAIR["clean"], n_heads=2)
    ids = look.task.pairs.prompt(0)
    with torch.no_grad():
        logits = bundled_model(torch.tensor([ids]))[0, -1]
    top = logits.topk(2).indices
    assert look.answer == bundled_model.tokenizer.decode([int(top[0])])
    assert look.answers.rows[0].probability == pytest.approx(float(logits.softmax(-1)[top[0]]), rel=1e-4)
    difference = float(logits[top[0]] - logits[top[1]])
    assert float(look.direct.total[0]) == pytest.approx(difference, rel=1e-4)
    assert look.relevance.value == pytest.approx(difference, rel=1e-4)
    node, effect = next(one for one in look.effects() if ".h" in one[0])
    layer, head = (int(x) for x in node[1:].split(".h"))

    class ZeroHead:
        def __call__(self, activation: torch.Tensor) -> torch.Tensor:
            new = activation.clone()
            new[:, :, head] = 0
            return new

    with torch.no_grad(), intervene(bundled_model, [Write(Site("z", layer), ZeroHead())]):
        without = bundled_model(torch.tensor([ids]))[0, -1]
    assert effect == pytest.approx(difference - float(without[top[0]] - without[top[1]]), rel=1e-3)
    assert len(look.attention.heads) == 2
    assert look.edges is not None
    assert "A first look" in page(look)
    assert Explanation.load(look.save(tmp_path / "look")).answers.rows == look.answers.rows


def test_one_prompt_has_no_corrupt_side(bundled_model: Any) -> None:
    task = from_prompt(bundled_model, PAIR["clean"], " Mary", " John")
    for wrong in (
        lambda: mw.patch(bundled_model, task, ["resid_pre"]),
        lambda: mw.attribute(bundled_model, task, ["resid_pre"]),
        lambda: mw.score_edges(bundled_model, task),
        lambda: mw.evaluate(
            bundled_model, task, mw.score_edges(bundled_model, task, rules="gradient", ablation="zero")
        ),
    ):
        with pytest.raises(InputError, match="one prompt alone"):
            wrong()
    with pytest.raises(InputError, match="goes with reference="):
        mw.explain(bundled_model, "a", ablation="mean")
    with pytest.raises(InputError, match="at least one token"):
        mw.explain(bundled_model, "")
    assert prepends_bos(bundled_model) == (task.pairs.prompt(0)[0] == bundled_model.tokenizer.bos_token_id)
