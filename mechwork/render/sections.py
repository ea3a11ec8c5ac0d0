"""The sections of a report, each from the findings; a section without anything to show is left out."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from ..ablation.heads import HeadStudy
from ..circuits.graph.circuit import Circuit
from ..circuits.scoring.attention_edges import AttentionEdges
from ..circuits.scoring.positions import PositionScores
from ..circuits.scoring.scores import EdgeScores
from ..circuits.testing.curves import CircuitEvaluation, FaithfulnessCurve
from ..patching.result import Effect, Effects
from ..provenance import hash_json, stable
from ..runs.attention import AttentionPatterns
from ..runs.components import ComponentStudy
from .findings import Findings, is_estimated, panel_of, panels_together, reports
from .first import first_screen
from .graph.graph import graph_fragment, whole_graph
from .graph.pages import positions_payload
from .graph.payload import GraphOptions, graph_payload
from .page.cards import certainty_badge
from .page.page import Fragment, to_json
from .page.table import Column, table
from .page.text import count, escape, number, plural, signed, words
from .panels.agreement import agreement_fragment, agreement_table, method_name
from .panels.attention import attention_fragment, prompt_markup
from .panels.component_section import card_fragments
from .panels.curve import curve_fragment, curve_table, evaluation_table
from .panels.heads import heads_fragment
from .panels.heatmap import heatmap_fragment
from .words import METRIC_WORDS, comparable, limits, summary_sentences

SPLIT_WORDS = {"size": "for the circuit's size"}
N_PAIRS = 2
N_BY_POSITION = 100


@dataclass(frozen=True)
class Section:
    """A part of the report; `name` is its anchor and the key under which a caller can add text."""

    name: str
    title: str
    fragments: tuple[Fragment, ...]


def build_sections(findings: Findings, heading: str = "", pending: Sequence[str] = ()) -> list[Section]:
    """All sections that have something to show, in reading order; the first screen carries the page's `heading`."""
    added: dict[str, list[Fragment]] = {}
    drawn: set[type] = set()
    for result in findings.single:
        section, draw, *_ = panel_of(result)
        part = draw(result)
        # Of results of one kind the first stands open; what follows says the same of another lens, layer or variant.
        again = type(result) in drawn
        drawn.add(type(result))
        added.setdefault(section, []).append(folded(_title_of(part, result), [part]) if again else part)
    built = [
        Section(name, title, (*_built(name, own, findings), *added.get(name, ())))
        for name, (title, own) in SECTIONS.items()
    ]
    summary = Section("summary", built[0].title, (first_screen(findings, heading, pending), *built[0].fragments))
    return [summary, *(section for section in built[1:] if section.fragments)]


def _built(name: str, own: Builder | None, findings: Findings) -> list[Fragment]:
    """What the section says of all findings: its own words, then what is drawn side by side."""
    builders = [*([own] if own is not None else []), *panels_together(name)]
    return [fragment for build in builders for fragment in build(findings)]


def _title_of(part: Fragment, result: object) -> str:
    """The heading of a part, or else the kind of result it shows."""
    found = re.search(r"<h3>(.*?)</h3>", part.body)
    return html.unescape(re.sub(r"<[^>]*>", "", found[1])) if found else type(result).__name__


def fold(summary: str, body: str, needs: tuple[str, ...] = ()) -> Fragment:
    """A part that stands closed until the reader opens it."""
    return Fragment(f'<details class="mw-fallback"><summary>{escape(summary)}</summary>{body}</details>', needs)


def folded(summary: str, parts: Sequence[Fragment]) -> Fragment:
    """Several fragments in one fold."""
    return fold(summary, "".join(p.body for p in parts), tuple(name for p in parts for name in p.needs))


def _summary(findings: Findings) -> list[Fragment]:
    said = "".join(
        f"<p>{certainty_badge(certainty) if certainty else ''}{escape(sentence)}</p>"
        for certainty, sentence in summary_sentences(findings)
    )
    return [fold("The findings in sentences", f'<div class="mw-said-text">{said}</div>')]


