"""The circuit of IOI by span, found with corrupt prompts that are two tokens longer, is the one that is known."""

from __future__ import annotations

from typing import Any

import mechwork as mw
from mechwork.circuits import Circuit, evaluate_spans, find_span_circuit, score_positions
from mechwork.tasks.build import build_task
from mechwork.tasks.rows import text_pairs


def longer(model: Any, ioi: mw.Task) -> mw.Task:
    """The giver of the corrupt prompts is the indirect object and Tom."""
    rows = []
    for i, (io, subject) in enumerate(ioi.answer_texts):
        clean = "".join(ioi.prompt_texts(i)[0][1:])
        head, tail = clean.rsplit(subject.strip(), 1)
        corrupt = f"{head}{io.strip()} and Tom{tail}"
        row = {"clean": clean, "corrupt": corrupt, "correct": io, "incorrect": subject, "split": ioi.splits[i]}
        rows.append(row)
    return build_task(model, "ioi, unequal", text_pairs(rows))


def test_the_known_circuit_is_found_with_unequal_lengths(bundled_model: Any) -> None:
    ioi, known = mw.tasks.ioi(bundled_model, n=24, seed=1), mw.load_circuit("gpt2-6l/ioi")
    task = longer(bundled_model, ioi)
    assert (task.pairs.corrupt_lengths - task.pairs.lengths).tolist() == [2] * len(task)
    assert list(task.pairs.spans) == ["start", "differs", "same", "END"]
    scores = score_positions(bundled_model, task.train, positions="spans", ig_steps=5)
    found = find_span_circuit(scores, 200)
    judged = evaluate_spans(bundled_model, task.test, found, n_random=1)
    assert judged.faithfulness > 0.9
    assert abs(judged.random[0]) < 0.01
    blind = Circuit(found.space, found.mask.any(dim=0))
    assert int((blind.mask & known.mask).sum()) > 0.9 * known.n_edges
    assert blind.overlap(known) > 6 * blind.expected_overlap(known)
    assert mw.evaluate(bundled_model, ioi.test, blind, n_random=0).faithfulness > 0.9
