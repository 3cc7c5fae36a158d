"""The board in real Chromium, fed by a server that speaks the lab's event stream: busy, hostile, restarted, on every screen."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from slipway import files
from slipway.identity import pages
from slipway.lab import cards
from slipway.lab.routes import board as board_page
from tests.browser.conftest import SCREENS, Watched
from tests.conftest import free_ports, program, wait_until
from tests.test_board import row

pytestmark = [pytest.mark.slow]

KEY = "a.board-key_1"
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
CHECKPOINTS = [
    {"id": name, "title": name.replace("-", " ").capitalize()}
    for name in ("connected", "listed", "called-add", "public", "whoami", "forbidden", "unauthorized", "fixed-403",
                 "session", "saw-progress", "resumed", "cancelled", "timed-out", "limited", "own-client")
]  # fmt: skip


def busy(seat: int, calls: int = 12, **more: Any) -> dict[str, Any]:
    return row(
        seat, name=f"attendee-{seat}", state="connected", client="claude-code 2.1", era="2026-07-28",
        last=time.time() - seat, last_call="add", calls=calls, p95=14.2, checkpoints=["connected", "listed"], **more,
    )  # fmt: skip


class Lab:
    """A server with the board's page and a lab's event stream as the contract has it, on one port, over restarts."""

    def __init__(self) -> None:
        self.port = free_ports(1)[0]
        self.link = f"http://127.0.0.1:{self.port}/board#key={KEY}"
        self.seats = {seat: row(seat) for seat in range(1, 31)}
        self.about: dict[str, Any] = {
            "title": "MCP in ninety minutes", "ends_at": time.time() + 5000, "locked": False, "tools": "*",
            "join_url": "https://lab-7f3a.ngrok-free.app/join", "checkpoints": CHECKPOINTS, "door": [],
            "budget": {"plan": "none"},
        }  # fmt: skip
        self.opened = 0  # streams, ever
        self.none = False  # there is no lab
        self._listening: set[asyncio.Queue[tuple[str, Any] | None]] = set()
        self.start()

    def start(self) -> None:
        """Listen, and wait until it does."""
        routes = [board_page(), Route("/admin/lab/events", self._events)]
        config = uvicorn.Config(Starlette(routes=routes), port=self.port, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._server.serve())

    def stop(self) -> None:
        """Break every stream off, and listen no more."""
        self._server.should_exit = True
        self._loop.call_soon_threadsafe(self._say, None)
        self._thread.join()

    def say(self, event: str, content: Any) -> None:
        """Send one event to every page."""
        self._loop.call_soon_threadsafe(self._say, (event, content))

    def sit(self, *rows: dict[str, Any]) -> None:
        """Change seats, and send them."""
        self.seats |= {each["seat"]: each for each in rows}
        self.say("seats", list(rows))

    def _say(self, what: tuple[str, Any] | None) -> None:
        for queue in self._listening:
            queue.put_nowait(what)

    async def _events(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "The board key is not good.", "cure": "./scripts/lab board"}, 401)
        if self.none:
            return JSONResponse({"error": "There is no lab.", "cure": "Start one: ./scripts/lab new"}, 404)
        self.opened += 1
        # what the real server promises is not kept here: the page itself must hide names from a projector
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        self._listening.add(queue)
        try:
            yield ": open\n\n" + _event("lab", {**self.about, "seats": list(self.seats.values()), "now": time.time()})
            while (what := await queue.get()) is not None:
                yield _event(*what)
                if what[0] == "end":
                    return
        finally:
            self._listening.remove(queue)


def _event(name: str, content: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.stop()


@pytest.fixture
def look(chromium: Browser, lab: Lab) -> Iterator[Callable[..., Watched]]:
    """Opens the board on a screen; it must have been silent at the end, except for what the test expects."""
    opened: list[tuple[Watched, str]] = []

    def open_(screen: str = "desktop", more: str = "", expected: str = "\0") -> Watched:
        seen = Watched(chromium, screen)
        opened.append((seen, expected))
        seen.page.goto(lab.link + more)
        return seen

    yield open_
    for seen, expected in opened:
        assert [text for text in seen.complaints if expected not in text] == []
        seen.context.close()


def seat(seen: Watched, number: int) -> Any:
    return seen.page.locator(f'#seats tr[data-seat="{number}"]')


@pytest.mark.parametrize("screen", SCREENS)
def test_a_seat_is_shown_from_joining_to_stuck_and_back(lab: Lab, look: Callable[..., Watched], screen: str) -> None:
    seen = look(screen)
    expect(seen.page.get_by_role("heading", name="MCP in ninety minutes")).to_be_visible()
    expect(seen.page.locator("#address")).to_have_text("https://lab-7f3a.ngrok-free.app/join")
    expect(seen.page.locator("#time")).to_have_text("1 h 23 min left")
    expect(seat(seen, 7).locator(".state")).to_have_text("○ free")
    lab.sit(row(7, name="ana", state="joined"))
    expect(seat(seen, 7)).to_contain_text("ana")
    lab.sit(busy(7, errors=3, stuck="406 Accept", cure="Send both types."))
    line = seat(seen, 7)
    for text in ("attendee-7", "● connected", "claude-code 2.1", "2026-07-28", "add", "12", "14 ms", "2/15", "s ago"):
        expect(line).to_contain_text(text)
    expect(line.locator(".stuck")).to_have_text("406 Accept Send both types.")
    expect(line.get_by_role("img")).to_have_attribute("aria-label", "2 of 15 checkpoints: Connected, Listed")
    expect(seen.page.locator("#said")).to_have_text("Seat 7: 406 Accept.")
    expect(seen.page.locator("#counts")).to_have_text("● 1 connected · ◐ 0 joined · ○ 29 free · ▲ 1 stuck")
    expect(seen.page.get_by_role("table", name="Seats").get_by_role("row")).to_have_count(31)
    assert seen.fits()
    seen.page.get_by_label("Stuck only").check()
    expect(seat(seen, 8)).to_be_hidden()
    expect(seat(seen, 7)).to_be_visible()
    lab.sit(busy(7))
    expect(seen.page.locator("#said")).to_have_text("Seat 7 goes on.")
    expect(seen.page.get_by_text("Nobody is stuck.")).to_be_visible()
    seen.page.get_by_label("Stuck only").uncheck()
    expect(seat(seen, 7).locator(".stuck")).to_be_hidden()


def test_the_key_leaves_the_address_at_once_and_outlives_a_reload(lab: Lab, look: Callable[..., Watched]) -> None:
    seen = look()
    expect(seen.page.locator("#seats tr")).to_have_count(30)
    assert seen.page.url == f"http://127.0.0.1:{lab.port}/board"
    assert KEY not in seen.page.content()
    seen.page.reload()
    expect(seen.page.locator("#seats tr")).to_have_count(30)
    assert seen.page.evaluate("localStorage.length + document.cookie.length") == 0


def test_thirty_seats_and_a_thousand_calls_a_minute_change_rows_in_their_place(
    lab: Lab, look: Callable[..., Watched]
) -> None:
    lab.seats = {number: busy(number, 0) for number in range(1, 31)}
    seen = look()
    expect(seen.page.locator("#seats tr")).to_have_count(30)
    seen.page.evaluate(
        """() => {
          window.first = document.querySelector('#seats tr');
          window.replaced = 0;
          new MutationObserver((all) => { window.replaced += all.length; }).observe(document.getElementById('seats'), { childList: true });
        }"""
    )
    # as fast as the contract allows, which is more than 1,000 calls a minute: 30 rows, four times a second
    for turn in range(1, 21):
        lab.sit(*(busy(number, turn) for number in range(1, 31)))
        seen.page.wait_for_timeout(250)
        assert seen.page.get_by_label("Stuck only").is_enabled()
    for number in (1, 17, 30):
        expect(seat(seen, number).locator(".calls")).to_have_text("20")
    assert seen.page.evaluate("window.first === document.querySelector('#seats tr') && window.replaced === 0")
    assert lab.opened == 1


def test_the_projector_shows_no_name_even_if_the_server_sends_them(lab: Lab, look: Callable[..., Watched]) -> None:
    stuck = {"stuck": "token expired", "cure": "Open the join page again, type the same code."}
    lab.seats = {number: busy(number, payload="secret payload") for number in range(1, 31)}
    for number in (4, 9):
        lab.seats[number] |= stuck
    seen = look("desktop", "&view=projector")
    content = seen.page.locator("body")
    expect(seat(seen, 4)).to_contain_text("token expired")
    expect(seen.page.locator("#cures li")).to_have_text([f"Seats 4, 9: {stuck['stuck']}{stuck['cure']}"])
    lab.sit(busy(5, payload="secret payload"))
    expect(seat(seen, 5)).to_contain_text("connected")
    for hidden in ("attendee", "secret payload", "claude-code"):
        assert hidden not in (content.text_content() or "")
        assert hidden not in seen.page.content()
    assert seen.page.url.endswith("/board#view=projector")
    assert seen.fits()
    seen.page.reload()
    expect(seat(seen, 4)).to_contain_text("token expired")
    seen.page.get_by_role("button", name="Instructor view").click()
    expect(seat(seen, 5)).to_contain_text("attendee-5")
    seen.page.get_by_role("button", name="Projector view").click()
    expect(seen.page.get_by_role("button", name="Instructor view")).to_be_visible()
    expect(seat(seen, 5)).to_contain_text("connected")
    assert "attendee" not in seen.page.content()


def test_what_a_hostile_client_calls_itself_is_text(lab: Lab, look: Callable[..., Watched]) -> None:
    hostile = dict.fromkeys(("name", "client", "era", "last_call", "stuck", "cure", "payload", "state"), EVIL)
    lab.seats[3] = {**busy(3), **hostile}
    lab.about |= {
        "title": EVIL, "join_url": EVIL, "checkpoints": [{"id": "connected", "title": EVIL}],
        "door": [{"time": time.time(), "what": EVIL, "cure": EVIL, "count": 2}],
        "budget": {"plan": EVIL, "requests": 1, "requests_most": 2, "bytes": 1, "bytes_most": 2, "per_minute": 1,
                   "per_minute_most": 2, "projected": 1, "warning": EVIL, "slowed": 0},
    }  # fmt: skip
    for more in ("", "&view=projector"):
        seen = look("phone", more)
        expect(seat(seen, 3).locator(".why")).to_have_text(EVIL)
        expect(seen.page.locator("#title")).to_have_text(EVIL)
        assert seen.page.locator("main img, main script, main a").count() == 0
        assert seen.page.title() == f"(1) {EVIL}"
        assert seen.fits()


def test_the_page_comes_back_after_a_restart_by_itself_with_what_changed(
    lab: Lab, look: Callable[..., Watched]
) -> None:
    seen = look(expected="Failed to load resource")
    expect(seen.page.locator("#seats tr")).to_have_count(30)
    lab.stop()
    try:
        expect(seen.page.locator("#link")).to_contain_text("away, trying again")
        assert seen.page.locator("#seats tr").count() == 30
        del lab.seats[30]
        lab.seats[2] = busy(2)
    finally:
        lab.start()
    expect(seat(seen, 2)).to_contain_text("attendee-2", timeout=20_000)
    expect(seen.page.locator("#link")).to_be_hidden()
    expect(seen.page.locator("#seats tr")).to_have_count(29)
    assert lab.opened == 2


def test_the_end_of_the_lab_a_wrong_key_and_no_lab_are_told_and_not_asked_again(
    lab: Lab, look: Callable[..., Watched]
) -> None:
    seen = look(expected="Failed to load resource")
    expect(seen.page.locator("#seats tr")).to_have_count(30)
    lab.say("end", {})
    expect(seen.page.locator("#link")).to_have_text("The lab is over.")
    asked: list[str] = []
    seen.page.on("request", lambda request: asked.append(request.url))
    lab.none = True
    seen.page.reload()
    expect(seen.page.locator("#link")).to_have_text("There is no lab. Start one: ./scripts/lab new")
    # a link that is opened in the same tab brings a new key
    seen.page.evaluate("location.hash = 'key=old'")
    expect(seen.page.locator("#link")).to_contain_text("its link is old")
    assert seen.page.url.endswith("/board")
    seen.page.wait_for_timeout(1500)
    assert [url.rpartition("/")[2] for url in asked] == ["board", "events", "events"]


def test_the_door_and_the_budget_say_what_comes_and_warn(lab: Lab, look: Callable[..., Watched]) -> None:
    seen = look()
    expect(seen.page.locator("#seats tr")).to_have_count(30)
    expect(seen.page.locator("#budget")).to_be_hidden()
    lab.say("budget", {
        "plan": "free", "requests": 17_000, "requests_most": 20_000, "bytes": 4.2e8, "bytes_most": 1e9, "per_minute": 120,
        "per_minute_most": 4000, "projected": 23_000, "warning": "Requests end before the lab does.", "slowed": 30,
    })  # fmt: skip
    budget = seen.page.get_by_role("region", name="Budget")
    for text in ("17,000 of 20,000", "420 MB of 1 GB", "120 of 4,000", "23,000 requests when the lab ends",
                 "Requests end before the lab does. Each seat may send 30 messages a minute now."):  # fmt: skip
        expect(budget).to_contain_text(text)
    expect(seen.page.get_by_label("Requests")).to_have_class("near")
    lab.say("door", [{"time": time.time(), "what": "403 origin http://x.example", "cure": "Allow it.", "count": 3}])
    expect(seen.page.locator("#door-list li")).to_contain_text("403 origin http://x.example (3 times) 0 s ago")
    lab.say("lab", {**lab.about, "locked": True, "ends_at": time.time() + 61, "seats": list(lab.seats.values()), "now": time.time()})  # fmt: skip
    expect(seen.page.locator("#locked")).to_be_visible()
    expect(seen.page.locator("#time")).to_have_text("0:59 left")  # it goes on by itself
    expect(seen.page.locator("#door")).to_be_hidden()


# the page that an attendee sees after joining


def joined(answers: list[Any]) -> list[Route]:
    """The page after joining, and its stream: each request gets the next answer; the last one stays open."""
    script = (pages.WEB / "joined.js").read_text(encoding="utf-8")
    values = dict.fromkeys(("title", "name", "url", "token", "scope", "life", "clients"), "x")
    text = pages.template("joined.html").substitute(
        values, certificate="", style=pages.STYLE, script=script, watch="w"
    )

    async def show(request: Request) -> Response:
        if "watch" not in request.query_params:
            return pages.closed(text, script=script)
        answer = answers.pop(0)
        if isinstance(answer, int):
            return Response(status_code=answer)

        async def stream() -> AsyncIterator[str]:
            yield "retry: 100\n\n"
            for what in answer:
                yield _event(*what)

        return StreamingResponse(stream(), media_type="text/event-stream")

    return [Route("/join", show)]


def ticks(*reached: str) -> tuple[str, Any]:
    return "checkpoints", {"all": CHECKPOINTS[:3], "reached": list(reached)}


@pytest.fixture
def attend(chromium: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens the page after joining, which gets these streams one after the other."""
    ends: list[Callable[[], None]] = []

    def open_(answers: list[Any], screen: str = "phone") -> Watched:
        port = free_ports(1)[0]
        server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=joined(answers)), port=port, log_level="warning", lifespan="off")
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started)
        seen = Watched(chromium, screen)

        def end() -> None:
            seen.context.close()
            server.should_exit = True
            thread.join()

        ends.append(end)
        seen.page.goto(f"http://127.0.0.1:{port}/join")
        return seen

    yield open_
    for end in ends:
        end()


