"""The supervisor and children that end at once, cannot be started, or outlive an error of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from slipway import processes, supervisor
from tests.conftest import ROOT, wait_until

SLEEPER: tuple[list[str], dict[str, str]] = (["/bin/sleep", "100"], {})


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if each.name() == "sleep"]


@pytest.mark.parametrize(
    ("brief", "told"), [("/bin/true", "ended with 0"), ("/bin/none", "cannot be started (No such file")]
)
def test_a_child_that_is_gone_at_once_is_started_again_and_costs_no_other(
    tmp_path: Path, brief: str, told: str
) -> None:
    record = tmp_path / "run" / "stack.json"
    task = {
        "record": str(record),
        "fingerprint": "x",
        "folder": str(tmp_path),
        "children": {"a": SLEEPER, "b": [[brief], {}]},
    }
    with (tmp_path / "task").open("w+") as stdin, (tmp_path / "log").open("w") as log:
        json.dump(task, stdin)
        stdin.seek(0)
        running = subprocess.Popen(
            [sys.executable, "-m", "slipway.supervisor"], cwd=ROOT, stdin=stdin, stdout=log, stderr=log
        )
    try:
        wait_until(lambda: (tmp_path / "log").read_text().count(told) == 2, 20, f"the second end: {told}")
        (sleeper,) = (each for each in psutil.Process(running.pid).children() if each.name() == "sleep")
        assert processes.identity(sleeper.pid) in processes.running(record)["children"]
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0
    assert not sleeper.is_running()
    assert not record.exists()


def test_a_child_without_an_identity_is_waited_for_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = processes.identity

    def identity(pid: int) -> list[float]:
        if pid != os.getpid():
            raise psutil.NoSuchProcess(pid)
        return real(pid)

    monkeypatch.setattr(processes, "identity", identity)
    code = asyncio.run(supervisor.supervise(tmp_path / "record", "", {"a": [["/bin/sh", "-c", "exit 3"], {}]}, "/"))
    assert code == 3


def test_an_error_of_its_own_leaves_no_child_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []

    def write(_: Path, content: dict[str, Any]) -> None:
        written.append(content)
        if len(written) == 2:
            raise ZeroDivisionError

    monkeypatch.setattr(processes, "write", write)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(supervisor.supervise(tmp_path / "record", "", {"a": SLEEPER, "b": SLEEPER}, "/"))
    assert not children()
