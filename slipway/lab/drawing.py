"""What the board knows from its stream, and how a terminal of some width and height shows it."""

from __future__ import annotations

import textwrap
import time
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

from slipway.knocks import printable

SIGNS = {"free": "○", "joined": "◐", "connected": "●", "revoked": "✕"}
GOOD, BAD, MUTE, BOLD = "32", "1;31", "2", "1"
FULL_ERA = 100  # columns from which the era is written out
MOST_AT_DOOR = 3

Row = dict[str, Any]
Ink = Callable[[str, str], str]


class View:
    """The lab as its events tell it."""

    def __init__(self) -> None:
        self.lab: dict[str, Any] = {}
        self.rows: dict[int, Row] = {}
        self.away = self.over = False
        self.ahead = 0.0  # seconds that the server's clock is ahead of ours
        self._told: set[str] = set()

    def take(self, name: str, content: Any) -> list[str]:
        """Take one event. Returns: the changes that are worth a line."""
        changes: list[str] = []
        if not self.lab and name in ("seats", "door", "budget"):
            return changes  # they are of a lab that is not told yet
        match name:
            case "lab":
                changes = self._lab(content)
            case "seats":
                changes = [line for row in content for line in self._row(row)]
            case "door":
                changes = self._door(content)
            case "budget":
                changes = self._budget(content)
            case "away" if not self.away:
                self.away = True
                changes = ["the server is away, trying again"]
            case "end":
                self.over = True
                changes = ["the lab is over"]
        return changes

    def _lab(self, lab: dict[str, Any]) -> list[str]:
        before, self.lab, self.away = self.lab, lab, False
        self.ahead = lab["now"] - time.time()
        for gone in set(self.rows) - {row["seat"] for row in lab["seats"]}:
            del self.rows[gone]
        changes = []
        if not before:
            end = time.strftime("%H:%M", time.localtime(lab["ends_at"]))
            changes.append(f"{lab['title']}: {len(lab['seats'])} seats, until {end}, {lab['join_url']}")
        if lab["locked"] != before.get("locked", False):
            changes.append("the lab is locked: nobody new can join" if lab["locked"] else "the lab is open again")
        changes += [line for row in lab["seats"] for line in self._row(row)]
        return changes + self._door(lab["door"]) + self._budget(lab["budget"])

    def _row(self, row: Row) -> Iterator[str]:
        before = self.rows.get(row["seat"], {"state": "free", "checkpoints": [], "stuck": ""})
        self.rows[row["seat"]] = row
        who = f"seat {row['seat']}" + (f" ({row['name']})" if row["name"] else "")
        if row["state"] != before["state"]:
            with_ = ", ".join(filter(None, [row["client"], row["era"]])) if row["state"] == "connected" else ""
            yield f"{who} {'is ' if row['state'] in ('free', 'revoked') else ''}{row['state']}" + (
                with_ and f": {with_}"
            )
        fresh = set(row["checkpoints"]) - set(before["checkpoints"])
        if reached := [one["title"] for one in self.lab["checkpoints"] if one["id"] in fresh]:
            yield f"{who} reached: {', '.join(reached)}"
        if row["stuck"] and row["stuck"] != before["stuck"]:
            yield f"{who} is stuck: {row['stuck']} → {row['cure']}"
        elif before["stuck"] and not row["stuck"]:
            yield f"{who} goes on"

    def _door(self, door: list[dict[str, Any]]) -> list[str]:
        self.lab["door"] = door
        return [f"at the door: {one['what']} → {one['cure']}" for one in door if self._first(one["what"])]

    def _budget(self, budget: dict[str, Any]) -> list[str]:
        self.lab["budget"] = budget
        warning = budget.get("warning", "")
        return [f"budget: {warning}"] if warning and self._first(warning) else []

    def _first(self, text: str) -> bool:
        if text in self._told or len(self._told) > 1000:
            return False
        self._told.add(text)
        return True


def drawn(board: View, width: int, height: int, *, colour: bool, now: float) -> list[str]:
    """Return the lines of the board, at most `height`, none wider than `width`; who is stuck comes before others."""
    ink = _ink(colour)
    if not board.lab:
        return [_fit("The server is away, trying again …" if board.away else "Connecting …", width)]
    now += board.ahead
    head = list(_head(board, width, ink, now))
    foot = list(_foot(board, width, ink, now))
    seated = [row for _, row in sorted(board.rows.items()) if row["state"] != "free" or row["stuck"]]
    blocks = [(row["stuck"], list(_block(board, row, width, ink, now))) for row in seated]
    room = height - len(head) - len(foot) - sum(len(block) for stuck, block in blocks if stuck)
    fine = sum(1 for stuck, _ in blocks if not stuck)
    # where not all fit, those who need nobody are left out, from the end
    shown = fine if fine <= room else max(0, room - 1)
    lines = []
    for stuck, block in blocks:
        if not stuck:
            shown -= 1
        if stuck or shown >= 0:
            lines += block
    if shown < 0:
        lines.append(
            ink(MUTE, _fit(f"   and {-shown} more seats that are not stuck; a higher window shows them", width))
        )
    return [*head, *lines, *foot][:height]


def _ink(colour: bool) -> Ink:
    return lambda code, text: f"\x1b[{code}m{text}\x1b[0m" if colour and text else text