def test_the_attendees_page_ticks_off_what_was_reached_and_ends_with_the_lab(attend: Callable[..., Watched]) -> None:
    answers = [[ticks()], [ticks("connected"), ("connected", {})], [ticks("connected", "called-add"), ("over", {})]]
    seen = attend(answers)
    page = seen.page
    expect(page.locator("#sum")).to_have_text("2 of 3")
    steps = page.get_by_role("region", name="Checkpoints").get_by_role("listitem")
    expect(steps).to_have_text(["✓ Connected", "○ Listed", "✓ Called add"])
    expect(page.locator("#state")).to_contain_text("Open the join page again and type the same code")
    assert seen.fits()
    # it asks no more: a further request would find no answer left, and be a complaint
    page.wait_for_timeout(500)
    assert answers == []
    assert seen.complaints == []


def test_the_attendees_page_without_a_lab_is_as_it_was_and_asks_once(attend: Callable[..., Watched]) -> None:
    answers: list[Any] = [[("connected", {})]]
    seen = attend(answers, "desktop")
    expect(seen.page.locator("#state.connected")).to_contain_text("Connected: your first call arrived.")
    expect(seen.page.locator("#checkpoints")).to_be_hidden()
    seen.page.wait_for_timeout(500)
    assert seen.complaints == []


