"""The served process and the end of it, without serving: what is watched, what is waited for, and who waits longest."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from slipway import leaving, processes, serving, supervisor


def test_a_file_from_the_future_is_no_change(tmp_path: Path) -> None:
    past, future = tmp_path / "past", tmp_path / "future"
    for path, seconds in ((past, -60), (future, 86_400)):
        path.touch()
        os.utime(path, (time.time() + seconds,) * 2)
    assert serving._newest({past, future, tmp_path / "gone"}) == past.stat().st_mtime_ns
    assert serving._newest({future}) == 0


async def test_a_stream_that_only_listens_is_not_waited_for() -> None:
    go = asyncio.Event()

    async def app(*_: Any) -> None:
        await go.wait()

    async def nothing(*_: Any) -> Any: ...

    whole, running = leaving.Draining(app), []
    for method in (b"tools/call", b"subscriptions/listen"):
        scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": [(b"mcp-method", method)]}
        running.append(asyncio.ensure_future(whole(scope, nothing, nothing)))
    await asyncio.sleep(0)
    assert whole.unanswered == 1
    go.set()
    await asyncio.gather(*running)
    assert whole.unanswered == 0


def test_each_waits_longer_than_whom_it_would_kill() -> None:
    stop = leaving.DRAIN + leaving.SETTLE + leaving.LAST_ANSWERS + serving.SHUTDOWN_GRACE
    assert stop < serving.FORCE_AFTER < supervisor.STOP_TIMEOUT < processes.STOP_TIMEOUT


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_system_that_lends_no_more_open_files_is_served_from_all_the_same(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(what: int, bounds: tuple[int, int]) -> None:
        asked.append(bounds[0])
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    serving._raise_open_files()
    assert asked == [serving.MAX_FILES]
