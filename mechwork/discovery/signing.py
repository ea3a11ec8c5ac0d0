"""Signatures of a discovery's folder, with a key of the user's own (Ed25519, RFC 8032; the extra ``mechwork[signed]``).

    openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out pub.pem
    mechwork verify reports/ioi --sign key.pem        # writes reports/ioi/report.sig
    mechwork verify reports/ioi --key pub.pem         # says whether every file is the one that was signed

Hashes inside a report notice an accident or one careless hand. A signature also notices somebody who rewrites page,
numbers and hashes alike: without the private key no file of the folder can be changed, removed or added. What is
signed is canonical JSON of every file's name and sha256. A key that needs a passphrase is refused: decrypt it first.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ArtefactError, InputError, NotFoundError
from ..files import read_object, sha256, write_json
from .verification import Check

SIGNATURE = "report.sig"
FORMAT = 1
_OURS = (".html", ".json", ".csv", ".safetensors")


def sign(folder: Path, key: Path) -> Path:
    """Sign the folder's files as they are. Returns the signature's file.

    Raises `InputError` for a key that is not a private Ed25519 key in PEM, or without the extra.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = _key(key, private=True)
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"{key} must hold a private Ed25519 key in PEM; it holds {type(private).__name__}")
    files = _files(folder)
    signature = private.sign(_message(files))
    return write_json(
        folder / SIGNATURE,
        {"format": FORMAT, "files": files, "signature": base64.b64encode(signature).decode("ascii")},
    )


def check_signature(folder: Path, key: Path | None) -> list[Check]:
    """One check of the signature, if there is one or `key` (a public one, in PEM) asks for it."""
    what, file = "signature", folder / SIGNATURE
    if not file.is_file():
        return [] if key is None else [Check(what, "differs", f"there is no {SIGNATURE}, and a key was given")]
    if key is None:
        return [Check(what, "not checked", "name the public key of who signed it with --key")]
    try:
        said = read_object(file, ("format", "files", "signature"))
        signature = base64.b64decode(said["signature"], validate=True)
        signed: dict[str, Any] = dict(said["files"])
    except (ArtefactError, ValueError, TypeError, AttributeError) as error:
        return [Check(what, "differs", f"{SIGNATURE} cannot be read: {error}")]
    if not _valid(key, signature, _message(signed)):
        return [Check(what, "differs", f"it was not made by the owner of {key.name}")]
    found = _files(folder)
    changed = sorted(name for name in found.keys() | signed.keys() if found.get(name) != signed.get(name))
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        return [Check(what, "differs", f"changed since it was signed: {', '.join(changed[:4])}{more}")]
    return [Check(what, "same", f"{len(found)} files, signed by the owner of {key.name}")]


def _valid(key: Path, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = _key(key, private=False)
    if not isinstance(public, Ed25519PublicKey):
        raise InputError(f"{key} must hold a public Ed25519 key in PEM; it holds {type(public).__name__}")
    try:
        public.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _key(path: Path, *, private: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError as error:
        raise InputError("signatures need the extra: pip install 'mechwork[signed]'") from error
    kind = "private" if private else "public"
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise NotFoundError(f"no {kind} key can be read at {str(path)[:200]}: {error}") from error
    try:
        return load_pem_private_key(data, password=None) if private else load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"{path} must hold a {kind} Ed25519 key in PEM without a passphrase: {error}. "
            "Make one with: openssl genpkey -algorithm ed25519 -out key.pem"
        ) from error


def _message(files: dict[str, Any]) -> bytes:
    return b"mechwork report 1\n" + json.dumps(files, sort_keys=True, separators=(",", ":")).encode()


def _files(folder: Path) -> dict[str, str]:
    """sha256 of the folder's own files, by their path in it; links are not followed."""
    return {place.relative_to(folder).as_posix(): sha256(place) for place in sorted(_ours(folder))}


def _ours(folder: Path) -> Iterator[Path]:
    for place in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in place.relative_to(folder).parts)
        inside = place.resolve().is_relative_to(folder.resolve())
        if place.is_file() and not place.is_symlink() and inside and not hidden and place.suffix in _OURS:
            yield place
