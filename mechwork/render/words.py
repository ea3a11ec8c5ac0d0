"""What a report says in words: the summary and the limits, composed from the results and nothing else."""

from __future__ import annotations

from ..circuits.scoring.stability import Stability
from ..circuits.testing.curves import FaithfulnessCurve
from ..lenses.table import LensTable
from ..patching.result import Effects
from .findings import Findings
from .page.text import count, escape, fixed, number, percent, plural, signed, words
from .panels.agreement import method_name

METRIC_WORDS = {
    "logit_difference": "mean logit of the correct answers minus mean logit of the incorrect ones, at the last token; "
    "in logits",
    "probability_difference": "summed probability of the correct minus of the incorrect answers, at the last token",
    "kl_divergence": "KL(clean run ‖ this run) over the vocabulary at the last token, in nats; 0 for the clean run, "
    "so useful places have negative effects",
    "log_probability": "log of the summed probability of the correct answers at the last token, in nats",
    "first_token": "mean logit of the correct answers' first tokens minus that of the incorrect ones'; in logits",
    "first_difference": "mean logit of the correct answers' first tokens that differ minus that of the incorrect "
    "ones'; in logits",
    "sequence_difference": "mean log-probability of the whole correct answers minus that of the incorrect ones, token "
    "after token; in nats",
    "sequence_difference_per_token": "per token: mean log-probability of the correct answers, each divided by "
    "its number of tokens, minus that of the incorrect ones; in nats",
    "sequence_probability": "summed probability of the whole correct answers, token after token",
    "sequence_probability_difference": "summed probability of the whole correct answers minus that of the incorrect "
    "ones, token after token",
}
ABLATION_WORDS = {
    "corrupt": "every other edge carries its value in the paired corrupt prompt",
    "zero": "every other edge carries zero",
    "mean": "every other edge carries its mean over the data",
    "mean_by_position": "every other edge carries its mean over the data at the same position",
    "resample": "every other edge carries its value in another random prompt",
    "optimal": "every other edge carries a learned constant",
}
WORDS = {
    "ablation": "Replacing an activation by one without the information, to see what is lost.",
    "attention": "How a head divides its reading over earlier positions; each row sums to 1.",
    "circuit": "A subset of the edges of the model's computational graph that is claimed to do the task.",
    "CMD": "Area of |1 − faithfulness| over circuit size; 0 is best.",
    "corrupt": "The second prompt of a pair, changed so that another answer is correct.",
    "CPR": "Area under faithfulness over circuit size; higher is better.",
    "denoising": "Putting a clean value into the corrupt run: shows what is enough to bring the answer back.",
    "effect": "What the clean value at a place changes in the metric, everything else as in the run that is patched.",
    "edge": "What one component writes, as read by one input of a later component.",
    "faithfulness": "The share of the model's metric that the circuit keeps: 0 for the empty circuit, 1 for the whole "
    "model.",
    "head": "One attention head: it chooses positions to read (queries and keys) and what to copy (values).",
    "interval": "Where the number would fall for 95 of 100 resamples of the pairs.",
    "lens": "What the model would say if its state at some place went straight to the output; a tuned lens first "
    "corrects for the layers between.",
    "logit difference": "How much more the model favours the correct over the incorrect answer, in logits.",
    "metric": "The number by which the behaviour is measured, one per pair of prompts.",
    "noising": "Putting a corrupt value into the clean run: shows what is necessary for the answer.",
    "Jaccard index": "How much two sets of edges overlap: 1 the same, 0 nothing in common.",
    "patching": "Running the model on one prompt with some activations taken from its run on another.",
    "random circuits": "As many edges drawn at random: what a circuit of that size keeps by chance.",
    "residual stream": "The running sum that every component reads from and writes to.",
}
"""Short explanations, one line each: where a word is first used it links here."""
SPAN_WORDS = (
    "named groups of words of the prompt; S2+ are the words after S2 up to the next named group (and so for "
    "every name with +); END is the last token"
)


def summary_sentences(findings: Findings) -> list[tuple[str, str]]:
    """What was found, as (certainty, sentence): behaviour, circuit, robustness, heads, agreement; then what rules call
    the heads.
    """
    told = (
        ("measured", _behaviour), ("measured", _circuit), ("measured", _other_faithfulness), ("estimated", _stability),
        ("measured", _heads), ("measured", _agreement), ("interpretation", _roles),
    )  # fmt: skip
    said = [(certainty, sentence) for certainty, tell in told if (sentence := tell(findings))]
    return said or [("", f"Results on the task {findings.task.name}.")]


def term(word: str, said: str) -> str:
    """`said` as a link to the one-line definition of `word`; markup."""
    anchor = word.lower().replace(" ", "-")
    return f'<a class="mw-term" href="#word-{anchor}" title="{escape(WORDS[word])}">{escape(said)}</a>'


