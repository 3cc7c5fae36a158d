"""Who is who: a name belongs to the first who took it, until the last of their tokens is over."""

from __future__ import annotations

import asyncio
import time
import unicodedata

from slipway.identity.grants import Grants, digest
from slipway.identity.ledger import Ledger

HINT = "Type a name of 1 to 64 letters and digits."
TAKEN = "Somebody has this name already. Add a letter, or a word."


def tidy(name: str) -> str:
    """Return a name with single spaces, or "" where nobody can be called so."""
    name = " ".join(name.split())
    return name if 0 < len(name) <= 64 and name.isprintable() and any(char.isalnum() for char in name) else ""


class Names:
    """The names that are taken."""

    def __init__(self, ledger: Ledger, grants: Grants) -> None:
        self._ledger = ledger
        self._grants = grants
        self._lock = asyncio.Lock()

    async def take(self, name: str, life: float) -> bool:
        """Take a name for so many seconds. Returns: False if it is somebody's; case makes no other name."""
        folded = unicodedata.normalize("NFKC", name).casefold()
        async with self._lock:
            if await self._grants.find("names", digest(folded)):
                return False
            for record in await self._ledger.all():
                known = unicodedata.normalize("NFKC", record.subject).casefold()
                if known == folded and record.ends_at() > time.time():
                    return False
            await self._grants.keep("names", digest(folded), {"taken": time.time()}, life)
        return True
