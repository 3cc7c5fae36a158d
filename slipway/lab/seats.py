"""A lab and its seats: who sits where, by which codes, until when. What they do is the board's."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from slipway.errors import Problem
from slipway.identity import names
from slipway.identity.admission import NotAdmitted
from slipway.identity.grants import digest, fresh
from slipway.identity.invites import Invite, Invites
from slipway.identity.ledger import Ledger
from slipway.identity.names import Names
from slipway.store import Store

COLLECTION, CURRENT = "lab", "current"
MAX_SEATS = 500
MAX_TITLE = 80  # characters
USES = 10_000  # of a code: how often one person comes back is nobody's business
NONE_FREE = "Every seat is taken. Ask whoever runs the lab."
LOCKED = "The lab is locked: nobody new gets in. Ask whoever runs it."
TAKEN = "Somebody else has this seat. Ask whoever runs the lab for another code."
CARD = "This name has a card of its own. Type the code that is on it."
OVER = "The lab is over."


@dataclass
class Seat:
    """One seat.

    Attributes:
        subject: whose tokens are of this seat; "" while it is free and nobody was named for it.
        named: by the instructor, whose word it is who sits there: a name that somebody types is taken but once.
        browser: digest of the browser that took it by the code for all.
        joined_at: seconds since the epoch, 0 for never.
        turn: how often it was reset; each turn has a code of its own.
    """

    number: int
    subject: str = ""
    named: bool = False
    browser: str = ""
    joined_at: float = 0.0
    revoked: bool = False
    turn: int = 0

    def place(self, lab: str) -> str:
        """Return by what it holds its name."""
        return f"{lab} {self.number} {'' if self.named else self.turn}"

    def key(self, lab: str) -> str:
        """Return what its code is made from."""
        return f"lab {lab} seat {self.number} turn {self.turn}"


@dataclass
class Lab:
    """What an instructor opened. Times are seconds since the epoch."""

    id: str
    title: str
    scope: str
    created_at: float
    ends_at: float
    checkpoints: list[list[Any]] = field(default_factory=list)  # [name, row]: a shared store would sort an object
    seats: list[Seat] = field(default_factory=list)
    locked: bool = False
    url: str = ""  # by which people join, without a path
    lan: bool = False

    def seat_of(self, subject: str) -> Seat | None:
        """Return a subject's seat."""
        return next((seat for seat in self.seats if seat.subject and seat.subject == subject), None)

    def everybody(self) -> str:
        """Return what the code for all is made from."""
        return f"lab {self.id} everybody"


