"""Circuits without edges, with one, with very many; hostile, long and right-to-left text; results of two models: drawn
sensibly, or refused with one message.
"""

import re
from dataclasses import replace

import pytest

from mechwork.circuits.graph.circuit import Circuit
from mechwork.errors import InputError
from mechwork.render import figure, graph_svg, render_graph, render_report
from tests.browser import OpenPage
from tests.render import synthetic
from tests.render.geometry import measure


def of_another_model(circuit: Circuit) -> Circuit:
    model = {"name": "llama-6l", "weights_sha256": "7" * 64}
    return replace(circuit, provenance={**circuit.provenance, "model": model})


@pytest.mark.parametrize("edges", [(), ("input->logits",)])
def test_few_edges_are_drawn_everywhere(edges: tuple[str, ...]) -> None:
    circuit = Circuit.from_edges(synthetic.space(), list(edges))
    page = render_report(synthetic.task(), circuit, synthetic.effects())
    said = "(1 of 1,108)" if edges else "(0 of 1,108)"
    assert said in re.sub(r"<[^>]*>", "", page)
    assert "logits" in graph_svg(circuit)
    assert "logits" in figure(circuit, task=synthetic.task()).svg
    assert render_graph(circuit).startswith("<!doctype html>")


def test_a_page_of_very_many_edges_is_written_and_says_how_many_it_draws() -> None:
    page = render_graph(synthetic.large_circuit())
    assert len(page.encode()) < 2_500_000
    assert "of 30,000; all are in the CSV export" in page


@pytest.mark.parametrize("token", synthetic.HOSTILE)
def test_any_token_stands_in_report_and_slide_as_text(token: str) -> None:
    texts = (*synthetic.TOKENS[:-1], token)
    page = render_report(synthetic.task(texts), synthetic.effects(texts=texts), synthetic.circuit())
    slide = figure(synthetic.circuit(), synthetic.effects(texts=texts), task=synthetic.task(texts)).svg
    for markup in (page, slide):
        assert "<img src=x" not in markup
        assert "window.pwned=1</script>" not in markup
        assert "\u202e" not in markup
        assert "\x00" not in markup
    assert max(len(word) for word in re.sub(r"<[^>]*>", " ", slide).split()) < 120


def test_results_of_two_models_are_refused_with_one_message() -> None:
    with pytest.raises(InputError, match=r"one model.*gpt2-6l and of llama-6l.*mechwork compare") as caught:
        render_report(synthetic.task(), synthetic.effects(), of_another_model(synthetic.circuit()))
    assert "\n" not in str(caught.value)
    lens = replace(synthetic.lens_table(), provenance={"model": {"name": "llama-6l", "weights_sha256": "7" * 64}})
    with pytest.raises(InputError, match=r"one model"):  # also of what is drawn alone
        render_report(synthetic.task(), synthetic.effects(), lens)
    alone = render_report(synthetic.task(), of_another_model(synthetic.circuit()))
    assert "llama-6l" in alone


def test_hostile_names_and_right_to_left_text_stay_in_their_places(open_page: OpenPage) -> None:
    """A prompt in Hebrew and Arabic that ends in one endless word; roles and supernodes of such names."""
    endless = "<script>window.pwned=1</script>" + "W" * 300
    texts = (
        "<bos>",
        "כאשר",
        " מרים",
        " ו",
        " יוסף",
        " הלכו",
        " ل",
        "حانوت",
        ",",
        " \u202eabc",
        " يوسف",
        " נתן",
        endless,
    )
    task = synthetic.task((*texts, *synthetic.TOKENS[len(texts) :]))
    circuit = replace(synthetic.circuit(), roles={"a4.h1": endless}, supernodes={endless: ("a5.h0", "a3.h3")})
    for width, touch in ((1200, False), (390, True)):
        tab = open_page(render_report(task, circuit), width=width, touch=touch)
        assert tab.page.evaluate("() => window.pwned") is None
        assert tab.page.evaluate("() => document.documentElement.scrollWidth") <= width
        tab.picture(f"hostile-{width}")
    tab = open_page(render_graph(circuit))
    tab.picture("hostile-graph")
    found = measure(tab.page)
    assert found.overlaps == []
    assert found.outside == []
