"""What a report recorded, compared with what is there now: files, the page's own record, the model, the data, the
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ArtefactError, NotFoundError
from ..files import parse_json, read_embedded, sha256
from ..provenance import hash_json
from .folder import REQUEST
from .publish import PAGE, SUMMARY, hash_numbers

FORMAT = 1
TABLES = ("circuit.json", "edges.csv", "effects.csv", "curve.csv")
CHANGING = ("provenance", "sha256", "request", "files")
"""Parts of report.json that are no numbers of the analysis."""

Outcome = Literal["same", "differs", "not checked"]


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
    try:
        found = read_embedded(page.read_text(encoding="utf-8", errors="replace"), "mechwork-report")
        if found is None:
            raise ArtefactError(f"{page} holds no record of mechwork: it is not a report, or its end is missing.")
        record = parse_json(found)
        version = int(record["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"the record in {page} cannot be read: {error}. Write the report again.") from error
    if version > FORMAT:
        raise ArtefactError(
            f"{page} has a record of format {version}; this version reads up to {FORMAT}. Upgrade mechwork."
        )
    return record


def check_page(record: dict[str, Any]) -> Check:
    """Whether the page's record is what was written."""
    said = record.get("sha256")
    found = hash_json({key: value for key, value in record.items() if key != "sha256"})
    return compare("record in the page", said, found)


def check_files(page: Path, record: dict[str, Any]) -> list[Check]:
    """The page, report.json's numbers, and the files beside them. Nothing outside the page's folder is opened.

    The page knows the hashes of the tables and of report.json's numbers; report.json knows the page's and theirs.
    """
    folder, checks = page.parent, []
    files = record.get("files") or {}
    if not isinstance(files, dict) or not all(isinstance(text, str) for text in files.values()):
        return [Check("record in the page", "differs", "its files are no table of hashes")]
    said: dict[str, str] = dict(files)
    summary = _inside(folder, SUMMARY)
    hashes: dict[str, Any] = {}
    if summary is None:
        checks.append(Check(SUMMARY, "not checked", "it is not beside the report"))
        checks.append(Check(page.name, "not checked", f"its hash is in {SUMMARY}"))
    else:
        try:
            data = parse_json(summary.read_text(encoding="utf-8"))
            hashes = dict(data.get("sha256") or {})
            if not all(isinstance(text, str) for text in hashes.values()):
                return [Check(SUMMARY, "differs", "its hashes are no text any more")]
        except (ValueError, AttributeError, TypeError):
            return [Check(SUMMARY, "differs", "it is not a JSON object any more")]
        checks.append(compare(page.name, hashes.get(PAGE), sha256(page)))
        checks.append(compare(SUMMARY, record.get("numbers"), hash_numbers(data)))
    for name in dict.fromkeys((*TABLES, *said, *(name for name in hashes if name != PAGE))):
        file, known = _inside(folder, name), [text for text in (said.get(name), hashes.get(name)) if text]
        if Path(name).name != name:
            checks.append(Check(str(name)[:60], "not checked", "it is outside the report's folder"))
        elif file is None and (known or name in TABLES):
            checks.append(Check(name, "not checked", "it is not beside the report"))
        elif file is not None:
            found = sha256(file)
            checks.append(
                compare(name, next((text for text in known if text != found), known[0] if known else None), found)
            )
    return [*checks, *_check_request(folder, record), *_check_results(folder)]


def _check_request(folder: Path, record: dict[str, Any]) -> list[Check]:
    """What was asked for, which a repetition would go by: the file against the page's record of it."""
    file, said = _inside(folder, REQUEST), record.get("request")
    if file is None or not isinstance(said, dict):
        return []
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [Check(REQUEST, "differs", "it cannot be read any more")]
    plain = {key: value for key, value in found.items() if key != "format"} if isinstance(found, dict) else found
    return [compare(REQUEST, hash_json({key: said[key] for key in said if key != "format"}), hash_json(plain))]


def _check_results(folder: Path) -> list[Check]:
    """The saved results of a discovery, by its ledger."""
    ledger = _inside(folder, "ledger.json")
    if ledger is None:
        there = (folder / "results").is_dir()
        return [Check("saved results", "not checked", "ledger.json is not beside them")] * there
    bad, missing, known = [], [], set()
    try:
        for stage, entry in parse_json(ledger.read_text(encoding="utf-8")).items():
            for name, said in entry["files"].items():
                file = _inside(folder / "results", f"{stage}.{name}.safetensors")
                if file is None:
                    missing.append(f"{stage}.{name}")
                elif sha256(file) != said:
                    bad.append(f"{stage}.{name}")
                known.add(f"{stage}.{name}.safetensors")
        results = folder / "results"
        found = [file.name for file in results.iterdir() if not file.name.startswith(".")] if results.is_dir() else []
        bad += [f"{name} (not in the ledger)" for name in sorted(set(found) - known)]
    except (ValueError, AttributeError, TypeError, KeyError):
        return [Check("saved results", "differs", "ledger.json cannot be read any more")]
    if bad:
        return [Check("saved results", "differs", ", ".join(bad))]
    if missing:
        return [Check("saved results", "not checked", f"missing: {', '.join(missing)}")]
    return [Check("saved results", "same", "every one has the sha256 of the ledger")]


def _inside(folder: Path, name: object) -> Path | None:
    """The regular file of that plain name in the folder itself; links that lead out of it are not followed."""
    if not isinstance(name, str) or Path(name).name != name:
        return None
    file = folder / name
    return file if file.is_file() and file.resolve().parent == folder.resolve() else None


def conclusion(checks: Iterable[Check]) -> str:
    """``verified``, or what changed, or what was not checked: never verified where something was not."""
    checks = list(checks)
    bad = [check.what for check in checks if check.outcome == "differs"]
    if bad:
        return f"changed: {', '.join(bad)}"
    unknown = [check.what for check in checks if check.outcome == "not checked"]
    return f"not checked: {', '.join(unknown)}" if unknown else "verified"


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
