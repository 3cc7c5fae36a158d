"""The board without a browser: its page, for whom it exists; the terminal's view; the cards."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import stat
import sys
import termios
import threading
import time
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from starlette.applications import Starlette

from slipway import files
from slipway.errors import Problem
from slipway.lab import cards, drawing, routes, watch
from slipway.lab.cards import Card
from tests.conftest import wait_until

CHECKPOINTS = [{"id": "connected", "title": "Connected"}, {"id": "listed", "title": "Listed the tools"}]
BUDGET = {
    "plan": "free", "requests": 17_000, "requests_most": 20_000, "bytes": 4.2e8, "bytes_most": 1e9, "per_minute": 120,
    "per_minute_most": 4000, "projected": 23_000, "warning": "Requests end before the lab does.", "slowed": 0,
}  # fmt: skip


def row(seat: int, **more: Any) -> dict[str, Any]:
    return {
        "seat": seat, "name": "", "state": "free", "client": "", "era": "", "last": 0, "last_call": "", "calls": 0,
        "errors": 0, "p95": 0, "checkpoints": [], "stuck": "", "cure": "", "payload": "", **more,
    }  # fmt: skip


def ana(**more: Any) -> dict[str, Any]:
    return row(7, name="ana", state="connected", client="claude-code 2.1", era="2026-07-28", last=990, last_call="add", calls=12, errors=1, p95=14.2, checkpoints=["connected"], **more)  # fmt: skip


def lab(*seats: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "title": "MCP in ninety minutes", "ends_at": 6000, "locked": False, "tools": "*",
        "join_url": "https://x.example/join", "checkpoints": CHECKPOINTS, "seats": list(seats), "door": [],
        "budget": {"plan": "none"}, "now": time.time(), **more,
    }  # fmt: skip


def sent(*events: tuple[str, Any]) -> Iterator[bytes]:
    """Yield the lines of a stream with comments, as an HTTP response yields them."""
    text = ": open\n\n" + "".join(
        f"event: {name}\ndata: {json.dumps(content)}\n\n: beat\n\n" for name, content in events
    )
    yield from io.BytesIO(text.encode())


# --- the page


async def ask(headers: dict[str, str]) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=Starlette(routes=[routes.board()]))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        return await client.get("/board", headers=headers)


async def test_the_page_runs_its_own_script_alone_and_asks_nobody_else() -> None:
    answer = await ask({})
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'; style-src 'sha256-" in policy
    assert "script-src 'sha256-" in policy
    assert "connect-src 'self'; form-action 'none'; frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "\nimport " not in answer.text
    assert "\nexport " not in answer.text


@pytest.mark.parametrize(
    "header",
    [{"x-forwarded-for": "203.0.113.9"}, {"forwarded": "for=x"}, {"via": "1.1 x"}, {"host": "lab.ngrok-free.app"}, {"host": ""}],
)  # fmt: skip
async def test_the_page_does_not_exist_for_what_came_through_the_edge_or_by_another_name(
    header: dict[str, str],
) -> None:
    assert (await ask(header)).status_code == 404


# --- the terminal


def plain(board: drawing.View, width: int = 79, height: int = 40) -> list[str]:
    return drawing.drawn(board, width, height, colour=False, now=time.time())


def told(*events: tuple[str, Any]) -> drawing.View:
    board = drawing.View()
    for name, content in events:
        board.take(name, content)
    return board


def columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def test_the_drawing_holds_all_of_a_seat_and_the_cure_under_who_is_stuck() -> None:
    now = time.time()
    seat = ana(stuck="token expired", cure="Open the join page again, type the same code.") | {"last": now - 100}
    door = [{"time": now - 30, "what": "403 origin http://x.example", "cure": "Allow it.", "count": 3}]
    board = told(
        ("lab", lab(row(1), row(2), row(4), seat, ends_at=now + 4000, locked=True, budget=BUDGET, door=door))
    )
    lines = plain(board)
    assert lines[0].startswith("MCP in ninety minutes ") and lines[0].endswith(" 1 h 6 min left · locked")
    assert "● 1 connected  ◐ 0 joined  ○ 3 free  ▲ 1 stuck" in lines
    at = next(number for number, line in enumerate(lines) if line.startswith("  7 "))
    assert lines[at].split() == ["7", "▲", "ana", "claude-code", "2…", "26-07", "add", "1m", "12", "1", "14ms", "1/2"]
    assert lines[at + 1] == "      token expired → Open the join page again, type the same code."
    assert "    ○ free: 1-2, 4" in lines
    assert any("17,000/20,000 (23,000 at the end) · minute 120/4,000 · 420/1,000 MB" in line for line in lines)
    assert "! Requests end before the lab does." in lines
    assert lines[-1] == "  403 origin http://x.example (3 times), 30s ago → Allow it."
    assert "2026-07-28" in "".join(plain(board, 120))


@pytest.mark.parametrize("width", [20, 40, 79, 80, 99, 100, 200])
@pytest.mark.parametrize(
    "text", ["x" * 300, "日本語の名前" * 50, "e\u0301" * 200, "\x1b[2J\x1b]0;x\x07\u202e\u2028\r\nnext", ""]
)
def test_no_line_is_wider_than_the_window_or_commands_it(width: int, text: str) -> None:
    hostile = dict.fromkeys(("name", "client", "era", "last_call", "stuck", "cure", "payload"), text)
    door = [{"time": 0, "what": text, "cure": text, "count": 10**9}]
    about = {"title": text, "join_url": text, "door": door, "budget": {**BUDGET, "warning": text, "slowed": 30}}
    board = told(("lab", lab(ana() | hostile, row(8, state="joined") | hostile | {"stuck": ""}, **about)))
    lines = plain(board, width)
    assert max(map(columns, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_in_a_low_window_those_who_are_stuck_stay() -> None:
    seats = [row(n, state="connected", name=f"n{n}") for n in range(1, 31)]
    for n in (3, 29):
        seats[n - 1] |= {"stuck": "406 Accept", "cure": "Send both types."}
    board = told(("lab", lab(*seats)))
    for height in (12, 20, 40):
        lines = plain(board, 79, height)
        assert len(lines) <= height
        assert sum("406 Accept" in line for line in lines) == 2
        shown = sum(line.startswith(f"{n:>3} ") for n in range(1, 31) for line in lines)
        more = [line for line in lines if "more seats that are not stuck" in line]
        assert more == (
            [] if shown == 30 else [f"   and {30 - shown} more seats that are not stuck; a higher window shows them"]
        )
    assert shown == 30


def test_a_pipe_gets_a_line_for_each_change_and_no_other() -> None:
    door = [{"time": 0, "what": "404 /mpc", "cure": "The URL ends with /mcp.", "count": 1}]
    out = io.StringIO()
    ended = watch.watch(
        sent(
            ("lab", lab(row(7))),
            ("seats", [row(7, name="ana", state="joined")]),
            ("seats", [ana()]),
            ("seats", [ana() | {"calls": 13}]),
            ("seats", [ana(stuck="403 origin", cure="Use the console.") | {"checkpoints": ["connected", "listed"]}]),
            ("seats", [ana() | {"checkpoints": ["connected", "listed"]}]),
            ("door", door), ("door", [door[0] | {"count": 2}]), ("budget", BUDGET), ("budget", BUDGET),
            ("lab", lab(ana(), locked=True, budget=BUDGET, door=door)),
            ("seats", [ana() | {"state": "revoked", "client": "evil\x1b[2J"}]),
            ("end", {}),
            ("seats", [row(7, state="joined")]),
        ),
        out,
    )  # fmt: skip
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert ended
    assert lines[0].startswith("MCP in ninety minutes: 1 seats, until ")
    assert lines[1:] == [
        "seat 7 (ana) joined",
        "seat 7 (ana) connected: claude-code 2.1, 2026-07-28",
        "seat 7 (ana) reached: Connected",
        "seat 7 (ana) reached: Listed the tools",
        "seat 7 (ana) is stuck: 403 origin → Use the console.",
        "seat 7 (ana) goes on",
        "at the door: 404 /mpc → The URL ends with /mcp.",
        "budget: Requests end before the lab does.",
        "the lab is locked: nobody new can join",
        "seat 7 (ana) is revoked",
        "the lab is over",
    ]


def test_a_hostile_name_cannot_command_what_reads_the_pipe() -> None:
    out = io.StringIO()
    assert not watch.watch(sent(("lab", lab(ana() | {"name": "\x1b[2J\x07", "client": "\x1b]0;x"}))), out)
    assert all(line.isprintable() for line in out.getvalue().splitlines())
    assert "seat 7 ([2J) connected: ]0;x" in out.getvalue()


def test_a_stream_that_breaks_off_is_opened_again_with_a_growing_wait_and_no_half_event() -> None:
    def broken() -> Iterator[bytes]:
        yield from sent(("lab", lab(row(7))))
        yield b"event: seats\n"
        yield b'data: [{"seat": 7,\n'
        raise ConnectionResetError

    def refused() -> Iterator[bytes]:
        raise ConnectionRefusedError
        yield b""

    streams, waits, out = [broken, refused, refused], list[float](), io.StringIO()

    def connect() -> Iterator[bytes]:
        return streams.pop(0)() if streams else sent(("lab", lab(row(7, name="ana", state="joined"))), ("end", {}))

    assert watch.watch(watch.kept_open(connect, waits.append), out)
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines[1:] == ["the server is away, trying again", "seat 7 (ana) joined", "the lab is over"]
    assert len(waits) == 3
    assert all(0.25 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(waits))


def test_a_problem_is_not_tried_again() -> None:
    def connect() -> Iterator[bytes]:
        raise Problem("There is no lab.", "scripts/lab new")

    with pytest.raises(Problem, match="There is no lab"):
        watch.watch(watch.kept_open(connect), io.StringIO())


class Terminal:
    """A pseudo terminal of 80 columns, and what was written to it."""

    def __init__(self) -> None:
        self.ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, 80))
        self.out = os.fdopen(theirs, "w", encoding="utf-8")
        self.text = ""

    def until(self, wanted: str) -> str:
        """Read until this was written. Returns: all that was."""
        deadline = time.monotonic() + 10
        while wanted not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.ours], [], [], 0.1)[0]:
                self.text += os.read(self.ours, 65536).decode(errors="replace")
        return self.text

    def close(self) -> None:
        self.out.close()
        os.close(self.ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@pytest.mark.parametrize("how", ["end", "broken off", "ctrl-c"])
@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_is_redrawn_and_given_back_however_it_ends(terminal: Terminal, how: str, colour: bool) -> None:
    go = threading.Event()

    def lines() -> Iterator[bytes]:
        yield from sent(("lab", lab(row(7))), ("seats", [ana(stuck="406 Accept", cure="Send both types.")]))
        go.wait(10)
        if how == "ctrl-c":
            raise KeyboardInterrupt
        if how == "end":
            yield from sent(("end", {}))

    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(watch.watch(lines(), terminal.out, colour=colour))
        except KeyboardInterrupt:
            ended.append("interrupted")

    thread = threading.Thread(target=run)
    thread.start()
    terminal.until("406 Accept → Send both types.")
    go.set()
    text = terminal.until("\x1b[?25h\x1b[?1049l")
    thread.join(10)
    text = terminal.until("MCP in ninety minutes" if how != "end" else "The lab is over.")
    assert ended == [{"end": True, "broken off": False, "ctrl-c": "interrupted"}[how]]
    assert text.startswith("\x1b[?1049h\x1b[?25l")
    assert ("\x1b[1;31m" in text) is colour
    # the last picture stays on the screen that was there before
    assert (
        "406 Accept"
        in terminal.until("Send both types.\x1b[0m\r\n" if colour else "Send both types.\r\n").rpartition(
            "\x1b[?1049l"
        )[2]
    )


# --- the cards


class Texts(HTMLParser):
    """What a page says and which elements it has."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.said = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.images += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.said += data


