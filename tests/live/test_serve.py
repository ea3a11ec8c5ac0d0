"""The safety table of `mechwork.live.serve`, line by line, and the way of a request from a page to its answer."""

from __future__ import annotations

import asyncio
import html
import threading
from typing import Any

import pytest

from mechwork.cli import main
from mechwork.errors import InputError
from mechwork.live.page import live_page
from mechwork.live.serve import COOKIE, LARGEST, MOST_STREAMS, Doorkeeper, LiveClients, build_app, listen

pytest.importorskip("starlette")
pytest.importorskip("httpx")

HERE = {"host": "127.0.0.1:8765", "sec-fetch-site": "same-origin"}
OWN = {**HERE, "origin": "http://127.0.0.1:8765", "content-type": "application/json"}


class FakeWorker:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.cancelled: list[Any] = []

    def ask(self, client: str, message: Any, reply: Any) -> None:
        if message.get("id") == 13:
            raise InputError("32 requests wait already")
        self.asked.append((client, message))

    def cancel(self, client: str, number: int | None = None) -> None:
        self.cancelled.append((client, number))


class Rig:
    """The application with a client in and a client out."""

    def __init__(self) -> None:
        from starlette.testclient import TestClient

        self.worker, self.door = FakeWorker(), Doorkeeper(8765)
        self.app = build_app(self.worker, lambda: "<p>page</p>", self.door)
        self.stranger = TestClient(self.app, base_url="http://127.0.0.1:8765", follow_redirects=False)
        self.owner = TestClient(self.app, base_url="http://127.0.0.1:8765", follow_redirects=False)
        self.owner.cookies.set(COOKIE, self.door.cookie)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(LiveClients, "__contains__", lambda self, name: name == "tab")
    monkeypatch.setattr(LiveClients, "reply", lambda self, name: lambda message: None)
    return Rig()


def test_the_token_works_once_and_becomes_a_cookie(rig: Rig) -> None:
    token = rig.door.address.split("token=")[1]
    assert rig.door.address.startswith("http://127.0.0.1:8765/?")
    assert rig.stranger.get("/", headers=HERE).status_code == 403
    assert rig.stranger.get("/?token=wrong", headers=HERE).status_code == 403
    found = rig.stranger.get(f"/?token={token}", headers={"host": HERE["host"], "sec-fetch-site": "none"})
    assert found.status_code == 303
    assert found.headers["location"] == "/"
    cookie = found.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    rig.stranger.cookies.clear()
    assert rig.stranger.get(f"/?token={token}", headers=HERE).status_code == 403
    assert rig.stranger.get("/", headers={**HERE, "cookie": f"{COOKIE}=wrong"}).status_code == 403
    assert rig.owner.get("/", headers=HERE).status_code == 200


