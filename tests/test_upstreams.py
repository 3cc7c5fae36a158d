"""Connections to servers elsewhere, without one: to which caller belongs what such a server sends of itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import httpx2
import mcp_types as mt
import pytest
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import ToolError
from fastmcp.server.auth import AccessToken
from fastmcp.server.dependencies import fastmcp_request_ctx
from fastmcp.server.middleware import MiddlewareContext
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ToolsListChanged

from slipway.proxy import line, upstreams
from slipway.proxy.line import LIST_CHANGES, Line, Tools
from slipway.proxy.remote import Remote
from slipway.proxy.upstreams import Outages, Upstream


class Session:
    """A caller's session: what was asked of it."""

    def __init__(self) -> None:
        self._connection = type("Connection", (), {})()
        self.logged: list[str] = []

    async def send_log_message(self, level: str, data: str, logger: str | None, related_request_id: Any) -> None:
        self.logged.append(data)


@contextlib.contextmanager
def calling(on: Line, session: Session, monkeypatch: pytest.MonkeyPatch, **claims: str) -> Iterator[None]:
    """Have a request of this session on a line, with a token that has these claims, or with none."""
    token = AccessToken(token="-", client_id="-", scopes=[], claims=claims) if claims else None
    monkeypatch.setattr(line, "get_access_token", lambda: token)
    request: Any = type("Request", (), {"meta": None, "session": session, "request_id": 1})()
    before = fastmcp_request_ctx.set(request)
    on.enter()
    try:
        yield
    finally:
        now = fastmcp_request_ctx.set(request)
        on.leave()
        fastmcp_request_ctx.reset(now)
        fastmcp_request_ctx.reset(before)


async def nothing(*_: Any) -> None: ...


async def said(on: Line) -> None:
    await on.log(mt.LoggingMessageNotificationParams(level="info", data="for one pair of ears"))


@pytest.mark.parametrize("who", [{}, {"sub": "a"}], ids=["anonymous", "seats"])
async def test_what_a_server_says_during_calls_of_two_callers_reaches_neither(
    who: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both, one, other = Line("it", nothing), Session(), Session()
    with calling(both, one, monkeypatch, **who):
        await said(both)
        with calling(both, one, monkeypatch, **who):
            await said(both)
        with calling(both, other, monkeypatch, **dict.fromkeys(who, "b")):
            await said(both)
            with pytest.raises(MCPError, match="several callers"):
                await both.roots(None)
    assert (one.logged, other.logged) == (["for one pair of ears"] * 2, [])
    assert not both.busy()


async def test_our_own_probe_costs_no_seat_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    both, seat, probe = Line("it", nothing), Session(), Session()
    with (
        calling(both, seat, monkeypatch, sub="a"),
        calling(both, probe, monkeypatch, sub="slipway", client_id="self"),
    ):
        await said(both)
    assert (seat.logged, probe.logged) == (["for one pair of ears"], [])
    assert not both.busy()


async def test_one_list_change_heard_on_many_connections_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Line] = []

    class Here(Upstream):
        def _same(self, line: Line) -> Any:
            looked.append(line)
            raise ConnectionError

    monkeypatch.setattr(upstreams, "SETTLE", 0.0)
    upstream, shared, heard = Here("it", print), Tools(), []
    upstream.bus.publish = lambda event: nothing(heard.append(event))  # type: ignore[method-assign, misc]
    for own in (shared, shared, shared, Tools()):
        await upstream.changed(Line("it", nothing, own), mt.ToolListChangedNotification(), [])
    async with asyncio.timeout(20):
        while len(looked) < 2:
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(looked) == 2
    assert heard == [LIST_CHANGES[mt.ToolListChangedNotification]()] * 4 == [ToolsListChanged()] * 4


async def test_a_lost_connection_is_told_by_what_ended_it_and_in_the_words_of_what_was_asked() -> None:
    remote = Remote("it", StreamableHttpTransport("http://127.0.0.1:9/mcp"), print)
    closed, session = MCPError(mt.CONNECTION_CLOSED, "closed"), Session()

    class Stale:
        async def _disconnect(self, *, force: bool) -> None:
            raise httpx2.ConnectError("All connection attempts failed")

    async def lose(_: Any) -> None:
        raise closed

    for method, kind in (("tools/call", ToolError), ("tools/list", MCPError)):
        remote._kept._caches = {session._connection: Stale()}  # type: ignore[attr-defined]
        before = fastmcp_request_ctx.set(type("Request", (), {"session": session})())  # type: ignore[arg-type]
        try:
            with pytest.raises(kind, match="Nothing was done"):
                await Outages(remote).on_request(MiddlewareContext(message=None, method=method), lose)
            # nothing is left of it to be asked, so nobody knows
            with pytest.raises(kind, match="not known"):
                await Outages(remote).on_request(MiddlewareContext(message=None, method=method), lose)
        finally:
            fastmcp_request_ctx.reset(before)
