"""Servers that run elsewhere, as FastMCP proxies: what all have in common, and a URL or an SDK server in memory.

Which connection carries a request, how it begins, how it ends, and what is said when it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import mcp_types as mt
from fastmcp import FastMCP
from fastmcp.client.transports import ClientTransport, SSETransport, StreamableHttpTransport
from fastmcp.exceptions import ToolError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.server.providers.proxy import ProxyMetadataMiddleware, ProxyProvider
from fastmcp.tools.base import Tool, ToolResult
from fastmcp.utilities.versions import VersionSpec
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import PromptsListChanged, ResourcesListChanged, ServerEvent, ToolsListChanged
from mcp_types.version import LATEST_MODERN_VERSION, MODERN_PROTOCOL_VERSIONS

from slipway import knocks, targets
from slipway.errors import Problem
from slipway.proxy.relay import Line, Relay, SessionRelay, Tools, Unreachable, front, keep
from slipway.targets import Target

SETTLE = 0.3  # seconds in which further list changes belong to the same burst
URL_TIMEOUT = 4.0  # seconds in which a URL must answer the first time

_CHANGES: dict[type, Callable[[], ServerEvent]] = {
    mt.ToolListChangedNotification: ToolsListChanged,
    mt.PromptListChangedNotification: PromptsListChanged,
    mt.ResourceListChangedNotification: ResourcesListChanged,
}


class Outages(Middleware):
    """Turns the loss of an upstream in the middle of a request into a sentence that an agent can act on."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def on_call_tool(
        self,
        context: MiddlewareContext[mt.CallToolRequestParams],
        call_next: CallNext[mt.CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        """Hand on; a lost connection becomes the call's error result, which models get to read.

        Raises:
            ToolError: the upstream is gone; whether it did what it was asked is unknown.
        """
        try:
            return await call_next(context)
        except Exception as error:
            if await self._upstream.lost(error):
                raise ToolError(self._sentence(error)) from error
            raise

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Hand on, and explain a lost connection.

        Raises:
            MCPError: the upstream is gone.
        """
        try:
            return await call_next(context)
        except ToolError:
            raise
        except Exception as error:
            if await self._upstream.lost(error):
                raise MCPError(mt.INTERNAL_ERROR, self._sentence(error)) from error
            raise

    def _sentence(self, error: Exception) -> str:
        if any(isinstance(cause, httpx2.ConnectError) for cause in causes(error)):
            return f"{self._upstream.name} cannot be reached at the moment. Nothing was done; try again shortly."
        return (
            f"{self._upstream.name} ended in the middle of this request; whether it was done is not known. "
            "It is there again for the next one."
        )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what led to it."""
    seen: set[int] = set()  # contexts can run in a circle
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class _Provider(ProxyProvider):
    """FastMCP's provider, which remembers one list for all: here a tool of one seat's process alone is found, too."""

    async def _get_tool(self, name: str, version: VersionSpec | None = None) -> Tool | None:
        found = await super()._get_tool(name, version)
        if found is None:
            await self._list_tools()
            found = await super()._get_tool(name, version)
        return found


class Upstream:
    """A server elsewhere: a FastMCP proxy in front of it, and its life from start to close."""

    def __init__(self, name: str, announce: Callable[[str], None]) -> None:
        self.name = name
        self._announce = announce
        self.bus = InMemorySubscriptionBus()
        self.provider = _Provider(self.client)
        # FastMCPProxy is the same and a ping that goes upstream; ours is answered here
        self.server: FastMCP[Any] = FastMCP(name, dereference_schemas=False)  # a schema is passed on as it is
        self.server.provider_error_strategy = "raise"
        self.server.add_provider(self.provider)
        self.server.add_middleware(ProxyMetadataMiddleware(self.provider, identity="upstream"))
        self.server.add_middleware(Outages(self))
        self.instructions: str | None = None
        self._looking: set[Line] = set()
        self.completes = self.subscribes = False

    async def client(self) -> Relay:
        """Return a client for the present request; FastMCP's proxy enters and leaves it.

        Raises:
            MCPError: there is no place for this caller at the moment.
        """
        raise NotImplementedError

    async def start(self) -> None:
        """Connect for the first time.

        Raises:
            Problem: with the cause, the cure and the exit code of targets.py.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """End the connections and the processes behind them."""

    async def lost(self, error: Exception) -> bool:
        """Tell whether this error is the loss of a connection, and let go of what is left of it."""
        chain = list(causes(error))
        return not any(isinstance(e, Unreachable) for e in chain) and any(map(self._is_loss, chain))

    @staticmethod
    def _is_loss(error: BaseException) -> bool:
        return isinstance(error, MCPError) and error.error.code == mt.CONNECTION_CLOSED

    async def complete(self, ref: Any, argument: Any, context: Any) -> mt.Completion:
        """Ask the upstream for completions (MCP, Utilities, Completion)."""
        relay = await self.client()
        async with relay:
            result = await relay.complete_mcp(
                ref, {"name": argument.name, "value": argument.value}, context.arguments if context else None
            )
        return result.completion

    async def subscribe(self, uri: str, *, wanted: bool) -> None:
        """Subscribe the caller's session to a resource, or end that (MCP 2025-11-25, Resources, Subscriptions)."""
        relay = await self.client()
        async with relay:
            if wanted:
                relay.line.subscribe(uri)
                await relay.session.subscribe_resource(uri)
            elif relay.line.unsubscribe(uri):
                await relay.session.unsubscribe_resource(uri)

    async def changed(self, line: Line, note: Any, sessions: Sequence[Any]) -> None:
        """Pass a list change on: to sessions of the handshake era, and to the newest era's listen streams."""
        self.provider._tools_cache = self.provider._resources_cache = None
        self.provider._templates_cache = self.provider._prompts_cache = None
        if isinstance(note, mt.ToolListChangedNotification) and line not in self._looking:
            self._looking.add(line)
            keep(asyncio.ensure_future(self._look(line)))
        await self.bus.publish(_CHANGES[type(note)]())
        for connection in sessions:
            if connection.protocol_version not in MODERN_PROTOCOL_VERSIONS:
                with contextlib.suppress(Exception):  # a session that is gone needs no news
                    await connection.notify(note.method, None)

    async def _look(self, line: Line) -> None:
        """Announce how the tools changed, once for a burst of notifications."""
        await asyncio.sleep(SETTLE)
        self._looking.discard(line)
        with contextlib.suppress(Exception):  # a connection that is gone has no tools
            before = line.tools.names
            async with self._same(line) as relay:
                now = line.tools.names = {tool.name for tool in await relay.list_tools()}
            if before is not None and before != now:
                new, gone = sorted(now - before), sorted(before - now)
                parts = [f"new: {', '.join(new)}"] * bool(new) + [f"gone: {', '.join(gone)}"] * bool(gone)
                self._announce(f"the tool list of {self.name} changed ({'; '.join(parts)})")

    def _same(self, line: Line) -> Relay:
        """Return a client on this very connection, where it is one that others can join."""
        raise NotImplementedError

    async def _introduce(self, relay: Relay) -> str:
        """Learn what the upstream says of itself. Returns: the protocol version that it speaks."""
        async with relay:
            self.instructions = relay.instructions
            capabilities = relay.server_capabilities
            self.completes = bool(capabilities and capabilities.completions)
            self.subscribes = bool(capabilities and capabilities.resources and capabilities.resources.subscribe)
            relay.line.tools.names = {tool.name for tool in await relay.list_tools()}
            return relay.protocol_version or ""


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
        return Remote(target.url, kind(target.url, headers=dict(target.headers)), announce, target)

    async def client(self) -> Relay:
        """Return a client in the caller's era, as far as the upstream speaks it."""
        request = front()
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

    async def lost(self, error: Exception) -> bool:
        """A session that the upstream forgot is lost, too: the next request opens another."""
        gone = (
            await super().lost(error) or not isinstance(error, MCPError) or "session" in error.error.message.lower()
        )
        if gone and (request := front()):
            stale = self._kept._caches.pop(request.session._connection, None)  # type: ignore[attr-defined]
            if stale:
                await stale._disconnect(force=True)
        return gone

    @staticmethod
    def _is_loss(error: BaseException) -> bool:
        return (
            Upstream._is_loss(error)
            or isinstance(error, httpx2.HTTPError)
            or "session terminated" in str(error).lower()
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
            f"{target.url} cannot be reached: {knocks.printable(why, 200)}.", "Start that server, or mend the URL",
            targets.NO_ANSWER,
        ) from None  # fmt: skip
    if status in (401, 403, 407):
        raise Problem(
            f"{target.url} answers {status}: it wants credentials that it did not get, or refuses these.",
            'Put them into .env: SLIPWAY_TARGET_HEADERS=\'{"Authorization": "Bearer …"}\'', targets.NO_ACCESS,
        )  # fmt: skip
    if 300 <= status < 400:
        # followed, our headers could reach somebody else
        raise Problem(
            f"{target.url} redirects to {knocks.printable(moved, 200)}.", "Write that URL instead", targets.NO_ANSWER
        )
    if "event-stream" not in kind and b'"jsonrpc"' not in body:
        what = f"{status} {kind.split(';')[0]}".strip()
        raise Problem(
            f"{target.url} is no MCP server: it answers {what}.", "Mend the URL; its path is often /mcp",
            targets.NO_ANSWER,
        )  # fmt: skip
