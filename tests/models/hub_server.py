"""A small server on the loopback that speaks as much of the hub's protocol as loading a model needs.

Repositories are dictionaries: revision -> (commit, {file: bytes}). `broken` names files whose transfer stops half-way.
Every request is noted, so that tests can say what was asked for. It stops with its context.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Revisions = dict[str, tuple[str, dict[str, bytes]]]


@dataclass
class Hub:
    """What the server has, what it was asked, and where it listens."""

    repositories: dict[str, Revisions]
    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | str:
        """Commit and files, or the error code of the hub."""
        revisions = self.repositories.get(name)
        if revisions is None:
            return "RepoNotFound"
        for known, (commit, files) in revisions.items():
            if revision in (known, commit):
                return commit, files
        return "RevisionNotFound"


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:  # noqa: C901 - one class that answers
    """The server, for as long as the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # no connection outlives its answer, so a server that stopped is gone
        timeout = 20

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            return

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append(f"{self.command} {path}")
            parts = path.split("/")
            if parts[0] == "control":  # what a test's client asks for: whole transfers again, or no server at all
                hub.broken = set()
                self.reply(200, b"", {})
                if parts[1] == "stop":
                    server.shutdown()
                    server.server_close()
            elif parts[:2] == ["api", "models"]:
                self.api(
                    "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "revision", "/".join(parts[5:]) or "main"
                )
            elif len(parts) > 4 and parts[2] == "resolve":
                self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body=body)
            else:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})

        def api(self, name: str, what: str, revision: str) -> None:
            found = hub.find(name, revision)
            if isinstance(found, str):
                self.reply(404, b'{"error": "not found"}', {"X-Error-Code": found})
                return
            commit, files = found
            if what == "tree":
                rows = [
                    {"type": "file", "path": file, "size": len(data), "oid": _oid(data)} for file, data in files.items()
                ]
                self.json(rows)
            else:
                siblings = [{"rfilename": file} for file in files]
                self.json(
                    {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
                )

        def file(self, name: str, revision: str, file: str, *, body: bool) -> None:
            found = hub.find(name, revision)
            if isinstance(found, str):
                self.reply(404, b"", {"X-Error-Code": found})
                return
            commit, files = found
            if file not in files:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                return
            data = files[file]
            asked = self.headers.get("Range", "")  # "bytes=START-": the rest of a broken download
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked.endswith("-") else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{_oid(data)}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if body and file in hub.broken:
                self.wfile.write(b"" if start else data[: len(data) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(data[start:])

        def json(self, value: Any) -> None:
            self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
