"""Gives every request an id and a record, and writes the record as one line of the audit log when it is answered."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slipway import knocks
from slipway.guards import refuse
from slipway.sessions import MAX_SECONDS, Body

MAX_REMEMBERED_CLIENTS = 2000
PROGRESS = b'"notifications/progress"'


class Audit:
    """The outermost room: what comes in here has a record, whatever becomes of it."""

    def __init__(
        self, app: ASGIApp, logger: logging.Logger, answered: Callable[[knocks.Knock], None] | None = None
    ) -> None:
        """Take the app, the log, and who else wants to know when a request is over."""
        self._app = app
        self._log = logger
        self._answered = answered
        self._clients: OrderedDict[str, str] = OrderedDict()  # session id → client name and version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on with `scope["slipway.knock"]` and `scope["slipway.body"]`, and log."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        knock = knocks.Knock(time=knocks.now(), http=scope["method"], path=scope["path"])
        knock.request_id = knocks.request_id(headers.get("x-request-id"))
        knock.door = knocks.door(headers.get("host", ""))
        knock.resumed = "last-event-id" in headers
        body = Body(receive)
        scope["slipway.knock"], scope["slipway.body"] = knock, body
        started = time.perf_counter()
        streams = False
        quiet = scope["path"] in ("/healthz", "/readyz", "/metrics") or scope.get("slipway.quiet", False)
        written = quiet

        def finish() -> None:
            nonlocal written
            if not written:
                written = True
                knock.ms = (time.perf_counter() - started) * 1000
                self._identify(knock, headers, body)
                knock.outcome = knock.outcome or _outcome(knock)
                self._write(knock)
                knock.written(self._write)
            if knock.http == "POST":
                body.forget()

        async def recording(message: Message) -> None:
            nonlocal streams
            if message["type"] == "http.response.start":
                knock.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = knock.request_id
                streams = answer.get("content-type", "").startswith("text/event-stream")
                if session := answer.get("mcp-session-id"):
                    self._remember(session, body)
                if knock.http == "GET":
                    # an event stream may stay open for hours: its opening is what is worth a line
                    finish()
            else:
                content = message.get("body", b"")
                knock.bytes_out += len(content)
                if streams:
                    knock.progress += content.count(PROGRESS)
            await send(message)

        reset, came = knocks.current.set(knock), True
        try:
            # of a DELETE too: where sessions are "auto", two apps may ask for the body, and it comes only once
            if scope["method"] in ("POST", "DELETE"):
                try:
                    await body.read()
                except TimeoutError:
                    came = False
                knock.bytes_in = len(body.content)
            if came:
                await self._app(scope, body.replay(), recording)
            else:
                why = f"The body did not arrive in {MAX_SECONDS:.0f} s. Send the request again."
                await refuse(scope, recording, 408, why, [(b"connection", b"close")], limit="slow_body")
        except Exception:
            knock.reason = knock.reason or "internal error: see the server's log"
            knock.status = knock.status or 500
            raise
        finally:
            knocks.current.reset(reset)
            if not knock.status:
                knock.status, knock.reason = 499, knock.reason or "the client left before the answer"
            finish()
            if self._answered and not quiet:
                self._answered(knock)

    def _write(self, knock: knocks.Knock) -> None:
        knocks.write(self._log, knock)

    def _remember(self, session: str, body: Body) -> None:
        info = _client_info(body.message())
        if info:
            self._clients[session] = info
            while len(self._clients) > MAX_REMEMBERED_CLIENTS:
                self._clients.popitem(last=False)

    def _identify(self, knock: knocks.Knock, headers: Headers, body: Body) -> None:
        message = body.message()
        params = _mapping(message.get("params"))
        knock.method = str(message.get("method", headers.get("mcp-method", "")))[:100]
        if knock.method == "tools/call":
            knock.tool = str(params.get("name", headers.get("mcp-name", "")))[:128]
        session = headers.get("mcp-session-id", "")
        knock.client = _client_info(message) or self._clients.get(session, "") or headers.get("user-agent", "")[:100]
        version = headers.get("mcp-protocol-version") or params.get("protocolVersion")
        knock.era = str(version)[:20] if version else ""


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
