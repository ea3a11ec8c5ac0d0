"""One real prompt of the task with what was measured on it: its tokens' effects, and what the model answers.

Nothing is run here. Effects are means over the pairs they were measured on, laid onto this prompt by span or position;
the probabilities are those of the data check, or of the last place of a lens table, which is the model's own output,
where one read this prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..discovery.check import DataCheck
from ..lenses.table import LensTable
from ..patching.result import Effect
from ..tasks.task import Task
from .findings import Findings
from .page.text import escape, percent, share_class, show_token, signed

EFFECT_KINDS = ("resid_pre", "resid_post", "resid_mid", "attn_out", "mlp_out")


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt: its tokens, the largest effect at each (None: not measured there), the two answers and their
    probabilities.
    """

    tokens: tuple[str, ...]
    effects: tuple[float | None, ...]
    places: tuple[str, ...]
    answer: str
    wrong: str
    p_answer: float | None = None
    p_wrong: float | None = None
    said: str = ""

    @property
    def scale(self) -> float:
        return max((abs(v) for v in self.effects if v is not None), default=0.0)


def find_example(findings: Findings) -> ShownPrompt:
    """The test pair that the data check shows, else the first."""
    task = _shown_first(findings)
    # Of whole answers only the prompt itself: what follows it is the beginning of an answer.
    tokens = task.prompt_texts(0)[0][: int(task.pairs.read_columns[0].min()) + 1]
    if task.answer_texts:
        answer, wrong = task.answer_texts[0]
    else:
        pairs = task.pairs
        answer, wrong = (
            ", ".join(f"token {i}" for i in side[0].tolist() if i >= 0) for side in (pairs.correct, pairs.incorrect)
        )
    effects, places, said = _effects(findings, task, len(tokens))
    p_answer, p_wrong = _probabilities(findings, task, answer, wrong)
    return ShownPrompt(tokens, effects, places, answer, wrong, p_answer, p_wrong, said)


def _shown_first(findings: Findings) -> Task:
    """The test pairs, from the one on that the data check shows."""
    test = findings.task.test
    for check in findings.of(DataCheck):
        for row in range(len(test) if check.example is not None else 0):
            if check.example is not None and _tokens(test, row) == list(check.example.tokens):
                return test[row:]
    return test


def _tokens(task: Task, row: int) -> list[int]:
    return task.pairs.clean_tokens[row, : int(task.pairs.lengths[row])].tolist()


def _effects(findings: Findings, task: Task, n: int) -> tuple[tuple[float | None, ...], tuple[str, ...], str]:
    """Per token the largest measured effect over layers of the first kind of site that has positions."""
    known = [
        e for group in (*findings.measured, *findings.estimated) for e in group.values() if e.axes == ("layer", "pos")
    ]
    known.sort(key=lambda e: (e.estimated, EFFECT_KINDS.index(e.kind) if e.kind in EFFECT_KINDS else 9))
    for effect in known:
        where = _places(effect, task, n)
        if where is None:
            continue
        values = effect.values.nan_to_num()
        best = values.gather(0, values.abs().argmax(dim=0, keepdim=True))[0].tolist()
        labels = effect.labels["pos"]
        how = "estimated" if effect.estimated else "measured"
        return (
            tuple(None if k is None else best[k] for k in where),
            tuple("" if k is None else labels[k] for k in where),
            f"largest {how} effect",
        )
    return (None,) * n, ("",) * n, ""


def _places(effect: Effect, task: Task, n: int) -> list[int | None] | None:
    """The entry of the effect's position axis for every token of the first prompt; None when there is no such
    reading.
    """
    labels, spans = effect.labels["pos"], task.pairs.spans
    if spans and all(label in spans for label in labels):
        masks = [spans[label][0] for label in labels]
        return [next((k for k, mask in enumerate(masks) if bool(mask[i])), None) for i in range(n)]
    columns = int(task.pairs.lengths[0]) if task.pairs.one_length else 0
    return list(range(n)) if len(labels) == columns else None


def _probabilities(findings: Findings, task: Task, answer: str, wrong: str) -> tuple[float | None, float | None]:
    prompt = _tokens(task, 0)
    for check in findings.of(DataCheck):
        if check.example is not None and list(check.example.tokens) == prompt:
            return check.example.correct, check.example.incorrect
    for table in findings.of(LensTable):
        if not table.places[-1].startswith("resid_post") or table.tokens[0][table.mask[0]].tolist() != prompt:
            continue
        said = dict(table.words(-1, 0, int(table.mask[0].nonzero()[-1])))
        return said.get(answer), said.get(wrong)
    return None, None


def prompt_line(example: ShownPrompt) -> str:
    """The prompt as markup, every token shaded by its effect; the first token is left out when it only starts
    the text.
    """
    parts = []
    scale = example.scale or 1.0
    for i, (token, value, place) in enumerate(zip(example.tokens, example.effects, example.places, strict=True)):
        if i == 0 and re.fullmatch(r"<[^ ]+>", token):
            continue
        shade = share_class(0.0 if value is None else 0.7 * min(1.0, abs(value) / scale))
        sign = " negative" if (value or 0) < 0 else ""
        said = "" if value is None else f' title="{escape(f"{place}: effect {signed(value)}")}"'
        lead = " " if token.startswith(" ") else ""
        parts.append(f'{lead}<bdi class="mw-lit-token{sign}{shade}"{said}>{escape(show_token(token, 40))}</bdi>')
    return "".join(parts)


def answer_line(example: ShownPrompt) -> str:
    """The answer against the wrong one, with probabilities where they are known."""

    def share(p: float | None) -> str:
        return "" if p is None else f" {escape(percent(p, 1 if p < 0.1 else 0))}"

    right, wrong = escape(show_token(example.answer, 40)), escape(show_token(example.wrong, 40))
    if example.p_answer is not None and example.p_answer < (example.p_wrong or 0.0):
        return f"→ wrongly <b>{wrong}</b>{share(example.p_wrong)}, not <b>{right}</b>{share(example.p_answer)}"
    return f"→ <b>{right}</b>{share(example.p_answer)}, not <b>{wrong}</b>{share(example.p_wrong)}"
