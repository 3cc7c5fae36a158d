"""What /readyz and /livez say, and that a request's headers are kept once and not for ever."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastmcp import FastMCP
from starlette.types import Receive, Scope, Send

from slipway import app, audit, settings, store
from slipway.audit import Audit
from tests.test_ledger import SECRET


class Server:
    """One in this process, whose answer to itself and whose Redis we command."""

    def __init__(self, http: httpx2.AsyncClient, state: store.Store) -> None:
        self._http = http
        self.state = state
        self.answer = 200

    async def told(self) -> dict[str, int]:
        return {path: (await self._http.get(path)).status_code for path in ("/livez", "/readyz")}


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    states: list[store.Store] = []
    real = store.open_store
    monkeypatch.setattr(store, "open_store", lambda *args, **more: states.append(real(*args, **more)) or states[0])
    whole = app.build(FastMCP("it"), settings.load({"SLIPWAY_STATE": str(tmp_path)}, None), SECRET)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=whole), base_url="http://127.0.0.1") as http:
        made = Server(http, states[0])

        async def answered(*_: Any) -> int:
            return made.answer

        monkeypatch.setattr(app, "_ask", answered)
        yield made


async def test_a_server_that_was_ready_lives_while_only_redis_is_away(server: Server) -> None:
    assert await server.told() == {"/livez": 200, "/readyz": 200}
    server.answer, server.state.away = 503, True
    assert await server.told() == {"/livez": 200, "/readyz": 503}


async def test_a_server_that_never_was_ready_does_not_live_by_an_absent_redis(server: Server) -> None:
    server.answer, server.state.away = 503, True
    assert await server.told() == {"/livez": 503, "/readyz": 503}


async def test_a_server_that_fails_while_redis_is_there_is_not_alive(server: Server) -> None:
    assert await server.told() == {"/livez": 200, "/readyz": 200}
    server.answer = 503
    assert await server.told() == {"/livez": 503, "/readyz": 503}


async def test_what_requests_say_alike_is_kept_once_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_SHARED", 50)
    seen: list[list[tuple[bytes, bytes]]] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    whole = Audit(inner, logging.getLogger("nobody"))

    async def request(*headers: tuple[bytes, bytes]) -> None:
        async def nothing(*_: Any) -> Any: ...

        await whole({"type": "http", "method": "GET", "path": "/mcp", "headers": list(headers)}, nothing, nothing)

    given = {b"authorization": 50, b"x-request-id": 50, b"x": 2000}
    for _ in range(2):
        await request(*[(name, bytes(size)) for name, size in given.items()])
    assert seen[0] == seen[1]
    assert [one is other for one, other in zip(*seen, strict=True)] == [True, False, False]
    for number in range(200):
        await request((b"x", b"%d" % number))
    assert len(whole._shared) <= 51
