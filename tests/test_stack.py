"""Start and stop without starting anything: what is found where the settings are broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slipway import compose, processes, stack
from slipway.errors import Problem


@pytest.mark.parametrize("broken", ["SLIPWAY_STAET=x", "no assignment", "SERVER_PORT=many", "\udcff=x"])
@pytest.mark.parametrize("folder", ["", "elsewhere"], ids=["default", "its own"])
def test_down_stops_what_runs_and_then_tells_the_mistake_in_the_settings(
    broken: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLIPWAY_STATE", raising=False)
    monkeypatch.setattr(stack, "ROOT", tmp_path)
    monkeypatch.setattr(compose, "missing", lambda: "no Docker")
    state = f"\nSLIPWAY_STATE={folder}\n" if folder else "\n"
    (tmp_path / ".env").write_text(broken + state, errors="surrogateescape")
    run = tmp_path / (folder or ".slipway") / "run"
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        processes.write(run / "stack.json", {"process": processes.identity(running.pid)})
        (run / "public_url").touch()
        with pytest.raises(Problem) as told:
            stack.down()
        assert running.wait(20) != 0
    finally:
        running.kill()
        running.wait()
    assert told.value.exit_code == 2
    assert not (run / "public_url").exists()