def main_caveat(findings: Findings) -> str:
    """The one thing to know before trusting the faithfulness, in words."""
    circuit = findings.circuit
    if circuit is None:
        return "Effects alone: no circuit was selected or tested."
    same = [e for e in findings.evaluations if findings.is_of(e, circuit)]
    if not same:
        return "The circuit was not tested: nothing here says that it does the task."
    if findings.pairs_word(same[0].provenance) != "test pair" and findings.task.splits:
        return "Tested on the pairs it was found on: the faithfulness may flatter it."
    lost = [e for e in same[1:] if e.faithfulness < same[0].faithfulness - 0.2]
    if lost:
        worst = next((e for e in lost if e.ablation == "mean"), lost[0])
        return (
            f"Under {worst.ablation} ablation it keeps {fixed(worst.faithfulness, 2)}: "
            "a circuit of the difference between a pair’s prompts, not of all they share."
        )
    if len(same) == 1:
        return f"Tested under {same[0].ablation} ablation only; another ablation may give another number."
    return "Found and tested on prompts from templates; other wordings may use other parts."


def limits(findings: Findings) -> list[str]:
    """What the reader must know before trusting the numbers; composed from what the results say about themselves."""
    said: list[str] = []
    if findings.estimated or findings.scores:
        what = [f"effects ({method_name(e)})" for e in findings.estimated] + [
            f"edge scores ({s.rules})" for s in findings.scores
        ]
        said.append(
            f"Estimated, not measured: {'; '.join(what)}. Estimates are first-order along one path of coefficients; "
            "where they saturate or cancel they can be wrong in size and sign."
        )
    if any(_frozen(findings)):
        said.append(
            "The propagation rules treat the scale of every norm as a constant of the run (and, where the rules say "
            "so, attention patterns): what a place does through a change of scale is not counted."
        )
    directions = {e.direction for group in (*findings.measured, *findings.estimated) for e in group.values()} | {
        s.direction for s in findings.scores
    }
    if directions == {"denoise"}:
        said.append(
            "Effects are denoising (clean value into the corrupt run): they show what suffices. What is necessary "
            "(noising) was not tested here, and backup components may be missed."
        )
    elif directions == {"noise"}:
        said.append(
            "Effects are noising (corrupt value into the clean run): they show what is necessary. What suffices "
            "(denoising) was not tested here."
        )
    tested = (*findings.evaluations, *findings.of(FaithfulnessCurve))
    ablations = sorted({found.ablation for found in tested})
    if ablations:
        meaning = "; ".join(f"{a}: {ABLATION_WORDS.get(a, a)}" for a in ablations)
        more = (
            " Faithfulness depends on the ablation; another one may give another number." if len(ablations) == 1 else ""
        )
        said.append(f"Faithfulness was measured under {' and '.join(ablations)} ablation ({meaning}).{more}")
        said += _other_ablations(findings)
    for circuit in findings.circuits:
        if circuit.n_requested is not None and circuit.n_requested > circuit.n_edges:
            dropped = circuit.n_requested - circuit.n_edges
            verb = "was" if dropped == 1 else "were"
            said.append(
                f"Of the {count(circuit.n_requested)} edges of largest score, {count(dropped)} {verb} dropped because "
                "they lie on no path from the input to the logits."
            )
    if any(findings.pairs_word(e.provenance) != "test pair" for e in findings.evaluations):
        said.append(
            "The circuit was not tested on the task's held-out pairs; its faithfulness may be flattered by the pairs "
            "it was found on."
        )
    if findings.studies:
        said.append(
            "Roles of heads are words chosen by rules from their attention and effects. They are interpretation; the "
            "numbers beside them are measured."
        )
    if findings.of(LensTable):
        said.append(
            "A lens reads a place as if the later layers did nothing, or what they do on average: that a token stands "
            "first there does not say that the model uses it."
        )
    said.append(_model_limit(findings))
    n_pairs = len(findings.task)
    said.append(
        f"The task has {plural(n_pairs, 'pair')} from templates; other wordings of the same behaviour may use other "
        "parts of the model."
    )
    return said


def _other_ablations(findings: Findings) -> list[str]:
    """Names ablations under which the same circuit keeps much less than under the first."""
    circuit = findings.circuit
    same = [e for e in findings.evaluations if circuit is not None and findings.is_of(e, circuit)]
    lost = [e for e in same[1:] if e.faithfulness < same[0].faithfulness - 0.2]
    if not lost:
        return []
    what = ", ".join(f"{fixed(e.faithfulness, 2)} under {e.ablation} ablation" for e in lost)
    first = same[0]
    said = (
        f"The circuit is much less faithful when the other edges carry something else: {what}, against "
        f"{fixed(first.faithfulness, 2)} under {first.ablation} ablation."
    )
    if first.ablation == "corrupt":
        said += (
            " It holds what differs between the two prompts of a pair; what they have in common it leaves to the "
            "rest of the model."
        )
    return [said]


