"""Prompts of several lengths, padded on either side or not at all: the same numbers as each prompt alone, and as the
host's own forward of the padded batch with its mask, in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mechwork.circuits import score_edges
from mechwork.directions.examples import Examples
from mechwork.directions.labelled import Labelled
from mechwork.errors import InputError
from mechwork.lenses.prompts import as_prompts
from mechwork.models.borrow import run_tail
from mechwork.patching import attribute, patch
from mechwork.tasks import from_file
from mechwork.tasks.padding import token_rows
from mechwork.tasks.task import Task
from tests.families import CHOSEN, D_VOCAB, padded, rounding
from tests.gate import QUICK_FAMILIES, fewer
from tests.reference import literal
from tests.tasks.test_from_file import ROWS, write

LENGTHS = (8, 5, 10)
SIDES = ("left", "right")


def rows(seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(D_VOCAB, (n,), generator=draw).tolist() for n in LENGTHS]


CLEAN = rows(0)
CORRUPT = [[*row[:1], (row[1] + 1) % D_VOCAB, (row[2] + 3) % D_VOCAB, *row[3:]] for row in CLEAN]
RIGHT, WRONG = [1, 2, 3], [4, 5, 6]


def batch(prompts: list[list[int]], side: str, pad: int = 50) -> dict[str, torch.Tensor]:
    """What a tokenizer with ``padding_side=side`` returns."""
    width = max(map(len, prompts))
    gaps = [width - len(row) for row in prompts]
    left = side == "left"
    ids = [[*[pad] * n * left, *row, *[pad] * n * (not left)] for row, n in zip(prompts, gaps, strict=True)]
    mask = [[*[0] * n * left, *[1] * len(row), *[0] * n * (not left)] for row, n in zip(prompts, gaps, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def build(side: str) -> Task:
    return Task.from_tokens(batch(CLEAN, side), batch(CORRUPT, side), RIGHT, WRONG)


def difference(logits: torch.Tensor, row: int) -> torch.Tensor:
    return logits[:, -1, RIGHT[row]] - logits[:, -1, WRONG[row]]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("family", fewer(CHOSEN, QUICK_FAMILIES.split(",")))
def test_patching_equals_each_prompt_alone(family_model64: Any, side: str) -> None:
    model, task = family_model64, build(side)
    near: dict[str, Any] = {"rtol": 0, "atol": padded(model, 10 * rounding(model))}
    with torch.no_grad():
        base = torch.cat([difference(model(torch.tensor([row])), i) for i, row in enumerate(CLEAN)])
        ours = task.measure(run_tail(model, task.pairs.clean_tokens, None))
    torch.testing.assert_close(ours, base, **near)
    effects = patch(model, task, ["z", "mlp_out"], positions="all", direction="noise")
    for kind, cell in (("z", {"head": 1}), ("mlp_out", {})):
        found = effects[kind].per_example[:, 1, ...]
        found = found[:, cell["head"]] if cell else found
        wanted = [difference(patched(model, i, kind, cell), i)[0] for i in range(len(CLEAN))]
        torch.testing.assert_close(found, base - torch.stack(wanted), **near)
        assert float(found.abs().min()) > 1e-4


def patched(model: Any, row: int, kind: str, cell: dict[str, Any]) -> torch.Tensor:
    donor = literal.cached(model, torch.tensor([CORRUPT[row]]))[literal.hook(kind, 1)]
    return literal.patch_cell(model, torch.tensor([CLEAN[row]]), donor, kind, 1, lambda x: x, **cell)


@pytest.mark.parametrize("family", ["gpt2", "neox"])
@pytest.mark.parametrize("side", SIDES)
def test_positions_are_those_of_the_hosts_padded_batch(family_model64: Any, side: str) -> None:
    """Absolute and rotary; elsewhere the host's own padded forward is NaN (queries of padding see nothing)."""
    host, task = batch(CLEAN, side), build(side)
    with torch.no_grad():
        theirs = family_model64(host["input_ids"], attention_mask=host["attention_mask"])
        ours = task.measure(run_tail(family_model64, task.pairs.clean_tokens, None))
    ends = host["attention_mask"].cumsum(-1).argmax(-1)
    wanted = [difference(theirs[[i], : end + 1], i)[0] for i, end in enumerate(ends)]
    torch.testing.assert_close(ours, torch.stack(wanted))


