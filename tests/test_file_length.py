"""One concept per file: a file of mechwork has fewer than 400 lines."""

from __future__ import annotations

from pathlib import Path

import mechwork

LIMIT = 400


def test_files_are_short() -> None:
    package = Path(mechwork.__file__).parent
    lengths = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in package.rglob("*.py")}
    assert len(lengths) > 20
    long = {str(file.relative_to(package)): n for file, n in lengths.items() if n >= LIMIT}
    assert not long, f"split these files, one concept each: {long}"
