"""The log of who knocked: private, rotated, harmless to a terminal, and followed over whatever happens to the file."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import threading
import time
from pathlib import Path

import pytest

from slipway import knocks, trail
from slipway.knocks import Knock, Tail


def flush(logger: logging.Logger) -> None:
    for handler in logger.handlers:
        handler.flush()


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    logger = knocks.open_log(tmp_path / "log" / "server.jsonl")
    knock = Knock(
        time=time.time(),
        http="POST",
        method="tools/call",
        tool="add",
        client="me 1",
        status=200,
        ms=1.25,
        subject="ana",
    )
    knocks.write(logger, knock)
    flush(logger)
    (line,) = (tmp_path / "log" / "server.jsonl").read_text().splitlines()
    assert "reason" not in json.loads(line)
    back = knocks.parse(line)
    assert back
    assert (back.tool, back.subject, back.status) == ("add", "ana", 200)
    assert "tools/call add" in knocks.render(back)


def test_a_call_whose_client_left_is_added_up_once_as_its_tool_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = knocks.open_log(tmp_path / "log" / "server.jsonl")
    knock = Knock(time=1e9, request_id="x", tool="slow", status=499, outcome="left")
    knocks.write(logger, knock)
    knock.written(lambda late: knocks.write(logger, late))
    knock.tool_ended("ok", 2.0)
    for _ in range(2):
        knocks.announce(logger, "the tool list changed")
    flush(logger)
    monkeypatch.setenv("SLIPWAY_STATE", str(tmp_path))
    assert trail.main(["--count", "tool,outcome"]) == 0
    assert sorted(line.split() for line in capsys.readouterr().out.splitlines()) == [
        ["1", "slow", "ok"], ["2", "-", "-"], ["calls", "tool", "outcome"],
    ]  # fmt: skip


def test_every_generation_of_the_log_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knocks, "MAX_LOG_BYTES", 300)
    logger = knocks.open_log(tmp_path / "server.jsonl")
    for _ in range(20):
        knocks.write(logger, Knock(path="/mcp", status=200))
    flush(logger)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_a_full_disk_ends_no_request() -> None:
    logger = knocks.open_log(Path("/dev/full"))
    knocks.write(logger, Knock(status=200))
    flush(logger)


def test_a_writer_that_hangs_costs_lines_and_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(knocks, "MAX_WAITING", 100)
    logger = knocks.open_log(tmp_path / "log")
    # more than a pipe and the queue hold: written directly, this would wait for good
    for _ in range(4000):
        knocks.write(logger, Knock(reason="x" * 200, status=200))
    os.set_blocking(reader, True)
    text = b""
    while b"were lost" not in text:
        text += os.read(reader, 65536)
        knocks.write(logger, Knock(reason="after", status=200))
    os.close(reader)


def test_a_program_that_configures_logging_stops_no_log_and_waits_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        knocks, "FLUSH", 1000.0
    )  # a thread that waits for the lock of who waits for it would do so for good
    logger = knocks.open_log(tmp_path / "log")
    knocks.write(logger, Knock(reason="before", status=200))
    done = threading.Event()

    def configure() -> None:
        # it closes every handler, and holds logging's lock meanwhile
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        done.set()

    threading.Thread(target=configure, daemon=True).start()
    assert done.wait(60)
    knocks.write(logger, Knock(reason="after", status=200))
    flush(logger)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "log").read_text().splitlines()]
    assert reasons == ["before", "after"]


def test_a_call_that_outlives_its_request_gets_a_line_of_its_own() -> None:
    late: list[tuple[str, str]] = []
    knock = Knock(outcome="left")
    knock.tool_ended("ok", 1.0)
    assert not late
    knock.written(lambda knock: late.append((knock.outcome, knock.reason)))
    knock.tool_ended("error", 1.0)
    assert late == [("error", "the tool ended after its client had left")]


def test_a_hostile_client_cannot_command_the_terminal() -> None:
    evil = "\x1b[2J\x07evil\r\n12:00:00 fake line"
    shown = knocks.render(Knock(client=evil, era=evil, method=evil, tool=evil, subject=evil, reason=evil, status=200))
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert shown.count("\n") == 1  # ours, before the reason


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        "[]",
        "null",
        '{"request": 5}',
        '{"request": {}, "ts": "x", "refused": "y"}',
        '"text"',
        "\x00",
        "[" * 100_000,
        '{"time": 1e300, "status": 200}',
        '{"time": NaN}',
        '{"time": "z", "status": "x", "ms": "y"}',
        '{"request": {"method": "GET"}, "refused": "x", "status": Infinity}',
        '{"ms": 1e308, "status": 200}',
    ],
)
def test_a_line_that_is_no_record_is_passed_over(raw: str) -> None:
    knock = knocks.parse(raw)
    assert knock is None or knocks.render(knock)


def test_an_edge_line_counts_only_when_the_edge_refused() -> None:
    line = {"request": {"method": "POST", "uri": "/x?token=1"}, "ts": 1.0, "status": 404, "duration": 0.001}
    assert knocks.parse(json.dumps(line)) is None
    knock = knocks.parse(json.dumps(line | {"refused": "no such public path", "agent": "curl/8"}))
    assert knock
    assert (knock.path, knock.client, knock.ms) == ("/x", "curl/8", 1.0)


def test_a_tail_follows_over_partial_lines_rotation_truncation_and_a_late_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert list(tail.lines()) == []
    path.write_text("one\ntw")
    assert list(tail.lines()) == ["one"]
    with path.open("a") as stream:
        stream.write("o\n")
    assert list(tail.lines()) == ["two"]
    path.rename(tmp_path / "log.1")
    path.write_text("three\n")
    assert list(tail.lines()) == ["three"]
    path.write_text("4\n")
    assert list(tail.lines()) == ["4"]
    path.unlink()
    assert list(tail.lines()) == []


def test_a_tail_loses_nothing_that_was_written_before_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = Tail(path)
    with path.open("a") as stream:
        stream.write("before\nand ")
    assert list(tail.lines()) == ["before"]
    with path.open("a") as stream:
        stream.write("after\n" + "x" * 500 + "\n")
    path.rename(tmp_path / "log.1")
    assert list(tail.lines()) == ["and after", "x" * 500]
    with (tmp_path / "log.1").open("a") as stream:
        stream.write("late\n")
    path.write_text("fresh\n")
    assert list(tail.lines()) == ["late", "fresh"]
    assert tail.offset == len("fresh\n")


def test_a_tail_starts_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("old\n")
    tail = Tail(path)
    with path.open("a") as stream:
        stream.write("new\n")
    assert list(tail.lines()) == ["new"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1._Z", True), ("a" * 65, False), ("a b", False), ("x\ny", False), ("", False), (None, False)],
)
def test_only_a_safe_request_id_is_repeated(given: str | None, kept: bool) -> None:
    assert (knocks.request_id(given) == given) is kept


def test_a_log_that_another_replica_rotated_is_not_rotated_again(tmp_path: Path) -> None:
    path = tmp_path / "server.jsonl"
    one, other = (knocks._PrivateFile(path, maxBytes=300, backupCount=3) for _ in range(2))
    line = logging.makeLogRecord({"msg": "x" * 120})
    try:
        for replica in (one, one, other, one):  # the third rotates, the fourth still has the old file open
            replica.emit(line)
    finally:
        one.close()
        other.close()
    assert {file.name: file.read_text().count("\n") for file in tmp_path.iterdir()} == {
        "server.jsonl": 2,
        "server.jsonl.1": 2,
    }


def test_a_log_that_is_opened_twice_is_one_log(tmp_path: Path) -> None:
    first, again = (knocks.open_log(tmp_path / "log") for _ in range(2))
    knocks.write(again, Knock(reason="once", status=200))
    flush(first)
    assert len((tmp_path / "log").read_text().splitlines()) == len(first.handlers) == 1


def test_what_is_kept_of_a_log_is_named_from_the_oldest_on(tmp_path: Path) -> None:
    server = ["server.jsonl.2", "server.jsonl.1", "server.jsonl"]
    edge = ["edge-2026-01-01T00-00-00.000.jsonl", "edge-2026-01-02T00-00-00.000.jsonl", "edge.jsonl"]
    for name in sorted([*server, *edge]):
        (tmp_path / name).touch()
    assert [path.name for path in knocks.kept(tmp_path / "server.jsonl")] == server
    assert [path.name for path in knocks.kept(tmp_path / "edge.jsonl")] == edge
    assert knocks.kept(tmp_path / "none.jsonl") == []
