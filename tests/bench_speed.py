"""What Slipway costs: each figure a ratio of two servers that take turns in one run. Printed, never asserted.

`python -m tests.bench_speed [--quick] [--json] [--plot FILE] [--code FOLDER] [WORD …]`; words choose the scenarios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.bench_plot import Bar, plot
from tests.conftest import ROOT, Stack, free_ports, wait_until

SERVER = ROOT / "tests" / "servers" / "speed.py"
CLIENT = {"name": "bench", "version": "1"}
# high, and on: each message is counted against each of them
MANY = "1000000"
LIMITS = dict.fromkeys(("SLIPWAY_CALLS_BURST", "SLIPWAY_CALLS_PER_MINUTE", "SLIPWAY_CALLS_PER_DAY"), MANY)
LIMITS |= {"SLIPWAY_CALLS_AT_ONCE": "1000", "SLIPWAY_PLAN": "none"}
BOTH = "application/json, text/event-stream"


def call(era: str, tool: str, arguments: dict[str, Any]) -> tuple[dict[str, str], str]:
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
        self, way: Way, seconds: float, clients: int, message: tuple[dict[str, str], str]
    ) -> tuple[float, float]:
        """Return calls per second, and the servers' CPU seconds of a call."""
        headers, body = message
        heads = [headers | ({"authorization": f"Bearer {token}"} if token else {}) for token in way.tokens or [""]]
        job = {"url": way.url, "ca": way.ca, "headers": heads, "body": body, "seconds": seconds, "clients": clients,
               "expect": "5"}  # fmt: skip
        assert self._process.stdin
        assert self._process.stdout
        before = way.cpu()
        self._process.stdin.write((json.dumps(job) + "\n").encode())
        self._process.stdin.flush()
        done = json.loads(self._process.stdout.readline())
        assert set(done["codes"]) == {"ok"}, f"{way.url}: {done}"
        return done["calls"] / done["seconds"], (way.cpu() - before) / done["calls"]

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Row:
    """A figure: what was measured, how often, and what is to be reached."""

    what: str
    figures: list[float]
    goal: float
    most: bool = False  # the goal is a bound from above
    unit: str = "x"
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.figures) if self.figures else float("nan")

    def reached(self) -> str:
        if not self.figures or not self.goal:
            return " "
        return "✓" if (self.median <= self.goal if self.most else self.median >= self.goal) else "✗"

    def line(self) -> str:
        if not self.figures:
            return f"  {self.what:<58} {'not measured':>12}   {self.note}"
        goal = f"{'≤' if self.most else '≥'} {self.goal:g}" if self.goal else ""
        spread = f"({min(self.figures):.3g} … {max(self.figures):.3g})"
        shown = f"{self.median:.3g} {self.unit}"
        return f"{self.reached()} {self.what:<58} {shown:>12} {spread:>18} {goal:>8}   {self.note}"


