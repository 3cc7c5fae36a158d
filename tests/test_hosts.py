"""The Host guard, without a server around it."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from slipway.guards import HostGuard


async def answered(host: str, *patterns: str) -> int:
    """Return the status that a request for this host gets."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/mcp", "headers": [(b"host", host.encode())]}
    await HostGuard(app, lambda: list(patterns))(scope, asyncio.Queue().get, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("host", "status"),
    [("[::1]", 200), ("[::1]:8443", 200), ("1", 421), (":", 421), ("[fe80::1]", 200), ("f", 421), ("a.lab.example:1", 200),
     ("lab.example", 421), ("a.lab.example.evil", 421)],
)  # fmt: skip
async def test_an_ipv6_address_is_one_host_and_no_set_of_letters(host: str, status: int) -> None:
    assert await answered(host, "[fe80::1]", "*.lab.example") == status
