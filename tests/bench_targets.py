"""Calls per second to one stdio server: through Slipway, and through its neighbours. Printed, never asserted."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tests.conftest import ROOT, Stack, free_ports, program, wait_until

SERVER = ROOT / "tests" / "servers" / "talkative.py"
COMMAND = shlex.join([sys.executable, str(SERVER)])
RUNS, SECONDS = 3, 3.0
HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
CALL = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 2, "b": 3}}}


async def one(url: str, headers: dict[str, str]) -> tuple[int, float]:
    """Open a session where there is one, then call for a while. Returns: the number of calls, and the seconds."""
    done = 0
    async with httpx2.AsyncClient(headers=HEADERS | headers, timeout=60) as client:
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO}
        answer = await client.post(url, json=hello)
        if session := answer.headers.get("mcp-session-id"):
            client.headers["mcp-session-id"] = session
        client.headers["mcp-protocol-version"] = "2025-06-18"
        await client.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        begun = time.perf_counter()
        while (spent := time.perf_counter() - begun) < SECONDS or not done:
            answer = await client.post(url, json=CALL)
            assert '"5"' in answer.text, answer.text
            done += 1
    return done, spent


async def rate(url: str, headers: dict[str, str], clients: int) -> float:
    """Return calls per second of so many clients at once."""
    counts = await asyncio.gather(*(one(url, headers) for _ in range(clients)))
    return sum(done / spent for done, spent in counts)


@contextmanager
def slipway(folder: Path, target: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Serve the target, everything on, straight at the server's port."""
    stack = Stack(folder, {"SLIPWAY_TARGET": target}).start("server", "caddy")
    try:
        yield stack.server_url, stack.bearer()
    finally:
        stack.stop()


@contextmanager
def neighbour(command: list[str], port: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Run another bridge on that port."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/mcp"

    def up() -> bool:
        assert process.poll() is None, command
        try:
            return httpx2.post(url, json={}, headers=HEADERS, timeout=5).status_code > 0
        except httpx2.TransportError:
            return False

    try:
        wait_until(up, 90, f"the start of {command[0]}")
        yield url, {}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def main() -> None:
    uvx = program("uvx")
    gateway = ["npx", "-y", "supergateway@4.0.0", "--stdio", COMMAND, "--outputTransport", "streamableHttp"]
    found: dict[str, dict[int, list[float]]] = {}
    for _ in range(RUNS):
        ports = free_ports(3)
        ways = {
            "the same server in process": lambda folder: slipway(folder, str(SERVER)),
            "slipway, stdio": lambda folder: slipway(folder, COMMAND),
            "mcp-proxy 0.13, stateless": lambda _, port=ports[0]: neighbour(
                [uvx, "mcp-proxy@0.13.0", "--port", str(port), "--stateless", "--", *shlex.split(COMMAND)], port
            ),
            "supergateway 4.0, sessions": lambda _, port=ports[1]: neighbour(
                [*gateway, "--stateful", "--port", str(port)], port
            ),
            "supergateway 4.0, stateless": lambda _, port=ports[2]: neighbour([*gateway, "--port", str(port)], port),
        }
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder, way(Path(folder)) as (url, headers):
                for clients in (1, 8):
                    figure = asyncio.run(rate(url, headers, clients))
                    found.setdefault(name, {}).setdefault(clients, []).append(figure)
    base = {clients: statistics.median(rates) for clients, rates in found["slipway, stdio"].items()}
    sys.stdout.write(f"{'calls per second to a stdio server':<34} {'1 client':>10} {'8 clients':>10}   slipway is\n")
    for name, figures in found.items():
        median = {clients: statistics.median(rates) for clients, rates in figures.items()}
        ratio = ", ".join(f"{base[clients] / median[clients]:.2f} x" for clients in median)
        sys.stdout.write(f"{name:<34} {median[1]:>10.1f} {median[8]:>10.1f}   {ratio}\n")
    sys.stderr.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