@dataclass
class Run:
    """What all scenarios share."""

    folder: Path
    quick: bool
    client: Client
    code: Path  # whose slipway/ is measured
    number: int = 0

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 7

    @property
    def seconds(self) -> float:
        return 0.5 if self.quick else 1.0

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

    @contextlib.contextmanager
    def slipway(
        self, target: str = f"{SERVER}:one", *, tokens: int = 1, caddyfile: str | None = None, **extra: str
    ) -> Iterator[tuple[Stack, Way, Way]]:
        """Run Slipway, everything on. Yields: the stack, the way straight to the server, the way through TLS."""
        place = self.folder / str(self.number)
        self.number += 1
        place.mkdir()
        settings = LIMITS | {"SLIPWAY_TARGET": target} | extra
        stack = Stack(place, settings, caddyfile, root=self.code).start()
        try:
            given = [stack.token(subject=f"seat {number}") for number in range(tokens)]
            server, caddy = (stack.processes[name].pid for name in ("server", "caddy"))
            ways = (
                Way(stack.server_url, given, pids=[server]),
                Way(stack.tls_url, given, str(stack.ca_file), [server, caddy]),
            )
            yield stack, *ways
        finally:
            stack.stop()

    def turns(
        self, ways: dict[str, Way], messages: dict[str, tuple[dict[str, str], str]], clients: int = 16
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Let all take turns: A B A B … Returns: calls per second, and CPU seconds of a call."""
        rates: dict[str, list[float]] = {name: [] for name in ways}
        costs: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.rounds):
            for name, way in ways.items():
                rate, cost = self.client.rate(way, self.seconds, clients, messages[name])
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


ADD = {"a": 2, "b": 3}


def straight(run: Run) -> Iterator[Row]:
    """1 and 2: the same tool, bare and with everything on, straight and through Caddy with TLS."""
    with contextlib.ExitStack() as stack:
        ways = {"bare": stack.enter_context(run.bare()), "shipped": stack.enter_context(run.bare(how="shipped"))}
        _, ways["json"], ways["tls json"] = stack.enter_context(run.slipway(SLIPWAY_ANSWERS="json"))
        _, ways["stream"], ways["tls stream"] = stack.enter_context(run.slipway())
        rates, costs = run.turns(ways, dict.fromkeys(ways, call("handshake", "add", ADD)))
    for name, goal in (("json", 0.9), ("stream", 0)):
        yield Row(
            f"everything on, straight ({name}) / bare JSON", over(rates[name], rates["bare"]), goal,
            note=cost(costs, name, "bare"),
        )  # fmt: skip
    for name, goal in (("tls json", 1.5), ("tls stream", 0)):
        yield Row(
            f"everything on, Caddy and TLS ({name[4:]}) / mcp.run", over(rates[name], rates["shipped"]), goal,
            note=cost(costs, name, "shipped") + ", Caddy's in it",
        )  # fmt: skip


def tools(run: Run) -> Iterator[Row]:
    """7: a call on a server with 51 tools beside one."""
    for era in ("handshake", "newest"):
        with contextlib.ExitStack() as stack:
            ways = {}
            for name in ("one", "many"):
                _, ways[name], _ = stack.enter_context(run.slipway(f"{SERVER}:{name}", SLIPWAY_ANSWERS="json"))
                ways[f"bare {name}"] = stack.enter_context(run.bare(name))
            rates, costs = run.turns(ways, dict.fromkeys(ways, call(era, "add", ADD)))
        bare = statistics.median(over(rates["bare one"], rates["bare many"]))
        yield Row(
            f"a call with 51 tools, cost / with one, {era} era", over(rates["one"], rates["many"]), 1.2, most=True,
            note=f"bare {bare:.2f} x; {cost(costs, 'many', 'one')}",
        )  # fmt: skip


SCENARIOS: dict[str, Callable[[Run], Iterator[Row]]] = {"straight": straight, "tools": tools}


def main(argv: list[str]) -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser("scripts/bench speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--plot", type=Path, help="write the figures as an SVG, too")
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout whose Slipway is measured")
    parser.add_argument("words", nargs="*", metavar="WORD", help=f"some of: {', '.join(SCENARIOS)}")
    chosen = parser.parse_args(argv)
    rows: list[Row] = []
    client = Client()
    try:
        with tempfile.TemporaryDirectory(prefix="slipway-speed-") as folder:
            run = Run(Path(folder), chosen.quick, client, chosen.code.resolve())
            for word in chosen.words or SCENARIOS:
                for row in SCENARIOS[word](run):
                    rows.append(row)
                    sys.stderr.write(row.line() + "\n")
    finally:
        client.close()
    if chosen.plot:
        chosen.plot.write_text(
            plot([Bar(row.what, row.median, row.goal, row.most, row.unit) for row in rows if row.figures])
        )
    if chosen.json:
        told = {
            row.what: {"median": row.median, "goal": row.goal, "figures": row.figures, "note": row.note}
            for row in rows
        }
        sys.stdout.write(json.dumps(told) + "\n")
    else:
        sys.stdout.write("".join(row.line() + "\n" for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
