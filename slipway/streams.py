"""What the SDK's event streams lack: a first byte at once, an end for who does not read, a bound on what is kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from cachetools import TLRUCache
from key_value.aio.stores.memory import MemoryStore
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATIENCE = 30.0  # seconds
MAX_EVENT_BYTES = 64 << 20  # of all sessions; events and their order are two collections, each with this bound
ENTRY_BYTES = 500  # what an entry takes besides its text
OPENED = b": open\n\n"  # a comment, which every client passes over (HTML Living Standard, 9.2.6)


class FirstByte:
    """Sends a comment right after the head of an event stream.

    Some proxies and clients take an answer for begun only at its first body byte, and an idle stream's would be the
    SDK's ping after 15 seconds.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Hand on; add the comment to event streams."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        return self._app(scope, receive, _Opening(send))


class _Opening:
    """A `send`; no function, see sessions._Replay."""

    __slots__ = ("_send",)

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start" and _streams(message):
            await self._send({"type": "http.response.body", "body": OPENED, "more_body": True})


class SlowReaders:
    """Cuts who does not read what is sent: the answer waits in our memory, and the tool behind it waits, too.

    Stands directly on uvicorn, for only its transport can be ended while bytes are left to send.
    """

    def __init__(self, app: ASGIApp, patience: float | None = None) -> None:
        """Take the app, and the seconds in which a message must have gone out."""
        self._app = app
        self._patience = patience or PATIENCE

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Hand on."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        return self._app(scope, receive, _Cutting(scope, send, self._patience))


class _Cutting:
    """A `send`; no function, see sessions._Replay."""

    __slots__ = ("_patience", "_scope", "_send")

    def __init__(self, scope: Scope, send: Send, patience: float) -> None:
        self._scope = scope
        self._send = send
        self._patience = patience

    async def __call__(self, message: Message) -> None:
        cycle = getattr(self._send, "__self__", None)
        if not getattr(getattr(cycle, "flow", None), "write_paused", True):
            # uvicorn waits only where the client does not read: a timer would cost more than the message
            return await self._send(message)
        try:
            async with asyncio.timeout(self._patience):
                await self._send(message)
        except TimeoutError:
            if knock := self._scope.get("state", {}).get("knock"):
                knock.reason, knock.limit = "cut: the client does not read its answer", "slow_reader"
            if transport := getattr(cycle, "transport", None):
                transport.abort()
            raise OSError("the client does not read its answer") from None


class BoundedEvents(MemoryStore):
    """Where FastMCP's event store keeps what a client may ask for again: so many bytes, the oldest go first."""

    async def _setup_collection(self, *, collection: str) -> None:
        await super()._setup_collection(collection=collection)
        # the library counts entries; of events one may be a thousand times another
        kept: Any = self._cache[collection]
        kept._cache = TLRUCache(MAX_EVENT_BYTES, ttu=_until, timer=time.time, getsizeof=_size)


def _until(_: str, entry: Any, __: float) -> float:
    return float(entry.expires_at.timestamp() if entry.expires_at else "inf")


def _size(entry: Any) -> int:
    return len(entry.json_str) + ENTRY_BYTES


def _streams(start: Message) -> bool:
    return start["status"] == 200 and Headers(raw=start["headers"]).get("content-type", "").startswith(
        "text/event-stream"
    )
