"""Load and soak: streams held open, seats that call at once, clients that come and vanish. Printed, never asserted.

`python -m tests.bench_load [streams N] [seats N] [soak SECONDS]`; without words all three, with the goals' numbers.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil

from slipway import tokens
from slipway.identity.ledger import MAX_RECORDS
from tests.conftest import Stack, free_ports, wait_until

START = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
MIB = 1 << 20
BARE = """
import sys, uvicorn
from fastmcp import FastMCP
from fastmcp.server.event_store import EventStore
mcp = FastMCP("bare")

@mcp.tool
async def add(a: int, b: int) -> int:
    return a + b

uvicorn.run(mcp.http_app(event_store=EventStore()), port=int(sys.argv[1]), log_level="warning")
"""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def message(method: str, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


ADD = message("tools/call", name="add", arguments={"a": 2, "b": 3})


def headers(stack: Stack | None, subject: str) -> dict[str, str]:
    if stack is None:
        return JSON
    return JSON | {
        "authorization": "Bearer " + tokens.mint(stack.secret, subject=subject, scope="tool:*", ttl=7200).token
    }


def memory(pid: int) -> float:
    """Return what a process holds for itself, in bytes."""
    return float(psutil.Process(pid).memory_full_info().uss)


async def open_streams(port: int, heads: list[dict[str, str]]) -> list[Any]:
    """Open a session and its GET stream for each of the heads. Returns: the connections."""
    gate = asyncio.Semaphore(32)
    links = []
    limits = httpx2.Limits(max_connections=32, max_keepalive_connections=32)
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as http:

        async def one(head: dict[str, str]) -> None:
            async with gate:
                opened = await http.post("/mcp", headers=head, json=message("initialize", **START))
                opened.raise_for_status()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                lines = head | {"host": "localhost", "mcp-session-id": opened.headers["mcp-session-id"]}
                text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
                writer.write(f"GET /mcp HTTP/1.1\r\n{text}\r\n".encode())
                first = await asyncio.wait_for(reader.readline(), 60)
                assert b" 200 " in first, first
                links.append((reader, writer))

        await asyncio.gather(*(one(head) for head in heads))
    return links


async def canary(url: str, head: dict[str, str], verify: Any, count: int = 200) -> list[float]:
    """Return the seconds of calls one after the other."""
    took = []
    async with httpx2.AsyncClient(timeout=60, verify=verify) as http:
        for _ in range(count):
            begun = time.perf_counter()
            (await http.post(url, headers=head, json=ADD)).raise_for_status()
            took.append(time.perf_counter() - begun)
            await asyncio.sleep(0.01)
    return took


def spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"p50 {statistics.median(ordered) * 1000:.1f} ms, p99 {ordered[int(len(ordered) * 0.99)] * 1000:.1f} ms"


def close(links: list[Any]) -> None:
    for _, writer in links:
        writer.transport.abort()


async def streams(folder: Path, number: float) -> None:
    """Memory of each open stream, beside a bare FastMCP's, and a call meanwhile."""
    count = int(number)
    (port,) = free_ports(1)
    bare = subprocess.Popen([sys.executable, "-c", BARE, str(port)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port), 60)
        warm = await open_streams(port, [JSON] * 50)
        before = memory(bare.pid)
        links = await open_streams(port, [JSON] * count)
        each_bare = (memory(bare.pid) - before) / count
        close(warm + links)
    finally:
        bare.terminate()
        bare.wait()
    stack = Stack(folder, {"SLIPWAY_SESSION_IDLE": "5s"}).start()
    try:
        pids = {name: process.pid for name, process in stack.processes.items()}
        heads = [headers(stack, f"seat {number // 10}") for number in range(count)]
        warm = await open_streams(stack.config.edge_port, [headers(stack, "warm")] * 10)
        before_us = {name: memory(pid) for name, pid in pids.items()}
        begun = time.perf_counter()
        links = await open_streams(stack.config.edge_port, heads)
        took = time.perf_counter() - begun
        each = {name: (memory(pid) - before_us[name]) / count for name, pid in pids.items()}
        say(f"streams held open                    {len(links)} of {count}, opened in {took:.0f} s, through the edge")
        say(
            f"memory of each: server               {each['server'] / 1024:.0f} KiB; bare FastMCP {each_bare / 1024:.0f} KiB"
            f" → {each['server'] / each_bare:.2f}   goal 1.10"
        )
        say(f"memory of each: Caddy                {each['caddy'] / 1024:.0f} KiB   goal 111")
        say(
            f"a call meanwhile, through TLS        {spread(await canary(stack.tls_url, headers(stack, 'canary'), stack.trust()))}"
        )
        close(warm + links)
        del links
        begun = time.perf_counter()
        while (left := sessions(stack)) > 0 and time.perf_counter() - begun < 60:
            await asyncio.sleep(0.2)
        say(
            f"sessions of vanished clients         {left} left {time.perf_counter() - begun:.0f} s after they went (idle time 5 s)"
        )
        held = memory(pids["server"])
        again = await open_streams(stack.config.edge_port, heads)
        say(
            f"the same once more                   server +{(memory(pids['server']) - held) / MIB:.0f} MiB: memory is used again"
        )
        close(again)
    finally:
        stack.stop()


def sessions(stack: Stack) -> int:
    """Return how many sessions the server says are open."""
    text = httpx2.get(f"http://127.0.0.1:{stack.config.server_port}/metrics", timeout=10).text
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("slipway_sessions ")))


