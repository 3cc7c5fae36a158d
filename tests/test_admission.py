"""Who is let in: names that look alike are one, and who cannot come in uses nothing up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slipway import store
from slipway.identity import names
from slipway.identity.admission import Admission, NotAdmitted
from slipway.identity.grants import Grants
from slipway.identity.invites import InviteRefused, Invites, TooManyTries
from slipway.identity.ledger import Ledger
from slipway.identity.names import Names
from slipway.store import Store, Trouble
from tests.test_ledger import SECRET

INVISIBLE = "\u034f\u115f\u1160\u17b4\u180b\u2800\u3164\ufe00\ufe0f\uffa0\U000e0100"


async def nowhere(*_: Any) -> Any:
    raise AssertionError("no lab")


def rooms(kept: Store) -> tuple[Admission, Invites]:
    ledger, invites = Ledger(kept), Invites(kept, SECRET)
    return Admission(invites, Names(ledger, Grants(kept, ledger)), nowhere), invites


@pytest.mark.parametrize("char", INVISIBLE, ids=[f"{ord(char):x}" for char in INVISIBLE])
def test_a_letter_that_nobody_sees_makes_no_other_name(char: str) -> None:
    assert names.tidy(f"a{char}na{char}") == "ana"
    assert names.same("ana", f"an{char}a")
    assert names.tidy(f"operator{char}") == ""
    assert names.tidy(char) == ""


async def test_who_comes_again_and_cannot_gives_back_no_use_that_they_did_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission, invites = rooms(store.open_store(tmp_path))
    code, _ = await invites.new(uses=3, ttl=60, scope="tool:*", token_ttl=60)
    assert (await admission.admit(code, "ana", "10.0.0.1", "her browser")).subject == "ana"

    async def taken(*_: Any, **__: Any) -> bool:
        return False

    monkeypatch.setattr(Names, "take", taken)
    for who in ("ana", "bo"):
        with pytest.raises(NotAdmitted):
            await admission.admit(code, who, "10.0.0.1", "her browser")
        assert [one.used for one in await invites.all()] == [1]


async def test_who_cannot_come_in_for_the_states_sake_has_used_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission, invites = rooms(store.open_store(tmp_path))
    code, _ = await invites.new(uses=1, ttl=60, scope="tool:*", token_ttl=60)

    async def full(*_: Any, **__: Any) -> bool:
        raise Trouble("The disk is full", "Wait")

    monkeypatch.setattr(Names, "take", full)
    with pytest.raises(Trouble):
        await admission.admit(code, "ana", "10.0.0.1", "her browser")
    monkeypatch.undo()
    assert await admission.admit(code, "ana", "10.0.0.1", "her browser")


async def test_who_guesses_too_often_does_not_stand_in_the_line_of_all(tmp_path: Path) -> None:
    kept = store.open_store(tmp_path)
    invites = Invites(kept, SECRET)
    for _ in range(10):
        with pytest.raises(InviteRefused):
            await invites.redeem("ACDE-FGHJ", "203.0.113.9")
    async with kept.lock("invites"):  # it is not reentrant: who waits for it here waits for good
        with pytest.raises(TooManyTries):
            await invites.redeem("ACDE-FGHJ", "203.0.113.9")
