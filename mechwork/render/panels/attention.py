"""Attention patterns: a selector with a small picture per head, and the selected head drawn large by circuitsvis.

circuitsvis' script is inlined once per page and its renderer called with escaped props; its Python helpers are not
used, since they probe the network on display and leave token text unescaped. Long prompts are cut, and the page says
so.
"""

from __future__ import annotations

from ...display import draws
from ...errors import InputError
from ...runs.attention import AttentionPatterns
from ..page.page import Fragment, assemble, embed_json
from ..page.table import Column, table
from ..page.text import escape, number, plural, show_token

MAX_TOKENS = 64
"""Longer prompts are shown up to here: a larger picture has no readable cells, and a file of many megabytes."""
DIGITS = 3
WHOLE, ENDS, AROUND = 80, 16, 10
"""Prompts up to `WHOLE` tokens are written in full; of longer ones, `ENDS` tokens at each end and `AROUND` around
differences.
"""


@draws(AttentionPatterns)
def render_attention(patterns: AttentionPatterns) -> str:
    """One self-contained HTML page with the attention patterns of some heads on one prompt."""
    title = f"Attention{f' on {patterns.task_name}' if patterns.task_name else ''}"
    head = Fragment(f'<main class="mw-page"><h1>{escape(title)}</h1>')
    return assemble(title, [head, attention_fragment(patterns), Fragment("</main>")], body_class="mw-standalone")


def attention_fragment(patterns: AttentionPatterns) -> Fragment:
    """The patterns as part of a page; the selected head and the node of the graph are the same selection.

    Raises:
        InputError: no heads, or patterns that do not fit heads and tokens.
    """
    n_heads, n_tokens = len(patterns.heads), len(patterns.tokens)
    if not n_heads or not n_tokens:
        raise InputError("attention needs at least one head and one token to be drawn; got none")
    if tuple(patterns.patterns.shape) != (n_heads, n_tokens, n_tokens):
        raise InputError(
            f"patterns are [head, query_pos, key_pos] = {(n_heads, n_tokens, n_tokens)}; got "
            f"{tuple(patterns.patterns.shape)}"
        )
    kept = min(n_tokens, MAX_TOKENS)
    values = patterns.patterns[:, :kept, :kept].float()
    data = {
        "heads": list(patterns.heads),
        "tokens": [show_token(token, 14) for token in patterns.tokens[:kept]],
        "patterns": [[[round(v, DIGITS) for v in row] for row in head] for head in values.tolist()],
    }
    cut = f" Only the first {kept} of {n_tokens} tokens are drawn." if kept < n_tokens else ""
    body = (
        f'<div class="mw-attention" data-mw-attention>{embed_json(data)}'
        f'<p class="mw-muted">Prompt: {prompt_markup(patterns.tokens)}.{escape(cut)} Rows are queries, columns keys; '
        "each row sums to 1.</p>"
        f'<div class="mw-attention-view"></div></div>\n'
        '<details class="mw-fallback"><summary>Where each head looks most, as a table '
        f"({escape(plural(n_heads, 'head'))})</summary>{_table(patterns)}</details>"
    )
    return Fragment(body, needs=("attention",))


def prompt_markup(tokens: tuple[str, ...], other: tuple[str, ...] = (), *, name: str = "") -> str:
    """A prompt as markup, every token isolated from its neighbours; tokens that differ from `other` are marked.

    Of a long prompt the beginning, the end and the neighbourhood of every marked token are written.
    """
    differs = [bool(other) and (i >= len(other) or other[i] != token) for i, token in enumerate(tokens)]
    parts, skipped = [], 0
    for i, token in enumerate(tokens):
        if len(tokens) > WHOLE and not _near(i, len(tokens), differs):
            skipped += 1
            continue
        if skipped:
            parts.append(f' <i class="mw-muted">… {plural(skipped, "token")} …</i>')
            skipped = 0
        shown = escape(show_token(token, 200))
        title = f' title="differs from the {escape(name)} prompt"' if differs[i] and name else ""
        lead = " " if token.startswith(" ") and i else ""
        tag = "mark" if differs[i] else "bdi"
        parts.append(f'{lead}<{tag} class="mw-token"{title}>{shown}</{tag}>')
    return f'<span class="mw-prompt">{"".join(parts)}</span>'


def _near(i: int, n: int, differs: list[bool]) -> bool:
    """Whether token `i` of `n` is worth writing: near an end, or near a token that differs."""
    return i < ENDS or i >= n - ENDS or any(differs[max(0, i - AROUND) : i + AROUND + 1])


def _table(patterns: AttentionPatterns) -> str:
    """The strongest attention of the last position, where the answer is read, and of any position."""
    last, firsts, anywhere = patterns.patterns[:, -1], [], []
    for head, row in zip(patterns.patterns, last, strict=True):
        top = row.topk(min(3, len(row)))
        firsts.append(
            "; ".join(
                f"{_name(patterns, i)} {number(v, 2)}"
                for v, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
            )
        )
        # The first position soaks up what a head has no use for, so it is left out here.
        rest = head[:, 1:] if head.shape[1] > 1 else head
        flat = int(rest.argmax())
        query, key = divmod(flat, rest.shape[1])
        key += head.shape[1] - rest.shape[1]
        anywhere.append(f"{_name(patterns, query)} → {_name(patterns, key)} {number(float(head[query, key]), 2)}")
    columns = [
        Column("head", list(patterns.heads)),
        Column("last position looks at", firsts),
        Column("strongest attention (first token aside)", anywhere),
    ]
    return table(columns, caption="Measured on this one prompt")


def _name(patterns: AttentionPatterns, position: int) -> str:
    return f"{position} {show_token(patterns.tokens[position], 14)}"
