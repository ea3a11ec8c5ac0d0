"""The local host of a session: Starlette on 127.0.0.1, for the person who started it and nobody else.

What is refused, and how (each line is a test):

| request | answer |
|---|---|
| a Host that is not this address (DNS rebinding), a foreign or ``null`` Origin, a POST without one | 403 |
| Sec-Fetch-Site cross-site or same-site | 403 |
| no cookie, a wrong one, a wrong or used token | 403 |
| a WebSocket of any kind | closed before it opens |
| a POST that is not JSON (415), over 64 KB (413), not an object (400), not in the closed list of gestures (an error) |
| a seventh stream of events | 429 |

The token in the printed address works once: it is exchanged for a cookie (HttpOnly, SameSite=Strict) and leaves the
address. The page runs in a sandboxed frame that may ask no network at all; the shell around it hands it a message port
and alone speaks to this server. No request holds code or a path.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..render.page.page import to_json
from .shell import page_policy, shell_page, shell_policy
from .worker import TakesRequests, Worker

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = "127.0.0.1"
LARGEST = 64 * 1024
"""Bytes of a request's body."""
MOST_STREAMS = 6
"""Streams of events at a time: a browser opens no more to one address."""
MOST_UNREAD = 500
"""Messages kept for a client that does not read them; further words on progress are dropped."""
COOKIE = "mechwork_live"
BEAT = 15.0
"""Seconds between signs of life on a silent stream."""

COMMON = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def require_serve() -> None:
    """Raises `InputError` when the packages of the extra are not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"mechwork serve needs Starlette and uvicorn; {error.name} is missing. pip install 'mechwork[serve]'"
        ) from error


class Doorkeeper:
    """Who may come in: one token, used once, and the cookie that it is exchanged for."""

    def __init__(self, port: int) -> None:
        self.port, self.cookie = port, secrets.token_urlsafe(32)
        self._token: str | None = secrets.token_urlsafe(32)
        self._lock = threading.Lock()
        self.hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}

    @property
    def address(self) -> str:
        """What is printed and opened; works once."""
        return f"http://{LOOPBACK}:{self.port}/?token={self._token}"

    def redeem(self, token: str) -> bool:
        """Whether this is the token; it is none afterwards."""
        with self._lock:
            right = self._token is not None and secrets.compare_digest(self._token.encode(), token.encode())
            if right:
                self._token = None
            return right

    def admits(self, cookie: str) -> bool:
        return secrets.compare_digest(self.cookie.encode(), cookie.encode())

    def refuses(self, method: str, headers: Any) -> str:
        """Why a request is refused whatever it asks for; empty when it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self.hosts:
            return "this server is 127.0.0.1 to its own person, and to nobody else"
        if origin is not None and origin != f"http://{host}":
            return "a page of another origin asked"
        if method not in ("GET", "POST"):
            return "there is nothing but GET and POST here"
        if method == "POST" and origin is None:
            return "a request that changes something names its origin"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "another site asked"
        return ""


class LiveClients:
    """Open streams: client -> its outbox. Filled from the worker's thread."""

    def __init__(self) -> None:
        self._boxes: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Queue[dict[str, Any]]]] = {}

    def open(self) -> str | None:
        """A new client's name; None when there are too many."""
        if len(self._boxes) >= MOST_STREAMS:
            return None
        name = secrets.token_urlsafe(12)
        self._boxes[name] = (asyncio.get_running_loop(), asyncio.Queue())
        return name

    def close(self, name: str) -> None:
        self._boxes.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._boxes

    def box(self, name: str) -> asyncio.Queue[dict[str, Any]]:
        return self._boxes[name][1]

    def reply(self, name: str) -> Callable[[dict[str, Any]], None]:
        """Puts a message into the client's outbox; raises `ConnectionError` once it is gone."""

        def put(message: dict[str, Any]) -> None:
            if name not in self._boxes:
                raise ConnectionError("this client is gone")
            loop, box = self._boxes[name]
            if box.qsize() < MOST_UNREAD or message["what"] not in ("progress", "working"):
                loop.call_soon_threadsafe(box.put_nowait, message)

        return put


NOT_YOU = "open the address that mechwork serve printed"


def refusal(why: str, status: int = 403) -> Response:
    """A refusal in plain words."""
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(why + "\n", status)


