"""Keeps the processes of a stack without Docker alive, until it is told to end them. It is started by stack.py.

What to run arrives as JSON on stdin; nothing else of Slipway is imported, so that it is there at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from slipway import processes

STOP_TIMEOUT = 8.0  # seconds; longer than the server's own grace, shorter than processes.STOP_TIMEOUT
HOPELESS = {2, 3, *range(50, 58)}  # exit codes of settings.py, uvicorn and targets.py: another try would end alike
SETTLED = 30.0  # seconds after which a child counts as having started well


async def supervise(record: Path, fingerprint: str, children: dict[str, Any], folder: str) -> int:
    """Start the children and start again, ever more slowly, what dies; end them at SIGTERM or SIGINT.

    Returns: the exit code; not 0 when a child's first start showed that there is no use in another.

    Args:
        record: where to write who runs, for `down` and the next `up`.
        fingerprint: of settings and code, kept in the record.
        children: {name: [command, environment]}.
        folder: where they run.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    mine = {"process": processes.identity(os.getpid()), "fingerprint": fingerprint}
    started_as: dict[str, list[float]] = {}
    hopeless = 0

    async def keep(name: str, command: list[str], environment: dict[str, str]) -> None:
        nonlocal hopeless
        delay, first = 0.2, True
        while not stopping.is_set():
            begun = time.monotonic()
            process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=environment)
            started_as[name] = processes.identity(process.pid)
            # a full disk must not end us: nobody would start again what dies
            with contextlib.suppress(OSError):
                known = {"children": list(started_as.values()), "edge": started_as.get("caddy", [])}
                processes.write(record, mine | known)
            ended, halted = asyncio.create_task(process.wait()), asyncio.create_task(stopping.wait())
            await asyncio.wait({ended, halted}, return_when=asyncio.FIRST_COMPLETED)
            halted.cancel()
            if stopping.is_set():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                try:
                    await asyncio.wait_for(ended, STOP_TIMEOUT)
                except TimeoutError:
                    process.kill()
                    await process.wait()
                return
            if first and process.returncode in HOPELESS:
                hopeless = process.returncode or 1
                stopping.set()
                return
            first = False
            delay = 0.2 if time.monotonic() - begun > SETTLED else min(delay * 2, 10)
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{name} ended with {process.returncode}; starting it again in {delay:.1f} s\n")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), delay)

    await asyncio.gather(*(keep(name, *row) for name, row in children.items()))
    return hopeless


if __name__ == "__main__":
    task = json.load(sys.stdin)
    path = Path(task["record"])
    try:
        code = asyncio.run(supervise(path, task["fingerprint"], task["children"], task["folder"]))
    finally:
        path.unlink(missing_ok=True)
    sys.exit(code)
