"""Clients that nobody here wrote sign in by themselves; the test is only the person at the browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from fastmcp import Client as FastMCPClient
from fastmcp.client.transports import StdioTransport
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from tests import node_clients
from tests.conftest import Stack, free_ports, wait_until
from tests.stack.test_node_clients import node
from tests.stack.test_oauth import CALLBACK, Browser, _closed, invite, listens, name

__all__ = ["_closed", "node"]
pytestmark = pytest.mark.slow


def person(stack: Stack, url: str, who: str) -> str:
    """Sign in at the page that a client opened. Returns: where the browser is sent back to."""
    browser = Browser(stack)
    begun = browser.http.get(url)
    assert begun.status_code == 302, begun.text
    answer = browser.consent(begun.headers["location"], invite(stack), who)
    assert answer.status_code == 302, answer.text
    return answer.headers["location"]


class Memory:
    """What the official SDK keeps."""

    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_official_python_sdk_signs_in(shared_stack: Stack, mode: str) -> None:
    who, back = name(), ""

    async def opened(url: str) -> None:
        nonlocal back
        back = person(shared_stack, url, who)

    async def came_back() -> AuthorizationCodeResult:
        told: dict[str, Any] = {key: values[0] for key, values in parse_qs(urlsplit(back).query).items()}
        return AuthorizationCodeResult(code=told["code"], state=told["state"], iss=told["iss"])

    metadata = OAuthClientMetadata(redirect_uris=[CALLBACK], client_name="sdk", token_endpoint_auth_method="none")
    oauth = OAuthClientProvider(shared_stack.tls_url, metadata, Memory(), opened, came_back)
    async with (
        httpx2.AsyncClient(verify=shared_stack.trust(), auth=oauth, timeout=20) as http,
        Client(streamable_http_client(shared_stack.tls_url, http_client=http), mode=mode) as client,
    ):
        result = await client.call_tool("whoami", {})
        assert result.structured_content["subject"] == who  # type: ignore[index]


@pytest.mark.node
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_typescript_sdk_signs_in(shared_stack: Stack, node: Path, version: str) -> None:
    binary, who = node_clients.node(node), name()
    process = subprocess.Popen(
        [binary, "oauth.mjs", shared_stack.tls_url, version], cwd=node, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "NODE_EXTRA_CA_CERTS": str(shared_stack.ca_file)},
    )  # fmt: skip
    assert process.stdout
    url = process.stdout.readline().strip()
    back = person(shared_stack, url, who) if url else "nowhere"
    assert "state=state-of-the-program" in back
    out, err = process.communicate(back + "\n", timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["subject"] == who


@pytest.mark.node
async def test_mcp_remote_signs_in(shared_stack: Stack, node: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    log, who = tmp_path / "stderr", name()
    log.touch()

    def at_the_browser() -> None:
        wait_until(lambda: re.search(r"https://\S+/oauth/authorize\?\S+", log.read_text()), 60, "the page to open")
        url = re.search(r"https://\S+/oauth/authorize\?\S+", log.read_text())
        assert url
        back = person(shared_stack, url[0], who)
        wait_until(lambda: listens(port), 20, "the callback")
        httpx2.get(back, timeout=20)

    program = str(node / "node_modules" / ".bin" / "mcp-remote")
    transport = StdioTransport(
        node_clients.node(node), [program, shared_stack.tls_url, str(port), "--transport", "http-only"],
        env={
            "HOME": str(tmp_path), "PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": str(shared_stack.ca_file),
            "BROWSER": "true", "DISPLAY": "",
        },
        keep_alive=False, log_file=log,
    )  # fmt: skip
    browser = threading.Thread(target=at_the_browser)
    browser.start()
    async with FastMCPClient(transport, timeout=90, init_timeout=90) as client:
        assert (await client.call_tool("whoami")).data["subject"] == who
    browser.join()