@pytest.mark.parametrize("side", SIDES)
def test_estimates_and_edges_equal_each_pair_alone(tiny_gpt2_64: Any, side: str) -> None:
    model, task = tiny_gpt2_64, build(side)
    single = [Task.from_tokens([c], [x], [r], [w]) for c, x, r, w in zip(CLEAN, CORRUPT, RIGHT, WRONG, strict=True)]
    found = attribute(model, task, ["resid_pre"], positions="all")["resid_pre"].per_example
    wanted = [attribute(model, one, ["resid_pre"], positions="all")["resid_pre"].per_example for one in single]
    torch.testing.assert_close(found, torch.cat(wanted))
    edges = score_edges(model, task, rules="gradient").values
    torch.testing.assert_close(
        edges, torch.stack([score_edges(model, s, rules="gradient").values for s in single]).mean(0)
    )
    assert float(edges.abs().max()) > 1e-3


def test_whatever_prompts_come_in_they_are_the_same(tiny_gpt2: Any) -> None:
    plain = Task.from_tokens(CLEAN, CORRUPT, RIGHT, WRONG)
    for side in SIDES:
        assert build(side).pairs.fingerprint() == plain.pairs.fingerprint()
        assert torch.equal(as_prompts(tiny_gpt2, batch(CLEAN, side)).tokens, as_prompts(tiny_gpt2, CLEAN).tokens)
        for made in (
            [Examples.of_tokens(given, [True, False, True]) for given in (CLEAN, batch(CLEAN, side))],
            [Labelled.of_tokens(given, [1.0, 2.0, 3.0]) for given in (CLEAN, batch(CLEAN, side))],
        ):
            assert torch.equal(made[0].tokens, made[1].tokens)
            assert torch.equal(made[0].where, made[1].where)
    whole = Task.from_tokens(
        batch(CLEAN, "left"), batch(CORRUPT, "left"), [[[1, 2]]] * 3, [[[4]]] * 3, metric="sequence_difference"
    )
    assert whole.pairs.prompt(0) == [*CLEAN[0], 1]


def test_spans_count_from_the_first_real_token() -> None:
    spans = [{"A": [1, 2]}] * 3
    task = Task.from_tokens(batch(CLEAN, "left"), batch(CORRUPT, "left"), RIGHT, WRONG, spans=spans)
    assert task.pairs.spans["A"].nonzero()[:, 1].tolist() == [1, 2] * 3


@pytest.mark.parametrize("side", SIDES)
def test_the_tokenizers_side_and_pad_token_do_not_matter(
    bundled_model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    other = {name: f"Yesterday {text}" if name in ("clean", "corrupt") else text for name, text in ROWS[1].items()}
    file = write(tmp_path / "pairs.jsonl", [ROWS[0], other])
    monkeypatch.setattr(bundled_model.tokenizer, "padding_side", side)
    monkeypatch.setitem(bundled_model.tokenizer._special_tokens_map, "pad_token", None)
    assert bundled_model.tokenizer.pad_token_id is None
    task = from_file(bundled_model, file)
    assert len(set(task.pairs.lengths.tolist())) == 2
    values = task.measure(run_tail(bundled_model, task.pairs.clean_tokens, None))
    for row in range(2):
        logits = bundled_model(torch.tensor([task.pairs.prompt(row)]))[0, -1]
        one = logits[task.pairs.correct[row, 0]] - logits[task.pairs.incorrect[row, 0]]
        torch.testing.assert_close(values[row], one, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": [[1]]}, "have 'input_ids'"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "rows of 2, the mask of 1"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]}, "a number for every token"),
        ({"input_ids": [[1, 2]], "attention_mask": [1]}, "rows of 2, the mask of 0"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "follow one another"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "that of prompt 0 is"),
        ({"input_ids": [[1, 2]], "attention_mask": [[2, 1]]}, "is 1 at the tokens"),
        ({"input_ids": torch.zeros(1, 2)}, "integer token ids"),
    ],
)
def test_wrong_masks(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        token_rows(given)
    with pytest.raises(InputError, match=message):
        Task.from_tokens(given, [[1, 2]], [1], [2])
