"""Limits: rates, places, sessions, and what belongs to whom. Without a server."""

from __future__ import annotations

import asyncio
import dataclasses
import socket

import pytest

from slipway import limits, tokens
from slipway.errors import Problem
from slipway.limits import Allowance, Limits, Sessions

ANA = {"sub": "ana", "jti": "1", "client_id": "pasted"}


def test_a_tokens_own_limits_have_the_names_of_the_settings() -> None:
    assert {field.name for field in dataclasses.fields(Allowance)} == set(tokens.LIMITS)


async def count(counter: Limits, claims: dict[str, object], times: int) -> list[limits.Over | None]:
    who = counter.identity(claims)
    assert who
    return [await counter.count(who) for _ in range(times)]


@pytest.mark.parametrize("name", ["calls_burst", "calls_per_minute", "calls_per_day"])
async def test_the_message_after_the_last_allowed_one_is_over(name: str) -> None:
    found = await count(Limits(Allowance(**{name: 3})), ANA, 9)
    over = found[-1]
    assert found[:3] == [None] * 3  # a window's edge may let one more pass
    assert over
    assert over.limit == name
    assert over.wait >= 1
    assert str(over.wait) in over.text


async def test_zero_means_any_number() -> None:
    assert set(await count(Limits(Allowance()), ANA, 500)) == {None}


async def test_a_subject_has_one_account_over_its_tokens_and_others_have_theirs() -> None:
    counter = Limits(Allowance(calls_per_minute=2))
    await count(counter, ANA, 5)
    assert (await count(counter, ANA | {"jti": "2"}, 1))[0]
    assert (await count(counter, ANA | {"sub": "ben"}, 1))[0] is None


async def test_a_token_with_limits_of_its_own_is_counted_by_itself() -> None:
    counter = Limits(Allowance(calls_per_minute=2))
    more = ANA | {"jti": "3", "limits": {"calls_per_minute": 4}}
    found = [bool(over) for over in await count(counter, more, 9)]
    assert (found[:4], found[-1]) == ([False] * 4, True)
    assert (await count(counter, ANA, 1))[0] is None


def test_our_own_probes_are_held_by_no_limit_and_nobody_else_can_say_so() -> None:
    counter = Limits(Allowance(calls_per_minute=1))
    assert counter.identity(ANA | {"client_id": "self"}) is None
    assert counter.identity(None, "10.0.0.1") != counter.identity(None, "10.0.0.2")


def test_without_tokens_one_line_of_ipv6_is_one_caller() -> None:
    counter = Limits(Allowance(calls_per_minute=1))
    assert counter.identity(None, "2001:db8:1:2::1") == counter.identity(None, "2001:db8:1:2:ffff::1")
    assert counter.identity(None, "2001:db8:1:2::1") != counter.identity(None, "2001:db8:1:3::1")


async def test_a_shared_counter_that_does_not_answer_is_replaced_by_our_own() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        counter = Limits(Allowance(calls_per_minute=2), f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")
        found = [bool(over) for over in await count(counter, ANA, 6)]
        assert (found[:2], found[-1]) == ([False, False], True)


def test_a_place_is_free_again_when_it_is_given_back() -> None:
    counter = Limits(Allowance())
    assert counter.take("streams_at_once", "ana", 1) is None
    assert counter.take("streams_at_once", "ana", 1)
    assert counter.take("streams_at_once", "ben", 1) is None
    counter.give_back("streams_at_once", "ana")
    assert counter.take("streams_at_once", "ana", 1) is None
    counter.give_back("streams_at_once", "ana")
    counter.give_back("streams_at_once", "ben")
    assert not counter.taken


def test_one_session_too_many_ends_the_one_that_was_longest_unused() -> None:
    sessions = Sessions(idle=60)
    for name in ("a", "b", "c"):
        sessions.opened(name, "ana", {"user": name, "auth": None})
    sessions.opened("d", "ben", {})
    sessions.used("a", 1)
    assert [name for name, _ in sessions.too_many("ana", 2)] == ["b"]
    assert sessions.too_many("ana", 0) == []
    assert sessions.too_many("ben", 1) == []


async def test_an_idle_session_is_forgotten_and_a_busy_one_is_not() -> None:
    sessions = Sessions(idle=0.01)
    sessions.opened("idle", "ana", {})
    sessions.opened("busy", "ana", {})
    sessions.used("busy", 1)
    await asyncio.sleep(0.03)  # longer than the idle time
    assert len(sessions) == 1
    sessions.used("busy", -1)
    sessions.ended("busy")
    assert len(sessions) == 0


def test_no_number_of_sessions_of_everybody_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SESSIONS", 2)
    sessions = Sessions(idle=60)
    for name in ("a", "b", "c"):
        sessions.opened(name, name, {})
    assert [name for name, _ in sessions.too_many("c", 9)] == ["a"]


def test_limits_of_a_token_are_read_and_a_typo_is_refused() -> None:
    assert tokens.own_limits(["calls_burst=5", "streams_at_once=0"]) == {"calls_burst": 5, "streams_at_once": 0}
    for wrong in ("calls", "calls_burst=-1", "calls_burst=x", "calls_burst", "calls_burst=99999999"):
        with pytest.raises(Problem, match="is no limit"):
            tokens.own_limits([wrong])


def test_a_token_carries_its_limits_and_malformed_ones_are_refused() -> None:
    secret = tokens.Secret("0123456789abcdefghijklmnopqrstuvwxyz")
    minted = tokens.mint(secret, subject="ana", scope="tool:*", ttl=60, limits={"calls_per_minute": 9})
    assert tokens.verify(secret, minted.token)["limits"] == {"calls_per_minute": 9}
    assert "calls_per_minute" in tokens.explain(secret, minted.token)[0]
    for wrong in ({"calls": 9}, {"calls_burst": True}, {"calls_burst": -1}, {"calls_burst": 1.5}):
        forged = tokens.mint(secret, subject="ana", scope="tool:*", ttl=60, limits=wrong)  # type: ignore[arg-type]
        with pytest.raises(tokens.TokenRefused, match="limits"):
            tokens.verify(secret, forged.token)