def _task(findings: Findings) -> list[Fragment]:
    task = findings.task
    metric = METRIC_WORDS.get(task.metric.name, "number that the user's own function gives")
    splits = {split: task.splits.count(split) for split in dict.fromkeys(task.splits)}
    divided = f" ({', '.join(f'{n} {SPLIT_WORDS.get(split, split)}' for split, n in splits.items())})" if splits else ""
    lines = [
        (
            f"<p><b>{escape(task.name)}</b>: {escape(plural(len(task), 'clean/corrupt pair'))}{escape(divided)}. "
            f"{escape(task.description)}</p>"
        )
    ]
    lines.append(f"<p>Metric: <b>{escape(words(task.metric.name))}</b>, the {escape(metric)}.</p>")
    if (n := task.pairs.n_per_question) > 1:
        lines.append(
            f"<p>Answers have several tokens: {len(task) // n} questions of {n} pairs, whose prompts are followed by "
            "the beginnings of their answers; numbers are per question.</p>"
        )
    if task.citation:
        lines.append(f'<p class="mw-muted">After {escape(task.citation)}</p>')
    if not task.pairs.aligned:
        lines.append("<p>The two prompts of a pair may differ in length; they are aligned by named spans.</p>")
    shown = min(N_PAIRS, len(task))
    rows = "".join(_pair_row(findings, i) for i in range(shown))
    pairs = (
        '<div class="mw-scroll" tabindex="0" role="region" aria-label="Pairs of prompts"><table '
        f'class="mw-pairs"><caption>The first {shown} of '
        f"{escape(plural(len(task), 'pair'))}; tokens that differ are marked</caption><thead><tr><th>clean "
        "prompt</th><th>corrupt prompt</th>"
        f"<th>correct</th><th>incorrect</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
    found = [Fragment("".join(lines) + pairs)]
    if baselines := _baselines(findings):
        found.append(fold("The metric of the unpatched runs", baselines))
    return found


def _pair_row(findings: Findings, row: int) -> str:
    task = findings.task
    clean, corrupt = task.prompt_texts(row)
    answers = task.answer_texts[row] if task.answer_texts else _answer_ids(findings, row)
    cells = [prompt_markup(clean, corrupt, name="corrupt"), prompt_markup(corrupt, clean, name="clean")]
    cells += [f"<bdi>{escape(answer)}</bdi>" for answer in answers]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _answer_ids(findings: Findings, row: int) -> tuple[str, str]:
    pairs = findings.task.pairs
    texts = [", ".join(f"token {i}" for i in side[row].tolist() if i >= 0) for side in (pairs.correct, pairs.incorrect)]
    return texts[0], texts[1]


def _baselines(findings: Findings) -> str:
    known = [
        (f"{what}", effects.baseline, effects.provenance)
        for what, group in (("patching", findings.measured), ("attribution", findings.estimated))
        for effects in group
    ]
    known += [("edge scores", scores.baseline, scores.provenance) for scores in findings.scores]
    if not known:
        return ""

    def spread(values: Any) -> str:
        return number(float(values.std() / len(values) ** 0.5), 2) if len(values) > 1 else "n/a"

    columns = [
        Column("pairs of", [what for what, _, _ in known]),
        Column(
            "pairs",
            [
                f"{count(len(b.clean_per_example))} "
                f"{findings.pairs_word(p).removesuffix(' pair').replace('pair', '')}".strip()
                for _, b, p in known
            ],
            numeric=True,
        ),
        Column("clean", [signed(b.clean) for _, b, _ in known], numeric=True),
        Column("± SE", [spread(b.clean_per_example) for _, b, _ in known], numeric=True),
        Column("corrupt", [signed(b.corrupt) for _, b, _ in known], numeric=True),
        Column("± SE ", [spread(b.corrupt_per_example) for _, b, _ in known], numeric=True),
    ]
    return table(columns, caption=f"Baselines: mean {words(findings.task.metric.name)} of the unpatched runs")


def _effects_name(effects: Effects) -> str:
    return f"estimated effects ({method_name(effects)})" if is_estimated(effects) else "measured effects"


@reports(Effects, Effect, section="localisation", together=True, called=_effects_name)
def _localisation(findings: Findings) -> list[Fragment]:
    kinds = list(dict.fromkeys(kind for e in (*findings.measured, *findings.estimated) for kind in e))
    if not kinds:
        return []
    first, second = (findings.measured, findings.estimated) if findings.measured else (findings.estimated, ())
    lead = (
        "An effect is what the clean value at a place changes in the metric, everything else as in the run that is "
        "patched. "
        "Blue: the clean value raises it. A click on a head or an MLP selects it in every view."
    )
    found = [Fragment(f"<p>{escape(lead)}</p>"), *_maps(findings, first, kinds)]
    if second:
        found.append(folded("The same places, estimated", _maps(findings, second, kinds)))
    return found


def _maps(findings: Findings, groups: Sequence[Effects], kinds: Sequence[str]) -> list[Fragment]:
    """The heat maps of these effects side by side; one site has one colour scale, measured or estimated."""
    every = (*findings.measured, *findings.estimated)
    found = [Fragment('<div class="mw-beside">')]
    for kind in kinds:
        limit = max(float(e[kind].values.nan_to_num().abs().max()) for e in every if kind in e) or 1.0
        found += [heatmap_fragment(effects[kind], limit=limit) for effects in groups if kind in effects]
    return [*found, Fragment("</div>")]


@reports(EdgeScores, section="graph", together=True, called=lambda scores: f"edge scores ({scores.rules})")
@reports(Circuit, section="graph", together=True, called="circuit")
@reports(PositionScores, section="graph", together=True, called="edge scores by position")
@reports(AttentionEdges, section="graph", together=True, called="movements between positions")
def _graph(findings: Findings) -> list[Fragment]:
    facts = findings.node_facts()
    prompt = findings.task.prompt_texts(0)[0]
    found = []
    circuits = [findings.with_roles(c) for c in findings.circuits] or (
        [findings.circuit] if findings.circuit is not None else []
    )
    compared = len(circuits) == 2 and circuits[0].space == circuits[1].space
    for i, circuit in enumerate(circuits):
        scores = findings.scores_of(circuit)
        title = f"Circuit for {findings.task.name}" + (f" ({i + 1})" if len(circuits) > 1 else "")
        options = GraphOptions(
            title=title,
            facts=facts,
            metric_name=findings.task.metric.name,
            prompt=prompt,
            curve=findings.curve_of(circuit),
        )
        found.append(graph_fragment(graph_payload(circuit, options, scores=scores)))
    if compared:
        names = ("circuit 1", "circuit 2")
        options = GraphOptions(title="Both circuits", facts=facts, names=names, metric_name=findings.task.metric.name)
        found.append(graph_fragment(graph_payload(circuits[0], options, other=circuits[1])))
    for scores in findings.of(PositionScores):
        movements = next((m for m in findings.of(AttentionEdges) if m.labels == scores.labels), None)
        said = "An edge stands where its reader reads; an arch is what a head moves from one position to another."
        title = f"Edges of {findings.task.name} by position"
        here = findings.facts_at(scores.labels, facts)
        drawn = graph_fragment(positions_payload(scores, movements, N_BY_POSITION, title, here, findings.task))
        body = f"<p>{certainty_badge('estimated')}{said}</p>{drawn.body}"
        found.append(fold("Where in the prompt: the edges by position", body, drawn.needs))
    if not circuits:
        for scores in findings.scores:
            options = GraphOptions(
                title=f"Edge scores ({scores.rules})",
                facts=facts,
                metric_name=scores.metric_name,
            )
            found.append(graph_fragment(graph_payload(whole_graph(scores), options, scores=scores)))
    return found


@reports(CircuitEvaluation, section="evaluation", together=True, called="evaluation of the circuit")
@reports(FaithfulnessCurve, section="evaluation", together=True, called="faithfulness curve")
def _evaluation(findings: Findings) -> list[Fragment]:
    circuit = findings.circuit
    chosen = findings.evaluation_of(circuit) if circuit is not None else None
    # The same circuit under other ablations is a matter of robustness.
    own = [e for e in findings.evaluations if e is chosen or circuit is None or not findings.is_of(e, circuit)]
    pairs = findings.pairs_word(own[0].provenance) if own else ""
    found = [Fragment(evaluation_table(own, pairs))] if own else []
    for curve in findings.of(FaithfulnessCurve):
        pairs = findings.pairs_word(curve.provenance)
        found.append(
            curve_fragment(curve, chosen=chosen if chosen and chosen.ablation == curve.ablation else None, pairs=pairs)
        )
        found.append(fold("The numbers of the curve", curve_table(curve)))
    if found:
        lead = (
            "Faithfulness = (m(circuit) − m(empty)) / (m(model) − m(empty)), m = mean metric over the pairs, not "
            "clipped."
        )
        found.insert(0, Fragment(f"<p>{escape(lead)}</p>"))
    return found


@reports(AttentionPatterns, section="heads", together=True, called="attention patterns")
@reports(HeadStudy, section="heads", together=True, called="head study")
@reports(ComponentStudy, section="heads", together=True, called="component study")
def _heads(findings: Findings) -> list[Fragment]:
    found = card_fragments(findings)
    tables = [heads_fragment(study) for study in findings.studies]
    found += [folded("All heads as a table", tables)] if tables and found else tables
    for patterns in findings.of(AttentionPatterns):
        found.append(
            folded(f"Attention of {plural(len(patterns.heads), 'head')} on one prompt", [attention_fragment(patterns)])
        )
    return found


def _agreement(findings: Findings) -> list[Fragment]:
    matched = [(e, m) for e in findings.estimated for m in findings.measured if comparable(e, m)]
    if not matched:
        return []
    named = [(method_name(estimate), estimate, truth) for estimate, truth in matched]
    drawn = [agreement_fragment(estimate, truth) for estimate, truth in matched]
    return [Fragment(agreement_table(named)), folded("Every place as a point", drawn)]


def _limits(findings: Findings) -> list[Fragment]:
    return [Fragment(f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in limits(findings))}</ul>")]


def _provenance(findings: Findings) -> list[Fragment]:
    known = findings.provenances
    commands = list(dict.fromkeys(_command(str(p["command"])) for _, p in known if p.get("command")))
    how = "".join(f"<pre><code>{escape(command)}</code></pre>" for command in commands)
    again = (
        f"<p>To reproduce, run again with the same versions, model and seed:</p>{how}"
        if commands
        else "<p>The results do not say by which command they were made.</p>"
    )
    columns = [
        Column("result", [what for what, _ in known]),
        Column("method", [str(p.get("method", "")) for _, p in known]),
        Column("model", [_name_and_hash(p.get("model"), "weights_sha256") for _, p in known]),
        Column("data", [_name_and_hash(p.get("task"), "sha256") for _, p in known]),
        Column("made", [str(p.get("time", "")) for _, p in known]),
    ]
    versions: dict[str, Any] = next((p["versions"] for _, p in known if isinstance(p.get("versions"), dict)), {})
    made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
    full = json.dumps([{"result": what, **p} for what, p in known], indent=1, default=str, ensure_ascii=False)
    sources = table(columns, caption="Where every result comes from; hashes are sha256, first 12 digits")
    return [
        Fragment(again),
        fold("Where every result comes from", f'{sources}<p class="mw-muted">{escape(made_with)}</p>'),
        fold("Everything that is recorded, as JSON", f'<pre class="mw-json" tabindex="0">{escape(full)}</pre>'),
    ]


def _command(recorded: str) -> str:
    """The recorded command line, with the program as one types it."""
    try:
        program, *arguments = shlex.split(recorded)
    except ValueError:
        return recorded
    name = PurePath(program).name
    return shlex.join(["mechwork" if name in ("__main__.py", "mechwork") else program, *arguments])


def _name_and_hash(fact: Any, key: str) -> str:
    if not isinstance(fact, dict):
        return ""
    sha = str(fact.get(key, ""))[:12]
    return " ".join(part for part in (str(fact.get("name", "")), sha) if part)


def machine_readable(findings: Findings, more: Mapping[str, Any]) -> dict[str, Any]:
    """What `mechwork verify` needs: circuits as JSON and stable provenance, without what changes from run to run; and a
    hash of it.
    """
    record = {
        "what": "mechwork report",
        "format": 1,
        "task": findings.task.provenance(),
        "circuits": [circuit.to_json() for circuit in findings.circuits],
        "results": [{"result": what, "provenance": stable(provenance)} for what, provenance in findings.provenances],
        **more,
    }
    return {**record, "sha256": hash_json(json.loads(to_json(record)))}


Builder = Callable[[Findings], Sequence[Fragment]]
SECTIONS: dict[str, tuple[str, Builder | None]] = {
    "summary": ("Summary", _summary),
    "task": ("Task and data", _task),
    "graph": ("The circuit", None),
    "evaluation": ("How faithful the circuit is", None),
    "robustness": ("How robust the circuit is", None),
    "heads": ("What the components do", None),
    "localisation": ("Where the answer is made", None),
    "agreement": ("Estimated against measured", _agreement),
    "limits": ("Limits", _limits),
    "provenance": ("Provenance and how to reproduce", _provenance),
}
"""Name -> (title, what it says of all findings beside its panels), in reading order; panels come from `reports`."""
