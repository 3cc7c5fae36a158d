"""The board: what each seat of a lab does, and why it is stuck, computed from the records of requests alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from slipway.knocks import Knock, printable
from slipway.lab.checkpoints import Checkpoint, meets
from slipway.lab.seats import Lab, Seat

LATELY = 100  # calls, from which the p95 is
NEVER = 90.0  # seconds after joining at which somebody who has not knocked is stuck
DOOR = 10  # refusals that no seat can be named for
DOOR_LIFE = 600.0  # seconds

# why a request was refused → what the board says, what the instructor says aloud; the first that fits
REASONS: Sequence[tuple[Callable[[Knock], bool], str, str]] = (
    (lambda knock: knock.code == "token_expired", "token expired",
     "Open the join page again and type the same code: you get a fresh token."),
    (lambda knock: knock.code == "token_revoked", "token revoked",
     "This token was stopped. Open the join page again, with the code that I give you now."),
    (lambda knock: knock.code in ("token_invalid", "no_token") or knock.status == 401, "401 token not accepted",
     "Copy the whole token again, without quotes or a line break, after the word Bearer."),
    (lambda knock: knock.code in ("scope", "no_tool_scope"), "403 tool not allowed",
     "This tool is not part of the lab. List the tools, and call one of those."),
    (lambda knock: knock.code == "origin", "403 origin",
     "Your page's origin is not allowed. Serve it from http://localhost, or tell me the origin."),
    (lambda knock: knock.code == "host" or knock.status == 421, "421 wrong host",
     "Copy the URL again from the join page."),
    (lambda knock: knock.status == 404 and not _is_mcp(knock), "404 wrong URL",
     "The URL ends in /mcp, and nothing after it."),
    (lambda knock: knock.status == 404, "404 session forgotten", "Start your client again: it opens a new session."),
    (lambda knock: knock.status == 405, "405 method",
     "MCP is POST. A GET needs Accept: text/event-stream and a session."),
    (lambda knock: knock.status == 406, "406 Accept",
     "Send the header Accept: application/json, text/event-stream."),
    (lambda knock: knock.status == 415, "415 content type", "Send the header Content-Type: application/json."),
    (lambda knock: knock.status == 413, "413 too large", "The body is too large. Send less."),
    (lambda knock: knock.limit == "answer", "result too large",
     "The tool's result is larger than this server lets through. Ask the tool for less."),
    (lambda knock: knock.status == 408, "408 body too slow",
     "Your request did not arrive in time. Look at your network, then send it again."),
    (lambda knock: knock.status == 400, "400 bad request",
     "The body is no JSON-RPC message. Compare it with the lab's."),
    (lambda knock: knock.outcome == "limited" or knock.status == 429, "limit hit",
     "Wait a minute, and let your agent call less often: the limit is for one seat, nobody else notices."),
    (lambda knock: knock.status >= 500, "server away", "Wait some seconds, then try again."),
)  # fmt: skip
NEVER_KNOCKED = ("never knocked", "Paste the configuration into your client, restart it, and list the tools.")


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
    count: int = 0


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
        self._door: deque[Refusal] = deque(maxlen=DOOR)

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
        if knock.client and _is_mcp(knock):
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
        if knock.http in ("GET", "DELETE") and knock.status in (404, 405) and _is_mcp(knock):
            return True  # no stream, or no session any more: clients ask as they leave, and nobody is stuck by it
        reason = next(((what, cure) for fits, what, cure in REASONS if fits(knock)), None)
        row.stuck, row.cure = reason or (f"{knock.status} {printable(knock.reason, 80)}".strip(), "")
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
        what, cure = next(((what, cure) for fits, what, cure in REASONS if fits(knock)), ("", ""))
        what = what or f"{knock.status} {printable(knock.reason, 80)}".strip()
        if knock.code == "origin":
            what = f"403 {printable(knock.reason, 120)}"
        if knock.code == "no_token":
            what, cure = "401 no token", "Your client sends no token. Paste the whole configuration, headers too."
        same = next((each for each in self._door if each.what == what), None)
        if same:
            self._door.remove(same)
        else:
            same = Refusal(knock.time, what, cure)
        same.time, same.count = knock.time, same.count + 1
        self._door.append(same)
        self.version += 1
        self.door_version = self.version

    def _touch(self, number: int) -> None:
        self.version += 1
        self.changed[number] = self.version

    def seats_changed(self, lab: Lab) -> None:
        """Take the lab anew; rows of seats that somebody else has now begin anew."""
        turns = {seat.number: (seat.turn, seat.subject) for seat in self.lab.seats}
        self.lab = lab
        for seat in lab.seats:
            turn, subject = turns.get(seat.number, (seat.turn, seat.subject))
            if seat.turn != turn:
                self.rows.pop(seat.number, None)
            if (seat.turn, seat.subject) != (turn, subject):
                self._touch(seat.number)

    def grow_old(self) -> None:
        """Note who has not knocked since they joined, though it was time to."""
        for seat in self.lab.seats:
            row = self.row(seat)
            if seat.joined_at and not row.last and not row.stuck and time.time() > seat.joined_at + NEVER:
                row.stuck, row.cure = NEVER_KNOCKED
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
        return [asdict(each) for each in reversed(self._door) if each.time > time.time() - DOOR_LIFE]

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


def _is_mcp(knock: Knock) -> bool:
    return knock.path.rstrip("/") == "/mcp"


def _p95(calls: Iterable[Sequence[Any]]) -> float:
    """Return the time within which 95 of 100 calls ended, in milliseconds; 0 for no calls."""
    times = sorted(ms for ms, _ in calls if ms is not None)
    return times[min(len(times) - 1, int(len(times) * 0.95))] if times else 0.0
