"""mechwork verify: an untouched report passes, and whatever is touched is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mechwork.cli import main
from mechwork.discovery.verification import differences

from .conftest import Cli


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small report; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("verify") / "ioi"
    arguments = [
        "discover",
        "ioi",
        "--n-pairs",
        "8",
        "--n-edges",
        "40",
        "--quick",
        "-q",
        "--json",
        "--out",
        str(folder),
    ]
    assert main(arguments) == 0
    return folder


@pytest.fixture
def copy(report: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(report, tmp_path / "ioi"))


def outcomes(cli: Cli, *arguments: object) -> tuple[int, dict[str, str]]:
    done = cli("verify", *arguments, "--json", "-q")
    return done.code, {check["what"]: check["outcome"] for check in done.json["checks"]}


def test_an_untouched_report_is_verified_and_its_numbers_come_again(cli: Cli, copy: Path) -> None:
    code, found = outcomes(cli, copy, "--rerun", "--tolerance", "1e-4")
    assert code == 0
    assert set(found.values()) == {"same"}
    assert {
        "record in the page",
        "report.html",
        "circuit.json",
        "edges.csv",
        "model's weights",
        "data (train pairs)",
        "numbers",
    } <= set(found)
    text = cli("verify", copy / "report.html", "--files-only")
    assert text.code == 0
    assert text.out.splitlines()[-1] == "verified"
    assert "model's weights" not in text.out


@pytest.mark.parametrize("name", ["circuit.json", "edges.csv"])
def test_an_altered_file_is_named(cli: Cli, copy: Path, name: str) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes().replace(b"a0.h0", b"a0.h1", 1))
    done = cli("verify", copy, "--files-only")
    assert done.code == 4
    assert re.search(rf"{name} +differs: recorded sha256 [0-9a-f]{{12}}, found", done.out)
    assert f"{name} differs" in done.err
    code, found = outcomes(cli, copy, "--files-only")
    assert code == 4
    assert [what for what, outcome in found.items() if outcome == "differs"] == [name]


def test_an_altered_page_and_an_altered_record_are_told_apart(cli: Cli, copy: Path) -> None:
    page = copy / "report.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("Summary", "Summery", 1), encoding="utf-8")
    code, found = outcomes(cli, copy, "--files-only")
    assert (code, found["report.html"], found["record in the page"]) == (4, "differs", "same")
    head, tail = text.rsplit('data-name="mechwork-report"', 1)
    page.write_text(head + 'data-name="mechwork-report"' + tail.replace('"seed":0', '"seed":7', 1), encoding="utf-8")
    code, found = outcomes(cli, copy, "--files-only")
    assert (code, found["record in the page"]) == (4, "differs")


def test_a_number_in_the_summary_is_covered_without_a_rerun(cli: Cli, copy: Path) -> None:
    data = json.loads((copy / "report.json").read_text(encoding="utf-8"))
    data["evaluation"]["faithfulness"] += 0.5
    (copy / "report.json").write_text(json.dumps(data), encoding="utf-8")
    code, found = outcomes(cli, copy, "--files-only")
    assert (code, found["report.json"]) == (4, "differs")
    done = cli("verify", copy, "--rerun", "-q")
    assert done.code == 4
    assert "evaluation.faithfulness" in done.out


def test_what_cannot_be_checked_is_never_called_verified(cli: Cli, copy: Path, tmp_path: Path) -> None:
    page = copy / "report.html"
    page.write_text(page.read_text(encoding="utf-8").replace("Summary", "Summery", 1), encoding="utf-8")
    data = json.loads((copy / "report.json").read_text(encoding="utf-8"))
    (copy / "report.json").write_text(json.dumps({**data, "sha256": {}}), encoding="utf-8")
    emptied = cli("verify", copy, "--files-only")
    assert emptied.out.splitlines()[-1].startswith("not checked: report.html")
    (copy / "report.json").unlink()
    gone = cli("verify", copy, "--files-only")
    assert "report.html" in gone.out.splitlines()[-1]
    assert gone.out.splitlines()[-1].startswith("not checked")
    assert "verified" not in gone.out


def test_a_page_alone_is_checked_as_far_as_it_goes(cli: Cli, copy: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "alone.html"
    alone.parent.mkdir()
    shutil.copy(copy / "report.html", alone)
    code, found = outcomes(cli, alone, "--rerun")
    assert code == 0
    assert found["record in the page"] == "same"
    assert {found[name] for name in ("circuit.json", "report.json", "data, numbers")} == {"not checked"}


def test_nothing_outside_the_folder_is_opened_and_no_other_model_is_loaded(
    cli: Cli, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    page = copy / "report.html"
    text = page.read_text(encoding="utf-8")
    head, tail = text.rsplit('data-name="mechwork-report"', 1)
    tail = tail.replace('"curve.csv":', '"../secret.txt":', 1).replace('"model":"gpt2-6l"', '"model":"owner/name"')
    page.write_text(f'{head}data-name="mechwork-report"{tail}', encoding="utf-8")

    def load(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded by the word of a page")

    monkeypatch.setattr("mechwork.cli.verify.load_named", load)
    done = cli("verify", copy)
    assert "../secret.txt" in done.out
    assert "it is outside the report's folder" in done.out
    assert "'owner/name' is not bundled" in done.out
    (copy / "edges.csv").unlink()
    (copy / "edges.csv").symlink_to(secret)
    assert outcomes(cli, copy, "--files-only")[1]["edges.csv"] == "not checked"


def test_a_saved_result_that_was_changed_is_named(cli: Cli, copy: Path) -> None:
    file = copy / "results" / "scores.scores.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    done = cli("verify", copy, "--files-only")
    assert done.code == 4
    assert "saved results" in done.out.splitlines()[-1]


def test_what_is_no_report_is_refused(cli: Cli, copy: Path, tmp_path: Path) -> None:
    missing = cli("verify", tmp_path / "none")
    assert (missing.code, "no report at" in missing.err) == (3, True)
    other = tmp_path / "other.html"
    other.write_text("<p>hello</p>", encoding="utf-8")
    assert "holds no record" in cli("verify", other).err
    page = copy / "report.html"
    text = page.read_text(encoding="utf-8")
    head, tail = text.rsplit('data-name="mechwork-report"', 1)
    page.write_text(
        head + 'data-name="mechwork-report"' + tail.replace('"format":1', '"format":9', 1), encoding="utf-8"
    )
    newer = cli("verify", page)
    assert newer.code == 3
    assert "format 9; this version reads up to 1. Upgrade" in newer.err
    page.write_text(head + 'data-name="mechwork-report">{"format": </script>', encoding="utf-8")
    assert "cannot be read" in cli("verify", page).err
    assert cli("verify", copy, "--rerun", "--files-only").code == 2
    summary = copy / "report.json"
    page.write_text(text, encoding="utf-8")
    summary.write_text("[", encoding="utf-8")
    assert "is not a JSON object" in cli("verify", copy, "--files-only").out or "differs" in cli("verify", copy).out


def test_differences_are_relative_and_say_where() -> None:
    before = {"a": 1000.0, "b": [1, {"c": "x"}], "d": None, "e": True}
    assert not list(differences(before, {**before, "a": 1000.5}, 1e-3))
    after = {"a": 1002.0, "b": [1, {"c": "y"}, 2], "d": 1, "e": False, "f": 1}
    found = list(differences(before, after, 1e-3))
    assert [place.split(":")[0] for place in found] == ["a", "b", "b[1].c", "d", "e", "f"]


def keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A private and a public Ed25519 key in PEM."""
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    raw = private.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    public = private.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(raw)
    paths[1].write_bytes(public)
    return paths


