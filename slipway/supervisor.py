"""Keeps the processes of a stack without Docker alive, until it is told to end them. It is started by stack.py.

What to run arrives as JSON on stdin; of Slipway only processes.py and its files.py are imported: it is there at once.
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

import psutil

from slipway import processes

STOP_TIMEOUT = 9.5  # seconds; longer than serving.FORCE_AFTER, shorter than processes.STOP_TIMEOUT
HOPELESS = {2, 3, *range(50, 58)}  # exit codes of settings.py, uvicorn and targets.py: another try would end alike
SETTLED = 30.0  # seconds after which a child counts as having started well


async def supervise(record: Path, fingerprint: str, children: dict[str, Any], folder: str) -> int:
    """Start the children and start again, ever more slowly, what dies; SIGTERM, SIGINT or an error ends all.

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

    async def run(name: str, command: list[str], environment: dict[str, str]) -> int | str:
        """Run a child until it ends or we stop. Returns: its exit code, or why there was no child."""
        try:
            process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=environment)
        except OSError as error:
            return error.strerror or type(error).__name__  # an update replaces programs while we run
        try:
            started_as.pop(name, None)
            # one that ended at once has no identity any more
            with contextlib.suppress(OSError, psutil.Error):
                started_as[name] = processes.identity(process.pid)
            # a full disk must not end us: nobody would start again what dies
            with contextlib.suppress(OSError):
                known = {"children": list(started_as.values()), "edge": started_as.get("caddy", [])}
                processes.write(record, mine | known)
            ended, halted = asyncio.create_task(process.wait()), asyncio.create_task(stopping.wait())
            await asyncio.wait({ended, halted}, return_when=asyncio.FIRST_COMPLETED)
            halted.cancel()
        finally:
            if process.returncode is None:
                await _end(process)
        return process.returncode or 0

    async def keep(name: str, command: list[str], environment: dict[str, str]) -> None:
        nonlocal hopeless
        delay, first = 0.2, True
        while not stopping.is_set():
            begun = time.monotonic()
            came = await run(name, command, environment)
            if stopping.is_set():
                return
            if first and isinstance(came, int) and came in HOPELESS:
                hopeless = came
                stopping.set()
                return
            first = False
            delay = 0.2 if time.monotonic() - begun > SETTLED else min(delay * 2, 10)
            told = f"ended with {came}" if isinstance(came, int) else f"cannot be started ({came})"
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{name} {told}; starting it again in {delay:.1f} s\n")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), delay)

    await asyncio.gather(*(keep(name, *row) for name, row in children.items()))
    return hopeless


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()


if __name__ == "__main__":
    task = json.load(sys.stdin)
    path = Path(task["record"])
    try:
        code = asyncio.run(supervise(path, task["fingerprint"], task["children"], task["folder"]))
    finally:
        path.unlink(missing_ok=True)
    sys.exit(code)
