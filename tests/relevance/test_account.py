"""The account of relevance, and the relevance of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechwork as mw
from mechwork.errors import InputError, MetricError
from mechwork.relevance import PRESETS
from mechwork.tasks.task import Task
from tests.families import borrowed


def account_of(model: Any, task: Task, rules: Any) -> Any:
    return mw.check_conservation(model, task.pairs.clean_tokens, lambda logits: task.metric(logits, task.pairs), rules)


def test_relevance_and_biases_add_up_on_every_family(family_model64: Any, tiny_task: Task) -> None:
    account = account_of(family_model64, tiny_task, "relp_ah")
    assert account.expected
    assert account.reasons == ()
    assert len(account.relevance) == 4
    assert account.holds(1e-6)
    assert "is to be expected" in str(account)


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("gradient", "scale of a norm"),
        ("relp", "no AH-rule"),
        ("cp_lrp", "non-linearity"),
        ("attnlrp", "bilinear"),
        ("gim", "bilinear"),
    ],
)
def test_reasons_say_where_it_leaks(family_model64: Any, family: str, tiny_task: Task, rules: str, says: str) -> None:
    if family == "opt" and rules == "cp_lrp":  # the gradient of a relu is its Identity-rule
        assert account_of(family_model64, tiny_task, rules).expected
        return
    account = account_of(family_model64, tiny_task, rules)
    assert not account.expected
    assert any(says in reason for reason in account.reasons)
    assert not account.holds(1e-3)


def test_a_metric_that_is_not_linear_is_named(tiny_gpt2_64: Any, tiny_task: Task) -> None:
    account = account_of(tiny_gpt2_64, tiny_task.with_metric("log_probability"), "relp_ah")
    assert not account.expected
    assert "not linear in the logits" in account.reasons[0]
    with pytest.raises(MetricError, match="no gradient"):
        mw.check_conservation(tiny_gpt2_64, tiny_task.pairs.clean_tokens, lambda logits: logits.detach().sum())


def test_tokens_and_biases_add_up(bundled_model: Any) -> None:
    task = mw.tasks.ioi(bundled_model, n=4)
    prompt = "".join(task.prompt_texts(0)[0][1:])
    right, wrong = (" " + answer[0].strip() if isinstance(answer, tuple) else answer for answer in task.answer_texts[0])
    with borrowed(bundled_model) as model:
        relevance = mw.attribute_tokens(model, prompt, (right, wrong))
    assert "".join(relevance.tokens).endswith(prompt[-20:])
    with torch.no_grad():
        logits = bundled_model(torch.tensor([relevance.provenance["tokens"]]))[0, -1]
    ids = [bundled_model.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in (right, wrong)]
    assert relevance.value == pytest.approx(float(logits[ids[0]] - logits[ids[1]]), abs=1e-4)
    strongest = relevance.to_dataframe().set_index("token")["relevance"].groupby(level=0).sum()
    assert strongest.idxmax() == right  # the indirect object speaks for itself
    for rules in ("relp", "attnlrp", "gim", "gradient"):
        assert mw.attribute_tokens(bundled_model, prompt, right, rules=rules).value == pytest.approx(
            float(logits[ids[0]]), abs=1e-4
        )


def test_token_relevance_conserves_where_rules_do(tiny_gpt2_64: Any) -> None:
    relevance = mw.attribute_tokens(tiny_gpt2_64, [3, 1, 4, 1, 5], lambda logits: logits[0, -1, 9])
    account = mw.check_conservation(
        tiny_gpt2_64, torch.tensor([[3, 1, 4, 1, 5]]), lambda logits: logits[:, -1, 9], PRESETS["relp_ah"]
    )
    assert float(relevance.values.sum()) == pytest.approx(account.relevance[0], abs=1e-9)
    assert relevance.remainder == pytest.approx(account.bias[0], abs=1e-9)
    assert abs(relevance.remainder) > 1e-3


def test_bad_prompts_and_answers_are_refused(bundled_model: Any, tiny_gpt2: Any) -> None:
    with pytest.raises(InputError, match="single token"):
        mw.attribute_tokens(bundled_model, "When Mary and John", " antidisestablishment")
    with pytest.raises(InputError, match="at least one token"):
        mw.attribute_tokens(bundled_model, "", " a")
    with pytest.raises(InputError, match="ids below 97"):
        mw.attribute_tokens(tiny_gpt2, [1, 97], 3)
    with pytest.raises(InputError, match="0 to 96"):
        mw.attribute_tokens(tiny_gpt2, [1, 2], 97)
    with pytest.raises(InputError, match="no tokenizer"):
        mw.attribute_tokens(tiny_gpt2, "text", 3)
    with pytest.raises(MetricError, match="one finite number"):
        mw.attribute_tokens(tiny_gpt2, [1, 2], lambda logits: logits[0])
