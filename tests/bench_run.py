"""The servers that scripts/bench speed compares, the load on them, and the rows of its table."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import ROOT, Stack, free_ports, wait_until

SERVER = ROOT / "tests" / "servers" / "speed.py"
CLIENT = {"name": "bench", "version": "1"}
# high, and on: each message is counted against each of them
MANY = "1000000"
LIMITS = dict.fromkeys(("SLIPWAY_CALLS_BURST", "SLIPWAY_CALLS_PER_MINUTE", "SLIPWAY_CALLS_PER_DAY"), MANY)
LIMITS |= {"SLIPWAY_CALLS_AT_ONCE": "1000", "SLIPWAY_PLAN": "none"}
BOTH = "application/json, text/event-stream"
Message = tuple[dict[str, str], str]  # headers and body


def call(era: str, tool: str, arguments: dict[str, Any]) -> Message:
    """Return the headers and the body of a call in an era."""
    headers = {"content-type": "application/json", "accept": BOTH}
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    if era == "newest":
        headers |= {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": tool}
        names = {"protocolVersion": "2026-07-28", "clientCapabilities": {}, "clientInfo": CLIENT}
        params["_meta"] = {f"io.modelcontextprotocol/{name}": value for name, value in names.items()}
    else:
        headers["mcp-protocol-version"] = "2025-11-25"
    return headers, json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params})


@dataclass
class Way:
    """One way to a tool."""

    url: str
    tokens: list[str] = field(default_factory=list)
    ca: str = ""
    pids: list[int] = field(default_factory=list)

    def cpu(self) -> float:
        """Return the CPU seconds that its processes have used."""
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self.pids)


class Client:
    """The load generator, in its process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench_client"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def rate(
        self, way: Way, seconds: float, clients: int, message: Message, spread: float = 0
    ) -> tuple[float, float]:
        """Return calls per second, and the servers' CPU seconds of a call; the clients begin over `spread` seconds."""
        headers, body = message
        heads = [headers | ({"authorization": f"Bearer {token}"} if token else {}) for token in way.tokens or [""]]
        job = {"url": way.url, "ca": way.ca, "headers": heads, "body": body, "seconds": seconds, "clients": clients,
               "expect": "5", "spread": spread}  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        before = way.cpu()
        self._process.stdin.write((json.dumps(job) + "\n").encode())
        self._process.stdin.flush()
        done = json.loads(self._process.stdout.readline())
        assert set(done["codes"]) == {"ok"}, f"{way.url}: {done}"
        return done["rate"], (way.cpu() - before) / done["calls"]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Row:
    """A figure: what was measured, how often, and what is to be reached."""

    what: str
    figures: list[float]
    goal: float | None = None
    most: bool = False  # the goal is a bound from above
    unit: str = "x"
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.figures) if self.figures else float("nan")

    def reached(self) -> str:
        if not self.figures or self.goal is None:
            return " "
        return "✓" if (self.median <= self.goal if self.most else self.median >= self.goal) else "✗"

    def line(self) -> str:
        if not self.figures:
            return f"  {self.what:<58} {'not measured':>12}   {self.note}"
        goal = f"{'≤' if self.most else '≥'} {self.goal:g}" if self.goal is not None else ""
        spread = f"({min(self.figures):.3g} … {max(self.figures):.3g})"
        shown = f"{self.median:.3g} {self.unit}"
        return f"{self.reached()} {self.what:<58} {shown:>12} {spread:>18} {goal:>8}   {self.note}"


@dataclass
class Run:
    """What all scenarios share."""

    folder: Path
    quick: bool
    client: Client
    code: Path = ROOT  # whose slipway/ is measured
    number: int = 0

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 5

    @property
    def seconds(self) -> float:
        return 0.4 if self.quick else 2.0

    @contextlib.contextmanager
    def bare(self, name: str = "one", how: str = "json") -> Iterator[Way]:
        """Run the tools as FastMCP alone serves them."""
        (port,) = free_ports(1)
        process = subprocess.Popen(
            [sys.executable, str(SERVER), how, str(port), name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until(lambda: listens(port), 60, f"the start of {how} {name}")
            yield Way(f"http://127.0.0.1:{port}/mcp", pids=[process.pid])
        finally:
            process.terminate()
            process.wait()

    def place(self) -> Path:
        """Make a folder."""
        self.number += 1
        made = self.folder / str(self.number)
        made.mkdir()
        return made

    @contextlib.contextmanager
    def slipway(
        self, target: str = f"{SERVER}:one", caddyfile: str | None = None, **extra: str
    ) -> Iterator[tuple[Stack, Way, Way]]:
        """Run Slipway, everything on. Yields: the stack, the way straight to the server, the way through TLS."""
        settings = LIMITS | {"SLIPWAY_TARGET": target} | extra
        stack = Stack(self.place(), settings, caddyfile, root=self.code)
        try:
            stack.start()
            given = [stack.token()]
            server, caddy = (stack.processes[name].pid for name in ("server", "caddy"))
            direct = Way(stack.server_url, given, pids=[server])
            yield stack, direct, Way(stack.tls_url, given, str(stack.ca_file), [server, caddy])
        finally:
            stack.stop()

    def turns(
        self,
        ways: dict[str, Way],
        messages: dict[str, Message],
        clients: int = 16,
        seconds: float = 0,
        rounds: int = 0,
        spread: float = 0,
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Let all take turns: A B A B … Returns: calls per second, and CPU seconds of a call."""
        rates: dict[str, list[float]] = {name: [] for name in ways}
        costs: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds or self.rounds):
            for name, way in ways.items():
                rate, cost = self.client.rate(way, seconds or self.seconds, clients, messages[name], spread)
                rates[name].append(rate)
                costs[name].append(cost)
        return rates, costs


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def over(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def cost(costs: dict[str, list[float]], ours: str, theirs: str) -> str:
    mine, other = (statistics.median(costs[name]) * 1000 for name in (ours, theirs))
    return f"CPU of a call {mine:.2f} ms beside {other:.2f} ms"
