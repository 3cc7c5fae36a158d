"""scripts/rehearse: plays a whole lab against the running stack, thirty seats with real clients, faults included.

What an instructor would see in the room is looked for on the board; what is not as it should be fails the rehearsal.
"""

from __future__ import annotations

import asyncio
import html
import json
import logging
import os
import re
import secrets
import ssl
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from fastmcp import Client
from fastmcp.exceptions import ToolError

from slipway import commandline, edge, processes, settings, stack, tokens
from slipway.errors import Problem, command
from slipway.lab import checkpoints
from slipway.operator import Server

ROOT = Path(__file__).resolve().parent.parent
TITLE = "Rehearsal"
PATIENCE = 15.0  # seconds in which the board must show what happened
TOOLS = "add,countdown,whoami"
EXAMPLES = """examples:
  scripts/rehearse                      thirty seats, on the running stack
  scripts/rehearse --seats 5 --no-kill  a quick one; the server is let alone
  scripts/rehearse --json | jq .failed
"""
MCP = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


def _call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


@dataclass
class Seat:
    """A simulated attendee."""

    number: int
    code: str
    name: str = ""
    token: str = ""
    watch: str = ""
    milliseconds: list[float] = field(default_factory=list)


@dataclass
class Report:
    """What was looked at, and how it was."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    def note(self, what: str, good: bool, told: str = "") -> None:
        """Note a step, and say it on stderr."""
        self.steps.append({"step": what, "good": good, "told": told})
        sys.stderr.write(f"{'✓' if good else '✗'} {what}{f': {told}' if told else ''}\n")
        sys.stderr.flush()

    def failed(self) -> int:
        """Return how many steps were not as they should be."""
        return sum(not step["good"] for step in self.steps)


class Rehearsal:
    """One lab, from opening to end."""

    def __init__(self, server: Server, config: settings.Settings, seats: int, *, kill: bool) -> None:
        self._ask = server.ask
        self._server = server
        self._config = config
        self._kill = kill
        self._url = edge.local_url(config)
        self._trust = ssl.create_default_context(cafile=str(edge.ca_file(config, ROOT)))
        self._count = seats
        self.seats: list[Seat] = []
        self.report = Report()

    # --- the instructor's side

    def _row(self, seat: Seat) -> dict[str, Any]:
        return dict(self._ask("GET", "/lab")["lab"]["seats"][seat.number - 1])

    async def _until(self, true: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        return await asyncio.to_thread(processes.until, true, seconds)

    async def _stuck(self, seat: Seat, word: str) -> tuple[bool, str]:
        """Wait until the board says of a seat why it is stuck. Returns: whether it does, and what it says."""
        row: dict[str, Any] = {}

        def seen() -> bool:
            nonlocal row
            row = self._row(seat)
            return word in row["stuck"]

        good = await self._until(seen)
        return good and bool(row["cure"]), f"seat {seat.number} {row['stuck'] or 'is fine'}"

    async def _fault(self, what: str, seat: Seat, word: str, do: Awaitable[object]) -> None:
        """Let a seat meet a fault, look for it on the board, then for its end after a good call."""
        await do
        good, told = await self._stuck(seat, word)
        await self._post(seat, _call("add", a=1, b=1))
        mended = await self._until(lambda: not self._row(seat)["stuck"])
        self.report.note(f"the board says: {what}", good and mended, told + ("" if mended else ", and stays so"))

    # --- the attendees' side

    def _http(self, **more: Any) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(verify=self._trust, timeout=60, trust_env=False, **more)

    async def _post(self, seat: Seat, message: dict[str, Any], url: str = "", **headers: str) -> int:
        given = MCP | {"authorization": f"Bearer {seat.token}"} | headers
        async with self._http(headers=given) as http:
            return (await http.post(url or self._url, json=message)).status_code

    async def _join(self, seat: Seat) -> httpx2.Response:
        async with self._http(base_url=self._url.removesuffix("/mcp")) as http:
            page = await http.get("/join", params={"code": seat.code})
            csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
            form = {"csrf": csrf[1] if csrf else "", "code": seat.code, "name": seat.name}
            answer = await http.post("/join", data=form)
        if answer.status_code == 200:
            found = re.search(r"<pre tabindex=\"0\">(eyJ[\w.-]+)</pre>", html.unescape(answer.text))
            watch = re.search(r'data-watch="([\w-]+)"', answer.text)
            seat.token, seat.watch = found[1] if found else "", watch[1] if watch else ""
        return answer

    def _client(self, seat: Seat) -> Client[Any]:
        # half of them speak the newest era, half the handshake's
        mode = "auto" if seat.number % 2 else "legacy"
        return Client(self._url, auth=seat.token, verify=self._trust, mode=mode)

    async def _lesson(self, seat: Seat) -> None:
        """Do what the labs ask for, with a real client."""
        async with self._client(seat) as client:
            await client.list_tools()
            for number in range(8):
                begun = time.perf_counter()
                await client.call_tool("add", {"a": number, "b": seat.number})
                seat.milliseconds.append((time.perf_counter() - begun) * 1000)
            who = (await client.call_tool("whoami")).data["subject"]
            if who != seat.name:
                raise Problem(f"Seat {seat.number} is taken for {who!r}.", "This is a fault of Slipway: report it", 1)
            await client.call_tool("countdown", {"n": 3, "seconds": 0.05})
            with suppress(ToolError):
                await client.call_tool("save_note", {"title": "x", "text": "not of this lab"})

    async def _page(self, seat: Seat) -> list[str]:
        """Keep the attendee's page open, as their browser does. Returns: the names of its events."""
        seen: list[str] = []
        url = f"{self._url.removesuffix('/mcp')}/join?watch={seat.watch}"
        with suppress(httpx2.HTTPError):
            async with self._http() as http, http.sse(url, timeout=None) as events:
                async for one in events:
                    seen.append(one.event)
        return seen

    async def _board(self) -> None:
        """Watch the board all the time, as the instructor does."""
        url = self._server.url("/lab/events")
        while True:
            headers = {"authorization": f"Bearer {self._server.key(tokens.BOARD_AUDIENCE, 600)}"}
            with suppress(httpx2.HTTPError):
                async with self._http(headers=headers) as http, http.sse(url, timeout=None) as events:
                    async for _ in events:
                        pass
            await asyncio.sleep(0.3)  # between two tries, while the server is away

    # --- the play

    async def play(self) -> dict[str, Any]:
        """Play it. Returns: the report. Whatever happens, the lab is ended."""
        rows = checkpoints.read(ROOT / "labs" / "checkpoints.toml")
        begun = time.monotonic()
        self._ask("POST", "/lab", {
            "title": TITLE, "seats": self._count, "for": "1h", "tools": TOOLS, "checkpoints": rows,
            # all by name but the last: a name that is typed is taken but once, and a rehearsal is repeated
            "roster": [f"Guest {number}" for number in range(1, self._count)],
            "url": self._url.removesuffix("/mcp"),
        })  # fmt: skip
        board = asyncio.create_task(self._board())
        pages: list[asyncio.Task[list[str]]] = []
        try:
            told = self._ask("GET", "/lab/codes")
            self.seats = [Seat(card["seat"], card["code"], card["name"] or _fresh()) for card in told["cards"]]
            await self._arrive()
            pages = [asyncio.create_task(self._page(seat)) for seat in self.seats]
            await self._learn()
            await self._faults()
            await self._instruct(told["code"])
            if self._kill:
                await self._crash()
            summary = await self._leave()
        except BaseException:
            with suppress(Problem):
                self._ask("DELETE", "/lab")
            raise
        finally:
            board.cancel()
        seen = await asyncio.wait_for(asyncio.gather(*pages), PATIENCE)
        connected = sum("connected" in events for events in seen)
        self.report.note("the attendees' pages turned green", connected >= self._count - 1, f"{connected} did")
        times = sorted(ms for seat in self.seats for ms in seat.milliseconds)
        return {
            "seats": self._count, "seconds": round(time.monotonic() - begun, 1), "failed": self.report.failed(),
            "steps": self.report.steps, "p50_ms": round(statistics.median(times), 1),
            "p95_ms": round(times[int(len(times) * 0.95)], 1), "summary": summary,
        }  # fmt: skip

    async def _arrive(self) -> None:
        answers = await asyncio.gather(*(self._join(seat) for seat in self.seats))
        joined = sum(bool(seat.token) for seat in self.seats)
        statuses = {answer.status_code for answer in answers}
        good = joined == self._count and statuses == {200}
        self.report.note("everybody joins at once by their cards", good, f"{joined} of {self._count}")
        if not good:
            raise Problem(f"Only {joined} of {self._count} seats could join.", "./scripts/doctor looks for why")

    async def _learn(self) -> None:
        done = await asyncio.gather(*(self._lesson(seat) for seat in self.seats), return_exceptions=True)
        broken = [str(error) for error in done if isinstance(error, BaseException)]
        self.report.note("everybody works through the lessons at once", not broken, "; ".join(broken[:2]))

        def counted() -> bool:
            seats = self._ask("GET", "/lab")["lab"]["seats"]
            return all(row["calls"] >= 11 and row["state"] == "connected" for row in seats)

        self.report.note("the board has every call of every seat", await self._until(counted))

    async def _faults(self) -> None:
        one = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        add, at = _call("add", a=1, b=2), [self.seats[number % len(self.seats)] for number in range(6)]
        foreign = self._post(at[0], add, origin="https://elsewhere.example")
        await self._fault("a page of a wrong origin", at[0], "403 origin", foreign)
        await self._fault("a wrong URL", at[1], "wrong URL", self._post(at[1], one, self._url + "/sse"))
        await self._fault("a missing Accept", at[2], "406 Accept", self._post(at[2], one, accept="application/json"))
        await self._fault("a tool that is not of the lab", at[3], "tool not allowed",
                          self._post(at[3], _call("save_note", title="x", text="y")))  # fmt: skip
        good = at[4].token
        at[4].token = tokens.mint(
            tokens.read_secret(ROOT / self._config.secret_file), subject=at[4].name, scope="tool:add", ttl=-1
        ).token
        expired = await self._post(at[4], one)
        told = await self._stuck(at[4], "token expired")
        at[4].token = good
        await self._post(at[4], add)
        self.report.note("the board says: an expired token", told[0] and expired == 401, told[1])
        await self._flood(at[5])

    async def _flood(self, seat: Seat) -> None:
        """Let one seat flood, and see that nobody else notices."""
        codes: list[int] = []

        async def flood() -> None:
            async with self._http(headers=MCP | {"authorization": f"Bearer {seat.token}"}) as http:
                while 429 not in codes and len(codes) < 3000:
                    some = (http.post(self._url, json=_call("add", a=1, b=1)) for _ in range(8))
                    codes.extend(answer.status_code for answer in await asyncio.gather(*some))

        others = [each for each in self.seats if each is not seat][:10]
        _, *statuses = await asyncio.gather(flood(), *(self._post(each, _call("add", a=1, b=1)) for each in others))
        good, told = await self._stuck(seat, "limit hit")
        fair = all(status == 200 for status in statuses)
        self.report.note("a flood is stopped, and nobody else notices", good and fair and 429 in codes, told)

    async def _instruct(self, code: str) -> None:
        last = self.seats[-1]
        old = Seat(0, "", token=last.token)
        last.code = self._ask("POST", f"/lab/seats/{last.number}/reset", {})["code"]
        last.name = _fresh()
        refused = await self._post(old, _call("add", a=1, b=1))
        self._ask("POST", "/lab/lock", {"locked": True})
        stranger = await self._join(Seat(0, code, _fresh()))
        self._ask("POST", "/lab/lock", {"locked": False})
        self.report.note("a locked lab lets nobody new in", "The lab is locked" in stranger.text)
        again = await self._join(last)
        works = await self._post(last, _call("add", a=1, b=1))
        self.report.note("a seat is reset, and taken again", (refused, again.status_code, works) == (401, 200, 200))
        before = self._ask("GET", "/lab")["lab"]["ends_at"]
        after = self._ask("POST", "/lab/extend", {"for": "30m"})["lab"]["ends_at"]
        self.report.note("the lab is extended, and no token pasted again", after == before + 1800)

    async def _crash(self) -> None:
        """Kill the server in the middle of everybody's calls."""

        async def call(seat: Seat) -> bool:
            with suppress(Exception):  # cut off, which is what was asked for
                async with self._client(seat) as client:
                    await client.call_tool("countdown", {"n": 20, "seconds": 0.1})
                    return True
            return False

        cut = [asyncio.create_task(call(seat)) for seat in self.seats[:10]]
        await asyncio.sleep(0.7)  # a call that runs is in no log yet: by now they all count down
        await asyncio.to_thread(stack.crash, self._config)
        up = await self._until(lambda: stack.answers(self._config), 60)
        ended = await asyncio.wait_for(asyncio.gather(*cut), 60)
        statuses = await asyncio.gather(*(self._post(seat, _call("add", a=2, b=2)) for seat in self.seats))
        lab = self._ask("GET", "/lab")["lab"]
        kept = all(row["checkpoints"] and row["name"] for row in lab["seats"][:-1])
        # the one who flooded may still be over the limit
        good = up and kept and sum(status == 200 for status in statuses) >= len(statuses) - 1
        told = f"{ended.count(False)} of {len(cut)} calls were cut, {statuses.count(200)} seats go on"
        self.report.note("the server is killed in the middle", good, told)

    async def _leave(self) -> dict[str, Any]:
        summary: dict[str, Any] = self._ask("DELETE", "/lab")["summary"]
        statuses = await asyncio.gather(*(self._post(seat, _call("add", a=1, b=1)) for seat in self.seats))
        self.report.note("after the end no token of the lab works", set(statuses) == {401})
        gone = False
        try:
            self._ask("GET", "/lab")
        except Problem:
            gone = True
        self.report.note("the lab is forgotten", gone)
        return summary


