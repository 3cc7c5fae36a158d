"""Invite codes: typed by people, good for so many uses and so long, hopeless to guess. Only digests are kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import asdict, dataclass
from typing import Any

from slipway import tokens
from slipway.identity.throttle import Throttle
from slipway.store import Store

# no 0 O, 1 I L, 5 S, 2 Z, 8 B, U V: nothing that looks like another on a projector or over a bad line
ALPHABET = "ACDEFGHJKMNPQRTWXY34679"  # pragma: allowlist secret
LENGTH = 8  # 23^8 = 7.8e10; at 60 guesses a minute over all, an hour finds one of 30 codes once in 700,000 labs
COLLECTION, INDEX = "invites", "index"
PER_ADDRESS, OVERALL = 10, 60  # wrong codes a minute
KEPT = 86400  # seconds that a dead invite stays in the list


class InviteRefused(Exception):
    """The code is wrong, used up, expired or revoked: callers get the one sentence for all of them."""

    SENTENCE = "This code is not good, or no longer. Check it, or ask for another."


class TooManyTries(InviteRefused):
    """Somebody guesses; the code was not looked at.

    Attributes:
        seconds: until another try is heard.
    """

    SENTENCE = "Too many tries. Wait a minute, then try again."

    def __init__(self, seconds: int) -> None:
        super().__init__(self.SENTENCE)
        self.seconds = seconds


@dataclass
class Invite:
    """What a code is good for. Times are seconds since the epoch, lives are seconds."""

    id: str  # the code's digest
    created_at: float
    expires_at: float
    uses: int
    used: int
    scope: str
    token_ttl: int
    name: str = ""
    revoked: bool = False
    lab: str = ""  # whose seats it opens
    seat: int = 0  # the one seat, or 0: any that is free

    def lives(self) -> bool:
        """Tell whether it is neither revoked nor over."""
        return not self.revoked and time.time() < self.expires_at

    def good(self) -> bool:
        """Tell whether it can be used once more."""
        return self.lives() and self.used < self.uses

    def told(self) -> dict[str, Any]:
        """Return it for the operator."""
        state = (
            "good"
            if self.good()
            else "revoked"
            if self.revoked
            else "used up"
            if self.used >= self.uses
            else "expired"
        )
        return {**asdict(self), "id": self.id[:12], "state": state}


class Invites:
    """The invites of this server."""

    def __init__(self, store: Store, secret: tokens.Secret, redis_url: str = "") -> None:
        self._store = store
        self._secret = secret
        self._wrong = Throttle(
            "invite", per_address=PER_ADDRESS, overall=OVERALL, redis_url=redis_url, away=lambda: store.away
        )

    def id_of(self, code: str) -> str:
        """Return what is kept of a code: without the secret nobody can search for it, and no comparison leaks it."""
        return hmac.new(self._secret.key(), b"invite:" + _plain(code).encode(), hashlib.sha256).hexdigest()

    async def new(self, *, uses: int, ttl: int, scope: str, token_ttl: int, name: str = "") -> tuple[str, Invite]:
        """Make an invite. Returns: the code, as in "ACDE-3479", which is told once, and the invite."""
        code = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
        now = time.time()
        invite = Invite(self.id_of(code), now, now + ttl, uses, 0, scope, token_ttl, name[:100])
        await self.keep([invite])
        return written(code), invite

    def code(self, purpose: str) -> str:
        """Return the code that the secret gives a purpose: the same each time, and so kept nowhere."""
        number = int.from_bytes(hmac.new(self._secret.key(), b"code:" + purpose.encode(), hashlib.sha256).digest())
        return written("".join(ALPHABET[number // len(ALPHABET) ** place % len(ALPHABET)] for place in range(LENGTH)))

    async def keep(self, invites: list[Invite]) -> None:
        """Add invites, or change those that there are."""
        async with self._store.lock(COLLECTION):
            for invite in invites:
                await self._write(invite)
            ids = dict.fromkeys([*(invite.id for invite in invites), *(one.id for one in await self.all())])
            await self._store.put(INDEX, {"ids": list(ids)}, collection=COLLECTION)

    async def forget(self, ids: list[str]) -> None:
        """Delete invites."""
        async with self._store.lock(COLLECTION):
            for one in ids:
                await self._store.delete(one, collection=COLLECTION)
            left = [one.id for one in await self.all()]
            await self._store.put(INDEX, {"ids": left}, collection=COLLECTION)

    async def redeem(self, code: str, address: str, *, again: str = "") -> Invite:
        """Use a code once.

        Args:
            address: whose try it is, for the limit.
            again: the id of the invite by which this person is here already; it is not used up by them twice.
        Raises:
            InviteRefused: it is not good; TooManyTries: whether it is, is not told.
        """
        if seconds := await self._wrong.wait(address):
            raise TooManyTries(seconds)  # who floods does not stand in the line of all
        # one at a time: many guesses at once must not all be heard before the first is counted
        async with self._store.lock(COLLECTION):
            if seconds := await self._wrong.wait(address):
                raise TooManyTries(seconds)
            invite = await self._read(self.id_of(code))
            known = invite is not None and hmac.compare_digest(invite.id, again) and invite.lives()
            if invite is None or not (known or invite.good()):
                # failures alone count: a whole class comes from one address, and types good codes
                await self._wrong.count(address)
                raise InviteRefused(InviteRefused.SENTENCE)
            if not known:
                invite.used += 1
                await self._write(invite)
        return invite

    async def give_back(self, invite: Invite) -> None:
        """Take back one use, of somebody who could not be let in after all."""
        async with self._store.lock(COLLECTION):
            kept = await self._read(invite.id)
            if kept:
                kept.used = max(0, kept.used - 1)
                await self._write(kept)

    async def all(self) -> list[Invite]:
        """Return the invites, the newest first."""
        index = await self._store.get(INDEX, collection=COLLECTION) or {}
        # one that the index lost must still be there to be revoked
        ids = dict.fromkeys([*index.get("ids", []), *(await self._store.keys(COLLECTION))])
        found = await self._store.get_many([one for one in ids if one != INDEX], collection=COLLECTION)
        return [invite for kept in found if (invite := _parsed(kept))]

    async def revoke(self, beginning: str) -> bool:
        """Stop the invite whose id begins so, or whose code it is. Returns: whether there was one."""
        digest = self.id_of(beginning)
        async with self._store.lock(COLLECTION):
            chosen = [
                one
                for one in await self.all()
                if one.id == digest or (len(beginning) >= 8 and one.id.startswith(beginning))
            ]
            for invite in chosen:
                invite.revoked = True
                await self._write(invite)
        return bool(chosen)

    async def _read(self, digest: str) -> Invite | None:
        return _parsed(await self._store.get(digest, collection=COLLECTION))

    async def _write(self, invite: Invite) -> None:
        life = max(1.0, invite.expires_at + KEPT - time.time())
        await self._store.put(invite.id, asdict(invite), collection=COLLECTION, ttl=life)


def _parsed(kept: dict[str, Any] | None) -> Invite | None:
    try:
        return Invite(**kept) if kept else None
    except TypeError:  # damaged: a code that nobody can read opens nothing
        return None


def _plain(code: str) -> str:
    return "".join(char for char in code.upper()[:64] if char.isalnum())


def written(code: str) -> str:
    """Return a code as people read it, however they typed it: "ACDE-3479"."""
    plain = _plain(code)
    return f"{plain[:4]}-{plain[4:]}"