def test_a_consistent_forgery_is_caught_by_a_signature(cli: Cli, copy: Path, tmp_path: Path) -> None:
    from mechwork.discovery.publish import PAGE, hash_numbers
    from mechwork.files import sha256
    from mechwork.provenance import hash_json

    private, public = keys(tmp_path)
    assert cli("verify", copy, "--files-only", "--sign", private).code == 0
    assert cli("verify", copy, "--files-only").out.splitlines()[-1] == "not checked: signature"
    assert cli("verify", copy, "--files-only", "--key", public).out.splitlines()[-1] == "verified"
    assert "not made by the owner" in cli("verify", copy, "--files-only", "--key", keys(tmp_path, "other")[1]).out

    page, summary = copy / PAGE, copy / "report.json"  # a forger changes a number and every hash of it
    data = json.loads(summary.read_text(encoding="utf-8"))
    data["evaluation"]["faithfulness"] = 1.0
    text = page.read_text(encoding="utf-8")
    head, tail = text.rsplit('data-name="mechwork-report">', 1)
    body, rest = tail.split("</script>", 1)
    record = json.loads(body)
    record["numbers"] = hash_numbers(data)
    record["sha256"] = hash_json({key: value for key, value in record.items() if key != "sha256"})
    page.write_text(f'{head}data-name="mechwork-report">{json.dumps(record)}</script>{rest}', encoding="utf-8")
    data["sha256"][PAGE] = sha256(page)
    summary.write_text(json.dumps(data), encoding="utf-8")
    unsigned = {
        check["what"]: check["outcome"] for check in cli("verify", copy, "--files-only", "--json").json["checks"]
    }
    assert set(unsigned.values()) == {"same", "not checked"}, "a forgery that hashes catch shows nothing"
    done = cli("verify", copy, "--files-only", "--key", public)
    assert done.code == 4
    assert "changed since it was signed: report.html, report.json" in done.out
    (copy / "report.sig").unlink()
    assert cli("verify", copy, "--files-only", "--key", public).code == 4


