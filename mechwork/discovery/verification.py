"""What a report recorded, compared with what is there now: files, the page's own record, the model, the data, the numbers."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ArtefactError, NotFoundError
from ..provenance import hash_json

FORMAT = 1
RECORD = re.compile(r'<script type="application/json" data-name="mechwork-report">(.*?)</script>', re.DOTALL)
CHANGING = ("provenance", "sha256", "request", "files")
"""Parts of report.json that are no numbers of the analysis."""

Outcome = Literal["same", "differs", "missing", "not checked"]


@dataclass(frozen=True)
class Check:
    """One comparison; `detail` says what was recorded and what was found."""

    what: str
    outcome: Outcome
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.what:<28} {self.outcome}{': ' if self.detail else ''}{self.detail}"


def read_record(page: Path) -> dict[str, Any]:
    """The machine-readable part of a report.

    Raises `NotFoundError` when there is no file, `ArtefactError` for a page without such a part or of a newer format.
    """
    if not page.is_file():
        raise NotFoundError(f"no report at {page}. Name the report.html that mechwork wrote, or its folder.")
    found = RECORD.search(page.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        raise ArtefactError(f"{page} holds no record of mechwork: it is not a report, or its end is missing.")
    try:
        record = json.loads(found[1])
        version = int(record["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"the record in {page} cannot be read: {error}. Write the report again.") from error
    if version > FORMAT:
        raise ArtefactError(
            f"{page} has a record of format {version}; this version reads up to {FORMAT}. Upgrade mechwork."
        )
    return record


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_page(record: dict[str, Any]) -> Check:
    """Whether the page's record is what was written."""
    said = record.get("sha256")
    found = hash_json({key: value for key, value in record.items() if key != "sha256"})
    return compare("record in the page", said, found)


def check_files(page: Path, record: dict[str, Any]) -> list[Check]:
    """The files beside the page; report.json also says what the page should be."""
    known = dict(record.get("files", {}))
    summary = page.parent / "report.json"
    if "report.json" not in known and summary.is_file():
        try:
            hashes = json.loads(summary.read_text(encoding="utf-8")).get("sha256", {})
        except (ValueError, AttributeError):
            return [Check("report.json", "differs", "it is not a JSON object any more")]
        known = {
            page.name: hashes.get("report.html"),
            **{k: v for k, v in hashes.items() if k != "report.html"},
            **known,
        }
    checks = []
    for name, said in known.items():
        path = page.parent / name
        checks.append(
            compare(name, said, sha256(path)) if path.is_file() else Check(name, "missing", "not beside the report")
        )
    return checks


def compare(what: str, said: str | None, found: str | None) -> Check:
    """Two hashes."""
    if said is None or found is None:
        return Check(what, "not checked", "no hash was recorded")
    if said == found:
        return Check(what, "same", f"sha256 {found[:12]}")
    return Check(what, "differs", f"recorded sha256 {said[:12]}, found {found[:12]}")


def recorded(record: dict[str, Any], fact: str, key: str) -> str | None:
    """A hash from the provenance of the first result that has it."""
    for result in record.get("results", []):
        known = result.get("provenance", {}).get(fact)
        if isinstance(known, dict) and known.get(key):
            return str(known[key])
    return None


def differences(before: Any, after: Any, tolerance: float, path: str = "") -> Iterator[str]:
    """Where two summaries differ by more than `tolerance` (relative, and absolute below 1), as readable places."""
    if isinstance(before, bool) or isinstance(after, bool) or before is None or after is None:
        if before != after:
            yield f"{path}: {before} before, {after} now"
    elif isinstance(before, int | float) and isinstance(after, int | float):
        if not math.isclose(before, after, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{path}: {before:.6g} before, {after:.6g} now"
    elif isinstance(before, dict) and isinstance(after, dict):
        for key in (*before, *(key for key in after if key not in before)):
            yield from differences(before.get(key), after.get(key), tolerance, f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{path}: {len(before)} entries before, {len(after)} now"
        for i, (a, b) in enumerate(zip(before, after, strict=False)):
            yield from differences(a, b, tolerance, f"{path}[{i}]")
    elif before != after:
        yield f"{path}: {before!r} before, {after!r} now"
