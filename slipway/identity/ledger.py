"""Which tokens were given out, which are revoked and which live longer than they say. Their texts are never kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from slipway import tokens
from slipway.identity import records
from slipway.identity.records import EVERYBODY, KEPT, PASTED, Record
from slipway.store import Store, Trouble

TOKENS, CUTOFFS, INDEX = "tokens", "cutoffs", "index"
BATCH = 16  # first uses that are written under one lock
MAX_RECORDS = 20_000  # oldest go first; a token that is forgotten is judged by its signature and the cutoffs alone


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
        self._damaged_at = 0.0  # when the cutoffs of the store could not be read
        self._noting: dict[str, Record] = {}  # whose first use is about to be written
        self._noter: asyncio.Future[None] | None = None
        store.on_return.append(self._write_back)

    async def load(self) -> None:
        """Read what an earlier process left. What is damaged counts as revoked: nobody can tell that it was not."""
        await self._all_kept()
        self._merge(await self._store.get(INDEX, collection=CUTOFFS, instead=records.DAMAGED) or {})
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
        jtis = [jti for jti in dict.fromkeys([*index, *(await self._store.keys(TOKENS))]) if jti != INDEX]
        values = await self._store.get_many(jtis, collection=TOKENS, instead=records.DAMAGED)
        for jti, kept in zip(jtis, values, strict=True):
            if kept is None and not self._shared and index.get(jti, [0.0, 0.0])[1]:
                kept = records.DAMAGED  # with files nothing takes a record away and leaves it in the index
            if kept is not None:
                found.append(self._take(jti, kept))
        return found

    def _take(self, jti: str, kept: dict[str, Any]) -> Record:
        """Know what the store has of a token."""
        record = records.parsed(jti, kept)
        if record is None:
            record = records.stopped(jti, "its record is damaged")
            self._unsaved.add(jti)
        self._remember(record)
        return record

    async def add(
        self, claims: dict[str, Any], *, via: str, purpose: str = "", token: str = "", since: float = 0.0
    ) -> Record:
        """Note a token that was given out; of its text only the mark is kept.

        Args:
            since: when it was decided to give it out; a cutoff that came meanwhile holds for it.
        Returns: its record, the one that there is already if there is one.
        """
        record = records.of(claims, via=via, purpose=purpose, mark=tokens.mark(token) if token else "")
        record.added_at = 0.0 if via == PASTED else since or time.time()
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
        record = record or records.of(claims, via=PASTED)
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
        return records.why(await self.get(claims["jti"]), claims["sub"], claims["iat"], await self._get_cutoffs())

    async def extended_to(self, jti: str) -> int:
        """Return until when, in seconds since the epoch, an expired token is accepted nevertheless; 0 for others."""
        record = await self.get(jti)
        return record.extended_to if record else 0

    async def get(self, jti: str) -> Record | None:
        """Return a token's record.

        Raises:
            Trouble: a shared store is away, and we are not to serve on with what we know.
        """
        if not self._shared:
            return self._records.get(jti)
        try:
            found = await self._store.get(jti, collection=TOKENS, instead=records.DAMAGED)
        except Trouble:
            if self._store.serves_on:
                return self._records.get(jti)
            raise
        if found is not None:
            return self._take(jti, found)
        # asked only now: it may have been revoked while the store answered
        known = self._records.get(jti)
        return known if known and known.revoked_at else None

    async def any_revoked(self, jtis: Iterable[str]) -> bool:
        """Tell whether one of these tokens is revoked. Raises: Trouble, as `get` does."""
        jtis = list(jtis)
        values: list[dict[str, Any] | None] = []
        try:
            if self._shared:
                values = await self._store.get_many(jtis, collection=TOKENS, instead=records.DAMAGED)
        except Trouble:
            if not self._store.serves_on:
                raise
        for jti, kept in zip(jtis, values, strict=False):
            if kept is not None:
                self._take(jti, kept)
        return any(jti in self._records and self._records[jti].revoked_at for jti in jtis)

    def _remember(self, record: Record) -> None:
        """Know a record. Revoked is final, also where what the store said of it is older."""
        if known := self._records.get(record.jti):
            record.revoked_at = record.revoked_at or known.revoked_at
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
            known = await self.get(jti)
            if known and known.revoked_at and jti not in self._unsaved:
                # whoever shows an old refresh token again and again must not have a hundred files written each time
                return known
            async with self._store.lock(TOKENS):
                known = await self.get(jti)
                await self._write(self._stop(jti, known))
                self._unsaved.discard(jti)
        except Trouble as trouble:
            self._stop(jti, self._records.get(jti))
            self._unsaved.add(jti)
            raise _only_here(trouble, jti) from None
        return known

    def _stop(self, jti: str, known: Record | None) -> Record:
        # a leaked token that was never used here is stopped all the same, for as long as any token can live
        record = known or records.stopped(jti)
        record.revoked_at = record.revoked_at or time.time()
        self._remember(record)
        return record

    async def stop(self, *subjects: str) -> dict[str, float]:
        """Stop every token of these subjects, or of EVERYBODY, that was issued until now.

        Returns: the cutoffs before.
        Raises:
            Trouble: it could not be written. This process refuses them all the same, and writes that later.
        """
        try:
            async with self._store.lock(TOKENS):
                before = dict(await self._get_cutoffs())
                # nothing that can wait stands before this, and no cutoff becomes an earlier one: clocks differ
                self._merge(dict.fromkeys(subjects, time.time()))
                await self._store.put(INDEX, self._cutoffs, collection=CUTOFFS)
        except Trouble as trouble:
            self._merge(dict.fromkeys(subjects, time.time()))
            self._unsaved_cutoffs = True
            whose = ", ".join("everybody" if one == EVERYBODY else one for one in subjects)
            raise _only_here(trouble, f"every token of {whose}") from None
        return before

    async def revoke_before_now(self, subject: str = EVERYBODY) -> int:
        """Do as `stop` does. Returns: how many of the known tokens were still good."""
        before = await self.stop(subject)
        try:
            known = await self.all()
        except Trouble:  # they are stopped; only how many is not known for certain
            known = list(self._records.values())
        concerned = [record for record in known if subject in (record.subject, EVERYBODY)]
        return len([record for record in concerned if records.state(record, before) == "good"])

    async def _write_back(self, lost: bool) -> None:
        """Write what the store could not take, or, if it lost its memory, all that we know to be revoked."""
        again = [jti for jti, record in self._records.items() if record.revoked_at] if lost and self._shared else []
        for jti in [*self._unsaved, *again]:
            async with self._store.lock(TOKENS):
                known = self._records.get(jti)
                record = await self.get(jti) if self._shared else known
                if known and record:  # somebody else may have written meanwhile
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
        return records.state(record, await self._get_cutoffs())

    async def _get_cutoffs(self) -> dict[str, float]:
        if self._shared:
            try:
                found = await self._store.get(INDEX, collection=CUTOFFS, instead=records.DAMAGED) or {}
            except Trouble:
                if not self._store.serves_on:
                    raise
                found = {}
            self._merge(found)
        return self._cutoffs

    def _merge(self, cutoffs: dict[str, Any]) -> None:
        try:
            read = {name: float(when) for name, when in cutoffs.items()}
        except (TypeError, ValueError):
            # whose tokens were revoked is not known any more, so all that were given out until now are
            self._damaged_at = self._damaged_at or time.time()
            read, self._unsaved_cutoffs = {EVERYBODY: self._damaged_at}, True
        for name, when in read.items():
            self._cutoffs[name] = max(when, self._cutoffs.get(name, 0.0))

    async def _get_index(self) -> dict[str, list[float]]:
        found = await self._store.get(INDEX, collection=TOKENS) or {}
        try:
            return {jti: [float(ends), float(revoked)] for jti, (ends, revoked) in found.get("tokens", {}).items()}
        except (TypeError, ValueError, AttributeError):
            return {}

    async def _write(self, *records: Record) -> None:
        for record in records:
            self._remember(record)
            await self._store.put(record.jti, asdict(record), collection=TOKENS)
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
        listed = {jti: entry for jti, entry in known.items() if entry[1]} if not self._shared else known
        if listed != self._listed:
            await self._store.put(INDEX, {"tokens": listed}, collection=TOKENS)
            self._listed = dict(listed) if not self._shared else None


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
