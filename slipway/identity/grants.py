"""What OAuth leaves behind: clients, sign-ins under way, codes, grants and refresh tokens.

Of codes and tokens only digests are kept; of a client that asked for a secret, the secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from slipway.identity.ledger import Ledger
from slipway.store import Store

TRANSACTION_LIFE = 600  # seconds that a person may take to sign in
CODE_LIFE = 60  # seconds; RFC 6749 §4.1.2 asks for ten minutes at most


def digest(secret: str) -> str:
    """Return what is kept of a code or token."""
    return hashlib.sha256(secret.encode()).hexdigest()


def fresh() -> str:
    """Return 256 random bits as text."""
    return secrets.token_urlsafe(32)


@dataclass
class Grant:
    """What one sign-in gave: a family of access and refresh tokens that ends as one.

    Attributes:
        id: of the family.
        ends_at: seconds since the epoch; no refresh goes beyond.
        refresh: digest of the one refresh token that is good.
        jtis: of the access tokens so far, and until when each is good.
    """

    id: str
    client_id: str
    subject: str
    scope: str
    started_at: float
    ends_at: float
    client_name: str = ""
    refresh: str = ""
    jtis: dict[str, int] = field(default_factory=dict)
    ended: bool = False


class Grants:
    """The store of all of it."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger

    def lock(self, what: str = "oauth") -> contextlib.AbstractAsyncContextManager[None]:
        """Hold what is read and then written, over replicas too. It is not reentrant."""
        return self._store.lock(what)

    async def keep(self, kind: str, key: str, content: dict[str, Any], life: float) -> None:
        """Keep something of a kind for so many seconds."""
        await self._store.put(key, content, collection=f"oauth_{kind}", ttl=life)

    async def find(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return it, or None."""
        return await self._store.get(key, collection=f"oauth_{kind}")

    async def take(self, kind: str, key: str) -> dict[str, Any] | None:
        """Return it and delete it; of two takers one gets None."""
        found = await self.find(kind, key)
        if found is None or not await self._store.delete(key, collection=f"oauth_{kind}"):
            return None
        return found

    async def save(self, grant: Grant) -> None:
        """Write a grant."""
        life = max(1.0, grant.ends_at - time.time() + 86400)
        await self.keep("grants", grant.id, asdict(grant), life)

    async def grant(self, id: str) -> Grant | None:
        """Return a grant."""
        found = await self.find("grants", id)
        if found is None:
            return None
        if isinstance(found["jtis"], list):  # as a version before this one kept them
            found["jtis"] = dict.fromkeys(found["jtis"], 0)
        return Grant(**found)

    async def good(self, grant: Grant) -> bool:
        """Tell whether the grant may go on: not ended, not over, and none of its tokens nor its subject revoked."""
        if grant.ended or time.time() > grant.ends_at - 1:  # tokens count whole seconds
            return False
        claims = {"jti": grant.id, "sub": grant.subject, "iat": grant.started_at}
        if await self._ledger.refusal(claims):
            return False
        return not await self._ledger.any_revoked(grant.jtis)

    async def end(self, id: str) -> None:
        """End a grant with every token of it. Whoever holds the lock for an exchange finishes first."""
        async with self.lock():
            grant = await self.grant(id)
            if grant is None:
                return
            if not grant.ended:
                grant.ended = True
                await self.save(grant)
        for jti in grant.jtis:
            await self._ledger.revoke(jti)
