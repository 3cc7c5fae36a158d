"""scripts/audit while the server writes: each line once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slipway import knocks, trail


def line(number: int) -> str:
    return json.dumps({"time": 1e9 + number, "request_id": str(number), "status": 200}) + "\n"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's log, of which one file was rotated already."""
    monkeypatch.setattr(trail, "ROOT", tmp_path)
    monkeypatch.setenv("SLIPWAY_STATE", str(tmp_path))
    path = tmp_path / "log" / "server.jsonl"
    path.parent.mkdir()
    path.with_name("server.jsonl.1").write_text(line(1))
    path.write_text(line(2))
    return path


def followed(*arguments: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        trail.main(["--follow", "--json", *arguments])


def test_a_line_that_comes_while_the_log_is_read_is_printed_once(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Busy(knocks.Tail):
        """The server writes just when somebody begins to follow."""

        def __init__(self, path: Path, **how: Any) -> None:
            super().__init__(path, **how)
            if path == log:
                with path.open("a") as stream:
                    stream.write(line(3))

    def look(_: float, looks: list[int] = []) -> None:  # noqa: B006 it counts
        looks.append(1)
        if len(looks) == 2:
            raise KeyboardInterrupt
        with log.open("a") as stream:
            stream.write(line(4))

    monkeypatch.setattr(knocks, "Tail", Busy)
    monkeypatch.setattr(trail.time, "sleep", look)
    followed()
    printed = [json.loads(text)["request_id"] for text in capsys.readouterr().out.splitlines()]
    assert printed == ["1", "2", "3", "4"]
