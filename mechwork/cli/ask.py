"""Ask a model one gesture of the live workbench after another, without a screen, and print the answers.

  mechwork ask ioi "ablate place=a4.h1"
  mechwork ask ioi "patch place=m3@END" "lens column=7" --model gpt2-12l --row 3
  mechwork ask ioi "score method=eap-ig" "keep n_edges=60" --json
  mechwork ask reports/ioi '{"do": "toggle", "parts": ["a1.h3"]}'

A gesture is what the screen of `mechwork serve` prints: a word and name=value pairs, or a JSON object. Gestures are
asked in turn, each in the state that those before it led to. A folder of `mechwork discover` brings its task, scores
and circuit.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from ..errors import InputError
from .console import Console
from .options import add_pairs, at_least
from .serve import open_session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own arguments."""
    parser.add_argument("task", metavar="TASK", help="a task's name, a file of pairs, or the folder of a discovery")
    parser.add_argument("gestures", metavar="GESTURE", nargs="+", help='e.g. "ablate place=a4.h1 kind=zero"')
    parser.add_argument("--row", type=at_least(0), default=0, metavar="N", help="pair to look at (default: 0)")
    add_pairs(parser, 64, least=8, what="pairs of the task, from which means are taken")


def read_words(text: str) -> dict[str, Any]:
    """A gesture as it is written in a shell; raises `InputError` for what is neither words nor a JSON object."""
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(f"a gesture in JSON is one object; got {text!r:.60} ({error})") from error
    try:
        do, *pairs = shlex.split(text)
    except ValueError as error:
        raise InputError(f'a gesture is a word and name=value pairs, "ablate place=a4.h1"; got {text!r:.60}') from error
    facts: dict[str, Any] = {"do": do}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise InputError(f'a gesture is a word and name=value pairs, "ablate place=a4.h1"; got {pair!r:.60}')
        try:
            facts[name] = json.loads(value)
        except ValueError:
            facts[name] = value
    return facts


def run(args: argparse.Namespace, console: Console) -> None:
    """Read all gestures, load, ask, print."""
    from ..live import read_gesture

    gestures = [read_gesture(read_words(text)) for text in args.gestures]  # refused before anything is loaded
    folder = (Path(args.task) / "request.json").is_file()
    args.what = args.task if folder else None
    session = open_session(args, console)
    answers = []
    try:
        for gesture in gestures:
            with console.step(gesture.do) as progress:
                answers.append(session.do(gesture, _tells(progress)))
    finally:
        session.close()
    lines = [f"{text}\n  {_says(answer.data)}" for text, answer in zip(args.gestures, answers, strict=True)]
    console.result("\n".join(lines), {"answers": [answer.to_json() for answer in answers], "script": session.python()})


def _tells(progress: Any) -> Any:
    """Progress of a gesture, for the console."""

    def emit(what: str, data: dict[str, Any]) -> None:
        if what == "working" and data.get("total"):
            progress(data["done"], data["total"], data["words"])

    return emit


def _says(data: dict[str, Any]) -> str:
    """An answer in a line or two."""
    if "before" in data:
        others = ", ".join(f"{control['change']:+.3f} ({control['place']})" for control in data["controls"])
        return (
            f"metric {data['before']:.3f} -> {data['metric']:.3f} ({data['change']:+.3f}); controls {others or 'none'}"
        )
    if "faithfulness" in data:
        others = ", ".join(f"{value:.3f}" for value in data["random"])
        return f"faithfulness {data['faithfulness']:.3f} of {data['n_edges']} edges; random circuits {others or 'none'}"
    if "top" in data and "metric" in data:
        words = ", ".join(f"{word['word']!r} {word['p']:.3f}" for word in data["top"])
        return f"metric {data['metric']:.3f}; next {words}"
    if "places" in data:
        rows = zip(data["places"], data["words"], data["p"], strict=True)
        return "\n  ".join(f"{place}: {words[-1][0]!r} {p[-1][0]:.3f}" for place, words, p in rows)
    if "features" in data:
        return ", ".join(f"{row['place']} {row['value']:.3f}" for row in data["features"]) or "no feature is active"
    if "values" in data:
        strongest = sorted(data["values"].items(), key=lambda item: -abs(item[1]))[:10]
        return f"{data['what']}: " + ", ".join(f"{name} {value:+.3f}" for name, value in strongest)
    if "pattern" in data:
        last = data["pattern"][-1]
        keys = sorted(range(len(last)), key=lambda j: -last[j])[:4]
        return f"from the last token to {', '.join(f'{j} ({last[j]:.3f})' for j in keys)}"
    return f"{data['n_edges']} edges scored: " + ", ".join(
        f"{row['edge']} {row['score']:+.3f}" for row in data["top"][:5]
    )
