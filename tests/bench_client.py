"""Load from a process of its own: a job a line comes in as JSON, what became of it goes out as JSON.

Bare HTTP/1.1 on asyncio's protocols: an HTTP library would take more time than the servers that are measured.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import uvloop

BEFORE, PATIENCE = 0.15, 30.0  # seconds: of calls before those that are counted; for one answer


class Caller(asyncio.Protocol):
    """One connection, one call after the other."""

    def __init__(self, request: bytes, expect: bytes, codes: Counter[str], times: list[float]) -> None:
        self._request = request
        self._expect = expect
        self._codes = codes
        self._times = times
        self._came = bytearray()
        self._transport: Any = None
        self.until = 0.0
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def call(self) -> None:
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._came += data
        head = self._came.find(b"\r\n\r\n")
        if head < 0:
            return
        lines = bytes(self._came[:head]).lower()
        if b"transfer-encoding: chunked" in lines:
            whole = self._came.endswith(b"\r\n0\r\n\r\n")
        else:
            length = int(lines.partition(b"content-length: ")[2].partition(b"\r")[0])
            whole = len(self._came) >= head + 4 + length
        if not whole:
            return
        status = lines[9:12].decode()
        self._codes["ok" if status == "200" and self._expect in self._came else status] += 1
        self._came.clear()
        self._times.append(time.perf_counter())
        if self._times[-1] < self.until:
            self.call()
        elif not self.over.done():
            self.over.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self._codes["lost"] += 1
            self.over.set_result(None)

    def close(self) -> None:
        self._transport.close()


def request(url: str, headers: dict[str, str], body: bytes) -> bytes:
    where = urlsplit(url)
    lines = {"host": where.netloc, "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {where.path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def load(job: dict[str, Any]) -> dict[str, Any]:
    """Call from many connections for a while.

    The callers begin over `spread` seconds, as people do. What is counted is what was answered between two answers,
    the first of which came when all had begun: so neither beginning nor end, when few calls are open, is in it.

    Returns: the calls a second, all calls, and what was answered.
    """
    where, codes, times = urlsplit(job["url"]), Counter[str](), list[float]()
    trust = ssl.create_default_context(cafile=job["ca"]) if where.scheme == "https" else None
    loop, spread = asyncio.get_running_loop(), job["spread"]
    callers: list[Caller] = []
    for number in range(job["clients"]):
        head = job["headers"][number % len(job["headers"])]
        text = request(job["url"], head, job["body"].encode())
        _, caller = await loop.create_connection(
            lambda text=text: Caller(text, job["expect"].encode(), codes, times),
            where.hostname, where.port, ssl=trust,
        )  # fmt: skip
        callers.append(caller)
    counted = time.perf_counter() + BEFORE + 2 * spread
    for number, caller in enumerate(callers):
        caller.until = counted + job["seconds"]
        loop.call_later(spread * number / len(callers), caller.call)
    async with asyncio.timeout(BEFORE + 2 * spread + job["seconds"] + PATIENCE):
        await asyncio.gather(*(caller.over for caller in callers))
    for caller in callers:
        caller.close()
    first = max((index for index, when in enumerate(times) if when <= counted), default=0)
    last = max((index for index, when in enumerate(times) if when <= callers[0].until), default=0)
    last = last if last > first else len(times) - 1  # slower than a call in that time
    rate = (last - first) / (times[last] - times[first]) if last > first else 0.0
    return {"rate": rate, "calls": len(times), "codes": dict(codes)}


async def main() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(await load(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main())
