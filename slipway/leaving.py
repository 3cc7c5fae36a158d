"""How a server goes and breaks no call: kept connections end, accepted ones are answered, new ones go elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAIN = 0.8  # seconds; longer than the edge keeps an idle connection (Caddyfile, keepalive)
SETTLE = 0.2  # seconds from the last accepted connection to its request
LAST_ANSWERS = 4.0  # seconds for what we accepted before a SIGTERM; with what else ends it is less than Docker's 10
LISTENING = (b"mcp-method", b"subscriptions/listen")  # the newest era's stream that only listens has it for a header


class Draining:
    """Ends kept connections with their next answer once we are about to end or to start anew.

    A proxy that sends on a kept connection in the moment in which we close it must answer 502: it cannot know
    whether the request was done.

    Attributes:
        draining: whether we are about to.
        unanswered: how many requests are being worked on, without streams that only listen.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.draining = False
        self.unanswered = 0

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Hand on; /readyz is ours while we leave."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        if self.draining and scope["path"] == "/readyz":
            leaving = JSONResponse({"ready": False, "answer": "stopping"}, 503, {"connection": "close"})
            return leaving(scope, receive, send)
        asks = scope["method"] == "POST" and LISTENING not in scope["headers"]
        return (self._counted if asks else self._app)(scope, receive, _Closing(self, send))

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.unanswered += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.unanswered -= 1


class _Closing:
    """A `send`; no function, see sessions._Replay."""

    __slots__ = ("_send", "_whole")

    def __init__(self, whole: Draining, send: Send) -> None:
        self._whole = whole
        self._send = send

    async def __call__(self, message: Message) -> None:
        if self._whole.draining and message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
        await self._send(message)


async def leave(server: uvicorn.Server, whole: Draining, listening: socket.socket) -> None:
    """Answer what was accepted, and let what comes now find another replica, or our successor; then end the server.

    Args:
        server: serves `whole` on `listening`.
        whole: the outermost app.
        listening: its socket; nothing listens on it any more, whoever has a copy.
    """
    whole.draining = True
    held = server.server_state.connections
    await _until(lambda: not held, DRAIN)
    waiting = _refuse_from_now_on(listening)
    for listener in server.servers:
        listener.close()
    kind: Callable[..., asyncio.Protocol] = server.config.http_protocol_class
    protocol = functools.partial(
        kind, config=server.config, server_state=server.server_state, app_state=server.lifespan.state
    )
    for connection in waiting:
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
    await _until(lambda: not held, SETTLE)
    # streams that only listen would stay for hours; what was asked for is answered
    await _until(lambda: not whole.unanswered, LAST_ANSWERS)
    # the SDK's streams listen to this method, and end with it
    server.handle_exit(signal.SIGTERM, None)


def _refuse_from_now_on(listening: socket.socket) -> list[socket.socket]:
    """Stop listening. Returns: the connections that wait in the socket's queue; closing it would reset them."""
    waiting = []
    listening.setblocking(False)
    with contextlib.suppress(OSError):
        while True:
            waiting.append(listening.accept()[0])
    with contextlib.suppress(OSError):
        # for every descriptor of it at once
        listening.shutdown(socket.SHUT_RDWR)
    return waiting


async def _until(true: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so, no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not true():  # noqa: ASYNC110 what uvicorn holds has no event
                await asyncio.sleep(0.02)