def _listens(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/", timeout=2)
    except httpx2.TransportError:
        return False
    return True


async def answer(reader: asyncio.StreamReader) -> int:
    """Read one HTTP/1.1 answer to its end. Returns: the status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if "transfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.readexactly(int(head.partition("content-length: ")[2].split("\r")[0]))
    return int(head.split()[1])


async def seats(folder: Path, number: float, seconds: float = 20.0) -> None:
    """Seats that all call at once, as fast as they are answered: calls a second, what is refused, how long it takes."""
    count = int(number)
    stack = Stack(folder).start()
    codes: Counter[int] = Counter()
    took: list[float] = []
    served: Counter[str] = Counter()
    body = json.dumps(ADD).encode()
    try:

        async def seat(name: str) -> None:
            reader, writer = await asyncio.open_connection("localhost", stack.config.tls_port, ssl=stack.trust())
            lines = headers(stack, name) | {"host": "localhost", "content-length": str(len(body))}
            request = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
            request = f"POST /mcp HTTP/1.1\r\n{request}\r\n"
            await begin.wait()
            while time.perf_counter() < until:
                begun = time.perf_counter()
                writer.write(request.encode() + body)
                code = await answer(reader)
                codes[code] += 1
                if code == 200:
                    took.append(time.perf_counter() - begun)
                    served[name] += 1
            writer.close()

        begin, until = asyncio.Event(), 0.0
        working = [asyncio.create_task(seat(f"seat {number}")) for number in range(count)]
        await asyncio.sleep(2)  # for the handshakes, which are not what is measured
        until = time.perf_counter() + seconds
        begin.set()
        failed = [each for each in await asyncio.gather(*working, return_exceptions=True) if each]
        said = ", ".join(f"{code}: {number}" for code, number in sorted(codes.items()))
        say(f"{count} seats at once, TLS, {seconds:.0f} s        {sum(codes.values()) / seconds:.0f} calls/s; {said}")
        say(
            f"                                     {spread(took)}; a seat had {min(served.values())} … {max(served.values())}"
        )
        if failed:
            say(f"                                     FAILED: {len(failed)}, {failed[0]!r}")
    finally:
        stack.stop()


async def soak(folder: Path, seconds: float) -> None:
    """Clients that come, call, listen and vanish without a word: does the memory stay flat?

    Twice: with tokens that come again; and with a new token each, once the ledger has as many as it remembers.
    """
    for kind in ("returning", "fresh"):
        (folder / kind).mkdir()
        await _soak(folder / kind, seconds, fresh=kind == "fresh")


async def _soak(folder: Path, seconds: float, *, fresh: bool) -> None:
    stack = Stack(folder, {"SLIPWAY_SESSION_IDLE": "5s", "SLIPWAY_CALLS_PER_MINUTE": "0"}).start()
    name, rounds, points = "new tokens" if fresh else "tokens that return", 0, list[tuple[float, int, float, float]]()

    def heads(number: int) -> list[dict[str, str]]:
        return [headers(stack, f"soak {number % 20} {each % 10}") for each in range(40)]

    try:
        pids = [stack.processes[each].pid for each in ("server", "caddy")]
        if fresh:
            await _fill(stack)
        known, begun = [heads(number) for number in range(20)], time.monotonic()
        while (now := time.monotonic() - begun) < seconds:
            if now >= len(points) * min(60, seconds / 10):
                # without the sessions that are only about to go: how many those are is the machine's speed
                for _ in range(100):
                    if sessions(stack):
                        await asyncio.sleep(0.2)
                server, caddy = (memory(pid) / MIB for pid in pids)
                points.append((now, rounds * 40, server, caddy))
                say(
                    f"soak, {name:<18} {now:>5.0f} s {rounds * 40:>6} clients   server {server:.1f} MiB, Caddy {caddy:.1f} MiB"
                )
            them = heads(rounds) if fresh else known[rounds % len(known)]
            links = await open_streams(stack.config.edge_port, them)
            async with httpx2.AsyncClient(timeout=60, base_url=f"http://127.0.0.1:{stack.config.edge_port}") as http:
                await asyncio.gather(*(http.post("/mcp", headers=head, json=ADD) for head in them))
            close(links)
            rounds += 1
        warm = [point for point in points if point[0] >= seconds / 5]
        for column, process in ((2, "server"), (3, "Caddy")) if len(warm) > 2 else ():
            grows = statistics.linear_regression(
                [point[1] for point in warm], [point[column] for point in warm]
            ).slope
            say(
                f"soak, {name:<18} {process}: {grows * 1024 * 1000:+.0f} KiB for 1,000 clients after warming up; goal 0"
            )
    finally:
        stack.stop()


async def _fill(stack: Stack) -> None:
    """Let MAX_RECORDS tokens make one call each."""
    before, left = memory(stack.processes["server"].pid), iter(range(MAX_RECORDS))
    limits = httpx2.Limits(max_connections=32)
    async with httpx2.AsyncClient(
        timeout=60, base_url=f"http://127.0.0.1:{stack.config.server_port}", limits=limits
    ) as http:

        async def some() -> None:
            for number in left:
                (await http.post("/mcp", headers=headers(stack, f"fill {number % 500}"), json=ADD)).raise_for_status()

        await asyncio.gather(*(some() for _ in range(32)))
    grown = memory(stack.processes["server"].pid) - before
    say(f"{MAX_RECORDS} tokens in the ledger           +{grown / MIB:.0f} MiB, which is the most")


WORK = {"streams": streams, "seats": seats, "soak": soak}


def main(words: list[str]) -> None:
    """Run what was asked for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    asked = dict(zip(words[::2], words[1::2], strict=True)) or {"streams": "2000", "seats": "200", "soak": "600"}
    with tempfile.TemporaryDirectory(prefix="slipway-load-") as folder:
        for name, number in asked.items():
            place = Path(folder) / name
            place.mkdir()
            work = WORK[name](place, float(number))
            asyncio.run(work)
            gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
