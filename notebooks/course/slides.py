"""Slides: ``python -m notebooks.course.slides FOLDER`` writes one deck per lesson, a page that opens without a network.

A deck is made of the lesson's own source and of the outputs that are stored in its notebook: a heading begins a slide,
code and what it printed or drew follow it, and an exercise is a question without its cell. Arrows, space and page keys
move; the address ends with the number of the slide; printed, every slide is a page. Needs the package ``markdown``,
which comes with the extras ``docs`` and ``dev``.
"""

from __future__ import annotations

import html
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pairing import pair, sources

CODE_LINES, TEXT_LINES = 14, 12
"""Of a cell and of what it printed, at most; the rest is in the notebook."""
SECTION = re.compile(r"(?m)^(?=#{1,3} )")
ASKS = re.compile(r"^course\.(?:check|predict)\(", re.MULTILINE)
FOLDED = re.compile(r"</?details>(?:<summary>.*?</summary>)?\n*")
"""What is folded in a notebook stands on the slide after the number."""
LEFT_OUT = ("import course\n", "NOW_WITH_GPT2")

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1b1f24; font-family: system-ui, sans-serif; line-height: 1.4; }
section { width: 100vw; min-height: 56.25vw; padding: 3vw 5vw 4vw; font-size: 2vw; break-after: page; }
.deck section { height: 100vh; min-height: 0; overflow: hidden; font-size: calc(var(--size, 1) * min(2vw, 3.5vh)); }
.deck section[hidden] { display: none; }
h1 { font-size: 1.7em; margin: 0 0 .5em; } h2, h3 { font-size: 1.4em; margin: 0 0 .5em; }
p, ul, ol, table, pre, blockquote { margin: 0 0 .7em; }
pre { font-family: ui-monospace, monospace; font-size: .72em; background: #f3f4f6; padding: .6em .8em; margin-right: 0;
  overflow: hidden; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.printed { background: #fff; border-left: .25em solid #0072b2; }
code { font-family: ui-monospace, monospace; font-size: .9em; } pre code { font-size: 1em; }
table { border-collapse: collapse; } th, td { border: 1px solid #8a929b; padding: .2em .6em; text-align: left; }
blockquote { border-left: .25em solid #8a929b; padding-left: 1em; margin-left: 0; }
img { max-width: 100%; max-height: 22em; display: block; }
footer { position: fixed; right: 1vw; bottom: .6vw; font-size: 12px; color: #57606a; }
@media print { .deck section, .deck section[hidden] { display: block; height: auto; } footer { display: none; } }
"""

SCRIPT = """
const slides = [...document.querySelectorAll('section')];
const foot = document.querySelector('footer');
document.body.classList.add('deck');
function fit(slide) {
  let size = 1;
  slide.style.setProperty('--size', size);
  while (slide.scrollHeight > slide.clientHeight + 1 && size > 0.4) {
    size -= 0.04;
    slide.style.setProperty('--size', size);
  }
}
let now = 0;
function go(n) {
  now = Math.max(0, Math.min(slides.length - 1, n));
  slides.forEach((slide, i) => { slide.hidden = i !== now; });
  fit(slides[now]);
  foot.textContent = `${now + 1} / ${slides.length}`;
  history.replaceState(null, '', `#${now + 1}`);
}
addEventListener('keydown', (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, ' ': 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1 }[event.key];
  if (event.key === 'Home') go(0);
  else if (event.key === 'End') go(slides.length - 1);
  else if (step) go(now + step);
  else return;
  event.preventDefault();
});
addEventListener('resize', () => fit(slides[now]));
go(Number(location.hash.slice(1) || 1) - 1);
"""


@dataclass
class Slide:
    """`title` in words; `parts` are pieces of HTML."""

    title: str
    parts: list[str] = field(default_factory=list)
    has_code: bool = False


def deck(source: Path) -> str:
    """One lesson's slides as a page."""
    slides = slides_of(pair(source))
    title = html.escape(slides[0].title)
    sections = "\n".join(
        f'<section aria-label="{html.escape(slide.title)}">{"".join(slide.parts)}</section>' for slide in slides
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body>\n<main>{sections}</main>\n<footer></footer>\n<script>{SCRIPT}</script></body></html>\n"
    )


def slides_of(notebook: dict[str, Any]) -> list[Slide]:
    """The slides of a notebook with its outputs."""
    slides: list[Slide] = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for section in filter(str.strip, SECTION.split(FOLDED.sub("", text))):
                _add_words(slides, section)
        elif not text.startswith(LEFT_OUT) and not ASKS.search(text):
            _add_code(slides, text, cell["outputs"])
    return [slide for slide in slides if not slide.title.startswith("Optional: now with")]


def _add_words(slides: list[Slide], section: str) -> None:
    found = re.match(r"#{1,3} (.*)", section)
    if found:
        slides.append(Slide(found[1]))
    elif not slides or slides[-1].has_code:
        slides.append(_continued(slides))
    slides[-1].parts.append(_to_html(section))


def _add_code(slides: list[Slide], text: str, outputs: list[Any]) -> None:
    if slides[-1].has_code or sum(map(len, slides[-1].parts)) > 700:
        slides.append(_continued(slides))
    slide = slides[-1]
    slide.has_code = True
    slide.parts.append(f"<pre><code>{html.escape(_cut(text, CODE_LINES))}</code></pre>")
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            words = html.escape(" ".join("".join(data.get("text/plain", "")).split())[:300])
            picture = f'<img alt="{words}" src="data:image/png;base64,{data["image/png"].strip()}">'
            slides.append(Slide(slides[-1].title, [f"<h2>{html.escape(slides[-1].title)}</h2>", picture], True))
        else:
            printed = "".join(output.get("text", data.get("text/plain", "")))
            slide.parts.append(f'<pre class="printed">{html.escape(_cut(printed.rstrip(), TEXT_LINES))}</pre>')


def _continued(slides: list[Slide]) -> Slide:
    title = slides[-1].title
    return Slide(title, [f"<h2>{html.escape(title)}</h2>"])


def _cut(text: str, n: int) -> str:
    lines = text.strip("\n").splitlines()
    return "\n".join(lines if len(lines) <= n else [*lines[: n - 1], f"... ({len(lines) - n + 1} more lines)"])


def _to_html(text: str) -> str:
    import markdown

    return markdown.markdown(text, extensions=["tables", "fenced_code"])


def main(folder: str) -> None:
    """Write every deck into `folder`."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for source in sources():
        path = target / f"{source.stem}.html"
        path.write_text(deck(source), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("say where the decks go: python -m notebooks.course.slides FOLDER")
    main(sys.argv[1])
