"""The official Python SDK, and a user's own script, through the TLS door with the CA file alone."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.conftest import Stack, clean_environment

pytestmark = pytest.mark.slow

SCRIPT = """
import asyncio, sys
from fastmcp import Client

async def main():
    async with Client(sys.argv[1], auth=sys.argv[2], mode=sys.argv[3]) as c:
        print((await c.call_tool("add", {"a": 2, "b": 3})).data)

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_sdk_uses_everything_with_only_the_ca_file(shared_stack: Stack, mode: str) -> None:
    steps: list[float] = []

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        steps.append(progress)

    headers = {"Authorization": f"Bearer {shared_stack.token('add,whoami,countdown')}"}
    async with (
        httpx2.AsyncClient(verify=shared_stack.trust(), headers=headers, timeout=20) as http,
        Client(streamable_http_client(shared_stack.tls_url, http_client=http), mode=mode) as client,
    ):
        assert {tool.name for tool in (await client.list_tools()).tools} >= {"add", "countdown", "whoami"}
        assert (await client.call_tool("add", {"a": 2, "b": 3})).structured_content == {"result": 5}
        who = (await client.call_tool("whoami")).structured_content
        assert who == {"subject": "ana", "scopes": ["tool:add", "tool:whoami", "tool:countdown"]}
        done = await client.call_tool("countdown", {"n": 3, "seconds": 0.01}, progress_callback=on_progress)
        assert not done.is_error
        assert steps == [0, 1, 2, 3]
        assert "Slipway" in (await client.read_resource("slipway://about")).contents[0].text
        prompt = await client.get_prompt("introduce", {"name": "ben"})
        assert "ben" in prompt.messages[0].content.text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_sdk_is_told_which_scope_is_missing(shared_stack: Stack, mode: str) -> None:
    headers = {"Authorization": f"Bearer {shared_stack.token('add')}"}
    async with (
        httpx2.AsyncClient(verify=shared_stack.trust(), headers=headers, timeout=20) as http,
        Client(streamable_http_client(shared_stack.tls_url, http_client=http), mode=mode) as client,
    ):
        assert {tool.name for tool in (await client.list_tools()).tools} == {"add"}
        refused = await client.call_tool("whoami")
        assert refused.is_error
        assert "tool:whoami" in refused.content[0].text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("trusted", [True, False], ids=["with SSL_CERT_FILE", "without"])
def test_a_script_needs_ssl_cert_file_and_nothing_else(shared_stack: Stack, mode: str, trusted: bool) -> None:
    environment = clean_environment(shared_stack.folder)
    environment = {k: v for k, v in environment.items() if not k.startswith("SSL_CERT")}
    if trusted:
        environment["SSL_CERT_FILE"] = str(shared_stack.ca_file)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, shared_stack.tls_url, shared_stack.token(), mode],
        capture_output=True, text=True, timeout=40, env=environment, cwd=os.path.sep,
    )  # fmt: skip
    assert (done.stdout.strip() == "5") == trusted, done.stderr