def test_a_checkpoints_title_is_text_and_a_refused_stream_is_told(attend: Callable[..., Watched]) -> None:
    evil = ("checkpoints", {"all": [{"id": "connected", "title": EVIL}], "reached": []})
    seen = attend([[evil], 404])
    expect(seen.page.get_by_role("listitem")).to_have_text(f"○ {EVIL}")
    expect(seen.page.locator("#state")).to_contain_text("hears the server no longer")
    assert seen.page.locator("main img").count() == 0
    assert [text for text in seen.complaints if "404" not in text] == []


# the cards


@pytest.mark.parametrize("paper", ["A4", "Letter"])
def test_eight_cards_fit_on_a_sheet_of_both_papers_whatever_is_on_them(
    chromium: Browser, tmp_path: Path, paper: str
) -> None:
    address = "https://a-very-long-name-of-a-tunnel-0123456789abcdef.eu.ngrok-free.app/join"
    long = "Katarzyna Wiśniewska-Brzęczyszczykiewicz of the third row"
    made = [cards.Card(seat, long if seat % 2 else "", "MWWM-3479") for seat in range(1, 31)]
    files.write(tmp_path / "cards.html", cards.html("MCP in ninety minutes " * 5, address, made, 1e9))
    page = chromium.new_page()
    page.goto((tmp_path / "cards.html").as_uri())
    page.emulate_media(media="print")
    assert page.locator("article").count() == 30
    clipped = """all => all.filter((card) => [card, ...card.querySelectorAll('ol, .code')].some(
      (part) => part.scrollHeight > part.clientHeight + 1 || part.scrollWidth > part.clientWidth + 1)).length"""
    assert page.locator("article").evaluate_all(clipped) == 0
    # a square is as good as its smallest module: 41 of them in 15 mm can be read by a phone
    smallest = page.locator("article img").evaluate_all("all => Math.min(...all.map((one) => one.clientHeight))")
    assert smallest > 15 / 25.4 * 96
    assert sheets(page.pdf(format=paper)) == 4
    page.close()


def sheets(pdf: bytes) -> int:
    return len(re.findall(rb"/Type ?/Page\b", pdf))


def test_the_cards_become_a_private_pdf_by_the_browser_of_this_machine(tmp_path: Path) -> None:
    program("chromium", "chromium-browser", "google-chrome")
    made = [cards.Card(seat, "ana" if seat == 9 else "", f"ACDE-{3400 + seat}") for seat in range(1, 10)]
    files.write(tmp_path / "cards.html", cards.html("MCP", "https://x.example/join", made, 1e9))
    cards.pdf(tmp_path / "cards.html", tmp_path / "cards.pdf")
    assert sheets((tmp_path / "cards.pdf").read_bytes()) == 2
    assert stat.S_IMODE((tmp_path / "cards.pdf").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cards.html", "cards.pdf"]
    if shutil.which("pdftotext"):
        said = subprocess.run(["pdftotext", tmp_path / "cards.pdf", "-"], capture_output=True, text=True).stdout
        for text in ("ACDE-3401", "ACDE-3409", "Seat 8", "ana", "x.example/join"):
            assert text in said
