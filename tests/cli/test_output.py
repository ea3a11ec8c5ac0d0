"""Where a discovery may be written is known before it begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mechwork.discovery.output import MARKS, check_output
from mechwork.errors import InputError


def test_an_existing_folder_needs_force(tmp_path: Path) -> None:
    (tmp_path / MARKS[0]).write_text("{}")
    with pytest.raises(InputError, match=r"exists and is not overwritten.*--force"):
        check_output(tmp_path, force=False)
    check_output(tmp_path, force=True)


def test_force_does_not_replace_what_mechwork_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="only folders that mechwork wrote"):
        check_output(tmp_path, force=True)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    check_output(tmp_path, force=False)
    assert not list(tmp_path.iterdir())


def test_a_file_or_a_link_is_not_a_folder(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("text")
    link.symlink_to(tmp_path)
    for path in (file, link):
        with pytest.raises(InputError, match="something else"):
            check_output(path, force=True)
    with pytest.raises(InputError, match="not a folder"):
        check_output(file / "below", force=False)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_place_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="may be written"):
        check_output(tmp_path / "new", force=False)
    tmp_path.chmod(0o700)
