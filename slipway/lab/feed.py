"""Reads the logs of server and edge as they grow, keeps board and budget up to date, and tells who watches.

The logs are the one source: they hold what every replica on this machine answered, and what the edge refused. Nobody
reads them while there is neither a lab nor an open tunnel.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import segno

from slipway import knocks
from slipway.events import BEAT, event
from slipway.identity.ledger import Ledger
from slipway.lab import checkpoints
from slipway.lab.board import Board
from slipway.lab.budget import Budget
from slipway.lab.seats import Lab, Labs
from slipway.store import Store, Trouble

LOOK = 0.2  # seconds between two looks at the logs
OFTEN = 0.25  # seconds between two events of a watcher
SAVE = 5.0  # seconds between two snapshots
BREATH = 500  # lines that are read before others have their turn
SLOW_LOOK = 1.0  # seconds between two looks at the lab, where others change it too; and at what time alone changes
log = logging.getLogger("slipway")

COLLECTION, BOARD, MONTH = "board", "board", "month"


class Feed:
    """What the board's pages are told."""

    def __init__(
        self, labs: Labs, ledger: Ledger, store: Store, budget: Budget, folder: Path, public_url: Callable[[], str]
    ) -> None:
        """Take the lab, what knows whose tokens are which, the logs' folder, and what tells the tunnel's URL."""
        self._labs = labs
        self._ledger = ledger
        self._store = store
        self._folder = folder
        self._public_url = public_url
        self._url = ""  # by which people join
        self._tails: dict[str, knocks.Tail] = {}
        self._marks: dict[str, str] = {}  # of tokens → their subject
        self._marks_at = 0.0
        self._saved, self._saved_at = (0, 0), 0.0
        self._news = asyncio.Event()
        self._warned = False
        self._one = asyncio.Lock()
        self.budget = budget
        self.board: Board | None = None

    def progress(self, subject: str) -> dict[str, Any]:
        """Return a subject's checkpoints; {} for who has no seat."""
        lab = self._labs.lab
        seat = lab.seat_of(subject) if lab else None
        return self.board.progress(seat) if self.board and seat else {}

    # --- reading

    async def run(self) -> None:
        """Follow, as long as this runs."""
        slowly = 0.0
        while True:
            try:
                if time.monotonic() >= slowly:
                    slowly = time.monotonic() + SLOW_LOOK
                    await self.look()
                async with self._one:
                    if self._tails:
                        # who joined a moment ago may have called already
                        await self._labs.refresh()
                        self._seats()
                        self._read()
                        await self._save()
            except Trouble:
                pass  # the store tells the operator
            except Exception as error:  # whatever a log holds, the board goes on after it
                log.warning("the board is not up to date: %s: %s", type(error).__name__, error)
                await asyncio.sleep(SLOW_LOOK)
            # a log file has no event to wait for that works on every system
            await asyncio.sleep(LOOK if self._tails else SLOW_LOOK)

    async def look(self) -> None:
        """Take notice of the lab, as it is now."""
        # two who begin at once would each read the logs, and all would count twice
        async with self._one:
            await self._look()

    async def _look(self) -> None:
        lab = await self._labs.refresh()
        if lab is None and self.board:
            self.board = None
            await self._store.delete(BOARD, collection=COLLECTION)
            self._tell()
        if lab and (self.board is None or self.board.lab.id != lab.id):
            await self._begin(lab)
        self._seats()
        url = self._public_url()
        if lab and (wanted := lab.url if lab.lan else url.removesuffix("/mcp") or lab.url) != self._url:
            self._url = wanted
            self._tell()
        if not lab and not url:
            self._tails = {}
        elif not self._tails:
            await self._begin(None)
        if self.board:
            before = self.board.version
            self.board.grow_old()
            if self.board.version != before:
                self._tell()
        version = self.budget.version
        warning = self.budget.told(lab)["warning"]
        if warning and not self._warned:
            self._store.say(f"the tunnel's quota: {warning}")
        self._warned = bool(warning)
        self._labs.own_limits = self.budget.limits(lab)
        if self.budget.version != version:
            self._tell()

    def _seats(self) -> None:
        """Show the board who sits where now."""
        lab = self._labs.lab
        if lab and self.board and self.board.lab is not lab and self.board.lab.id == lab.id and self.board.lab != lab:
            self.board.seats_changed(lab)
            self._tell()

    async def _begin(self, lab: Lab | None) -> None:
        """Recall what an earlier process knew, and read what was logged since. An error has begun nothing."""
        month = await self._store.get(MONTH, collection=COLLECTION) or {}
        kept = (await self._store.get(BOARD, collection=COLLECTION) or {}) if lab else {}
        board = None
        if lab:
            board = Board(lab, checkpoints.parse(dict(lab.checkpoints)))
            # what is kept may be of an earlier lab
            kept = kept if kept.get("lab") == lab.id else {}
            board.recall(kept.get("rows", {}))
        tails, counted = self._tails, math.inf
        if tails:
            self._read()  # and count it, before the board begins
        else:
            self.budget.recall(month)
            tails = {name: knocks.Tail(self._folder / f"{name}.jsonl") for name in ("server", "edge")}
            counted = float(month.get("at", time.time()))
        known = float(kept.get("at", lab.created_at)) if lab else counted
        ends = {name: tail.offset for name, tail in tails.items()}
        server, edge = await asyncio.to_thread(self._older, min(known, counted), ends)
        records: list[knocks.Knock] = []
        for number, line in enumerate([*server, *edge]):
            records += self._records(line, number >= len(server), board, known, counted)
            if number % BREATH == 0:
                await asyncio.sleep(0)
        self._take(records, board)
        self._tails, self.board = tails, board
        self._tell()

    def _older(self, since: float, ends: Mapping[str, int]) -> tuple[list[str], list[str]]:
        """Return the lines of both logs, rotated ones too, from that time (seconds) to those bytes of the newest."""
        found: tuple[list[str], list[str]] = ([], [])
        for lines, name in zip(found, ("server", "edge"), strict=True):
            log = self._folder / f"{name}.jsonl"
            older = [path for path in knocks.kept(log) if path != log and _changed(path) >= since]
            for path, most in [*((path, -1) for path in older), (log, ends[name])]:
                with contextlib.suppress(OSError), path.open("rb") as stream:
                    lines.extend(stream.read(most).decode("utf-8", "replace").splitlines())
        return found

    def _read(self) -> None:
        # the edge's log last: what it refused before the server answered is then surely among it
        lines = [(line, name == "edge") for name in ("server", "edge") for line in self._tails[name].lines()]
        self._take([record for line, edge in lines for record in self._records(line, edge, self.board)], self.board)

    def _take(self, records: list[knocks.Knock], board: Board | None) -> None:
        """Show the board what came, in the order of time: the two logs have none between them."""
        for knock in sorted(records, key=lambda knock: knock.time):
            if board:
                board.take(knock, self._whose(knock.mark) if knock.mark else "")
        if records:
            self._tell()

    def _records(
        self, line: str, edge: bool, board: Board | None, since: float = 0.0, counted: float = 0.0
    ) -> list[knocks.Knock]:
        """Return the record that a line is, if the board has a use for it; count what went through the tunnel.

        Args:
            edge: whether it is the edge's log.
            since, counted: what is not younger is known to the board, to the budget.
        """
        if edge:
            try:
                content = json.loads(line)
                when, host = float(content["ts"]), str(content["request"]["host"])
                if when > counted and knocks.door(host) == "tunnel":
                    self.budget.take(when, int(content.get("size", 0)))
                knock = knocks.from_edge(content) if board else None
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                return []
        else:
            knock = knocks.parse(line) if board else None
        # a line is written at the end
        return [knock] if knock and knock.time + knock.ms / 1000 > since else []

    def _whose(self, mark: str) -> str:
        if mark not in self._marks and time.monotonic() > self._marks_at + SLOW_LOOK:
            self._marks_at = time.monotonic()
            self._marks = self._ledger.marks()
        return self._marks.get(mark, "")

    async def _save(self) -> None:
        now = time.time()
        versions = (self.board.version if self.board else 0, self.budget.requests)
        if versions == self._saved or now < self._saved_at + SAVE:
            return
        self._saved, self._saved_at = versions, now
        await self._store.put(MONTH, {"at": now, **self.budget.kept()}, collection=COLLECTION)
        if self.board:
            content = {"lab": self.board.lab.id, "at": now, "rows": self.board.kept()}
            await self._store.put(BOARD, content, collection=COLLECTION)

    # --- telling

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def whole(self, *, named: bool) -> dict[str, Any]:
        """Return all that there is to tell. The caller knows that there is a lab."""
        assert self.board  # noqa: S101
        lab = self.board.lab
        # where nobody new gets in there is nothing to point a phone at
        code = "" if lab.locked else self._labs.code(lab)
        drawing = segno.make(f"{self._url}/join?code={code}", error="m").svg_data_uri(border=2) if code else ""
        return {
            "title": lab.title, "ends_at": lab.ends_at, "locked": lab.locked, "lan": lab.lan, "now": time.time(),
            "code": code, "qr": drawing,
            "tools": lab.scope.replace("tool:", "").replace(" ", ", "), "join_url": f"{self._url}/join",
            "checkpoints": [{"id": each.id, "title": each.title} for each in self.board.checkpoints],
            "seats": [self.board.told(seat, named=named) for seat in lab.seats],
            "door": self.board.door() if named else [], "budget": self.budget.told(lab),
        }  # fmt: skip

    async def events(self, *, named: bool) -> AsyncIterator[str]:
        """Yield events until the lab is over."""
        lab: Lab | None = None
        url, rows, door, spent = "", 0, 0, 0
        while True:
            news, board = self._news, self.board
            if board is None:
                yield event("end", {})
                return
            if lab != board.lab or url != self._url:
                lab, url, rows, door, spent = board.lab, self._url, board.version, board.version, self.budget.version
                yield event("lab", self.whole(named=named))
            else:
                fresh = [seat for seat in lab.seats if board.changed.get(seat.number, 0) > rows]
                rows = board.version
                if fresh:
                    yield event("seats", [board.told(seat, named=named) for seat in fresh])
                if board.door_version > door and named:
                    door = board.version
                    yield event("door", board.door())
                if self.budget.version > spent:
                    spent = self.budget.version
                    yield event("budget", self.budget.told(lab))
            try:
                async with asyncio.timeout(BEAT):
                    await news.wait()
                await asyncio.sleep(OFTEN)
            except TimeoutError:
                yield ": beat\n\n"


def _changed(path: Path) -> float:
    """Return when a log was last written to; one that is rotated at this moment has no such name any more."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0