class Labs:
    """The lab of this server; there is one at a time.

    Attributes:
        lab: as this process knows it; `refresh` asks the store where others write to it too.
        own_limits: what a seat may do, by the names of limits.Allowance; set by who watches the tunnel's quota.
    """

    def __init__(self, store: Store, invites: Invites, ledger: Ledger, who: Names) -> None:
        self._store = store
        self._invites = invites
        self._ledger = ledger
        self._names = who
        self._subjects: set[str] = set()
        self._read = False
        self.lab: Lab | None = None
        self.own_limits: Mapping[str, int] = {}

    def limits_of(self, subject: str) -> Mapping[str, int]:
        """Return what differs for a subject from what everybody may do."""
        return self.own_limits if subject in self._subjects else {}

    async def refresh(self) -> Lab | None:
        """Read the lab. What is returned is not to be changed."""
        if self._store.shared or not self._read:
            kept = await self._store.get(CURRENT, collection=COLLECTION)
            self._know(_parsed(kept) if kept else None)
        return self.lab

    def _know(self, lab: Lab | None) -> None:
        self.lab, self._read = lab, True
        self._subjects = {seat.subject for seat in lab.seats if seat.subject} if lab else set()

    async def _lab(self) -> Lab:
        lab = copy.deepcopy(await self.refresh())
        if lab is None:
            raise Problem("There is no lab.", './scripts/lab new "MCP 101" --seats 30 --for 3h')
        return lab

    async def _save(self, lab: Lab) -> None:
        await self._store.put(CURRENT, asdict(lab), collection=COLLECTION)
        self._know(lab)

    # --- the instructor

    async def new(
        self, *, title: str, seats: int, life: int, scope: str, roster: Sequence[str] = (),
        checkpoints: Sequence[list[Any]] = (), url: str = "", lan: bool = False,
    ) -> Lab:  # fmt: skip
        """Open a lab.

        Args:
            seats: how many; those of the roster are among them, the first.
            life: seconds until it ends.
            scope: of the tokens.
            roster: names of people, one a seat.
        Returns: the lab; of the local network the one that there is, by the same title, at its new URL.
        Raises:
            Problem: there is another one already, or a name that cannot be taken.
        """
        if not title.strip() or len(title) > MAX_TITLE or not title.isprintable():
            raise Problem(f"A title has 1 to {MAX_TITLE} characters.", './scripts/lab new "MCP 101" --seats 30', 2)
        seats = max(seats, len(roster))
        if not 1 <= seats <= MAX_SEATS:
            raise Problem(f"A lab has 1 to {MAX_SEATS} seats.", "Write --seats 30", 2)
        tidied = [names.tidy(name) for name in roster]
        if "" in tidied:
            typed = roster[tidied.index("")]
            raise Problem(f"{typed[:70]!r} on the roster is no name.", names.HINT, 2)
        if twice := next((a for i, a in enumerate(tidied) if any(names.same(a, b) for b in tidied[:i])), ""):
            raise Problem(f"The roster has {twice!r} twice.", "Add a letter to one of them", 2)
        async with self._store.lock(COLLECTION):
            if there := copy.deepcopy(await self.refresh()):
                if not (lan and there.lan and there.title == title.strip() and there.ends_at > time.time()):
                    raise Problem(f"There is a lab already: {there.title}.", "./scripts/lab end", 2)
                # the laptop has another address than before, or came back from ./scripts/down
                there.url = url
                await self._save(there)
                return there
            now = time.time()
            lab = Lab(fresh()[:12], title.strip(), scope, now, now + life, list(checkpoints), url=url, lan=lan)
            named = [Seat(number, name, named=True) for number, name in enumerate(tidied, 1)]
            lab.seats = named + [Seat(number) for number in range(len(named) + 1, seats + 1)]
            if used := await self._hold(lab, life):
                raise Problem(f"{used!r} is in use: somebody has a token by that name.", "Add a letter to it", 2)
            # the lab is written before its codes: one that a kill leaves without them is mended by `end`
            await self._save(lab)
            await self._write_invites(lab, lab.seats, everybody=True)
        return lab

    async def _hold(self, lab: Lab, life: float) -> str:
        """Take the names of a lab's seats, all or none. Returns: one that is somebody else's, or ""."""
        wanted = {seat.subject: seat.place(lab.id) for seat in lab.seats if seat.subject}
        return await self._names.take_all(wanted, life, again=True)

    async def _write_invites(self, lab: Lab, seats: Sequence[Seat], *, everybody: bool = False) -> None:
        keys = [(seat.key(lab.id), seat.number) for seat in seats if not seat.revoked]
        keys += [(lab.everybody(), 0)] if everybody else []
        await self._invites.keep([
            Invite(
                self._invites.id_of(self._invites.code(key)), lab.created_at, lab.ends_at, USES, 0, lab.scope,
                int(lab.ends_at - lab.created_at), f"{lab.title}, seat {number}" if number else lab.title,
                lab=lab.id, seat=number,
            )
            for key, number in keys
        ])  # fmt: skip

    def _ids(self, lab: Lab, seats: Sequence[Seat]) -> list[str]:
        return [self._invites.id_of(self._invites.code(seat.key(lab.id))) for seat in seats]

    def code(self, lab: Lab) -> str:
        """Return the code for all. It is made from the secret, and kept nowhere."""
        return self._invites.code(lab.everybody())

    def codes(self, lab: Lab) -> dict[int, str]:
        """Return {seat: code} of the seats that are not revoked. They are made as the one for all is."""
        return {seat.number: self._invites.code(seat.key(lab.id)) for seat in lab.seats if not seat.revoked}

    async def extend(self, until: float) -> None:
        """Let the lab, its codes and the tokens of its seats live until then."""
        async with self._store.lock(COLLECTION):
            lab = await self._lab()
            lab.ends_at = until
            # a name that was held until the old end alone would be anybody's after it
            if used := await self._hold(lab, lab.ends_at - time.time()):
                raise Problem(f"Since the lab was over somebody else took the name {used!r}.", "./scripts/lab end", 2)
            await self._save(lab)
            await self._write_invites(lab, lab.seats, everybody=True)
        for record in await self._ledger.all():
            if record.subject in self._subjects and record.via != "oauth" and not record.revoked_at:
                await self._ledger.extend(record.jti, int(lab.ends_at))

    async def lock(self, locked: bool) -> None:
        """Let nobody new in, or let them in again."""
        async with self._store.lock(COLLECTION):
            lab = await self._lab()
            lab.locked = locked
            await self._save(lab)

    async def clear(self, number: int, *, free: bool) -> tuple[Lab, str]:
        """Refuse a seat's tokens and its code from now on; it is free for somebody else, or closed.

        Returns: the lab, and who sat there.
        """
        async with self._store.lock(COLLECTION):
            lab = await self._lab()
            seat = next((each for each in lab.seats if each.number == number), None)
            if seat is None:
                raise Problem(f"There is no seat {number}.", "./scripts/lab list shows them", 2)
            who, gone = seat.subject, self._ids(lab, [seat])
            await self._put_out(who, gone=not (free and seat.named))
            if not (free and seat.named):
                seat.subject, seat.named = "", False
            seat.browser, seat.joined_at, seat.revoked = "", 0.0, not free
            seat.turn += 1
            await self._save(lab)
            await self._invites.forget(gone)
            await self._write_invites(lab, [seat])
        return lab, who

    async def _put_out(self, *subjects: str, gone: bool = True) -> None:
        if subjects := tuple(filter(None, subjects)):
            await self._ledger.stop(*subjects)
        for subject in subjects if gone else ():
            await self._names.release(subject)

    async def end(self) -> None:
        """Refuse every token of the lab and forget it."""
        async with self._store.lock(COLLECTION):
            lab = await self._lab()
            await self._put_out(*(seat.subject for seat in lab.seats))
            everybody = self._invites.id_of(self.code(lab))
            await self._invites.forget([*self._ids(lab, lab.seats), everybody])
            await self._store.delete(CURRENT, collection=COLLECTION)
            self._know(None)

    # --- the attendee

    async def seat(self, invite: Invite, name: str, browser: str) -> tuple[str, int]:
        """Give the holder of a lab's code a seat.

        Args:
            browser: who took a seat by the code for all has it again from the same browser.
        Returns: who they are, and for how many seconds.
        Raises:
            NotAdmitted: with the reason for them.
        """
        async with self._store.lock(COLLECTION):
            lab = copy.deepcopy(await self.refresh())
            left = int(lab.ends_at - time.time()) if lab else 0
            if lab is None or lab.id != invite.lab or left < 1:
                raise NotAdmitted(OVER)
            seat = self._choose(lab, invite, name, digest(browser))
            if lab.locked and not seat.joined_at:
                raise NotAdmitted(LOCKED, reason="the lab is locked")
            if not seat.subject:
                if not await self._names.take(name, left, browser=seat.place(lab.id), invite=""):
                    raise NotAdmitted(names.TAKEN)
                seat.subject = name
            if not seat.joined_at:
                seat.joined_at = time.time()
                seat.browser = "" if invite.seat else digest(browser)
                await self._save(lab)
        return seat.subject, left

    def _choose(self, lab: Lab, invite: Invite, name: str, browser: str) -> Seat:
        """Return the seat: the code's own, the one of the same person, or a free one."""
        if invite.seat:
            seat = lab.seats[invite.seat - 1]
            if seat.revoked or (seat.browser and seat.browser != browser):
                # somebody else came by the code for all: the card must not make its holder that person
                raise NotAdmitted(TAKEN, reason=f"seat {seat.number} was taken by the code for all")
            return seat
        own = next((seat for seat in lab.seats if seat.subject and names.same(seat.subject, name)), None)
        if own and own.named:
            raise NotAdmitted(CARD, reason="a seat with a name was asked for by the code for all")
        if own and own.browser == browser:
            return own
        if own:
            raise NotAdmitted(names.TAKEN)
        free = next((seat for seat in lab.seats if not seat.subject and not seat.revoked), None)
        if free is None:
            raise NotAdmitted(NONE_FREE, reason="no seat is free")
        return free


def _parsed(kept: Mapping[str, Any]) -> Lab | None:
    try:
        rows = [[name, row] for name, row in kept["checkpoints"]]
        return Lab(**{**kept, "checkpoints": rows, "seats": [Seat(**seat) for seat in kept["seats"]]})
    except (TypeError, KeyError, ValueError):
        # damaged, or of another version: its tokens end by themselves, its codes open no seat
        return None