def test_a_file_that_was_added_or_removed_after_signing_is_named(cli: Cli, copy: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    assert cli("verify", copy, "--files-only", "--sign", private).code == 0
    (copy / "extra.csv").write_text("a\n")
    assert "extra.csv" in cli("verify", copy, "--files-only", "--key", public).out
    (copy / "extra.csv").unlink()
    (copy / "curve.csv").unlink()
    assert "changed since it was signed: curve.csv" in cli("verify", copy, "--files-only", "--key", public).out


def test_keys_and_signatures_that_are_none(cli: Cli, copy: Path, tmp_path: Path) -> None:
    private, public = keys(tmp_path)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff\x00")
    assert cli("verify", copy, "--files-only", "--sign", public).code == 2
    assert cli("verify", copy, "--files-only", "--sign", garbage).code == 2
    assert cli("verify", copy, "--files-only", "--sign", tmp_path / "none").code == 3
    assert cli("verify", copy, "--files-only", "--sign", private, "--key", public).code == 2
    assert not (copy / "report.sig").exists()
    assert cli("verify", copy, "--files-only", "--sign", private).code == 0
    for content in (
        "",
        "[]",
        '{"format": 1, "files": 3, "signature": "AAAA"}',
        '{"format": 1, "files": {}, "signature": 3}',
    ):
        (copy / "report.sig").write_text(content)
        done = cli("verify", copy, "--files-only", "--key", public)
        assert (done.code, "signature" in done.out) == (4, True), content
    (copy / "circuit.json").write_text("{}")
    (copy / "report.sig").unlink()
    assert cli("verify", copy, "--files-only", "--sign", private).code == 4, "a changed folder is not signed"
    assert not (copy / "report.sig").exists()


def test_requests_and_results_that_were_changed_are_named(cli: Cli, copy: Path) -> None:
    request = copy / "request.json"
    data = json.loads(request.read_text(encoding="utf-8"))
    request.write_text(json.dumps({**data, "audience": "class"}), encoding="utf-8")
    assert cli("verify", copy, "--files-only").out.splitlines()[-1] == "changed: request.json"
    request.write_text(json.dumps(data), encoding="utf-8")
    (copy / "results" / "more.safetensors").write_bytes(b"x")
    assert cli("verify", copy, "--files-only").out.splitlines()[-1] == "changed: saved results"
    (copy / "results" / "more.safetensors").unlink()
    (copy / "ledger.json").unlink()
    assert cli("verify", copy, "--files-only").out.splitlines()[-1] == "not checked: saved results"
    page = copy / "report.html"
    head, tail = page.read_text(encoding="utf-8").rsplit('data-name="mechwork-report">', 1)
    body, rest = tail.split("</script>", 1)
    record = {**json.loads(body), "files": ["circuit.json"]}
    page.write_text(f'{head}data-name="mechwork-report">{json.dumps(record)}</script>{rest}', encoding="utf-8")
    assert cli("verify", copy, "--files-only").code == 4
