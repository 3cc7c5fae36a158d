"""What the server answers at all: Host and Origin (against DNS rebinding), and bounds, in front of every route."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from slipway import knocks

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
# whether we live and what we do
PROBES = frozenset({"/healthz", "/readyz", "/livez", "/metrics"})
MAX_DEPTH = 64
MAX_CONTAINERS = 20_000
# a string without its end goes to the end of the input: nothing is looked at twice
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.S)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_LOOPBACK_ORIGINS = ("localhost", "127.0.0.1", "::1")


def host_name(host: str) -> str:
    """Return the name of a Host header without its port, lower case: "[::1]:8000" → "[::1]"."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def from_this_machine(request: Request) -> bool:
    """Tell whether a request was meant for the server's own loopback port: to all others its pages do not exist."""
    # behind the edge there is a forwarded header, at the tunnel another Host
    forwarded = any(name in request.headers for name in ("x-forwarded-for", "forwarded", "via"))
    return not forwarded and host_name(request.headers.get("host", "")) in LOOPBACK


class HostGuard:
    """Refuses a Host that is not ours with 421 (RFC 9110 §15.5.20) and says which one was seen.

    FastMCP's own guard takes its list when the app is built; the tunnel's host is known only later.
    Origins are the edge's business, which checks and then removes them. An Origin that still arrives belongs to
    a page that went around the edge: it gets 403 unless it is served from this machine (MCP 2025-11-25,
    Transports, Security Warning).
    """

    def __init__(self, app: ASGIApp, hosts: Callable[[], list[str]]) -> None:
        """Take the app, and a function that returns the allowed host patterns of this moment."""
        self._app = app
        self._hosts = hosts

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer 421 or hand on."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        headers = Headers(raw=scope["headers"])
        host = host_name(headers.get("host", ""))
        # a pattern must not let through what would break out of a URL or a header
        whole = _HOST.fullmatch(headers.get("host", "").lower())
        # which others are ours has to be looked up
        if not whole or not (host in LOOPBACK or any(_fits(host, pattern) for pattern in self._hosts())):
            seen = knocks.printable(host, 253) or "(none)"
            text = f"The Host {seen} is not ours. The operator can add it to SLIPWAY_ALLOWED_HOSTS in .env."
            return refuse(scope, receive, send, 421, text, code="host")
        origin = headers.get("origin")
        if origin and public_host(origin) not in _LOOPBACK_ORIGINS:
            seen = knocks.printable(origin, 253)
            text = f"The Origin {seen} may not call the server past its edge. Use the edge's URL."
            return refuse(scope, receive, send, 403, text, code="origin")
        return self._app(scope, receive, send)


def _fits(host: str, pattern: str) -> bool:
    # no fnmatch: to it [::1] is a set of characters
    return host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]))


class Bounds:
    """Refuses what is too much, whoever sends it: requests at once (503), bodies (413), JSON dear to read (400)."""

    def __init__(self, app: ASGIApp, at_once: int) -> None:
        """Take the app, and how many requests may be open."""
        self._app = app
        self._most = at_once
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 503, 413 or 400, or hand on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        # the probes must be answered at the worst of times
        asked_by_ourselves = scope["path"] in PROBES or scope.get("slipway.quiet")
        if self._most and self.open >= self._most and not asked_by_ourselves:
            text = f"The server has {self._most} requests open, which is the most. Try again in a few seconds."
            scope["state"]["knock"].body.forget()
            return await refuse(scope, receive, send, 503, text, {"retry-after": "5"}, limit="requests_at_once")
        if scope["state"]["knock"].body.too_long:
            # what nobody saw whole is not counted, not in the log, and may be dear
            scope["state"]["knock"].body.forget()
            text = "The body is longer than this server takes (SLIPWAY_MAX_BODY). Send less at once."
            return await refuse(scope, receive, send, 413, text, {"connection": "close"}, limit="body")
        if why := too_dear(scope["state"]["knock"].body.content):
            scope["state"]["knock"].body.forget()
            return await refuse(scope, receive, send, 400, why, limit="json")
        self.open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.open -= 1


def too_dear(content: bytes) -> str:
    """Say why a body costs too much to read as JSON, or "": brackets in strings do not count.

    A parser works in time with the number of lists and objects, and recurses in their depth.
    """
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return ""
    brackets = _STRING.sub(b"", content).translate(None, _NO_BRACKET)
    if len(brackets) > 2 * MAX_CONTAINERS:
        return f"The body has more than {MAX_CONTAINERS} lists and objects. Send less at once."
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return f"The body is nested deeper than {MAX_DEPTH}, or is no JSON." if brackets else ""


async def refuse(
    scope: Scope, receive: Receive, send: Send, status: int, text: str, more: Mapping[str, str] | None = None, *,
    limit: str = "", code: str = "",
) -> None:  # fmt: skip
    """Answer with a JSON sentence that says what to change, and note it on the request's record."""
    if knock := knocks.of(scope):
        knock.reason, knock.limit, knock.code = text, limit, code
    await JSONResponse({"error": text}, status, more)(scope, receive, send)


def public_host(url: str) -> str:
    """Return the host name of a URL, or "" where it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
