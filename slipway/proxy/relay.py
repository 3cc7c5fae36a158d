"""One caller's request on its way to a server elsewhere: FastMCP's proxy client, which lists and calls.

Here it learns to share a connection, to use one that is open as it is, and to say in words that one is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import mcp_types as mt
from fastmcp.client.transports import ClientTransport
from fastmcp.server.providers.proxy import ProxyClient, StatefulProxyClient
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError

from slipway import knocks
from slipway.proxy.line import Line


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
