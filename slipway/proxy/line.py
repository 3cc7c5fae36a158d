"""One connection to a server elsewhere: whose requests are on it, and whose is what that server sends of itself.

Logs, sampling, elicitation, roots, list changes and subscriptions. How a request gets onto it is in relay.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mcp_types as mt
from fastmcp.server.dependencies import FastMCPRequestContext, fastmcp_request_ctx, get_access_token
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.subscriptions import PromptsListChanged, ResourcesListChanged, ServerEvent, ToolsListChanged
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from slipway import knocks

log = logging.getLogger("slipway.upstream")

# what an upstream tells, and what the newest era's listen streams hear of it
LIST_CHANGES: dict[type, Callable[[], ServerEvent]] = {
    mt.ToolListChangedNotification: ToolsListChanged,
    mt.PromptListChangedNotification: PromptsListChanged,
    mt.ResourceListChangedNotification: ResourcesListChanged,
}
OnChange = Callable[["Line", Any, Sequence[Any]], Awaitable[None]]


def seat() -> str:
    token = get_access_token()
    return str(token.claims.get("sub", "")) if token else ""


def is_probe() -> bool:
    """Tell whether we ask ourselves, to learn whether we are ready."""
    token = get_access_token()
    return token is not None and token.claims.get("client_id") == "self"


@dataclass(eq=False)
class Tools:
    """The names that an upstream listed last; connections to one and the same share it."""

    names: set[str] | None = None


class Line:
    """One connection's traffic: the front requests in flight, to which the upstream's own messages belong.

    A message of the upstream does not say which request it belongs to. With one request in flight there is no
    doubt; with several of one caller the latest gets it; with several callers nobody does, since it could be
    another's.
    """

    def __init__(self, name: str, on_change: OnChange, tools: Tools | None = None) -> None:
        self.name = name
        self.tools = tools if tools is not None else Tools()
        self.lock = asyncio.Lock()
        self._on_change = on_change
        self._calls: list[tuple[FastMCPRequestContext, object]] = []
        self._sessions: weakref.WeakSet[Any] = weakref.WeakSet()
        # URI → what our callers know it by, and their sessions
        self._subscribed: dict[str, tuple[str, weakref.WeakSet[Any]]] = {}

    def enter(self) -> None:
        """Note the request that begins; one of our own hears nothing, and is no second caller beside a seat."""
        if (now := fastmcp_request_ctx.get()) is not None and not is_probe():
            # without tokens who calls is told by the connection alone
            self._calls.append((now, seat() or now.session._connection))
            if now.meta:
                now.meta.pop("baggage", None)  # the caller's own (W3C Baggage); FastMCP passes all of _meta on
            self._sessions.add(now.session._connection)

    def leave(self) -> None:
        """Forget the request that ends."""
        now = fastmcp_request_ctx.get()
        for index, (other, _) in enumerate(self._calls):
            if other is now:
                del self._calls[index]
                return

    def subscribe(self, uri: str, public: str) -> None:
        """Note that this session wants to hear of this resource, under its public name."""
        if (now := fastmcp_request_ctx.get()) is not None:
            _, listeners = self._subscribed.setdefault(uri, (public, weakref.WeakSet()))
            listeners.add(now.session._connection)

    def unsubscribe(self, uri: str) -> bool:
        """Forget it. Returns: whether nobody wants to hear of the resource any more."""
        _, listeners = self._subscribed.get(uri, ("", ()))
        if listeners and (now := fastmcp_request_ctx.get()) is not None:
            listeners.discard(now.session._connection)
        if not listeners:
            self._subscribed.pop(uri, None)
        return not listeners

    def busy(self) -> bool:
        """Tell whether a request is in flight."""
        return bool(self._calls)

    def _whose(self) -> FastMCPRequestContext:
        if not self._calls:
            raise MCPError(mt.INVALID_REQUEST, f"{self.name} asked something while nobody was calling it")
        if len({whose for _, whose in self._calls}) > 1:
            raise MCPError(
                mt.INVALID_REQUEST,
                f"{self.name} serves several callers at once, so nobody can tell whom it asks; "
                "the operator can give each a process of their own: SLIPWAY_TARGET_PROCESSES=seat",
            )
        return self._calls[-1][0]

    async def _ask(self, request: Any, result: type[Any]) -> Any:
        caller = self._whose()
        if caller.protocol_version in MODERN_PROTOCOL_VERSIONS:
            raise MCPError(
                mt.INVALID_REQUEST, "the caller speaks 2026-07-28, in which a server asks its client nothing"
            )
        return await caller.session.send_request(
            request, result, metadata=ServerMessageMetadata(related_request_id=caller.request_id)
        )

    async def sample(self, _: Any, params: mt.CreateMessageRequestParams) -> Any:
        """Hand a sampling request to the caller's client, as it is."""
        result = mt.CreateMessageResultWithTools if params.tools or params.tool_choice else mt.CreateMessageResult
        return await self._ask(mt.CreateMessageRequest(params=params), result)

    async def elicit(self, _: Any, params: mt.ElicitRequestParams) -> Any:
        """Hand an elicitation request to the caller's client, as it is."""
        return await self._ask(mt.ElicitRequest(params=params), mt.ElicitResult)

    async def roots(self, _: Any) -> Any:
        """Ask the caller's client for its roots."""
        return await self._ask(mt.ListRootsRequest(), mt.ListRootsResult)

    async def log(self, params: mt.LoggingMessageNotificationParams) -> None:
        """Hand a log message to the caller's client."""
        with contextlib.suppress(MCPError):  # nobody's message is nobody's
            caller = self._whose()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated, but it alone knows the newest era's level per request
                await caller.session.send_log_message(
                    params.level, params.data, params.logger, related_request_id=caller.request_id
                )

    async def message(self, message: Any) -> None:
        """Pass a list change on to every session that uses this connection."""
        if isinstance(message, mt.ResourceUpdatedNotification):
            public, listeners = self._subscribed.get(str(message.params.uri), ("", ()))
            for connection in list(listeners):
                with contextlib.suppress(Exception):  # a session that is gone needs no news
                    await connection.notify(message.method, {"uri": public})
        elif type(message) in LIST_CHANGES:
            await self._on_change(self, message, list(self._sessions))
        elif isinstance(message, Exception):
            log.warning("%s sent what is no MCP message: %s", self.name, knocks.printable(message, 200))

    def callbacks(self) -> dict[str, Any]:
        """Return what the SDK's ClientSession takes."""
        return {
            "sampling_callback": self.sample, "elicitation_callback": self.elicit, "list_roots_callback": self.roots,
            "logging_callback": self.log, "message_handler": self.message,
        }  # fmt: skip
