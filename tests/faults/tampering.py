"""Changes in any region of a report's files, against verify: never "verified" afterwards, never an error of Python.

What no hash covers on purpose: plan.json (predicted costs) and the seconds in ledger.json. They are no claims.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mechwork as mw
from mechwork.discovery.settings import Settings
from mechwork.discovery.verification import check_files, check_page, conclusion, read_record
from mechwork.errors import MechworkError
from tests.faults.core import Tally

FILES = ("report.html", "report.json", "circuit.json", "edges.csv", "effects.csv", "curve.csv", "request.json")
REGIONS = 24


def made(place: Path) -> Path:
    """A small finished discovery."""
    model = mw.load_model("attn-only-2l")
    task = mw.tasks.induction(model, n=8, seed=0)
    mw.discover(model, task, out=place / "whole", settings=Settings(min_accuracy=0.01), mode="quick")
    return place / "whole"


def verdict(folder: Path) -> str:
    """The last line of ``mechwork verify --files-only``."""
    page = folder / "report.html"
    record = read_record(page)
    return conclusion([check_page(record), *check_files(page, record)])


def judge(tally: Tally, folder: Path, what: str) -> None:
    try:
        said = verdict(folder)
    except MechworkError as error:
        tally.check(len(str(error)) > 15, f"{what}: {error}")
    except Exception as error:  # noqa: BLE001 - counted
        tally.check(False, f"{what}: {type(error).__name__}: {str(error)[:140]}")
    else:
        tally.check(said != "verified", f"{what}: {said}")


def byte_changes(draw: random.Random, content: bytes, low: int, high: int) -> bytes:
    """One change between two places: a byte flipped, removed, added, or two exchanged."""
    at = draw.randrange(low, max(low + 1, high))
    other = draw.randrange(256)
    return draw.choice(
        (
            content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :],
            content[:at] + content[at + 1 :],
            content[:at] + bytes([other]) + content[at:],
            content[:at],
        )
    )


def same_json(one: bytes, other: bytes) -> bool:
    """White space moved in report.json, whose numbers are hashed and not its bytes, is no change."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def _edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(change(data) or data), encoding="utf-8")

    return edit


def _record(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        page = folder / "report.html"
        mark = 'data-name="mechwork-report">'
        head, tail = page.read_text(encoding="utf-8").rsplit(mark, 1)
        body, rest = tail.split("</script>", 1)
        record = json.loads(body)
        change(record)
        page.write_text(f"{head}{mark}{json.dumps(record)}</script>{rest}", encoding="utf-8")

    return edit


HANDS: dict[str, Callable[[Path], object]] = {
    "a number in report.json": _edit("report.json", lambda d: d["evaluation"].update(faithfulness=1.0)),
    "no hashes in report.json": _edit("report.json", lambda d: d.update(sha256={})),
    "hashes of another type": _edit("report.json", lambda d: d.update(sha256=[1])),
    "hash null": _edit("report.json", lambda d: d["sha256"].update({"report.html": None})),
    "report.json a list": _edit("report.json", lambda d: [d]),
    "report.json gone": lambda f: (f / "report.json").unlink(),
    "circuit.json gone": lambda f: (f / "circuit.json").unlink(),
    "edges.csv a folder": lambda f: ((f / "edges.csv").unlink(), (f / "edges.csv").mkdir()),
    "ledger gone": lambda f: (f / "ledger.json").unlink(),
    "ledger empty": lambda f: (f / "ledger.json").write_text("{}"),
    "ledger a list": lambda f: (f / "ledger.json").write_text("[]"),
    "ledger without a stage": _edit("ledger.json", lambda d: d.pop(min(d)) and None),
    "results gone": lambda f: shutil.rmtree(f / "results"),
    "a result added": lambda f: (f / "results" / "more.safetensors").write_bytes(b"x"),
    "record without files": _record(lambda r: r.pop("files", None)),
    "record files a list": _record(lambda r: r.update(files=["circuit.json"])),
    "record with a path": _record(lambda r: r.setdefault("files", {}).update({"../../etc/passwd": "0"})),
    "record with another model": _record(lambda r: r["request"].update(model="owner/name")),
    "record hash null": _record(lambda r: r.update(sha256=None)),
    "record deep": lambda f: _put_record(f, "[" * 50_000 + "]" * 50_000),
    "record a number": lambda f: _put_record(f, "7"),
    "record of tomorrow": _record(lambda r: r.update(format=99)),
    "record format a list": _record(lambda r: r.update(format=[1])),
    "request a list": lambda f: (f / "request.json").write_text("[]"),
}


def _put_record(folder: Path, text: str) -> None:
    page = folder / "report.html"
    mark = 'data-name="mechwork-report">'
    head, tail = page.read_text(encoding="utf-8").rsplit(mark, 1)
    page.write_text(f"{head}{mark}{text}</script>{tail.split('</script>', 1)[1]}", encoding="utf-8")


def run(tally: Tally) -> None:
    """Every region of every file, then what a hand would do."""
    with tempfile.TemporaryDirectory() as place:
        whole = made(Path(place))
        tally.check(verdict(whole) == "verified", f"untouched: {verdict(whole)}")
        results = sorted(file.relative_to(whole).as_posix() for file in (whole / "results").iterdir())
        for name in (*FILES, *results):
            content = (whole / name).read_bytes()
            n = tally.times(REGIONS)
            for region in range(n):
                low, high = region * len(content) // n, (region + 1) * len(content) // n
                draw = tally.draw
                new = byte_changes(draw, content, low, high)
                if new == content or (name == "report.json" and same_json(new, content)):
                    continue
                (whole / name).write_bytes(new)
                judge(tally, whole, f"{name}, region {region} of {n}")
            (whole / name).write_bytes(content)
        for what, hand in HANDS.items():
            copy = Path(place) / "copy"
            shutil.copytree(whole, copy)
            hand(copy)
            judge(tally, copy, what)
            shutil.rmtree(copy)
