"""What lenses add to a report: a table, trajectories, direct shares, and cards about the nodes of the graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mechwork import tasks
from mechwork.circuits import score_positions
from mechwork.lenses import LOGIT_LENS, attribute_logits, load_lens, read_lens, trajectory
from mechwork.lenses.readout import Readout
from mechwork.render import TokenList, lens_cards, render_circuit, render_report, share_cards
from mechwork.runs import record_run
from tests.browser import OpenPage
from tests.render import synthetic


def words_of(card: Any) -> list[str]:
    return [text for text, _ in card.rows]


def test_a_card_is_what_the_readout_says_of_the_stream_that_the_node_reads(bundled_model: Any) -> None:
    task = tasks.ioi(bundled_model, n=8)
    table = read_lens(bundled_model, task.test, LOGIT_LENS, kinds=["resid_pre", "resid_mid"], top_k=3)
    nodes = ["input", "a4.h1", "m4", "logits", "a4.h1@S2"]
    cards = lens_cards(table, task, nodes)
    run = record_run(bundled_model, task.test.pairs, ["resid_pre", "resid_mid"])
    end = int(task.test.pairs.lengths[0]) - 1
    second = int(task.test.pairs.spans["S2"][0].nonzero()[-1])
    readout = Readout.of(bundled_model)
    for node, kind, layer, pos in (
        ("input", "resid_pre", 0, end), ("a4.h1", "resid_pre", 4, end), ("m4", "resid_mid", 4, end),
        ("a4.h1@S2", "resid_pre", 4, second),
    ):  # fmt: skip
        said = readout.read(run[kind][layer][0, pos][None], top_k=3)
        assert said.top_ids is not None
        assert said.top_probabilities is not None
        assert words_of(cards[node][0]) == [bundled_model.tokenizer.decode([i]) for i in said.top_ids[0].tolist()]
        card = cards[node][0]
        assert isinstance(card, TokenList)
        shown = torch.tensor([share for _, share in card.rows])
        torch.testing.assert_close(shown, said.top_probabilities[0], rtol=1e-4, atol=1e-6)
    assert [card.label.split(", ")[1] for card in cards["a4.h1"]] == [
        "the stream it reads", "the stream behind this attention",
    ]  # fmt: skip
    assert words_of(cards["a4.h1"][1]) == words_of(cards["m4"][0])  # what the heads leave is what the MLP reads
    assert task.test.answer_texts[0][0] == words_of(cards["logits"][0])[0]


def test_a_tuned_lens_reads_before_and_behind_a_block(bundled_model: Any) -> None:
    task = tasks.ioi(bundled_model, n=8)
    table = read_lens(bundled_model, task.test, load_lens(bundled_model), top_k=2)
    cards = lens_cards(table, task, ["a2.h0", "m2", "a9.h0", "a2.h0@nowhere"])
    assert words_of(cards["a2.h0"][0]) == [
        text for text, _ in table.words("resid_pre.2", 0, int(table.mask[0].sum()) - 1)
    ]
    assert ["behind this block" in card.label for card in cards["m2"]] == [
        True
    ]  # where it reads, this lens was not trained
    assert set(cards) == {"a2.h0", "m2"}


def test_a_task_brings_its_prompts_and_answers(bundled_model: Any) -> None:
    task = tasks.ioi(bundled_model, n=8)
    by_task = read_lens(bundled_model, task)
    by_hand = read_lens(
        bundled_model, [row[:n].tolist() for row,
        n in zip(task.pairs.clean_tokens, task.pairs.lengths.tolist(), strict=True)], target=task.pairs.correct[:, 0]
    )  # fmt: skip
    assert torch.equal(by_task.rank, by_hand.rank)
    assert torch.equal(by_task.surprisal, by_hand.surprisal)
    assert by_task.provenance["task"] == task.provenance()
    assert float(trajectory(by_task).values["probability"][-1].mean()) > 0.5


def test_shares_are_told_of_nodes_alone(bundled_model: Any) -> None:
    task = tasks.ioi(bundled_model, n=8)
    shares = attribute_logits(bundled_model, task.test)
    cards = share_cards(shares, task, ["a5.h0", "m5", "logits"])
    assert set(cards) == {"a5.h0", "m5"}
    assert "interval" in cards["a5.h0"][0].markup()
    one = replace(shares, per_example=shares.per_example[:1], total=shares.total[:1])
    assert "one prompt" in share_cards(one, task, ["m5"])["m5"][0].markup()


def test_the_report_has_a_part_for_each_and_says_what_a_lens_cannot() -> None:
    page = render_report(synthetic.task(), *synthetic.everything())
    part = page[page.index('id="localisation"') : page.index('id="agreement"')]
    for title in (
        "What writes the answer directly",
        "What the stream says on the way: logit lens",
        "How the prediction forms",
    ):
        assert title in part
    assert "A lens reads" in page[page.index('id="limits"') : page.index('id="provenance"')]
    assert "lens table" in page[page.index('id="provenance"') :]


@pytest.mark.parametrize("length", [synthetic.TOKENS, tuple(f" t{i}" for i in range(200))], ids=["short", "long"])
def test_long_prompts_are_cut_at_their_beginning(length: tuple[str, ...]) -> None:
    page = render_report(synthetic.task(length), synthetic.lens_table(length))
    assert ("the last 64 of its 200 tokens" in page) == (len(length) == 200)
    assert len(page) < 4_000_000


def test_the_panel_shows_lens_and_pattern_in_the_graph_alone(open_page: OpenPage) -> None:
    page = render_circuit(
        synthetic.circuit(),
        synthetic.task(),
        synthetic.study(),
        synthetic.patterns(),
        synthetic.lens_table(synthetic.HOSTILE),
    )
    tab = open_page(page, width=1440, height=1000)
    tab.page.wait_for_function("() => document.querySelector('.mw-paper canvas')")
    tab.click_node("a4.h1")
    panel = tab.page.locator(".mw-panel").first
    assert "Logit lens, the stream it reads" in panel.inner_text()
    assert panel.locator(".mw-pattern").count() == 1
    assert tab.page.evaluate("() => window.pwned") is None
    panel.get_by_role("button", name="Enlarge, with tokens").click()
    tab.page.wait_for_function("() => document.querySelector('.mw-enlarged canvas')")
    tab.picture("graph-alone-with-facts")


def test_nodes_at_spans_have_cards_of_their_span(open_page: OpenPage, bundled_model: Any) -> None:
    task = tasks.ioi(bundled_model, n=8)
    spans = score_positions(bundled_model, task.train, positions="spans", preset="eap")
    table = read_lens(bundled_model, task.test, top_k=3)
    tab = open_page(render_report(task, spans, table), width=1440, height=1000)
    name = next(
        n for n in tab.page.evaluate("() => mechwork.graphs[0].graph().names") if n.startswith("a") and "@S2" in n
    )
    tab.page.evaluate("(name) => mechwork.graphs[0].actions.focus(name)", name)
    tab.settle()
    tab.page.evaluate("() => document.querySelectorAll('details').forEach((part) => (part.open = true))")
    assert "Logit lens, the stream it reads" in tab.page.locator(".mw-panel").first.inner_text()
