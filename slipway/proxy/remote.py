"""A URL, or an SDK server in memory, as an upstream: which connection carries a request, what is no MCP server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
from fastmcp.client.transports import ClientTransport, SSETransport, StreamableHttpTransport
from fastmcp.server.dependencies import fastmcp_request_ctx
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError
from mcp_types.version import LATEST_MODERN_VERSION, MODERN_PROTOCOL_VERSIONS

from slipway import knocks, targets, telemetry
from slipway.errors import Problem
from slipway.proxy.line import Line, Tools
from slipway.proxy.relay import Relay, SessionRelay
from slipway.proxy.upstreams import Upstream
from slipway.targets import Target

URL_TIMEOUT = 4.0  # seconds in which a URL must answer the first time
# how a connection breaks; a refusal of ours or an answer of the upstream's is none of these
_BROKEN = (httpx2.HTTPError, ConnectionError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)
_FORGOTTEN = re.compile(r"(?i)session (terminated|not found|expired|closed)|(unknown|invalid|no valid) session")


class Remote(Upstream):
    """A URL, or an SDK server in memory: one upstream session for each session of ours, and the caller's era."""

    def __init__(
        self, name: str, transport: ClientTransport, announce: Callable[[str], None], target: Target | None = None
    ) -> None:
        super().__init__(name, announce)
        self._target = target
        # our caller's token is ours alone
        options: dict[str, Any] = {"forward_incoming_headers": False, "init_timeout": 30}
        self._tools = Tools()
        self._fresh = Relay(transport, **options).on(self._line())
        self._kept = SessionRelay(transport, **options).on(self._line())
        self._eras = {"legacy", LATEST_MODERN_VERSION}

    def _line(self) -> Line:
        return Line(self.name, self.changed, self._tools)

    @staticmethod
    def to(target: Target, announce: Callable[[str], None]) -> Remote:
        """Return the upstream of a URL."""
        kind = SSETransport if target.sse else StreamableHttpTransport
        transport = kind(target.url, headers=dict(target.headers), httpx_client_factory=_client)
        return Remote(target.label, transport, announce, target)

    async def client(self) -> Relay:
        """Return a client in the caller's era, as far as the upstream speaks it."""
        request = fastmcp_request_ctx.get()
        modern = request is not None and request.protocol_version in MODERN_PROTOCOL_VERSIONS
        mode = LATEST_MODERN_VERSION if modern else "legacy"
        if mode not in self._eras:
            mode = next(iter(self._eras))
        if mode == "legacy" and request is not None:
            kept = self._kept.new_stateful()  # type: ignore[attr-defined]
            if "line" not in vars(kept) or kept.line is self._kept.line:
                kept.on(self._line())
            return kept  # type: ignore[no-any-return]
        fresh: Relay = self._fresh.new().on(self._line())  # type: ignore[attr-defined]
        fresh.mode = mode
        return fresh

    def _same(self, line: Line) -> Relay:
        relay: Relay = self._fresh.new().on(line)  # type: ignore[attr-defined]
        relay.mode = "legacy" if "legacy" in self._eras else LATEST_MODERN_VERSION
        return relay

    async def lost(self, error: Exception) -> Exception | None:
        """A session that the upstream forgot is lost, too: the next request opens another."""
        gone = await super().lost(error)
        if gone and (request := fastmcp_request_ctx.get()):
            stale = self._kept._caches.pop(request.session._connection, None)  # type: ignore[attr-defined]
            if stale:
                try:
                    await stale._disconnect(force=True)
                except Exception as why:  # its task ended with it; the request learnt only that it is gone
                    return why
        return gone

    @staticmethod
    def _is_loss(error: BaseException) -> bool:
        return (
            Upstream._is_loss(error)
            or isinstance(error, _BROKEN)
            or (isinstance(error, MCPError) and bool(_FORGOTTEN.search(error.error.message)))
        )

    async def start(self) -> None:
        """Find out which eras the upstream speaks."""
        if self._target:
            await _refuse_what_is_no_mcp(self._target)
        failure: MCPError | None = None
        for era in sorted(self._eras):
            relay: Relay = self._fresh.new().on(self._line())  # type: ignore[attr-defined]
            relay.mode = "legacy" if era == "legacy" else "auto"
            try:
                if await self._introduce(relay) not in MODERN_PROTOCOL_VERSIONS and era != "legacy":
                    self._eras.discard(era)
            except MCPError as error:
                self._eras.discard(era)
                failure = error
        if failure and not self._eras:
            raise Problem(
                f"No MCP server answers at {self.name}: {failure.error.message}",
                "Mend the URL; it often ends with /mcp", targets.NO_ANSWER,
            )  # fmt: skip


def _client(headers: Any = None, timeout: Any = None, auth: Any = None, **_: Any) -> httpx2.AsyncClient:
    """Return the SDK's HTTP client, which tells the upstream the trace and the id of the request that it serves.

    FastMCP asks factories to follow redirects; the SDK does that itself, within the origin, and so it stays.
    """
    client = create_mcp_http_client(headers, timeout, auth)
    client.event_hooks["request"].append(_tie)
    return client


async def _tie(request: httpx2.Request) -> None:
    # the SDK sends each message in the context of who asked for it
    for name, value in telemetry.outgoing().items():
        request.headers.setdefault(name, value)


async def _refuse_what_is_no_mcp(target: Target) -> None:
    """Send one request by hand, to tell apart what an MCP client only calls a failed connection.

    Raises:
        Problem: nothing answers, access is denied, or what answers is no MCP server.
    """
    hello = {
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "slipway", "version": "0"},
        },
    }  # fmt: skip
    headers = dict(target.headers) | {"accept": "application/json, text/event-stream"}
    status, kind, moved, body = 0, "", "", b""
    try:
        async with (
            asyncio.timeout(URL_TIMEOUT),
            httpx2.AsyncClient(timeout=URL_TIMEOUT, headers=headers) as client,
            client.stream("GET" if target.sse else "POST", target.url, json=None if target.sse else hello) as answer,
        ):
            status, kind = answer.status_code, answer.headers.get("content-type", "")
            session, moved = answer.headers.get("mcp-session-id"), answer.headers.get("location", "")
            if "event-stream" not in kind:
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > 100_000:
                        break
            if session:
                await client.delete(target.url, headers={"mcp-session-id": session})
    except (httpx2.HTTPError, TimeoutError, OSError) as error:
        why = (
            f"no answer in {URL_TIMEOUT:.0f} s"
            if isinstance(error, TimeoutError)
            else str(error) or type(error).__name__
        )
        raise Problem(
            f"{target.shown} cannot be reached: {knocks.printable(why, 200)}.", "Start that server, or mend the URL",
            targets.NO_ANSWER,
        ) from None  # fmt: skip
    if status in (401, 403, 407):
        raise Problem(
            f"{target.shown} answers {status}: it wants credentials that it did not get, or refuses these.",
            'Put them into .env: SLIPWAY_TARGET_HEADERS=\'{"Authorization": "Bearer …"}\'', targets.NO_ACCESS,
        )  # fmt: skip
    if 300 <= status < 400:
        # followed, our headers could reach somebody else
        raise Problem(
            f"{target.shown} redirects to {knocks.printable(moved.partition('?')[0], 200)}.",
            "Write that URL instead",
            targets.NO_ANSWER,
        )
    if "event-stream" not in kind and b'"jsonrpc"' not in body:
        what = f"{status} {kind.split(';')[0]}".strip()
        raise Problem(
            f"{target.shown} is no MCP server: it answers {what}.", "Mend the URL; its path is often /mcp",
            targets.NO_ANSWER,
        )  # fmt: skip
