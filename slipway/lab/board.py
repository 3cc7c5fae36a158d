"""The board: what each seat of a lab does, and why it is stuck, computed from the records of requests alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from slipway.knocks import Knock, printable
from slipway.lab import reasons
from slipway.lab.checkpoints import Checkpoint, meets
from slipway.lab.seats import Lab, Seat

LATELY = 100  # calls, from which the p95 is
NEVER = 90.0  # seconds after joining at which somebody who has not knocked is stuck
DOOR = 10  # refusals that no seat can be named for
DOOR_LIFE = 600.0  # seconds


@dataclass
class Row:
    """What is known of one seat, besides who sits there. Times are seconds since the epoch."""

    client: str = ""
    era: str = ""
    last: float = 0.0
    last_call: str = ""
    calls: int = 0
    errors: int = 0
    lately: dict[str, list[Any]] = field(default_factory=dict)  # of the last calls: milliseconds or None, is an error
    reached: dict[str, float] = field(default_factory=dict)  # checkpoint → when
    before: list[str] = field(default_factory=list)  # checkpoints whose `first` was seen
    stuck: str = ""
    cure: str = ""
    payload: str = ""


@dataclass
class Refusal:
    """A kind of refusal that nobody can be named for."""

    time: float
    what: str
    cure: str
    count: int


class Board:
    """The rows of one lab.

    Attributes:
        version: grows with every change; a row's is in `changed`.
    """

    def __init__(self, lab: Lab, checkpoints: Sequence[Checkpoint]) -> None:
        self.lab = lab
        self.checkpoints = checkpoints
        self.rows: dict[int, Row] = {}
        self.version = 1
        self.changed: dict[int, int] = {}  # seat → version of its last change
        self.door_version = 0
        self._door: dict[str, Refusal] = {}  # the latest last

    def row(self, seat: Seat) -> Row:
        """Return a seat's row."""
        return self.rows.setdefault(seat.number, Row())

    def take(self, knock: Knock, subject: str = "") -> None:
        """Learn from a record.

        Args:
            subject: whose it is, where the record does not say so itself.
        """
        seat = self.lab.seat_of(knock.subject or subject)
        if seat is None:
            if knock.outcome == "refused" and not knock.subject:
                self._at_the_door(knock)
            return
        row = self.row(seat)
        row.last = max(row.last, knock.time)
        row.era = knock.era or row.era
        if knock.client and reasons.is_mcp(knock):
            row.client = printable(knock.client, 40)
        if knock.method == "tools/call":
            self._call(row, knock)
        if not self._refused(row, knock) and knock.outcome in ("ok", "error", "cancelled", "timeout"):
            row.stuck = row.cure = ""
        self._check(row, knock)
        self._touch(seat.number)

    def _call(self, row: Row, knock: Knock) -> None:
        row.last_call = printable(knock.tool, 40)
        # whose client left before the tool ended has a second line: it tells how the same call ended
        call = f"{knock.time} {knock.request_id}"
        before = row.lately.pop(call, None)
        error = knock.outcome != "ok"
        row.calls += before is None
        row.errors += error - (before[1] if before else 0)
        row.lately[call] = [round(knock.ms, 1) if knock.outcome in ("ok", "error") else None, error]
        if len(row.lately) > LATELY:
            del row.lately[next(iter(row.lately))]
        row.payload = printable(f"{knock.arguments} → {knock.result}", 400) if knock.arguments or knock.result else ""

    def _refused(self, row: Row, knock: Knock) -> bool:
        if knock.outcome not in ("refused", "limited", "forbidden") and knock.status < 500:
            return False
        if knock.http in ("GET", "DELETE") and knock.status in (404, 405) and reasons.is_mcp(knock):
            return True  # no stream, or no session any more: clients ask as they leave, and nobody is stuck by it
        row.stuck, row.cure = reasons.why(knock)
        return True

    def _check(self, row: Row, knock: Knock) -> None:
        for checkpoint in self.checkpoints:
            if checkpoint.id in row.reached:
                continue
            if meets(knock, checkpoint.when) and (not checkpoint.first or checkpoint.id in row.before):
                row.reached[checkpoint.id] = knock.time
            elif checkpoint.first and checkpoint.id not in row.before and meets(knock, checkpoint.first):
                row.before.append(checkpoint.id)

    def _at_the_door(self, knock: Knock) -> None:
        what, cure = reasons.why(knock)
        if knock.code == "origin":
            what = f"403 {printable(knock.reason, 120)}"
        known = self._door.pop(what, None)
        self._door[what] = Refusal(knock.time, what, cure, known.count + 1 if known else 1)
        if len(self._door) > DOOR:
            del self._door[next(iter(self._door))]
        self.version += 1
        self.door_version = self.version

    def _touch(self, number: int) -> None:
        self.version += 1
        self.changed[number] = self.version

    def seats_changed(self, lab: Lab) -> None:
        """Take the lab anew; rows of seats that somebody else has now begin anew."""
        for was, seat in zip(self.lab.seats, lab.seats, strict=True):
            if was.turn != seat.turn:
                self.rows.pop(seat.number, None)
        # who watches gets another lab whole; it is the snapshot that must not miss this
        self.lab = lab
        self.version += 1

    def grow_old(self) -> None:
        """Note who has not knocked since they joined, though it was time to."""
        for seat in self.lab.seats:
            row = self.row(seat)
            if seat.joined_at and not row.last and not row.stuck and time.time() > seat.joined_at + NEVER:
                row.stuck, row.cure = reasons.NEVER_KNOCKED
                self._touch(seat.number)

    # --- telling

    def told(self, seat: Seat, *, named: bool) -> dict[str, Any]:
        """Return a seat as the board's pages take it; without names, it does not tell who or with what."""
        row = self.row(seat)
        state = "revoked" if seat.revoked else "connected" if row.calls or row.reached else "joined"
        return {
            "seat": seat.number, "name": seat.subject if named else "",
            "state": state if seat.joined_at or seat.revoked else "free",
            "client": row.client if named else "", "era": row.era, "last": row.last, "last_call": row.last_call,
            "calls": row.calls, "errors": row.errors, "p95": _p95(row.lately.values()),
            "checkpoints": list(row.reached), "stuck": row.stuck, "cure": row.cure,
            "payload": row.payload if named else "",
        }  # fmt: skip

    def door(self) -> list[dict[str, Any]]:
        """Return the latest refusals that nobody can be named for, the newest first."""
        return [asdict(each) for each in reversed(self._door.values()) if each.time > time.time() - DOOR_LIFE]

    def progress(self, seat: Seat) -> dict[str, Any]:
        """Return which checkpoints there are, and which a seat reached; {} where there are none."""
        if not self.checkpoints:
            return {}
        titles = [{"id": each.id, "title": each.title} for each in self.checkpoints]
        return {"all": titles, "reached": list(self.row(seat).reached)}

    # --- over restarts

    def kept(self) -> dict[str, Any]:
        """Return what a restart must not forget."""
        return {str(number): asdict(row) for number, row in self.rows.items() if row.last}

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Take back what `kept` gave."""
        for number, row in kept.items():
            try:
                self.rows[int(number)] = Row(**row)
            except (TypeError, ValueError):
                continue
            self._touch(int(number))


def _p95(calls: Iterable[Sequence[Any]]) -> float:
    """Return the time within which 95 of 100 calls ended, in milliseconds; 0 for no calls."""
    times = sorted(ms for ms, _ in calls if ms is not None)
    return times[min(len(times) - 1, int(len(times) * 0.95))] if times else 0.0


def summary(board: Board) -> dict[str, Any]:
    """Return what is worth keeping of a lab that ends: numbers by seat, and no names."""
    lab = board.lab
    seats = [board.told(seat, named=False) for seat in lab.seats]
    kept = ("seat", "state", "era", "calls", "errors", "p95", "checkpoints")
    return {
        "title": lab.title, "began": _moment(lab.created_at), "ended": _moment(time.time()),
        "seats": len(seats), "joined": sum(1 for seat in lab.seats if seat.joined_at),
        "calls": sum(row["calls"] for row in seats), "errors": sum(row["errors"] for row in seats),
        "checkpoints": {
            each.title: sum(1 for row in seats if each.id in row["checkpoints"]) for each in board.checkpoints
        },
        "by_seat": [{name: row[name] for name in kept} for row in seats if row["state"] != "free"],
    }  # fmt: skip


def _moment(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
