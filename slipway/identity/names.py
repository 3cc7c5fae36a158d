"""Who is who: a name belongs to the first who took it, until the last of their tokens is over."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Mapping

from slipway.identity.grants import Grants, digest
from slipway.identity.ledger import Ledger

HINT = "Type a name of 1 to 64 letters and digits, in one script."
TAKEN = "Somebody has this name already. Add a letter, or a word."
RESERVED = frozenset({"slipway", "operator", "doctor", "self", "anonymous", "admin", "system", "root"})
RELEASED = 31 * 86400  # seconds; until then the ledger may list tokens of who had it
# what a screen shows nothing of, and is printable to Python: no name may differ from another by it alone.
# Default_Ignorable_Code_Point (Unicode, DerivedCoreProperties.txt), and the empty Braille cell
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
# scripts whose letters look alike: a name that mixes them wants to look like another
_ALIKE = ("LATIN", "CYRILLIC", "GREEK", "CHEROKEE", "ARMENIAN")


def tidy(name: str) -> str:
    """Return a name with single spaces and nothing invisible, or "" where nobody can be called so."""
    name = " ".join(_INVISIBLE.sub("", name).split())
    usable = 0 < len(name) <= 64 and name.isprintable() and any(char.isalnum() for char in name)
    return name if usable and _folded(name) not in RESERVED and len(_scripts(name)) < 2 else ""


def _scripts(name: str) -> set[str]:
    plain = unicodedata.normalize("NFKC", name)
    return {first for char in plain if (first := unicodedata.name(char, "").split(" ")[0]) in _ALIKE}


def same(one: str, other: str) -> bool:
    """Tell whether two names are one; case makes no other name."""
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", name)).casefold()


class Names:
    """The names that are taken, each by a browser: who has the browser may use the name at another door too."""

    def __init__(self, ledger: Ledger, grants: Grants) -> None:
        self._ledger = ledger
        self._grants = grants

    async def invited_by(self, name: str, browser: str) -> str:
        """Return the id of the invite by which this browser took the name, "" where it did not."""
        kept = await self._grants.find("names", digest(_folded(name)))
        return str(kept["invite"]) if kept and kept["browser"] == digest(browser) else ""

    async def release(self, name: str) -> None:
        """Note that the operator revoked every token of a name. Nobody takes it but who `take`s it `again`."""
        content = {"browser": "", "invite": "", "ends": time.time() + RELEASED}
        await self._grants.keep("names", digest(_folded(name)), content, RELEASED)

    async def take(self, name: str, life: float, *, browser: str, invite: str, again: bool = False) -> bool:
        """Take a name for so many seconds; case makes no other name.

        Args:
            again: also one that was released, because the operator says who it is. Tools may still have things of
                that subject, which are nobody else's.
        Returns: False if it is somebody else's.
        """
        return not await self.take_all({name: browser}, life, invite=invite, again=again)

    async def take_all(self, wanted: Mapping[str, str], life: float, *, invite: str = "", again: bool = False) -> str:
        """Take names, {name: browser}, as `take` does: all or none. Returns: one that is somebody else's, or ""."""
        # not the lock of those who refresh their tokens: all records are read in here
        async with self._grants.lock("names"):
            ends, taken = dict[str, float](), None
            for name, browser in wanted.items():
                kept = await self._grants.find("names", digest(_folded(name)))
                if kept and kept["browser"] != digest(browser) and not (again and kept["browser"] == ""):
                    return name
                if not kept and taken is None:
                    known = await self._ledger.all()
                    taken = {_folded(record.subject) for record in known if record.ends_at() > time.time()}
                if not kept and taken and _folded(name) in taken:
                    return name
                ends[name] = max(time.time() + life, kept["ends"] if kept and kept["browser"] else 0)
            for name, until in ends.items():
                content = {"browser": digest(wanted[name]), "invite": invite, "ends": until}
                await self._grants.keep("names", digest(_folded(name)), content, until - time.time())
        return ""