REFUSED = [
    ("foreign host", {"host": "evil.example:8765"}, 403),
    ("host of another port", {"host": "127.0.0.1:1"}, 403),
    ("host without a port", {"host": "127.0.0.1"}, 403),
    ("every interface", {"host": "0.0.0.0:8765"}, 403),
    ("foreign origin", {"origin": "https://evil.example"}, 403),
    ("null origin", {"origin": "null"}, 403),
    ("no origin", {"origin": None}, 403),
    ("another port's origin", {"origin": "http://127.0.0.1:1"}, 403),
    ("cross-site", {"sec-fetch-site": "cross-site"}, 403),
    ("same-site", {"sec-fetch-site": "same-site"}, 403),
    ("plain text", {"content-type": "text/plain"}, 415),
    ("a form", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("no type", {"content-type": None}, 415),
]


@pytest.mark.parametrize(("why", "change", "status"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_refused_never_reaches_the_worker(rig: Rig, why: str, change: dict[str, Any], status: int) -> None:
    headers = {name: value for name, value in {**OWN, **change}.items() if value is not None}
    for path in ("/ask", "/cancel"):
        found = rig.owner.post(path, content=b'{"client": "tab", "id": 1, "ask": "look"}', headers=headers)
        assert found.status_code == status, (path, found.text)
    if status == 403 and why != "no origin":
        assert rig.owner.get("/", headers={k: v for k, v in headers.items() if k != "content-type"}).status_code == 403
    assert rig.worker.asked == rig.worker.cancelled == []


def test_bodies_and_cookies(rig: Rig) -> None:
    def post(content: bytes, client: Any = None) -> int:
        return (client or rig.owner).post("/ask", content=content, headers=OWN).status_code

    assert post(b'{"client": "tab", "id": 1, "ask": "look"}') == 202
    assert rig.worker.asked == [("tab", {"id": 1, "ask": "look"})]
    assert post(b'{"client": "tab", "id": 1, "ask": "look"}', rig.stranger) == 403
    assert post(b'{"client": "tab", "pad": "' + b"x" * LARGEST + b'"}') == 413
    for content in (b"[]", b"3", b"{", b"\xff", b"[" * 20000, b'{"id": 1}', b'{"client": 3}'):
        assert post(content) == 400, content[:20]
    assert post(b'{"client": "another", "id": 1}') == 409
    assert post(b'{"client": "tab", "id": 13}') == 400
    cancel = rig.owner.post("/cancel", content=b'{"client": "tab", "id": "all"}', headers=OWN)
    assert cancel.status_code == 400
    assert rig.owner.post("/cancel", content=b'{"client": "tab", "id": 4}', headers=OWN).status_code == 202
    assert rig.worker.cancelled == [("tab", 4)]
    assert len(rig.worker.asked) == 1


def test_nothing_else_is_there(rig: Rig) -> None:
    from starlette.websockets import WebSocketDisconnect

    for path in ("/docs", "/../etc/passwd", "/page/x", "/static/a.js"):
        assert rig.owner.get(path, headers=HERE).status_code == 404
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert rig.owner.request(method, "/ask", headers=OWN).status_code == 403
    assert rig.stranger.get("/page", headers=HERE).status_code == 403
    assert rig.stranger.get("/events", headers=HERE).status_code == 403
    with pytest.raises(WebSocketDisconnect), rig.owner.websocket_connect("/events", headers=HERE):
        pass


def test_policies(rig: Rig) -> None:
    shell, page = rig.owner.get("/", headers=HERE), rig.owner.get("/page", headers=HERE)
    policy = shell.headers["content-security-policy"]
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">' in shell.text
    assert rig.owner.get("/", headers=HERE).text != shell.text, "a nonce is used once"
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["content-security-policy"].startswith("sandbox allow-scripts")
    for answer in (shell, page, rig.owner.get("/docs", headers=HERE), rig.stranger.get("/", headers=HERE)):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
    assert "connect-src 'none'" in html.unescape(live_page())
    assert 'sandbox="allow-scripts allow-downloads"' in shell.text, "no allow-same-origin: the frame has no cookie"


def test_streams_are_limited_and_an_outbox_does_not_grow_without_end() -> None:
    found: list[None] = []

    async def fill() -> None:
        clients = LiveClients()
        names = [clients.open() for _ in range(MOST_STREAMS)]
        assert None not in names
        assert clients.open() is None
        name = str(names[0])
        put = clients.reply(name)
        for i in range(2000):
            put({"what": "working", "id": i})
            await asyncio.sleep(0)
        put({"what": "result", "id": 1})
        await asyncio.sleep(0)
        assert clients.box(name).qsize() <= 501
        clients.close(name)
        with pytest.raises(ConnectionError):
            put({"what": "result", "id": 2})
        assert clients.open() is not None

    thread = threading.Thread(target=lambda: found.append(asyncio.run(fill())))
    thread.start()  # playwright's loop may be at work in this one
    thread.join(30)
    assert found == [None]


def test_a_second_server_on_the_port(capsys: pytest.CaptureFixture[str]) -> None:
    first = listen(0)
    port = first.getsockname()[1]
    assert first.getsockname()[0] == "127.0.0.1"
    try:
        assert main(["serve", "--port", str(port), "--no-browser"]) == 2
        assert f"port {port} of 127.0.0.1 is not free" in capsys.readouterr().err
    finally:
        first.close()


def test_without_the_extra_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--no-browser"]) == 2
    assert "pip install 'mechwork[serve]'" in capsys.readouterr().err
