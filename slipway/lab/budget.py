"""The tunnel's quota: what a month has used, where the lab will end, and what a seat may have of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipway.lab.seats import Lab

OVERHEAD = 400  # bytes of headers that an answer has besides its body
RECENT = 600.0  # seconds from which the rate is taken
WARN = 0.8  # of the plan
SLOW = 0.9
SHARE = 0.9  # of what is left, for the seats together: somebody must still be able to join
LEAST = 6  # messages a minute that each seat keeps, however little is left


@dataclass(frozen=True)
class Plan:
    """What a tunnel may carry; 0 for as much as one likes."""

    name: str
    requests: int = 0  # a month
    bytes: int = 0  # a month, to callers
    per_minute: int = 0


FREE = Plan("free", 20_000, 1_000_000_000, 4_000)  # ngrok's (2026-08)


def plan(text: str) -> Plan:
    """Return the plan of SLIPWAY_PLAN: "free", "none" or "requests=100000,gb=5,per_minute=20000"."""
    if text in ("free", "none"):
        return FREE if text == "free" else Plan("none")
    given = dict(part.split("=") for part in text.split(","))
    size = int(float(given.pop("gb", 0)) * 1e9)
    return Plan("own", bytes=size, **{name: int(most) for name, most in given.items()})


class Budget:
    """Counts what goes through the tunnel.

    Attributes:
        version: grows when what is told changed.
    """

    def __init__(self, of: Plan) -> None:
        self.plan = of
        self.version = 0
        self.month = ""
        self.requests = 0
        self.bytes = 0
        self._recent: deque[list[float]] = deque()  # [second, requests, bytes]
        self._told: dict[str, Any] = {}

    def take(self, when: float, size: int) -> None:
        """Count a request of that many bytes of answer."""
        month = time.strftime("%Y-%m", time.gmtime(when))
        if month != self.month:
            self.month, self.requests, self.bytes = month, 0, 0
        self.requests += 1
        self.bytes += size + OVERHEAD
        if not self._recent or self._recent[-1][0] != int(when):
            self._recent.append([int(when), 0, 0])
        self._recent[-1][1] += 1
        self._recent[-1][2] += size + OVERHEAD

    def _rates(self) -> tuple[float, float, int]:
        """Return requests and bytes a minute of late, and the requests of the last minute."""
        now = time.time()
        while self._recent and self._recent[0][0] < now - RECENT:
            self._recent.popleft()
        if not self._recent:
            return 0.0, 0.0, 0
        minutes = max(1.0, (now - self._recent[0][0]) / 60)
        last = sum(int(each[1]) for each in self._recent if each[0] > now - 60)
        return sum(each[1] for each in self._recent) / minutes, sum(each[2] for each in self._recent) / minutes, last

    def limits(self, lab: Lab | None) -> dict[str, int]:
        """Return what each seat may do, by the names of limits.Allowance, so that none uses up the others' part."""
        if lab is None or lab.lan:
            return {}
        seats = max(1, sum(1 for seat in lab.seats if not seat.revoked))
        found: dict[str, int] = {}
        if self.plan.per_minute:
            found["calls_per_minute"] = max(LEAST, int(self.plan.per_minute * SHARE / seats))
        if self.plan.requests:
            # what was there when the lab began: who was thrifty so far must not have less than before
            found["calls_per_day"] = max(LEAST, int(self.plan.requests * SHARE / seats))
        if slowed := self.slowed(lab):
            found["calls_per_minute"] = slowed
        return found

    def slowed(self, lab: Lab | None) -> int:
        """Return the messages a minute to which each seat is slowed, 0 where what is left will do."""
        if lab is None or lab.lan:
            return 0
        rate, bytes_rate, last = self._rates()
        minutes = max(1.0, (lab.ends_at - time.time()) / 60)
        seats = max(1, sum(1 for seat in lab.seats if seat.joined_at and not seat.revoked))
        bounds = []
        for used, most, of_late in (
            (self.requests, self.plan.requests, rate), (self.bytes, self.plan.bytes, bytes_rate),
        ):  # fmt: skip
            if most and used > most * SLOW and used + of_late * minutes > most:
                # in requests, whatever is short: a seat's bytes follow from them
                left = max(0.0, most - used) / (of_late or 1.0) * rate
                bounds.append(left * SHARE / minutes / seats)
        if self.plan.per_minute and last > self.plan.per_minute * SLOW:
            bounds.append(self.plan.per_minute * WARN / seats)
        return max(LEAST, int(min(bounds))) if bounds else 0

    def told(self, lab: Lab | None) -> dict[str, Any]:
        """Return it as the board takes it; the same object as long as nothing changed."""
        rate, bytes_rate, last = self._rates()
        minutes = max(0.0, (lab.ends_at - time.time()) / 60) if lab else 0.0
        projected, projected_bytes = self.requests + rate * minutes, self.bytes + bytes_rate * minutes
        of = self.plan if not (lab and lab.lan) else Plan("none")
        told = {
            "plan": of.name, "requests": self.requests, "requests_most": of.requests, "bytes": self.bytes,
            "bytes_most": of.bytes, "per_minute": last, "per_minute_most": of.per_minute,
            "projected": int(projected), "slowed": self.slowed(lab),
            "warning": self._warning(of, projected, projected_bytes, last),
        }  # fmt: skip
        if told != self._told:
            self._told = told
            self.version += 1
        return self._told

    def _warning(self, of: Plan, requests: float, size: float, last: int) -> str:
        parts = [
            f"{word} will be at {at / most:.0%} of the {of.name} plan when the lab ends"
            for word, at, most in (("requests", requests, of.requests), ("bytes", size, of.bytes))
            if most and at > most * WARN
        ]
        if of.per_minute and last > of.per_minute * WARN:
            parts.append(f"{last} requests in the last minute; the {of.name} plan has {of.per_minute}")
        return "; ".join(parts)

    # --- over restarts

    def kept(self) -> dict[str, Any]:
        """Return what a restart must not forget."""
        return {"month": self.month, "requests": self.requests, "bytes": self.bytes}

    def recall(self, kept: Mapping[str, Any]) -> None:
        """Take back what `kept` gave."""
        self.month, self.requests = str(kept.get("month", "")), int(kept.get("requests", 0))
        self.bytes = int(kept.get("bytes", 0))
