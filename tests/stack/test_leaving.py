"""A server that is told to stop answers what it accepted, and one server alone keeps its state in files."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from slipway import leaving, serving
from tests.conftest import ROOT, UNLIMITED, Stack, clean_environment, free_ports

pytestmark = pytest.mark.slow


async def calls(client: httpx2.AsyncClient, stack: Stack, answered: list[int]) -> Exception:
    """Call on kept connections until it fails. Returns: how."""
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "add", "arguments": {"a": 1, "b": 1}},
    }
    while True:
        try:
            answer = await client.post(stack.server_url, headers=stack.bearer(), json=message)
        except Exception as error:
            return error
        answered.append(answer.status_code)


async def test_a_stop_refuses_connections_and_breaks_none(make_stack: Callable[..., Stack]) -> None:
    stack, answered = make_stack(**UNLIMITED), []
    async with httpx2.AsyncClient(timeout=20) as client:
        callers = [asyncio.create_task(calls(client, stack, answered)) for _ in range(8)]
        while len(answered) < 40:
            await asyncio.sleep(0.01)
        stack.processes["server"].terminate()
        ends = await asyncio.gather(*callers)
    # a connection that was refused can be opened elsewhere; one that breaks may have had its call done
    assert {type(end) for end in ends} == {httpx2.ConnectError}
    assert set(answered) == {200}
    assert await asyncio.to_thread(stack.processes["server"].wait, 12) == 128 + signal.SIGTERM


async def test_what_is_in_work_is_answered_and_no_longer_ready_is_said(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    params = {"name": "countdown", "arguments": {"n": 4, "seconds": 0.9}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    ready = stack.server_url.replace("/mcp", "/readyz")
    async with httpx2.AsyncClient(timeout=20, headers=stack.bearer()) as client:
        assert (await client.get(ready)).status_code == 200
        # in a session: what it has in work ends with the server, without a word
        begun = await client.post(stack.server_url, json={**message, "method": "initialize", "params": hello})
        client.headers["mcp-session-id"] = begun.headers["mcp-session-id"]
        async with client.stream("POST", stack.server_url, json=message) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == ": open"
            stack.processes["server"].terminate()
            while (told := await client.get(ready)).status_code == 200:
                pass
            assert (told.status_code, told.headers["connection"]) == (503, "close")
            rest = "".join([line async for line in lines])
    assert '"isError":false' in rest


def test_the_longest_stop_is_shorter_than_dockers_patience() -> None:
    assert leaving.DRAIN + leaving.SETTLE + leaving.LAST_ANSWERS + serving.SHUTDOWN_GRACE < 10


def test_a_second_server_on_the_same_files_is_refused(shared_stack: Stack, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    state = shared_stack.config.state
    environment = clean_environment(
        tmp_path, SLIPWAY_STATE=str(state), SLIPWAY_SECRET_FILE=str(state / "secret"), SERVER_PORT=str(port)
    )
    done = subprocess.run(
        [sys.executable, ROOT / "server.py", "http"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 1
    assert "Another server keeps its state in the same files" in done.stderr
    assert "REDIS_URL" in done.stderr
    assert shared_stack.processes["server"].poll() is None
