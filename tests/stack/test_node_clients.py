"""Clients that nobody here wrote, against what Slipway prints: TypeScript SDKs, Inspector, mcp-remote, conformance."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from slipway.clients import Endpoint, render
from tests import node_clients
from tests.conftest import ROOT, Stack, free_ports, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.node]

CONFORMANCE = ROOT / "tests" / "servers" / "conformance.py"


@pytest.fixture(scope="module")
def node() -> Path:
    return node_clients.installed()


@pytest.mark.parametrize("era", ["v1", "handshake", "newest"])
def test_the_typescript_sdk_uses_the_server(shared_stack: Stack, node: Path, era: str) -> None:
    done = node_clients.run(
        node, "sdk.mjs", shared_stack.tls_url, shared_stack.token(), era, ca_file=shared_stack.ca_file
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert {"add", "countdown", "whoami"} <= set(seen.pop("tools"))
    assert seen == {"sum": 5, "steps": [0, 1, 2, 3], "done": "liftoff"}


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_reads_the_printed_command(shared_stack: Stack, node: Path, era: str) -> None:
    endpoint = Endpoint("slipway", shared_stack.tls_url, shared_stack.token(), str(shared_stack.ca_file))
    words = shlex.split(render("inspector", endpoint).text)
    arguments = words[words.index("--cli") :]
    program = node / "node_modules" / ".bin" / "mcp-inspector"
    done = node_clients.run(
        node, str(program), *arguments, "--protocol-era", era, "--format", "json", ca_file=shared_stack.ca_file
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert '"countdown"' in done.stdout


async def test_mcp_remote_bridges_the_printed_claude_desktop_configuration(shared_stack: Stack, node: Path) -> None:
    endpoint = Endpoint("slipway", shared_stack.tls_url, shared_stack.token(), str(shared_stack.ca_file))
    entry = json.loads(render("claude-desktop", endpoint).text)["mcpServers"]["slipway"]
    arguments = [*entry["args"][2:], "--silent"]  # without `-y mcp-remote@latest`: it is installed already
    program = str(node / "node_modules" / ".bin" / "mcp-remote")
    home = {"HOME": str(shared_stack.folder), "PATH": os.environ["PATH"]}
    transport = StdioTransport(
        node_clients.node(node), [program, *arguments], env=entry["env"] | home, keep_alive=False
    )
    async with Client(transport, timeout=60, init_timeout=60) as client:
        assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5


@pytest.mark.parametrize("name", ["python", "python-sdk", "curl", "fastmcp"])
def test_a_printed_program_runs_as_it_is(shared_stack: Stack, name: str, tmp_path: Path) -> None:
    endpoint = Endpoint("slipway", shared_stack.tls_url, shared_stack.token(), str(shared_stack.ca_file))
    snippet = render(name, endpoint)
    path = tmp_path / "snippet"
    path.write_text(snippet.text)
    program = [str(ROOT / ".venv" / "bin" / "python")] if snippet.kind == "python" else ["bash"]
    environment = {**os.environ, "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}", "COLUMNS": "200"}
    done = subprocess.run([*program, str(path)], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert "countdown" in done.stdout


@pytest.mark.parametrize(
    "scenario",
    ["server-initialize", "ping", "tools-list", "resources-list", "prompts-list", "dns-rebinding-protection"],
)
def test_the_official_conformance_suite_agrees(make_stack: Callable[..., Stack], node: Path, scenario: str) -> None:
    # the suite has no header option, so this is the one place without tokens
    stack = make_stack(SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS="true")
    program = node / "node_modules" / ".bin" / "conformance"
    done = node_clients.run(
        node, str(program), "server", "--url", stack.edge_url, "--scenario", scenario, ca_file=stack.ca_file
    )
    assert done.returncode == 0, done.stdout + done.stderr


def suite(node: Path, url: str) -> dict[str, str]:
    """Run the whole conformance suite. Returns: {scenario: "n passed, n failed"}."""
    program = str(node / "node_modules" / ".bin" / "conformance")
    done = node_clients.run(node, program, "server", "--url", url, "--suite", "all", ca_file="")
    return dict(re.findall(r"^[✓✗] ([\w-]+): (.*)$", done.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def conforming(node: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A conformance server in another process: its URL, and what the suite says of it directly."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, CONFORMANCE, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}/mcp"
    try:
        wait_until(lambda: [c for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"], 20)
        yield url, suite(node, url)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["file", "command", "url"])
def test_the_whole_suite_says_the_same_directly_and_through_slipway(
    make_stack: Callable[..., Stack], node: Path, conforming: tuple[str, dict[str, str]], kind: str
) -> None:
    url, directly = conforming
    target = {"file": str(CONFORMANCE), "command": shlex.join([sys.executable, str(CONFORMANCE)]), "url": url}[kind]
    # a whole suite is more than one caller should send
    free = dict.fromkeys(("SLIPWAY_CALLS_BURST", "SLIPWAY_CALLS_PER_MINUTE"), "0")
    stack = make_stack(SLIPWAY_DANGEROUSLY_ALLOW_ANONYMOUS="true", SLIPWAY_TARGET=target, **free)
    assert len(directly) >= 30
    assert not [name for name, result in directly.items() if not result.endswith("0 failed")]
    assert suite(node, stack.edge_url) == directly
