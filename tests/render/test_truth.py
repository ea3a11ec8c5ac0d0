"""Pages of known circuits and of measured edges."""

from __future__ import annotations

from mechwork.circuits import measure_edges
from mechwork.circuits.ground_truth import build_table, find_case


def test_the_table_of_known_circuits_as_a_page() -> None:
    html = build_table([find_case("induction"), find_case("and_gate")]).to_html()
    assert "3 of 29" in html
    assert ">0.667 [0.67, 0.67]<" in html
    assert "attends with certainty" in html
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_measured_edges_as_a_page() -> None:
    case = find_case("linear")
    html = measure_edges(case.model, case.task, direction="denoise").to_html()
    assert "measured denoising effect on the logit difference" in html
    assert html.index("a1.h0-&gt;logits") < html.index("input-&gt;logits")
    assert "+25" in html
