"""Which tokens were given out, which are revoked and which live longer than they say. Their texts are never kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any

from slipway import tokens
from slipway.store import Store, Trouble

TOKENS, CUTOFFS, INDEX = "tokens", "cutoffs", "index"
PASTED = "pasted"
BATCH = 16  # first uses that are written under one lock
EVERYBODY = "*"  # the cutoff of all subjects; no subject is called so, since it must not start a cutoff of its own
KEPT = 30 * 86400  # seconds that a record outlives its token, so that `list` can still explain a refusal
MAX_RECORDS = 20_000  # oldest go first; a token that is forgotten is judged by its signature and the cutoffs alone


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


class Ledger:
    """The records, in memory and in the store.

    One process with files knows all and asks nobody. With a shared store (Redis) every question goes there, so that
    a revocation on one replica holds on the next request at any other. What this process knows to be revoked stays so
    whatever the store says: it may be away, full, or have lost its memory.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._shared = store.shared
        self._records: dict[str, Record] = {}
        self._index: dict[str, list[float]] = {}  # jti → when it ends, when it was revoked
        self._listed: dict[str, list[float]] | None = None  # of it, what the store has
        self._cutoffs: dict[str, float] = {}
        self._unsaved: set[str] = set()  # of tokens, what the store could not take
        self._unsaved_cutoffs = False
        self._noting: dict[str, Record] = {}  # whose first use is about to be written
        self._noter: asyncio.Future[None] | None = None
        store.on_return.append(self._write_back)

    async def load(self) -> None:
        """Read what an earlier process left. What is damaged counts as revoked: nobody can tell that it was not."""
        for record in await self._all_kept():
            self._remember(record)
        listed = await self._store.get(INDEX, collection=CUTOFFS, instead=_DAMAGED)
        try:
            self._merge(listed or {})
        except (TypeError, ValueError):
            # whose tokens were revoked is not known any more, so all that were given out until now are
            self._merge({EVERYBODY: time.time()})
            self._unsaved_cutoffs = True
        if not self._shared:
            self._index = {jti: [one.ends_at(), one.revoked_at] for jti, one in self._records.items()}
        if self._unsaved or self._unsaved_cutoffs:
            # on a full disk it holds in memory, and is written when there is room
            with contextlib.suppress(Trouble):
                await self._write_back(False)

    async def _all_kept(self) -> list[Record]:
        """Return the records of the store."""
        found: list[Record] = []
        index = await self._get_index()
        # the index is written last: after a kill, or on a full disk, it may lack some
        for jti in dict.fromkeys([*index, *(await self._store.keys(TOKENS) or [])]):
            if jti == INDEX:
                continue
            kept = await self._store.get(jti, collection=TOKENS, instead=_DAMAGED)
            record = _parsed(jti, kept) if kept is not None else None
            # with files nothing takes a record away and leaves it in the index
            if (kept is not None and record is None) or (
                kept is None and not self._shared and index.get(jti, [0.0, 0.0])[1]
            ):
                record = self._stopped(jti, "its record is damaged")
                self._unsaved.add(jti)
            if record:
                found.append(record)
        return found

    async def add(self, claims: dict[str, Any], *, via: str, purpose: str = "", token: str = "") -> Record:
        """Note a token that was given out; of its text only the mark is kept.

        Returns: its record, the one that there is already if there is one.
        """
        record = _record(claims, via=via, purpose=purpose, mark=tokens.mark(token) if token else "")
        record.added_at = 0.0 if via == PASTED else time.time()
        async with self._store.lock(TOKENS):
            if known := await self.get(record.jti):
                return known
            await self._write(record)
        return record

    async def seen(self, claims: dict[str, Any]) -> None:
        """Note a token's first use; one that was made without us comes into the ledger by it.

        The call does not wait for the disk, nor end where it is full: it is noted in memory, and written soon. Two
        hundred people who call for the first time at once would stand in a line for it.
        """
        jti = claims["jti"]
        if claims.get("client_id") == "self" or jti in self._noting or jti in self._unsaved:
            return
        try:
            record = await self.get(jti)
        except Trouble:
            record = self._records.get(jti)
        if record and record.first_used_at:
            return
        record = record or _record(claims, via=PASTED)
        record.first_used_at = time.time()
        self._remember(record)
        self._noting[jti] = record
        if self._noter is None or self._noter.done():
            self._noter = asyncio.ensure_future(self._note())

    async def noted(self) -> None:
        """Wait until every first use is written, or cannot be."""
        while self._noter and not self._noter.done():
            await asyncio.wait({self._noter})

    async def _note(self) -> None:
        while batch := list(self._noting)[:BATCH]:
            try:
                async with self._store.lock(TOKENS):
                    await self._write(*[await self._used(jti) for jti in batch])
            except Trouble:
                self._unsaved |= set(batch)
            finally:
                for jti in batch:
                    del self._noting[jti]

    async def _used(self, jti: str) -> Record:
        """Return what is to be written of a first use; somebody may have revoked the token meanwhile."""
        mine = self._noting[jti]
        record = (await self.get(jti) if self._shared else self._records.get(jti)) or mine
        record.first_used_at = record.first_used_at or mine.first_used_at
        return record

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
        """Return a token's record.

        Raises:
            Trouble: a shared store is away, and we are not to serve on with what we know.
        """
        known = self._records.get(jti)
        if not self._shared:
            return known
        try:
            found = await self._store.get(jti, collection=TOKENS)
        except Trouble:
            if self._store.serves_on:
                return known
            raise
        record = _parsed(jti, found) if found else None
        if known and known.revoked_at and not (record and record.revoked_at):
            return known
        if record:
            self._remember(record)
        return record

    def _remember(self, record: Record) -> None:
        self._records[record.jti] = record
        if self._shared and len(self._records) > 2 * MAX_RECORDS:
            # what others gave out comes in by being asked for, and nothing else lets it go
            for jti in _over({one.jti: [one.ends_at(), one.revoked_at] for one in self._records.values()}):
                del self._records[jti]

    async def all(self) -> list[Record]:
        """Return every record, the newest first."""
        await self.noted()
        found = await self._all_kept() if self._shared else self._records.values()
        return sorted(found, key=lambda record: -record.issued_at)

    def mark_of(self, jti: str) -> str:
        """Return the mark of a token that this process knows, or ""."""
        return self._records[jti].mark if jti in self._records else ""

    def marks(self) -> dict[str, str]:
        """Return {mark of a token: its subject}, of the tokens that this process knows."""
        return {record.mark: record.subject for record in self._records.values() if record.mark}

    async def revoke(self, jti: str) -> Record | None:
        """Stop one token, known or not. Returns: its record, or None where it was not known.

        Raises:
            Trouble: it could not be written. This process refuses the token all the same, and writes that later.
        """
        try:
            async with self._store.lock(TOKENS):
                known = await self.get(jti)
                # a leaked token that was never used here is stopped all the same, for as long as any token can live
                record = known or self._stopped(jti)
                record.revoked_at = record.revoked_at or time.time()
                self._remember(record)
                await self._write(record)
        except Trouble as trouble:
            record = self._records.get(jti) or self._stopped(jti)
            record.revoked_at = record.revoked_at or time.time()
            self._remember(record)
            self._unsaved.add(jti)
            raise _only_here(trouble, jti) from None
        return known

    @staticmethod
    def _stopped(jti: str, purpose: str = "") -> Record:
        now = time.time()
        return Record(jti, "", "", 0, int(now) + KEPT + tokens.MAX_TTL, purpose=purpose, revoked_at=now)

    async def revoke_before_now(self, subject: str = EVERYBODY) -> int:
        """Stop every token of a subject, or of everybody, that was issued until now.

        Returns: how many of the known ones were still good.
        Raises:
            Trouble: it could not be written. This process refuses them all the same, and writes that later.
        """
        try:
            good = [
                record
                for record in await self.all()
                if await self._good(record) and subject in (record.subject, EVERYBODY)
            ]
            async with self._store.lock(TOKENS):
                now = dict(await self._get_cutoffs()) | {subject: time.time()}
                self._cutoffs = now
                await self._store.put(INDEX, now, collection=CUTOFFS)
        except Trouble as trouble:
            self._cutoffs = self._cutoffs | {subject: time.time()}
            self._unsaved_cutoffs = True
            raise _only_here(
                trouble, "every token of " + ("everybody" if subject == EVERYBODY else subject)
            ) from None
        return len(good)

    async def _write_back(self, lost: bool) -> None:
        """Write what the store could not take, or, if it lost its memory, all that we know to be revoked."""
        again = [jti for jti, record in self._records.items() if record.revoked_at] if lost and self._shared else []
        for jti in [*self._unsaved, *again]:
            async with self._store.lock(TOKENS):
                known = self._records.get(jti)
                record = await self.get(jti) if self._shared else known
                if known and record:
                    # somebody else may have written meanwhile: what is final, and what is later, stays
                    record.revoked_at = record.revoked_at or known.revoked_at
                    record.first_used_at = record.first_used_at or known.first_used_at
                if record := record or known:
                    await self._write(record)
            self._unsaved.discard(jti)
        if self._unsaved_cutoffs or (lost and self._cutoffs):
            async with self._store.lock(TOKENS):
                self._cutoffs = await self._get_cutoffs()
                await self._store.put(INDEX, self._cutoffs, collection=CUTOFFS)
            self._unsaved_cutoffs = False

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
            try:
                found = await self._store.get(INDEX, collection=CUTOFFS) or {}
            except Trouble:
                if not self._store.serves_on:
                    raise
                found = {}
            self._merge(found)
        return self._cutoffs

    def _merge(self, cutoffs: dict[str, Any]) -> None:
        for name, when in cutoffs.items():
            self._cutoffs[name] = max(float(when), self._cutoffs.get(name, 0.0))

    async def _get_index(self) -> dict[str, list[float]]:
        found = await self._store.get(INDEX, collection=TOKENS) or {}
        try:
            return {jti: [float(ends), float(revoked)] for jti, (ends, revoked) in found.get("tokens", {}).items()}
        except (TypeError, ValueError, AttributeError):
            return {}

    async def _write(self, *records: Record) -> None:
        for record in records:
            await self._store.put(record.jti, asdict(record), collection=TOKENS)
            self._remember(record)
        known = await self._get_index() if self._shared else self._index
        entries: dict[str, list[float]] = {one.jti: [one.ends_at(), one.revoked_at] for one in records}
        if all(known.get(jti) == entry for jti, entry in entries.items()):
            return
        known |= entries
        for jti in _over(known):
            del known[jti]
            self._records.pop(jti, None)
            await self._store.delete(jti, collection=TOKENS)
        self._index = known
        # where the store can list, only what a value that is gone must still tell: that it was revoked
        listed = {jti: entry for jti, entry in known.items() if entry[1]} if self._store.lists else known
        if listed != self._listed:
            await self._store.put(INDEX, {"tokens": listed}, collection=TOKENS)
            self._listed = dict(listed) if self._store.lists else None


