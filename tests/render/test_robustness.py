"""The section on robustness: everything that was tried is in a table, with what it is to be compared with."""

from dataclasses import replace

from mechwork.render import render_report
from tests.render import synthetic


def section(*results: object) -> str:
    page = render_report(synthetic.task(), *results)
    start = page.index('id="robustness"')
    return page[start : page.index("</section>", start)]


def test_ablations_stability_completeness_and_minimality() -> None:
    text = section(synthetic.circuit(), synthetic.evaluation(), *synthetic.robustness())
    for wanted in (
        "<th scope=\"row\">corrupt</th>", "<th scope=\"row\">zero</th>", "bootstrap resamples", "each template",
        "When A and B &lt;/p&gt;",
        "faithfulness of its complement", "1 node below 0.01",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert text.index("When A and B") < text.index("Then A and B")  # least alike first


def test_the_main_evaluation_stands_alone_in_its_section_and_losses_are_among_the_limits() -> None:
    page = render_report(synthetic.task(), synthetic.circuit(), synthetic.evaluation(), *synthetic.robustness())
    evaluation = page[page.index('id="evaluation"') : page.index('id="robustness"')]
    assert "corrupt ablation" in evaluation
    assert "zero ablation" not in evaluation
    limits = page[page.index('id="limits"') :]
    assert "much less faithful" in limits
    assert "0.00 under zero ablation" in limits


def test_without_such_results_there_is_no_section() -> None:
    page = render_report(synthetic.task(), synthetic.circuit(), synthetic.evaluation())
    assert 'id="robustness"' not in page
    assert "much less faithful" not in page
    same = replace(synthetic.evaluation(), ablation="zero")
    assert "much less faithful" not in render_report(
        synthetic.task(), synthetic.circuit(), synthetic.evaluation(), same
    )
