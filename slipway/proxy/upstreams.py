"""Servers that run elsewhere, as FastMCP proxies: what commands and URLs have in common.

How a request is carried, how it ends, and what is said when the connection is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import mcp_types as mt
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.prompts.base import Prompt
from fastmcp.resources.base import Resource
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.server.providers.proxy import ProxyMetadataMiddleware, ProxyProvider, ProxyResource
from fastmcp.tools.base import Tool
from fastmcp.utilities.versions import VersionSpec
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import AnyUrl

from slipway.proxy.line import LIST_CHANGES, Line, Tools
from slipway.proxy.relay import Relay, Unreachable, keep

SETTLE = 0.3  # seconds in which further list changes belong to the same burst


class Outages(Middleware):
    """Turns the loss of an upstream in the middle of a request into a sentence that an agent can act on."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def on_request(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """Hand on, and explain a lost connection; a call's becomes its error result, which models get to read.

        Raises:
            ToolError, MCPError: the upstream is gone; whether it did what it was asked is unknown.
        """
        try:
            return await call_next(context)
        except Exception as error:
            if not (why := await self._upstream.lost(error)):
                raise
            said = self._sentence(why)
            called = context.method == "tools/call"
            raise (ToolError(said) if called else MCPError(mt.INTERNAL_ERROR, said)) from error

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
    """FastMCP's provider, which remembers one list for all for minutes: here what one seat's process alone has, and
    what came without a notification, is found too.
    """

    async def _get_tool(self, name: str, version: VersionSpec | None = None) -> Tool | None:
        found = await super()._get_tool(name, version)
        if found is None:
            await self._list_tools()
            found = await super()._get_tool(name, version)
        return found

    async def _get_prompt(self, name: str, version: VersionSpec | None = None) -> Prompt | None:
        found = await super()._get_prompt(name, version)
        if found is None:
            await self._list_prompts()
            found = await super()._get_prompt(name, version)
        return found

    async def _get_resource(self, uri: str, version: VersionSpec | None = None) -> Resource | None:
        found = await super()._get_resource(uri, version)
        if found or await self._get_resource_template(uri, version):
            return found
        # a server may read more than it lists (MCP, Resources): it answers for itself
        return ProxyResource(client_factory=self.client_factory, uri=AnyUrl(uri), name=uri)


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
        self._looking: set[Tools] = set()
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

    async def lost(self, error: Exception) -> Exception | None:
        """Return why the connection was lost, if this error is that, and let go of what is left of it."""
        chain = list(causes(error))
        unreached = any(isinstance(each, Unreachable) for each in chain)
        return error if not unreached and any(map(self._is_loss, chain)) else None

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

    async def subscribe(self, uri: str, public: str, *, wanted: bool) -> None:
        """Subscribe the caller's session to a resource, or end that (MCP 2025-11-25, Resources, Subscriptions).

        Args:
            uri: the upstream's own.
            public: what our callers know it by.
        """
        relay = await self.client()
        async with relay:
            if wanted:
                relay.line.subscribe(uri, public)
                await relay.session.subscribe_resource(uri)
            elif relay.line.unsubscribe(uri):
                await relay.session.unsubscribe_resource(uri)

    async def changed(self, line: Line, note: Any, sessions: Sequence[Any]) -> None:
        """Pass a list change on: to sessions of the handshake era, and to the newest era's listen streams."""
        self.provider._tools_cache = self.provider._resources_cache = None
        self.provider._templates_cache = self.provider._prompts_cache = None
        if isinstance(note, mt.ToolListChangedNotification) and line.tools not in self._looking:
            self._looking.add(line.tools)
            keep(asyncio.ensure_future(self._look(line)))
        await self.bus.publish(LIST_CHANGES[type(note)]())
        for connection in sessions:
            if connection.protocol_version not in MODERN_PROTOCOL_VERSIONS:
                with contextlib.suppress(Exception):  # a session that is gone needs no news
                    await connection.notify(note.method, None)

    async def _look(self, line: Line) -> None:
        """Announce how the tools changed, once for a burst of notifications."""
        await asyncio.sleep(SETTLE)
        self._looking.discard(line.tools)
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