def test_a_card_has_name_or_seat_code_square_and_three_steps() -> None:
    found = Texts(
        cards.html("MCP", "https://x.example/join", [Card(7, "", "ACDE-3479"), Card(8, "ana", "ACDE-3477")], 1e9)
    )
    assert found.said.count("Seat 7") == 1
    assert "ana" in found.said and "Seat 8 · until" in found.said
    assert "ACDE-3479" in found.said and "ACDE-3477" in found.said
    assert (found.tags.count("li"), found.tags.count("article"), found.tags.count("section")) == (6, 2, 1)
    assert "Open x.example/join" in found.said
    assert all(image.startswith("data:image/svg+xml") for image in found.images)
    assert len(set(found.images)) == 2, "each card has its own square"


@pytest.mark.parametrize(("seats", "sheets"), [(1, 1), (8, 1), (9, 2), (30, 4)])
def test_eight_cards_are_a_sheet(seats: int, sheets: int) -> None:
    made = [Card(seat, "", "ACDE-3479") for seat in range(1, seats + 1)]
    assert Texts(cards.html("MCP", "https://x.example/join", made, 1e9)).tags.count("section") == sheets


def test_hostile_names_on_cards_are_text() -> None:
    evil = '<img src="http://evil.example/x" onerror=alert(1)>\x1b[2J\u202e'
    page_ = cards.html(evil, f"https://x.example/{evil}", [Card(1, evil, evil)], 1e9)
    found = Texts(page_)
    assert found.tags.count("img") == 1
    assert all(image.startswith("data:") for image in found.images)
    assert "\x1b" not in page_ and "\u202e" not in page_
    assert "<img src=" in found.said


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_of_codes_is_private_also_where_an_open_one_lies(tmp_path: Path) -> None:
    path = tmp_path / "cards.html"
    path.write_text("old")
    path.chmod(0o644)
    files.write(path, "new")
    assert (path.read_text(), mode(path)) == ("new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


OUT = "out = next(a for a in sys.argv if a.startswith('--print-to-pdf=')).partition('=')[2]"


def script(folder: Path, content: str) -> str:
    path = folder / "browser"
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{content}\n")
    path.chmod(0o755)
    return str(path)


def living(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def test_without_a_browser_the_way_by_hand_is_told(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="There is no Chromium") as raised:
        cards.pdf(tmp_path / "cards.html", tmp_path / "cards.pdf", program="")
    assert str(tmp_path / "cards.html") in raised.value.cure


@pytest.mark.parametrize(
    ("content", "patience", "says"),
    [
        ("sys.exit(1)", 20, "wrote no PDF"),
        (f"{OUT}; open(out, 'w').write('<html>')", 20, "wrote no PDF"),
        ("os.fork(); time.sleep(600)", 1, "did not print in 1 seconds"),
    ],
    ids=["fails", "writes something else", "hangs"],
)
def test_a_browser_that_does_not_print_is_told_and_leaves_nothing(
    tmp_path: Path, content: str, patience: float, says: str
) -> None:
    program = script(tmp_path, f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpgid(0)))\n{content}")
    kept = tmp_path / "cards.pdf"
    kept.write_text("of yesterday")
    with pytest.raises(Problem, match=says):
        cards.pdf(tmp_path / "cards.html", kept, program=program, patience=patience)
    assert kept.read_text() == "of yesterday"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["browser", "cards.pdf", "pid"]
    group = int((tmp_path / "pid").read_text())
    wait_until(lambda: not living(group), 10, "the end of the browser's processes")


def test_a_browser_gets_the_page_and_no_more_rights_than_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = script(tmp_path, f"{OUT}; open(out, 'w').write('%PDF-1 ' + ' '.join(sys.argv[1:]))")
    for user, expected in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        cards.pdf(tmp_path / "cards.html", tmp_path / "cards.pdf", program=program)
        given = (tmp_path / "cards.pdf").read_text().split()
        assert ("--no-sandbox" in given) is expected
        assert given[-1] == (tmp_path / "cards.html").as_uri()
        assert mode(tmp_path / "cards.pdf") == 0o600
