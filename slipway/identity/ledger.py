"""Which tokens were given out, which are revoked and which live longer than they say. Their texts are never kept."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Any

from key_value.aio.protocols.key_value import AsyncKeyValue

from slipway import tokens

TOKENS, CUTOFFS, INDEX = "tokens", "cutoffs", "index"
PASTED = "pasted"
EVERYBODY = "*"  # the cutoff of all subjects; no subject is called so, since it must not start a cutoff of its own
KEPT = 30 * 86400  # seconds that a record outlives its token, so that `list` can still explain a refusal
MAX_RECORDS = 20_000  # oldest go first; a token that is forgotten is judged by its signature and the cutoffs alone


@dataclass
class Record:
    """One token.

    Attributes:
        via: the door through which it came: minted, oauth, join, or pasted (made without the server).
        issued_at, expires_at, revoked_at, extended_to: seconds since the epoch; 0 means never.
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

    def ends_at(self) -> int:
        """Return when it stops to be accepted, in seconds since the epoch."""
        return max(self.expires_at, self.extended_to)


class Ledger:
    """The records, in memory and in the store.

    One process with files knows all and asks nobody. With a shared store (Redis) every question goes there, so that
    a revocation on one replica holds on the next request at any other.
    """

    def __init__(self, store: AsyncKeyValue, *, shared: bool = False) -> None:
        self._store = store
        self._shared = shared
        self._records: dict[str, Record] = {}
        self._cutoffs: dict[str, float] = {}
        self._lock = asyncio.Lock()

    async def load(self) -> None:
        """Read what an earlier process left."""
        known = await self._store.get(INDEX, collection=TOKENS) or {}
        for jti in known.get("jtis", []):
            if found := await self._store.get(jti, collection=TOKENS):
                self._records[jti] = Record(**found)
        listed = await self._store.get(INDEX, collection=CUTOFFS) or {}
        self._cutoffs = {name: float(when) for name, when in listed.items()}

    async def add(self, claims: dict[str, Any], *, via: str, purpose: str = "") -> Record:
        """Note a token that was given out."""
        record = Record(
            claims["jti"], claims["sub"], claims["scope"], int(claims["iat"]), int(claims["exp"]), via, purpose[:200]
        )
        record.added_at = 0.0 if via == PASTED else time.time()
        async with self._lock:
            await self._write(record)
            await self._write_index()
        return record

    async def seen(self, claims: dict[str, Any]) -> None:
        """Note a token's first use; one that was made without us comes into the ledger by it."""
        record = await self.get(claims["jti"])
        if (record and record.first_used_at) or claims.get("client_id") == "self":
            return
        record = record or await self.add(claims, via=PASTED)
        async with self._lock:
            record.first_used_at = time.time()
            await self._write(record)

    async def refusal(self, claims: dict[str, Any]) -> str:
        """Return why a token of good signature must not pass, or ""."""
        record = await self.get(claims["jti"])
        if record and record.revoked_at:
            return f"revoked by the operator {_ago(record.revoked_at)}"
        cutoffs = await self._get_cutoffs()
        for name, whose in ((claims["sub"], claims["sub"]), (EVERYBODY, "everybody")):
            when = cutoffs.get(name, 0.0)
            # iat has whole seconds: a pasted token of the very second of the cutoff counts as older
            if (record.added_at if record and record.added_at else claims["iat"]) <= when:
                return f"revoked by the operator {_ago(when)}, with all of {whose}"
        return ""

    async def extended_to(self, jti: str) -> int:
        """Return until when, in seconds since the epoch, an expired token is accepted nevertheless; 0 for others."""
        record = await self.get(jti)
        return record.extended_to if record else 0

    async def get(self, jti: str) -> Record | None:
        """Return a token's record."""
        if self._shared:
            found = await self._store.get(jti, collection=TOKENS)
            return Record(**found) if found else None
        return self._records.get(jti)

    async def all(self) -> list[Record]:
        """Return every record, the newest first."""
        if self._shared:
            await self.load()
        return sorted(self._records.values(), key=lambda record: -record.issued_at)

    async def revoke(self, jti: str) -> Record | None:
        """Stop one token, known or not. Returns: its record, or None where it was not known."""
        async with self._lock:
            known = await self.get(jti)
            # a leaked token that was never used here is stopped all the same, for as long as any token can live
            record = known or Record(jti, "", "", 0, int(time.time()) + KEPT + tokens.MAX_TTL)
            record.revoked_at = record.revoked_at or time.time()
            await self._write(record)
            await self._write_index()
        return known

    async def revoke_before_now(self, subject: str = EVERYBODY) -> int:
        """Stop every token of a subject, or of everybody, that was issued until now.

        Returns: how many of the known ones were still good.
        """
        good = [
            record
            for record in await self.all()
            if await self._good(record) and subject in (record.subject, EVERYBODY)
        ]
        async with self._lock:
            self._cutoffs = dict(await self._get_cutoffs()) | {subject: time.time()}
            await self._store.put(INDEX, self._cutoffs, collection=CUTOFFS)
        return len(good)

    async def extend(self, jti: str, until: int) -> Record | None:
        """Accept a token until that moment, in seconds since the epoch. Returns: its record, or None."""
        async with self._lock:
            record = await self.get(jti)
            if record:
                record.extended_to = until
                await self._write(record)
        return record

    async def state(self, record: Record) -> str:
        """Say "good", "expired" or why it is refused."""
        claims = {"jti": record.jti, "sub": record.subject, "iat": record.issued_at}
        return await self.refusal(claims) or ("good" if record.ends_at() > time.time() else "expired")

    async def _good(self, record: Record) -> bool:
        return await self.state(record) == "good"

    async def _get_cutoffs(self) -> dict[str, float]:
        if self._shared:
            return dict(await self._store.get(INDEX, collection=CUTOFFS) or {})
        return self._cutoffs

    async def _write(self, record: Record) -> None:
        await self._store.put(record.jti, asdict(record), collection=TOKENS)
        self._records[record.jti] = record

    async def _write_index(self) -> None:
        long_ago = time.time() - KEPT
        over = sorted(self._records.values(), key=lambda record: record.ends_at())[
            : max(0, len(self._records) - MAX_RECORDS)
        ]
        old = [record for record in self._records.values() if record.ends_at() < long_ago]
        for record in {record.jti: record for record in [*old, *over]}.values():
            del self._records[record.jti]
            await self._store.delete(record.jti, collection=TOKENS)
        await self._store.put(INDEX, {"jtis": list(self._records)}, collection=TOKENS)


def _ago(when: float) -> str:
    return f"{tokens.duration(max(0, int(time.time() - when)))} ago"