_DAMAGED: dict[str, Any] = {"damaged": "yes"}  # what no record and no list of cutoffs looks like


def _parsed(jti: str, kept: dict[str, Any]) -> Record | None:
    """Return a record, or None where what was kept is none."""
    try:
        record = Record(**kept)
        times = (record.issued_at, record.expires_at, record.revoked_at, record.extended_to)
        times += (record.added_at, record.first_used_at)  # type: ignore[assignment]
        return record if record.jti == jti and all(isinstance(when, int | float) for when in times) else None
    except TypeError:
        return None


def _record(claims: dict[str, Any], *, via: str, purpose: str = "", mark: str = "") -> Record:
    issued, ends = int(claims["iat"]), int(claims["exp"])
    return Record(claims["jti"], claims["sub"], claims["scope"], issued, ends, via, purpose[:200], mark=mark)


def _only_here(trouble: Trouble, what: str) -> Trouble:
    cause = f"This server refuses {what} from now on, but that could not be written, and may not hold elsewhere yet"
    return Trouble(f"{cause}: {trouble.cause}", trouble.cure + ", then revoke once more", trouble.seconds)


def _over(index: dict[str, list[float]]) -> list[str]:
    """Return which tokens to forget: those that ended long ago, and of too many the first to end.

    One that is revoked stays until its end whatever comes: forgotten, it would be judged by its signature alone.
    """
    now = time.time()
    old = [jti for jti, (ends, _) in index.items() if ends < now - KEPT]
    most = len(index) - MAX_RECORDS
    spare = sorted((ends, jti) for jti, (ends, rev) in index.items() if ends < now or not rev) if most > 0 else []
    # some more than must go, so that not each new one has all of them sorted
    return list(dict.fromkeys([*old, *(jti for _, jti in spare[: most + MAX_RECORDS // 20])]))


def _ago(when: float) -> str:
    return f"{tokens.duration(max(0, int(time.time() - when)))} ago"
