"""Invite codes: typed by people, used as often as allowed, and hopeless to guess."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from pathlib import Path

import pytest
from key_value.aio.stores.memory import MemoryStore

from slipway import store, tokens
from slipway.identity import invites as room
from slipway.identity.invites import InviteRefused, Invites, TooManyTries

SECRET = tokens.Secret("0123456789abcdef" * 4)


@pytest.fixture
def invites(tmp_path: Path) -> Invites:
    return Invites(store.open_store(tmp_path), SECRET)


async def test_a_code_is_easy_to_type(invites: Invites) -> None:
    code, _ = await invites.new(uses=4, ttl=60, scope="tool:add", token_ttl=60)
    assert re.fullmatch(r"[A-Z0-9]{4}-[A-Z0-9]{4}", code)
    assert not set(code) & set("0O1IL5S2Z8BUV")
    for typed in (code, code.lower(), code.replace("-", ""), f" {code.replace('-', ' ')} "):
        assert (await invites.redeem(typed, "127.0.0.1")).scope == "tool:add"


async def test_a_code_is_used_as_often_as_allowed_even_at_once(invites: Invites) -> None:
    code, _ = await invites.new(uses=3, ttl=60, scope="tool:*", token_ttl=60)
    tries = await asyncio.gather(*(invites.redeem(code, f"10.0.0.{n}") for n in range(8)), return_exceptions=True)
    assert sum(not isinstance(one, Exception) for one in tries) == 3
    assert all(isinstance(one, InviteRefused) for one in tries if isinstance(one, Exception))


async def test_a_dead_invite_is_not_kept_for_good() -> None:
    values = MemoryStore()
    invites = Invites(store.Store(values, shared=True), SECRET)
    _, invite = await invites.new(uses=1, ttl=60, scope="tool:*", token_ttl=60)
    _, life = await values.ttl(invite.id, collection=room.COLLECTION)
    assert life
    assert room.KEPT < life <= room.KEPT + 60


async def test_wrong_used_expired_and_revoked_are_told_alike(
    invites: Invites, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, _ = await invites.new(uses=1, ttl=60, scope="tool:*", token_ttl=60)
    await invites.redeem(used, "10.0.0.1")
    revoked, _ = await invites.new(uses=1, ttl=60, scope="tool:*", token_ttl=60)
    assert await invites.revoke(revoked)
    expired, _ = await invites.new(uses=1, ttl=60, scope="tool:*", token_ttl=60)
    clock = time.time
    said = set()
    for code in (used, revoked, "ACDE-FGHJ", "", "x" * 10_000, expired):
        if code == expired:
            monkeypatch.setattr(room.time, "time", lambda: clock() + 61)
        with pytest.raises(InviteRefused) as caught:
            await invites.redeem(code, "10.0.0.2")
        said.add(str(caught.value))
    assert said == {InviteRefused.SENTENCE}


async def test_codes_survive_a_restart_and_no_file_holds_one(tmp_path: Path) -> None:
    code, invite = await Invites(store.open_store(tmp_path), SECRET).new(uses=2, ttl=60, scope="tool:*", token_ttl=60)
    texts = subprocess.run(["grep", "-r", "", str(tmp_path)], capture_output=True, text=True).stdout
    assert code not in texts
    assert code.replace("-", "") not in texts
    again = Invites(store.open_store(tmp_path), SECRET)
    assert (await again.redeem(code, "10.0.0.1")).id == invite.id
    assert [one.used for one in await again.all()] == [1]


async def test_guessing_is_cut_off_for_an_address_and_a_good_code_with_it(invites: Invites) -> None:
    code, _ = await invites.new(uses=9, ttl=60, scope="tool:*", token_ttl=60)
    guesses = await asyncio.gather(
        *(invites.redeem(f"ACDE-FG{a}{b}", "203.0.113.9") for a in "HJKM" for b in "NPQRT"), return_exceptions=True
    )
    assert sum(type(one) is InviteRefused for one in guesses) == 10
    with pytest.raises(TooManyTries) as caught:
        await invites.redeem(code, "203.0.113.9")
    assert 1 <= caught.value.seconds <= 60
    assert await invites.redeem(code, "203.0.113.10")


async def test_a_class_behind_one_address_is_not_cut_off(invites: Invites) -> None:
    code, _ = await invites.new(uses=30, ttl=60, scope="tool:*", token_ttl=60)
    for _ in range(30):
        await invites.redeem(code, "203.0.113.9")


async def test_guessing_from_many_addresses_is_cut_off_for_all(invites: Invites) -> None:
    kinds = []
    for n in range(70):
        with pytest.raises(InviteRefused) as caught:
            await invites.redeem("ACDE-FGHJ", f"198.51.{n}.1")
        kinds.append(type(caught.value))
    assert kinds == [InviteRefused] * 60 + [TooManyTries] * 10


async def test_one_line_of_ipv6_is_one_guesser(invites: Invites) -> None:
    for n in range(10):
        with pytest.raises(InviteRefused):
            await invites.redeem("ACDE-FGHJ", f"2001:db8:1:2::{n + 1}")
    with pytest.raises(TooManyTries):
        await invites.redeem("ACDE-FGHJ", "2001:db8:1:2:ffff::1")
    with pytest.raises(InviteRefused) as caught:
        await invites.redeem("ACDE-FGHJ", "2001:db8:1:3::1")
    assert type(caught.value) is InviteRefused