class LiveRoutes:
    """What the server answers."""

    def __init__(self, worker: TakesRequests, page: Callable[[], str], door: Doorkeeper) -> None:
        self.worker, self.page, self.door, self.clients = worker, page, door, LiveClients()

    def _inside(self, request: Request) -> bool:
        return self.door.admits(request.cookies.get(COOKIE, ""))

    async def shell(self, request: Request) -> Response:
        """The outer page; with a token, the cookie instead."""
        from starlette.responses import HTMLResponse, RedirectResponse

        if token := request.query_params.get("token", ""):
            if not self.door.redeem(token):
                return refusal(
                    "this address was used already, or is not the one that mechwork printed. Start it again."
                )
            found = RedirectResponse("/", 303)
            found.set_cookie(COOKIE, self.door.cookie, httponly=True, samesite="strict", path="/")
            return found
        if not self._inside(request):
            return refusal(NOT_YOU)
        nonce = secrets.token_urlsafe(16)
        return HTMLResponse(shell_page(nonce), headers={"Content-Security-Policy": shell_policy(nonce)})

    async def framed(self, request: Request) -> Response:
        """The page, sandboxed."""
        from starlette.responses import HTMLResponse

        if not self._inside(request):
            return refusal(NOT_YOU)
        return HTMLResponse(self.page(), headers={"Content-Security-Policy": page_policy()})

    async def events(self, request: Request) -> Response:
        """A stream of answers to one client, which it names first."""
        from starlette.responses import StreamingResponse

        if not self._inside(request):
            return refusal(NOT_YOU)
        name = self.clients.open()
        if name is None:
            return refusal(f"{MOST_STREAMS} pages are open; close one", 429)
        return StreamingResponse(self._stream(name), media_type="text/event-stream")

    async def _stream(self, name: str) -> AsyncIterator[str]:
        try:
            yield f"event: hello\ndata: {json.dumps(name)}\n\n"
            box = self.clients.box(name)
            while True:
                try:
                    message = await asyncio.wait_for(box.get(), BEAT)
                    yield f"data: {to_json(message)}\n\n"
                except TimeoutError:
                    yield ": alive\n\n"
        finally:
            self.clients.close(name)
            self.worker.cancel(name)

    async def ask(self, request: Request) -> Response:
        """A gesture or a question, queued."""
        from starlette.responses import JSONResponse

        data = await self._body(request)
        if not isinstance(data, dict):
            return data
        client = data.pop("client")
        try:
            self.worker.ask(client, data, self.clients.reply(client))
        except InputError as error:
            return refusal(str(error), 400)
        return JSONResponse({"queued": True}, 202)

    async def cancel(self, request: Request) -> Response:
        """Stop one request of a client, or all of them."""
        from starlette.responses import JSONResponse

        data = await self._body(request)
        if not isinstance(data, dict):
            return data
        number = data.get("id")
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            return refusal("what is cancelled is named by its number", 400)
        self.worker.cancel(data["client"], number)
        return JSONResponse({"asked": True}, 202)

    async def _body(self, request: Request) -> dict[str, Any] | Response:
        """The object that was posted, or why it is refused."""
        if not self._inside(request):
            return refusal(NOT_YOU)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return refusal("requests are application/json", 415)
        read = b""
        async for part in request.stream():
            read += part
            if len(read) > LARGEST:
                return refusal(f"a request has at most {LARGEST} bytes", 413)
        try:
            data = json.loads(read)
        except (ValueError, RecursionError):
            return refusal("a request is one JSON object", 400)
        if not isinstance(data, dict) or not isinstance(data.get("client"), str):
            return refusal("a request is one JSON object that names its client", 400)
        if data["client"] not in self.clients:
            return refusal("this client is not listening; open the page again", 409)
        return data


def build_app(worker: TakesRequests, page: Callable[[], str], door: Doorkeeper) -> Starlette:
    """The server as an ASGI application. `page` gives the page as it is to be framed."""
    require_serve()
    from starlette.applications import Starlette
    from starlette.routing import Route

    routes = LiveRoutes(worker, page, door)
    app = Starlette(
        routes=[
            Route("/", routes.shell, methods=["GET"]), Route("/page", routes.framed, methods=["GET"]),
            Route("/events", routes.events, methods=["GET"]), Route("/ask", routes.ask, methods=["POST"]),
            Route("/cancel", routes.cancel, methods=["POST"]),
        ]
    )  # fmt: skip
    app.add_middleware(Gate, door=door)
    return app


class Gate:
    """In front of everything: refuses what the doorkeeper refuses, and puts the common headers on every answer."""

    def __init__(self, app: Any, door: Doorkeeper) -> None:
        self.app, self.door = app, door

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import PlainTextResponse

        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in COMMON.items():
                    headers[name] = value
                if "content-security-policy" not in headers:
                    headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
            await send(message)

        why = self.door.refuses(scope["method"], Headers(scope=scope))
        if why:
            await PlainTextResponse(why + "\n", 403)(scope, receive, guarded)
        else:
            await self.app(scope, receive, guarded)


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1 (port 0: any free one). Raises `InputError` when another program has the port."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.bind((LOOPBACK, port))
        found.listen(64)
    except OSError as error:
        found.close()
        raise InputError(
            f"port {port} of {LOOPBACK} is not free ({error.strerror}); another mechwork serve may be running. Choose "
            "another --port, or 0 for any."
        ) from error
    return found


def serve(
    worker: Worker, page: Callable[[], str], *, port: int = 0, browser: bool = True, say: Callable[[str], None]
) -> None:
    """Serve until interrupted. `say` is told the address."""
    require_serve()
    import uvicorn

    door_socket = listen(port)
    door = Doorkeeper(door_socket.getsockname()[1])
    say(door.address)
    config = uvicorn.Config(
        build_app(worker, page, door), log_level="critical", access_log=False, ws="none", server_header=False,
        timeout_graceful_shutdown=1, h11_max_incomplete_event_size=LARGEST,
    )  # fmt: skip
    server = uvicorn.Server(config)
    if browser:
        threading.Timer(0.5, webbrowser.open, [door.address]).start()
    try:
        server.run(sockets=[door_socket])
    finally:
        worker.close()