def _behaviour(findings: Findings) -> str:
    groups: tuple[Effects, ...] = (*findings.measured, *findings.estimated)
    ends = groups[0].baseline if groups else findings.scores[0].baseline if findings.scores else None
    name = words(findings.task.metric.name)
    who = findings.model_name
    accuracy = ""
    if findings.evaluations:
        evaluation = findings.evaluations[0]
        which = findings.pairs_word(evaluation.provenance)
        accuracy = f" It answers {percent(evaluation.model_accuracy)} of the {which}s correctly."
    if ends is None:
        return f"Task {findings.task.name}: {plural(len(findings.task), 'pair')}, metric {name}.{accuracy}"
    n = len(ends.clean_per_example)
    first = groups[0].provenance if groups else findings.scores[0].provenance
    return (
        f"On {plural(n, findings.pairs_word(first))} of the task {findings.task.name}, {who} has a mean {name} of "
        f"{signed(ends.clean)} on clean and {signed(ends.corrupt)} on corrupt prompts.{accuracy}"
    )


def _circuit(findings: Findings) -> str:
    circuit = findings.circuit
    if circuit is None:
        return ""
    size = f"{count(circuit.n_edges)} of the model's {count(circuit.space.n_edges)} edges ({percent(circuit.fraction)})"
    evaluation = findings.evaluation_of(circuit)
    if evaluation is None:
        return f"The circuit has {size}; it was not evaluated by itself."
    low, high = evaluation.interval()
    where = plural(len(evaluation.per_example), findings.pairs_word(evaluation.provenance))
    controls = evaluation.random
    beside = f"; random circuits of that size reach {fixed(sum(controls) / len(controls), 2)}" if controls else ""
    return (
        f"A circuit of {size} has a faithfulness of {fixed(evaluation.faithfulness, 2)} (95 % interval "
        f"{fixed(low, 2)} to {fixed(high, 2)}), measured on {where} under {evaluation.ablation} ablation{beside}. "
        "The empty circuit is 0 and the whole model 1."
    )


def _heads(findings: Findings) -> str:
    if not findings.studies or not findings.studies[0].rows:
        return ""
    rows = sorted(findings.studies[0].rows, key=lambda row: -abs(row.effect))[:4]
    named = [f"{row.head} ({signed(row.effect)} ± {number(row.standard_error, 2)})" for row in rows]
    return f"Heads of largest measured effect (metric lost when the head is mean-ablated): {', '.join(named)}."


def _other_faithfulness(findings: Findings) -> str:
    circuit = findings.circuit
    same = [e for e in findings.evaluations if circuit is not None and findings.is_of(e, circuit)]
    values = ", ".join(f"{fixed(e.faithfulness, 2)} ({e.ablation})" for e in same[1:])
    return f"Under other ablations the same circuit has a faithfulness of {values}." if values else ""


def _stability(findings: Findings) -> str:
    values = ", ".join(f"{fixed(s.mean, 2)} over {s.over}" for s in findings.of(Stability))
    if not values:
        return ""
    return f"Selected again by the scores of other data, the circuit's edges overlap with a Jaccard index of {values}."


def _roles(findings: Findings) -> str:
    """The circuit's heads by role, strongest first."""
    circuit = findings.circuit
    if circuit is None or not circuit.roles:
        return ""
    effect = {row.head: abs(row.effect) for study in findings.studies for row in study.rows}
    groups: dict[str, list[str]] = {}
    for head in sorted(circuit.roles, key=lambda head: -effect.get(head, 0.0)):
        groups.setdefault(circuit.roles[head], []).append(head)
    said = "; ".join(
        f"{role}: {', '.join(heads[:4])}{' and others' if len(heads) > 4 else ''}" for role, heads in groups.items()
    )
    return f"Roles, chosen by rule from attention and effects: {said}."


def _agreement(findings: Findings) -> str:
    parts = []
    for estimate in findings.estimated:
        for truth in findings.measured:
            if comparable(estimate, truth):
                rows = estimate.agreement(truth)
                parts.append(
                    f"{method_name(estimate)}: "
                    + ", ".join(f"{fixed(row.pearson)} at {kind}" for kind, row in rows.items())
                )
    return f"Correlation (Pearson) of estimated with measured effects: {'; '.join(parts)}." if parts else ""


def comparable(estimate: Effects, truth: Effects) -> bool:
    """Whether two groups of effects describe the same places in the same direction."""
    common = [kind for kind in estimate if kind in truth]
    return bool(common) and all(
        estimate[kind].axes == truth[kind].axes
        and estimate[kind].values.shape == truth[kind].values.shape
        and estimate[kind].direction == truth[kind].direction
        for kind in common
    )


def _frozen(findings: Findings) -> list[bool]:
    """Per estimate: whether its rules freeze something (every composite but the plain gradient does)."""
    names = [method_name(e) for e in findings.estimated] + [s.rules for s in findings.scores]
    return [not name.startswith("gradient") for name in names]


def _model_limit(findings: Findings) -> str:
    anatomy = findings.model.get("anatomy")
    size = ""
    if isinstance(anatomy, dict) and "n_layers" in anatomy and "n_heads" in anatomy:
        size = f" ({anatomy['n_layers']} layers of {anatomy['n_heads']} heads)"
    if findings.model_name == "gpt2-6l":
        return (
            f"{findings.model_name}{size} is a small model trained for this package on generated text; what it "
            "does need not hold for larger language models."
        )
    return f"All of this is about one model, {findings.model_name}{size}."
