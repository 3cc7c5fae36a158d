"""What is known of one token, and why it must not pass. Pure: who keeps it is the ledger's business."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from slipway import tokens

PASTED = "pasted"
EVERYBODY = "*"  # the cutoff of all subjects; no subject is called so, since it must not start a cutoff of its own
KEPT = 30 * 86400  # seconds that a record outlives its token, so that `list` can still explain a refusal


@dataclass
class Record:
    """One token.

    Attributes:
        via: the door through which it came: minted, oauth, join, or pasted (made without the server).
        issued_at, expires_at, revoked_at, extended_to: seconds since the epoch; 0 means never.
        mark: what the edge's log holds of its text (tokens.mark).
        first_used_at: when its first call came, in seconds since the epoch; 0 means: not yet.
        added_at: when we gave it out, more exact than the whole seconds of `issued_at`; 0 for a pasted one.
    """

    jti: str
    subject: str
    scope: str
    issued_at: int
    expires_at: int
    via: str = PASTED
    purpose: str = ""
    revoked_at: float = 0.0
    extended_to: int = 0
    added_at: float = 0.0
    first_used_at: float = 0.0
    mark: str = ""

    def ends_at(self) -> int:
        """Return when it stops to be accepted, in seconds since the epoch."""
        return max(self.expires_at, self.extended_to)


DAMAGED: dict[str, Any] = {"damaged": "yes"}  # what no record and no list of cutoffs looks like


def parsed(jti: str, kept: dict[str, Any]) -> Record | None:
    """Return a record, or None where what was kept is none."""
    try:
        record = Record(**kept)
        times = (record.issued_at, record.expires_at, record.revoked_at, record.extended_to)
        times += (record.added_at, record.first_used_at)  # type: ignore[assignment]
        return record if record.jti == jti and all(isinstance(when, int | float) for when in times) else None
    except TypeError:
        return None


def of(claims: dict[str, Any], *, via: str, purpose: str = "", mark: str = "") -> Record:
    """Return the record of a token that says this."""
    issued, ends = int(claims["iat"]), int(claims["exp"])
    return Record(claims["jti"], claims["sub"], claims["scope"], issued, ends, via, purpose[:200], mark=mark)


def stopped(jti: str, purpose: str = "") -> Record:
    """Return the record of a token of which no more is known than that it is revoked."""
    now = time.time()
    return Record(jti, "", "", 0, int(now) + KEPT + tokens.MAX_TTL, purpose=purpose, revoked_at=now)


def state(record: Record, cutoffs: dict[str, float]) -> str:
    """Say "good", "expired" or why it is refused."""
    refused = why(record, record.subject, record.issued_at, cutoffs)
    return refused or ("good" if record.ends_at() > time.time() else "expired")


def why(record: Record | None, sub: str, iat: float, cutoffs: dict[str, float]) -> str:
    """Return why a token must not pass, or ""."""
    if record and record.revoked_at:
        return f"revoked by the operator {_ago(record.revoked_at)}"
    for name, whose in ((sub, sub), (EVERYBODY, "everybody")):
        when = cutoffs.get(name, 0.0)
        # iat has whole seconds: a pasted token of the very second of the cutoff counts as older
        if (record.added_at if record and record.added_at else iat) <= when:
            return f"revoked by the operator {_ago(when)}, with all of {whose}"
    return ""


def _ago(when: float) -> str:
    return f"{tokens.duration(max(0, int(time.time() - when)))} ago"
