"""Which of FastMCP's two apps answers a request, so that a session never ends a demo (SLIPWAY_SESSIONS=auto).

And the request's body, which more than one room reads.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_MESSAGE_BYTES = 1 << 20  # of a body, where nobody says more
MAX_SECONDS = 30.0  # for a body to arrive


class Body:
    """A request body that can be read again.

    Attributes:
        whole: all of it came.
        too_long: it is longer than may be kept; nobody has seen the rest.
    """

    __slots__ = ("_kept", "_most", "_parsed", "content", "counted", "receive", "too_long", "whole")

    def __init__(self, receive: Receive, most: int = MAX_MESSAGE_BYTES) -> None:
        """Take where it comes from, and how many bytes of it are kept at most."""
        self.receive = receive
        self._most = most
        self._kept: list[Message] = []
        self._parsed: dict[str, Any] | None = None
        self.whole = self.too_long = False
        self.content = b""
        self.counted = False  # against the limits of its sender

    async def read(self) -> None:
        """Keep the body. Longer bodies and lost clients leave `whole` False.

        Raises:
            TimeoutError: the client takes too long to send it.
        """
        size, until = 0, asyncio.get_running_loop().time() + MAX_SECONDS
        while not self.whole and not self.too_long:
            async with asyncio.timeout_at(until):
                message = await self.receive()
            self._kept.append(message)
            if message["type"] != "http.request":
                return
            size += len(message.get("body", b""))
            self.too_long = size > self._most
            self.whole = not self.too_long and not message.get("more_body", False)
        if self.whole:
            self.content = b"".join(message.get("body", b"") for message in self._kept)

    def replay(self) -> Receive:
        """Return a `receive` that gives the kept messages first, then what the connection says."""
        return _Replay(self._kept, self) if self._kept else self.receive

    def message(self) -> dict[str, Any]:
        """Return the JSON-RPC message, or {} where the body is none."""
        if self._parsed is None:
            try:
                parsed = json.loads(self.content) if self.content else {}
            except (ValueError, RecursionError):
                parsed = {}
            self._parsed = parsed if isinstance(parsed, dict) else {}
        return self._parsed

    def forget(self) -> None:
        """Let go of the message: nobody will read it any more, but a session keeps the request that opened it."""
        self._kept, self.content, self._parsed, self.receive = [], b"", {}, _gone


async def _gone() -> Message:
    return {"type": "http.disconnect"}


class _Replay:
    """A `receive`. No function: with what it closes over, one would take thrice as much of each open stream."""

    __slots__ = ("_body", "_kept")

    def __init__(self, kept: list[Message], body: Body) -> None:
        self._kept = iter(kept)
        self._body = body

    async def __call__(self) -> Message:
        return next(self._kept, None) or await self._body.receive()


class AutoSessions:
    """Sends `initialize` and live sessions to the stateful app, all else to the stateless one.

    A session id that the stateful app does not know (a restart forgot it, or it was idle too long) is answered
    statelessly instead of 404, so a client goes on without noticing. Which ids are live is the stateful app's
    knowledge alone: it is asked, and its 404 is taken back before anything reached the client.
    """

    def __init__(self, stateful: ASGIApp, stateless: ASGIApp) -> None:
        self._stateful = stateful
        self._stateless = stateless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request. The request's record holds the body that the caller has read."""
        body: Body = scope["state"]["knock"].body
        headers = Headers(raw=scope["headers"])
        newest_era = "mcp-method" in headers
        if "mcp-session-id" in headers and not newest_era:
            del headers  # it would stay as long as a stream does
            asked, untouched = _UnlessForgotten(send), len(scope)
            await self._stateful(scope, body.replay(), asked)
            if not asked.forgotten:
                return None
            # no copy of the scope: a stream would keep it for as long as it is open
            for name in list(scope)[untouched:]:
                del scope[name]
            return await self._stateless(scope, body.replay(), send)
        if scope["method"] == "POST" and not newest_era and body.message().get("method") == "initialize":
            return await self._stateful(scope, body.replay(), send)
        return await self._stateless(scope, body.replay(), send)


class _UnlessForgotten:
    """A `send` that keeps back an answer of 404, so that another app can answer instead."""

    __slots__ = ("_send", "forgotten")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.forgotten = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 404:
            self.forgotten = True
        if not self.forgotten:
            await self._send(message)
