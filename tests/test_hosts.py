"""The Host guard and what it takes for ours, without a server around it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from slipway import settings
from slipway.app import _Hosts
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


def test_a_public_url_that_is_replaced_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    config = settings.load({"SLIPWAY_STATE": str(tmp_path)}, None)
    file = config.public_url_file
    file.parent.mkdir(parents=True, exist_ok=True)
    hosts = _Hosts(config, lambda: None)
    assert (hosts.public_url(), hosts()) == ("", [])
    for name in ("one", "other"):
        fresh = file.with_suffix(".new")
        fresh.write_text(f"https://{name}.example\n")
        os.utime(fresh, ns=(10**18, 10**18))
        fresh.replace(file)
        assert (hosts.public_url(), hosts()) == (f"https://{name}.example", [f"{name}.example"])
    file.unlink()
    assert (hosts.public_url(), hosts()) == ("", [])
