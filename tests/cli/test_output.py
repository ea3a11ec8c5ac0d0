"""An output folder appears complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mechwork.discovery.output import MARK, check_output, new_folder
from mechwork.errors import InputError


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_new_folder_with_its_parents(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b", force=False) as part:
        (part / "file").write_text("text")
        assert not (tmp_path / "a" / "b").exists()
    assert entries(tmp_path) == {"a", "a/b", "a/b/file"}
    assert oct((tmp_path / "a" / "b").stat().st_mode) == oct((tmp_path / "a").stat().st_mode)


@pytest.mark.parametrize("error", [RuntimeError("full disk"), KeyboardInterrupt()])
def test_after_a_failure_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), new_folder(tmp_path / "a" / "b", force=False) as part:
        (part / "file").write_text("half")
        raise error
    assert entries(tmp_path) == set()


def test_a_failure_leaves_the_earlier_report(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / MARK).write_text("{}")
    with pytest.raises(RuntimeError, match="stop"), new_folder(old, force=True) as part:
        (part / "file").write_text("half")
        raise RuntimeError("stop")
    assert entries(tmp_path) == {"old", f"old/{MARK}"}


def test_an_existing_folder_needs_force(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text("{}")
    with pytest.raises(InputError, match=r"exists and is not overwritten.*--force"):
        check_output(tmp_path, force=False)
    check_output(tmp_path, force=True)


def test_force_replaces_the_whole_folder(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in (MARK, "stale.csv"):
        (old / name).write_text("{}")
    with new_folder(old, force=True) as part:
        (part / MARK).write_text("{}")
    assert entries(tmp_path) == {"old", f"old/{MARK}"}


def test_force_does_not_replace_what_mechwork_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="only folders that mechwork wrote"):
        check_output(tmp_path, force=True)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with new_folder(empty, force=False) as part:
        (part / "file").write_text("text")
    assert entries(tmp_path) == {"empty", "empty/file"}


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