def _fresh() -> str:
    return f"Guest {secrets.token_hex(3)}"


def main(argv: list[str]) -> int:
    """Rehearse. Returns: the exit code, 1 where something was not as it should be."""
    about = "Plays a whole lab against the running stack, faults included."
    parser = commandline.parser("scripts/rehearse", about, EXAMPLES)
    parser.add_argument("--seats", type=int, default=30, metavar="N", help="how many (30)")
    parser.add_argument("--no-kill", action="store_true", help="do not kill the server in the middle")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    chosen = parser.parse_args(argv)
    if not 2 <= chosen.seats <= 200:
        raise Problem("A rehearsal has 2 to 200 seats.", "Write --seats 30", 2)
    logging.getLogger("fastmcp").setLevel(logging.CRITICAL)
    config = settings.load(os.environ, ROOT / ".env")
    server = Server(config, tokens.read_secret(ROOT / config.secret_file))
    edge.check(config)
    told = asyncio.run(Rehearsal(server, config, chosen.seats, kill=not chosen.no_kill).play())
    sys.stdout.write(json.dumps(told) + "\n" if chosen.json else _text(told))
    return 1 if told["failed"] else 0


def _text(told: dict[str, Any]) -> str:
    summary = told["summary"]
    reached = commandline.table(["checkpoint", "seats"], summary.get("checkpoints", {}).items())
    verdict = "ready" if not told["failed"] else f"{told['failed']} steps were not as they should be"
    return (
        f"\n{told['seats']} seats, {told['seconds']} s, {summary.get('calls', 0)} calls, "
        f"p50 {told['p50_ms']} ms, p95 {told['p95_ms']} ms\n\n{reached}\n\n{verdict}\n"
    )


if __name__ == "__main__":
    command(main)
