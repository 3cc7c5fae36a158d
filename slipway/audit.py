"""Gives every request an id and a record, and writes the record as one line of the audit log when it is answered."""

from __future__ import annotations

import functools
import logging
import time
from collections import OrderedDict
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slipway import knocks
from slipway.guards import PROBES, refuse
from slipway.metrics import Metrics
from slipway.sessions import MAX_MESSAGE_BYTES, MAX_SECONDS, Body

MAX_REMEMBERED_CLIENTS = 2000
PROGRESS = b'"notifications/progress"'
MAX_SHARED = 4000  # headers
MAX_SHARED_BYTES = 1000
_EACH_ITS_OWN = frozenset({b"x-request-id", b"mcp-session-id", b"last-event-id", b"traceparent", b"content-length"})


class Audit:
    """The outermost room: what comes in here has a record, whatever becomes of it."""

    def __init__(
        self, app: ASGIApp, logger: logging.Logger, metrics: Metrics | None = None, longest: int = MAX_MESSAGE_BYTES
    ) -> None:
        """Take the app, the log, what counts requests and open streams, and the bytes of the longest body."""
        self._longest = max(longest, MAX_MESSAGE_BYTES)
        self._app = app
        self.write = functools.partial(knocks.write, logger)
        self._metrics = metrics
        self._clients: OrderedDict[str, str] = OrderedDict()  # session id → client name and version
        self._shared: dict[tuple[bytes, bytes], tuple[bytes, bytes]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on with the record in the scope's state (knocks.of), and log."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        self._share(scope["headers"])
        headers = Headers(raw=scope["headers"])
        knock = knocks.Knock(
            time=knocks.now(), http=scope["method"], path=scope["path"], body=Body(receive, self._longest)
        )
        knock.request_id = knocks.request_id(headers.get("x-request-id"))
        knock.door = knocks.door(headers.get("host", ""))
        knock.resumed = "last-event-id" in headers
        scope.setdefault("state", {})["knock"] = knock
        quiet = scope["path"] in PROBES or scope.get("slipway.quiet", False)
        recording = _Recording(self, knock, headers, send, written=quiet)
        del headers  # a stream would keep them
        reset, came = knocks.current.set(knock), True
        try:
            # of a DELETE too: where sessions are "auto", two apps may ask for the body, and it comes only once
            if scope["method"] in ("POST", "DELETE"):
                try:
                    await knock.body.read()
                except TimeoutError:
                    came = False
                knock.bytes_in = len(knock.body.content)
            if came:
                await self._app(scope, knock.body.replay(), recording)
            else:
                why = f"The body did not arrive in {MAX_SECONDS:.0f} s. Send the request again."
                await refuse(scope, receive, recording, 408, why, {"connection": "close"}, limit="slow_body")
        except Exception:
            knock.reason = knock.reason or "internal error: see the server's log"
            knock.status = knock.status or 500
            raise
        finally:
            knocks.current.reset(reset)
            if not knock.status:
                knock.status, knock.reason = 499, knock.reason or "the client left before the answer"
            recording.finish()
            knock.body.forget()
            if recording.streams:
                self.stream(knock, -1)
            if self._metrics and not quiet:
                self._metrics.answered(knock)

    def _share(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Let requests that say the same keep it once: a session keeps what opened it, and a stream its own."""
        shared = self._shared
        if len(shared) > MAX_SHARED:
            shared.clear()
        for number, pair in enumerate(headers):
            name, value = pair
            if name not in _EACH_ITS_OWN and len(value) <= MAX_SHARED_BYTES:
                headers[number] = shared.setdefault(pair, pair)

    def stream(self, knock: knocks.Knock, change: int) -> None:
        """Count an event stream that opened (1) or closed (-1)."""
        if self._metrics:
            self._metrics.stream(knock.http, change)

    def finish(self, knock: knocks.Knock, headers: Headers) -> None:
        """Write the record; what happens to it from now on is written once more."""
        self._identify(knock, headers)
        knock.outcome = knock.outcome or _outcome(knock)
        self.write(knock)
        knock.written(self.write)

    def remember(self, session: str, knock: knocks.Knock) -> None:
        """Note which client has opened a session."""
        info = _client_info(knock.body.message())
        if info:
            self._clients[session] = info
            while len(self._clients) > MAX_REMEMBERED_CLIENTS:
                self._clients.popitem(last=False)

    def _identify(self, knock: knocks.Knock, headers: Headers) -> None:
        message = knock.body.message()
        params = _mapping(message.get("params"))
        knock.method = str(message.get("method", headers.get("mcp-method", "")))[:100]
        if knock.method == "tools/call":
            knock.tool = str(params.get("name", headers.get("mcp-name", "")))[:128]
        session = headers.get("mcp-session-id", "")
        knock.client = _client_info(message) or self._clients.get(session, "") or headers.get("user-agent", "")[:100]
        version = headers.get("mcp-protocol-version") or params.get("protocolVersion")
        knock.era = str(version)[:20] if version else ""


class _Recording:
    """A `send` that puts the answer on the record; no function, see sessions._Replay."""

    __slots__ = ("_audit", "_headers", "_knock", "_send", "_started", "_written", "streams")

    def __init__(self, audit: Audit, knock: knocks.Knock, headers: Headers, send: Send, *, written: bool) -> None:
        self._audit = audit
        self._knock = knock
        self._headers: Headers | None = headers
        self._send = send
        self._started = time.perf_counter()
        self.streams = False
        self._written = written

    async def __call__(self, message: Message) -> None:
        knock = self._knock
        if message["type"] == "http.response.start":
            knock.status = message["status"]
            answer = MutableHeaders(scope=message)
            answer["x-request-id"] = knock.request_id
            kind = answer.get("content-type", "")
            self.streams = knock.status == 200 and kind.startswith("text/event-stream")
            if self.streams:
                self._audit.stream(knock, 1)
            if session := answer.get("mcp-session-id"):
                self._audit.remember(session, knock)
            if knock.http == "GET":
                # an event stream may stay open for hours: its opening is what is worth a line
                self.finish()
        else:
            content = message.get("body", b"")
            knock.bytes_out += len(content)
            if self.streams:
                knock.progress += content.count(PROGRESS)
        await self._send(message)

    def finish(self) -> None:
        """Write the record, if that was not done, and once more if its stream was ended by a limit since."""
        headers, self._headers = self._headers, None
        if self._written:
            return
        knock = self._knock
        knock.ms = (time.perf_counter() - self._started) * 1000
        if headers is not None:
            self._audit.finish(knock, headers)
        elif self.streams and knock.limit:
            knock.outcome = "limited"
            self._audit.write(knock)


def _outcome(knock: knocks.Knock) -> str:
    if knock.status == 499:
        return "left"
    if knock.status >= 500:
        return "error"
    if knock.status >= 400:
        return "limited" if knock.limit else "refused"
    return "ok"


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _client_info(message: dict[str, Any]) -> str:
    """Return "name version" of `initialize` or of the newest era's `_meta`, or ""."""
    params = _mapping(message.get("params"))
    meta = _mapping(params.get("_meta"))
    info = _mapping(params.get("clientInfo") or meta.get("io.modelcontextprotocol/clientInfo"))
    return f"{info.get('name', '')} {info.get('version', '')}".strip()[:100]
