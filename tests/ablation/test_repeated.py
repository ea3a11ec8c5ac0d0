"""Lists of tokens that are said again, and what is measured on them, word by word."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.ablation import measure_span_roles, repeated_tokens
from mechwork.ablation.formation import _heads, _induction
from mechwork.ablation.roles import RoleTable
from mechwork.errors import InputError
from tests.families import build_task


def test_lists_are_said_again_and_read_one_token_ahead(tiny_gpt2_64: Any) -> None:
    prompts = repeated_tokens(tiny_gpt2_64, 3, 6, again=4)
    rows = prompts.tokens.tolist()
    queries = [7, 8, 9, 10]
    for row in rows:
        assert (row[0], len(row), len(set(row))) == (0, 11, 7)
        assert row[7:] == row[1:5]
    assert (prompts.start, prompts.length, prompts.again, prompts.queries.tolist()) == (1, 6, 4, queries)
    assert prompts.task.pairs.correct[:, 0].tolist() == [row[5] for row in rows]
    with torch.no_grad():
        logits, cache = tiny_gpt2_64.run_with_cache(prompts.tokens)
    said = [[row[q - 5] for q in queries] for row in rows]  # what followed this token the first time
    for found, of_row, words in zip(prompts.task.measure(logits).tolist(), logits, said, strict=True):
        each = [float(of_row[q].log_softmax(dim=-1)[word]) for q, word in zip(queries, words, strict=True)]
        assert found == pytest.approx(sum(each) / len(each))
    scores = []
    for layer in range(3):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
        for head in range(4):
            seen = [float(pattern[i, head, q, row.index(row[q]) + 1]) for i, row in enumerate(rows) for q in queries]
            scores.append(sum(seen) / len(seen))
    assert _induction(tiny_gpt2_64, prompts) == pytest.approx(max(scores))


def _row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_heads_have_the_roles_that_their_scores_and_corrected_p_give_them() -> None:
    names = ("a0.h0", "a0.h1", "a0.h2", "a1.h0")
    scores = {
        "previous token": _row(0.4, 0.9, 0.1, 0.05),
        "induction": _row(0.3, 0.0, 0.0, 0.8),
    }
    p = {  # times 4, 3, 2 and 1 from the smallest
        "previous token": _row(0.02, 0.001, 0.03, 0.5),
        "induction": _row(0.001, 0.5, 0.5, 0.016),
    }
    nothing = {role: torch.zeros(4).double() for role in scores}
    table = RoleTable(names, scores, nothing, nothing, p, {})
    assert table.top("previous token", 2) == [("a0.h1", 0.9), ("a0.h0", 0.4)]
    assert table.roles_of("a0.h1") == ("previous token",)
    assert table.roles_of("a0.h0") == ("induction",), "p of .02 is the second of four: .06"
    assert table.roles_of("a1.h0") == ("induction",), "p of .016 is the second of four: .048"
    assert table.roles_of("a0.h2") == ()
    assert _heads(table) == {"previous token": "a0.h1", "control": "a0.h2", "induction": "a1.h0"}
    two, none, p_two = ({role: rows[2:] for role, rows in part.items()} for part in (scores, nothing, p))
    alone = RoleTable(names[2:], two, none, none, p_two, {})
    with pytest.raises(InputError, match=r"a0\.h2 is alone in its own"):
        _heads(alone)


def test_inhibition_is_what_the_movers_lose_when_a_head_is_ablated_at_the_end(tiny_gpt2_64: Any) -> None:
    model, (io, s1) = tiny_gpt2_64, (2, 5)
    task = build_task(n=8, spans=[{"IO": [io], "S1": [s1]}] * 8)
    table = measure_span_roles(model, task, n_null=3, n_movers=4)
    tokens = task.pairs.clean_tokens
    movers = [tuple(int(part[1:]) for part in name.split(".")) for name, _ in table.top("name mover", 4)]
    assert {layer for layer, _ in movers} != {0}, "no head has a mover after it"

    def preference(cache: Any, layer: int, head: int) -> torch.Tensor:
        row = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, -1]
        return row[:, io] - row[:, s1]

    with torch.no_grad():
        plain = model.run_with_cache(tokens)[1]
        expected = []
        for layer in range(3):
            mean = plain[f"blocks.{layer}.attn.hook_z"][:, -1].mean(dim=0)
            for head in range(4):

                def ablate(z: Any, hook: Any, head: int = head, mean: Any = mean) -> Any:
                    z[:, -1, head] = mean[head]
                    return z

                with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", ablate)]):
                    changed = model.run_with_cache(tokens)[1]
                later = [mover for mover in movers if mover[0] > layer]
                lost = [float((preference(plain, *m) - preference(changed, *m)).mean()) for m in later]
                expected.append(sum(lost) / len(lost) if lost else 0.0)
        whole = sum(float(preference(plain, *mover).mean()) for mover in movers) / len(movers)
    found = table.scores["S-inhibition"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64) / whole, rtol=0, atol=1e-6)
    assert float(found.abs().max()) > 1e-3
