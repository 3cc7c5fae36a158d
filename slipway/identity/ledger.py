"""Which tokens were given out, which are revoked and which live longer than they say. Their texts are never kept."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from slipway import tokens
from slipway.store import Store

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

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shared = store.shared
        self._records: dict[str, Record] = {}
        self._index: dict[str, list[float]] = {}  # jti → when it ends, when it was revoked
        self._cutoffs: dict[str, float] = {}

    async def load(self) -> None:
        """Read what an earlier process left."""
        self._index = await self._get_index()
        self._records = {
            jti: Record(**found) for jti in self._index if (found := await self._store.get(jti, collection=TOKENS))
        }
        listed = await self._store.get(INDEX, collection=CUTOFFS) or {}
        self._cutoffs = {name: float(when) for name, when in listed.items()}

    async def add(self, claims: dict[str, Any], *, via: str, purpose: str = "") -> Record:
        """Note a token that was given out. Returns: its record, the one that there is already if there is one."""
        record = Record(
            claims["jti"], claims["sub"], claims["scope"], int(claims["iat"]), int(claims["exp"]), via, purpose[:200]
        )
        record.added_at = 0.0 if via == PASTED else time.time()
        async with self._store.lock(TOKENS):
            if known := await self.get(record.jti):
                return known
            await self._write(record)
        return record

    async def seen(self, claims: dict[str, Any]) -> None:
        """Note a token's first use; one that was made without us comes into the ledger by it."""
        record = await self.get(claims["jti"])
        if (record and record.first_used_at) or claims.get("client_id") == "self":
            return
        if not record:
            await self.add(claims, via=PASTED)
        async with self._store.lock(TOKENS):
            # read again: it may have been revoked meanwhile
            record = await self.get(claims["jti"])
            if record and not record.first_used_at:
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
        async with self._store.lock(TOKENS):
            known = await self.get(jti)
            # a leaked token that was never used here is stopped all the same, for as long as any token can live
            record = known or Record(jti, "", "", 0, int(time.time()) + KEPT + tokens.MAX_TTL)
            record.revoked_at = record.revoked_at or time.time()
            await self._write(record)
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
        async with self._store.lock(TOKENS):
            self._cutoffs = dict(await self._get_cutoffs()) | {subject: time.time()}
            await self._store.put(INDEX, self._cutoffs, collection=CUTOFFS)
        return len(good)

    async def extend(self, jti: str, until: int) -> Record | None:
        """Accept a token until that moment, in seconds since the epoch. Returns: its record, or None."""
        async with self._store.lock(TOKENS):
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

    async def _get_index(self) -> dict[str, list[float]]:
        found = await self._store.get(INDEX, collection=TOKENS) or {}
        return dict(found.get("tokens", {}))

    async def _write(self, record: Record) -> None:
        await self._store.put(record.jti, asdict(record), collection=TOKENS)
        self._records[record.jti] = record
        known = await self._get_index() if self._shared else self._index
        entry: list[float] = [record.ends_at(), record.revoked_at]
        if known.get(record.jti) == entry:
            return
        known[record.jti] = entry
        for jti in _over(known):
            del known[jti]
            self._records.pop(jti, None)
            await self._store.delete(jti, collection=TOKENS)
        self._index = known
        await self._store.put(INDEX, {"tokens": known}, collection=TOKENS)


def _over(index: dict[str, list[float]]) -> list[str]:
    """Return which tokens to forget: those that ended long ago, and of too many the first to end.

    One that is revoked stays until its end whatever comes: forgotten, it would be judged by its signature alone.
    """
    now = time.time()
    old = [jti for jti, (ends, _) in index.items() if ends < now - KEPT]
    spare = sorted((ends, jti) for jti, (ends, revoked) in index.items() if ends < now or not revoked)
    return list(dict.fromkeys([*old, *(jti for _, jti in spare[: max(0, len(index) - MAX_RECORDS)])]))


def _ago(when: float) -> str:
    return f"{tokens.duration(max(0, int(time.time() - when)))} ago"
