"""Processes that outlive the command that started them: a record on disk, and an end by id that hits no stranger."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from slipway import files

STOP_TIMEOUT = 11.0  # seconds; longer than the supervisor gives its children


def identity(pid: int) -> list[float]:
    """Return [pid, start time]: what tells a process from a later one with the same number."""
    return [pid, psutil.Process(pid).create_time()]


def alive(who: list[float]) -> psutil.Process | None:
    """Return the process that `identity` described, if it still runs."""
    with contextlib.suppress(psutil.Error, ValueError, TypeError, IndexError):
        process = psutil.Process(int(who[0]))
        if abs(process.create_time() - who[1]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def write(record: Path, content: dict[str, Any]) -> None:
    """Write a record in one step, so that no reader sees half of it."""
    record.parent.mkdir(parents=True, exist_ok=True)
    files.write(record, json.dumps(content))


def read(record: Path) -> dict[str, Any]:
    """Return a record, or {} where there is none that can be read."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def running(record: Path) -> dict[str, Any]:
    """Return the record {"process": identity, …} if its process still runs, else {}."""
    found = read(record)
    return found if alive(found.get("process", [])) else {}


def stop(record: Path) -> bool:
    """End the process of a record and then those it left behind ("children"). Returns: whether one was running."""
    found = read(record)
    was = False
    for who in [found.get("process", []), *found.get("children", [])]:
        if process := alive(who):
            was = True
            end(process)
    record.unlink(missing_ok=True)
    return was


def end(process: psutil.Process) -> None:
    """SIGTERM, then SIGKILL for what is still there after STOP_TIMEOUT seconds."""
    with contextlib.suppress(psutil.NoSuchProcess):
        who = [process.pid, process.create_time()]
        process.terminate()
        # a zombie has ended, even where its parent is slow to notice
        if not until(lambda: not alive(who), STOP_TIMEOUT):
            process.kill()


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Ask again until it is true. Returns: whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)  # another process has no event that we could wait for
    return True