def _head(board: View, width: int, ink: Ink, now: float) -> Iterator[str]:
    lab, rows = board.lab, board.rows.values()
    left = "The lab is over." if board.over else f"{_long(max(0, lab['ends_at'] - now))} left"
    left += " · locked" if lab["locked"] else ""
    yield ink(BOLD, _cell(lab["title"], width - len(left) - 1) + " " + left)
    yield _fit(lab["join_url"], width)
    if board.away:
        yield ink(BAD, _fit("The server is away, trying again …", width))
    sums = {state: sum(row["state"] == state for row in rows) for state in ("connected", "joined", "free")}
    stuck = sum(bool(row["stuck"]) for row in rows)
    yield _fit("  ".join(f"{SIGNS[state]} {n} {state}" for state, n in sums.items()) + f"  ▲ {stuck} stuck", width)
    yield from _budget(lab["budget"], width, ink)
    yield ""
    names = {
        "name": "name", "client": "client", "era": "era", "call": "last call", "ago": "ago", "calls": "calls",
        "errors": "err", "p95": "p95", "done": "done",
    }  # fmt: skip
    yield ink(MUTE, _line("  #", " ", names, width))


def _budget(budget: dict[str, Any], width: int, ink: Ink) -> Iterator[str]:
    if budget.get("plan", "none") == "none":
        return

    def part(used: float, most: float) -> str:
        return f"{used:,.0f}/{most:,.0f}" if most else f"{used:,.0f}"

    text = f"requests {part(budget['requests'], budget['requests_most'])}"
    text += f" ({budget['projected']:,.0f} at the end)" if budget["projected"] else ""
    text += f" · minute {part(budget['per_minute'], budget['per_minute_most'])}"
    text += f" · {part(budget['bytes'] / 1e6, budget['bytes_most'] / 1e6)} MB"
    yield _fit(text, width)
    slowed = f" Each seat may send {budget['slowed']} messages a minute." if budget["slowed"] else ""
    if budget["warning"] or slowed:
        yield from (ink(BAD, line) for line in _wrapped(f"! {budget['warning']}{slowed}", width, ""))


def _block(board: View, row: Row, width: int, ink: Ink, now: float) -> Iterator[str]:
    total = len(board.lab["checkpoints"])
    cells = {
        "name": row["name"], "client": row["client"], "era": row["era"] if width >= FULL_ERA else row["era"][2:7],
        "call": row["last_call"] if row["last"] else "", "ago": _short(now - row["last"]) if row["last"] else "",
        "calls": _number(row["calls"]), "errors": _number(row["errors"]), "p95": _milliseconds(row["p95"]),
        "done": f"{len(row['checkpoints'])}/{total}" if total else "",
    }  # fmt: skip
    if row["stuck"]:
        yield _line(f"{row['seat']:>3}", ink(BAD, "▲"), cells, width)
        yield from (ink(BAD, line) for line in _wrapped(f"{row['stuck']} → {row['cure']}", width, "      "))
    else:
        sign = SIGNS.get(row["state"], "?")
        code = {"connected": GOOD, "revoked": BAD}.get(row["state"], MUTE)
        yield _line(f"{row['seat']:>3}", ink(code, sign), cells, width)


def _foot(board: View, width: int, ink: Ink, now: float) -> Iterator[str]:
    free = [seat for seat, row in sorted(board.rows.items()) if row["state"] == "free" and not row["stuck"]]
    if free:
        yield ink(MUTE, _fit(f"    ○ free: {_ranges(free)}", width))
    door = board.lab["door"][:MOST_AT_DOOR]
    if door:
        yield ""
        yield ink(BOLD, _fit("At the door, by no known seat", width))
    for one in door:
        count = f" ({one['count']} times)" if one["count"] > 1 else ""
        yield _fit(f"  {one['what']}{count}, {_short(now - one['time'])} ago → {one['cure']}", width)


def _line(seat: str, sign: str, cells: dict[str, str], width: int) -> str:
    """Return a row. 80 columns are full with the least widths; what there is more goes to the texts."""
    more = max(0, width - 79)
    era = 10 if width >= FULL_ERA else 5
    more = max(0, more - (era - 5))
    name, client = 12 + more // 4, 14 + more // 3
    widths = {
        "name": name, "client": client, "era": era, "call": 12 + more - more // 4 - more // 3, "ago": 4,
        "calls": 5, "errors": 3, "p95": 5, "done": 5,
    }  # fmt: skip
    right = ("ago", "calls", "errors", "p95", "done")
    text = " ".join(_cell(cells[key], wide, right=key in right) for key, wide in widths.items())
    return f"{seat} {sign} {text}" if width >= 79 else f"{seat} {sign} {_fit(text, width - 6)}"


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _fit(text: str, width: int) -> str:
    """Return what can be printed of a text, cut where it is wider than `width` columns."""
    text = printable(text, 1000)
    if sum(map(_columns, text)) <= width:
        return text
    kept, used = "", 0
    for char in text:
        used += _columns(char)
        if used >= width:
            break
        kept += char
    return kept + "…" if width > 0 else ""


def _cell(text: str, width: int, *, right: bool = False) -> str:
    text = _fit(text, width)
    space = " " * (width - sum(map(_columns, text)))
    return space + text if right else text + space


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    found = textwrap.wrap(
        printable(text, 500),
        max(20, width),
        initial_indent=indent,
        subsequent_indent=indent,
        max_lines=2,
        placeholder=" …",
    )
    return [_fit(line, width) for line in found]


def _ranges(numbers: list[int]) -> str:
    """Write sorted numbers short: [1, 2, 3, 7] → "1-3, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def _number(value: float) -> str:
    return "" if not value else f"{value:.0f}" if value < 100_000 else f"{value / 1000:.0f}k"


def _milliseconds(value: float) -> str:
    return "" if not value else f"{max(1, value):.0f}ms" if value < 999.5 else f"{value / 1000:.1f}s"


def _short(seconds: float) -> str:
    seconds = max(0, int(seconds))
    return f"{seconds}s" if seconds < 60 else f"{seconds // 60}m" if seconds < 3600 else f"{seconds // 3600}h"


def _long(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 10:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
