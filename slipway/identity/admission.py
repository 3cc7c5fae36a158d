"""Who is let in by an invite code and a name, whichever page they were typed on."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from slipway.identity import names
from slipway.identity.invites import Invite, InviteRefused, Invites, TooManyTries
from slipway.identity.names import Names
from slipway.store import Trouble


class NotAdmitted(Exception):
    """Somebody cannot come in; the message is for them.

    Attributes:
        status: of the answer.
        reason: for the operator's log; "" where there is nothing to tell.
        seconds: until another try is heard, 0 where it is heard at once.
    """

    def __init__(self, text: str, status: int = 400, reason: str = "", seconds: int = 0) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.seconds = seconds


@dataclass(frozen=True)
class Admitted:
    """Who came in, and what for."""

    subject: str
    scope: str
    life: int  # seconds that their tokens may live
    invite: Invite
    at: float  # when they came, in seconds since the epoch
    again: bool = False  # the code was not used up by it


# what gives the holder of a lab's code a seat: (invite, name, browser) → who they are, seconds; raises NotAdmitted
Seating = Callable[[Invite, str, str], Awaitable[tuple[str, int]]]


class Admission:
    """The one way in."""

    def __init__(self, invites: Invites, who: Names, seating: Seating) -> None:
        self._invites = invites
        self._names = who
        self._seating = seating

    async def admit(self, code: str, typed: str, address: str, browser: str) -> Admitted:
        """Let somebody in.

        Args:
            typed: the name, as they typed it.
            address: whose try it is; guessing is limited for each.
            browser: what tells their browser from others.
        Raises:
            NotAdmitted: and nothing was used up.
        """
        name = names.tidy(typed)
        if not name:
            raise NotAdmitted(names.HINT)
        known = await self._names.invited_by(name, browser)
        try:
            invite = await self._invites.redeem(code, address, again=known)
        except TooManyTries as many:
            raise NotAdmitted(str(many), 429, "invite code refused: too many tries", many.seconds) from None
        except InviteRefused as refused:
            raise NotAdmitted(str(refused), reason="invite code refused") from None
        came = time.time()
        admitted = Admitted(name, invite.scope, invite.token_ttl, invite, came, again=invite.id == known)
        try:
            # only who has a good code learns which names there are
            if invite.lab:
                subject, life = await self._seating(invite, name, browser)
                return Admitted(subject, invite.scope, life, invite, came)
            if not await self._names.take(name, invite.token_ttl, browser=browser, invite=invite.id):
                raise NotAdmitted(names.TAKEN)
        except (NotAdmitted, Trouble):
            await self.give_back(admitted)
            raise
        return admitted

    async def give_back(self, admitted: Admitted) -> None:
        """Take back the use of a code, of somebody who could not be let in after all."""
        if not admitted.again:
            await self._invites.give_back(admitted.invite)
