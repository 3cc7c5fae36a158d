"""One caller's request on its way to a server elsewhere, and what that server sends back of itself.

FastMCP's proxy client lists and calls. Here it learns to share a connection: logs, sampling, elicitation, roots and
list changes find the request that they belong to, and a connection that is lost is said in words.
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

import httpx2
import mcp_types as mt
from fastmcp.client.transports import ClientTransport
from fastmcp.server.dependencies import FastMCPRequestContext, fastmcp_request_ctx, get_access_token
from fastmcp.server.providers.proxy import ProxyClient, StatefulProxyClient
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from slipway import knocks

log = logging.getLogger("slipway.upstream")

Front = FastMCPRequestContext
LIST_CHANGES = (
    mt.ToolListChangedNotification,
    mt.PromptListChangedNotification,
    mt.ResourceListChangedNotification,
)
OnChange = Callable[["Line", Any, Sequence[Any]], Awaitable[None]]


def front() -> Front | None:
    """Return the request that is being answered, or None outside of one."""
    return fastmcp_request_ctx.get()


def seat() -> str:
    token = get_access_token()
    return str(token.claims.get("sub", "")) if token else ""


@dataclass
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
        self._calls: list[tuple[Front, str]] = []
        self._sessions: weakref.WeakSet[Any] = weakref.WeakSet()
        self._subscribed: dict[str, weakref.WeakSet[Any]] = {}  # URI → sessions
        self._public: dict[str, str] = {}  # URI → what our callers know it by

    def enter(self) -> None:
        """Note the request that begins."""
        if (now := front()) is not None:
            self._calls.append((now, seat()))
            if now.meta:
                now.meta.pop("baggage", None)  # the caller's own (W3C Baggage); FastMCP passes all of _meta on
            self._sessions.add(now.session._connection)

    def leave(self) -> None:
        """Forget the request that ends."""
        now = front()
        for index, (other, _) in enumerate(self._calls):
            if other is now:
                del self._calls[index]
                return

    def subscribe(self, uri: str, public: str) -> None:
        """Note that this session wants to hear of this resource, under its public name."""
        if (now := front()) is not None:
            self._public[uri] = public
            self._subscribed.setdefault(uri, weakref.WeakSet()).add(now.session._connection)

    def unsubscribe(self, uri: str) -> bool:
        """Forget it. Returns: whether nobody wants to hear of the resource any more."""
        listeners = self._subscribed.get(uri)
        if listeners is not None and (now := front()) is not None:
            listeners.discard(now.session._connection)
        if not listeners:
            self._subscribed.pop(uri, None)
            self._public.pop(uri, None)
        return not listeners

    def busy(self) -> bool:
        """Tell whether a request is in flight."""
        return bool(self._calls)

    def _whose(self) -> Front:
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
            uri = str(message.params.uri)
            for connection in list(self._subscribed.get(uri, ())):
                with contextlib.suppress(Exception):  # a session that is gone needs no news
                    await connection.notify(message.method, {"uri": self._public.get(uri, uri)})
        elif isinstance(message, LIST_CHANGES):
            await self._on_change(self, message, list(self._sessions))
        elif isinstance(message, Exception):
            log.warning("%s sent what is no MCP message: %s", self.name, knocks.printable(message, 200))

    def callbacks(self) -> dict[str, Any]:
        """Return what the SDK's ClientSession takes."""
        return {
            "sampling_callback": self.sample, "elicitation_callback": self.elicit, "list_roots_callback": self.roots,
            "logging_callback": self.log, "message_handler": self.message,
        }  # fmt: skip


class Relay(ProxyClient[ClientTransport]):
    """FastMCP's proxy client, on a line. FastMCP's own loses logs and asks where a transport outlives a request:
    the transport keeps the first client's callbacks, which know only the first request."""

    line: Line
    opened: Callable[[], ClientSession | None] = staticmethod(lambda: None)
    _borrows = False

    def on(self, line: Line, opened: Callable[[], ClientSession | None] | None = None) -> Relay:
        """Put this client on a line, before it connects.

        Args:
            opened: returns the session that outlives requests, once it is open: a request then uses it as it is,
                without the task, the locks and the watch with which FastMCP opens one, half of what a call costs.
        """
        self.line = line
        self.opened = opened or self.opened
        self._session_kwargs.update(line.callbacks())  # type: ignore[typeddict-item]
        return self

    async def __aenter__(self) -> Any:
        """Connect, or join the connection.

        Raises:
            MCPError: the upstream cannot be reached.
        """
        if session := self.opened():
            self._session_state.session, self._borrows = session, True
            self._session_state.initialize_result = session.initialize_result
            self.line.enter()
            return self
        # in a task of its own: FastMCP closes a shared transport when one caller leaves while it connects
        entering = asyncio.ensure_future(self._enter())
        try:
            await asyncio.shield(entering)
        except asyncio.CancelledError:
            entering.add_done_callback(self._undo)
            raise
        self.line.enter()
        return self

    async def _enter(self) -> None:
        try:
            async with self.line.lock:  # two at once would both send initialize
                await super().__aenter__()  # type: ignore[no-untyped-call]
        except MCPError as error:
            raise Unreachable(self.line.name, error.error.message) from error
        except (RuntimeError, OSError, httpx2.HTTPError, TimeoutError) as error:
            raise Unreachable(self.line.name, str(error.__cause__ or error)) from error

    def _undo(self, entering: asyncio.Future[None]) -> None:
        if not entering.cancelled() and not entering.exception():
            keep(asyncio.ensure_future(super().__aexit__(None, None, None)))  # type: ignore[no-untyped-call]

    async def __aexit__(self, *exc: Any) -> None:
        """Leave the connection."""
        self.line.leave()
        if self._borrows:
            return
        await super().__aexit__(*exc)  # type: ignore[no-untyped-call]


class SessionRelay(Relay, StatefulProxyClient[ClientTransport]):
    """The same for a URL: one upstream session for each session of ours, ended with it."""


_tasks: set[asyncio.Future[Any]] = set()


def keep(task: asyncio.Future[Any]) -> None:
    """Hold a task until it ends; asyncio itself would let it be collected."""
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


class Unreachable(MCPError):
    """The upstream could not be connected, so that the request was certainly not done."""

    def __init__(self, name: str, why: str) -> None:
        why = knocks.printable(why, 200).rstrip(".")
        super().__init__(
            mt.INTERNAL_ERROR, f"{name} cannot be reached at the moment ({why}). Nothing was done; try again shortly."
        )
