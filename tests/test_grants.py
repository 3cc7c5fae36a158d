"""Sign-ins: what one gave ends with it, however often it was refreshed, and whatever happens in the same moment."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from typing import Any

import pytest
from key_value.aio.stores.memory import MemoryStore
from mcp.server.auth.provider import TokenError
from mcp.shared.auth import OAuthClientInformationFull

from slipway.identity.grants import Grant, Grants, digest
from slipway.identity.ledger import Ledger
from slipway.identity.oauth import UNEXPIRED, SlipwayOAuth
from slipway.identity.verifier import SlipwayTokens
from slipway.store import Store
from tests.test_ledger import SECRET

CLIENT = OAuthClientInformationFull(client_id="a program", redirect_uris=["http://localhost:7777/cb"])  # type: ignore[list-item]
BEGUN = {
    "client_id": "a program", "client_name": "A program", "redirect_uri": "http://localhost:7777/cb",
    "explicit": True, "challenge": "x" * 43, "resource": None,
}  # fmt: skip


class Process:
    """What one server process knows of the common state."""

    def __init__(self, common: Any) -> None:
        self.store = Store(common, shared=True)
        self.ledger = Ledger(self.store)
        self.grants = Grants(self.store, self.ledger)
        self.oauth = SlipwayOAuth(SlipwayTokens(SECRET, self.ledger), SECRET, self.grants)

    async def begin(self, since: float) -> str:
        return await self.oauth.begin_grant(BEGUN, subject="ana", scope="tool:*", life=90_000, since=since)

    async def exchange(self, code: str) -> Any:
        known = await self.oauth.load_authorization_code(CLIENT, code)
        assert known
        return await self.oauth.exchange_authorization_code(CLIENT, known)

    async def refresh(self, token: str) -> Any:
        known = await self.oauth.load_refresh_token(CLIENT, token)
        assert known
        return await self.oauth.exchange_refresh_token(CLIENT, known, [])


@pytest.fixture
def common() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that tells the time, and lets some go by."""
    now = [time.time()]

    def go(seconds: float = 0.0) -> float:
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(time, "time", lambda: go(1e-5))
    return go


async def test_the_limit_of_refreshes_outlives_a_restart_and_an_hour_lifts_it(common: Any, clock: Any) -> None:
    process = Process(common)
    given = await process.exchange(await process.begin(clock()))
    for _ in range(UNEXPIRED - 1):
        given = await process.refresh(given.refresh_token)
    again = Process(common)
    for each in (process, again):
        with pytest.raises(TokenError, match="invalid_request"):
            await each.refresh(given.refresh_token)
    clock(3601)
    assert await again.refresh(given.refresh_token)


async def test_no_token_that_is_still_good_outlives_the_end_of_its_sign_in(common: Any, clock: Any) -> None:
    process = Process(common)
    given = await process.exchange(await process.begin(clock()))
    for _ in range(2):  # as often as a process lets it, and another that counts for itself
        with contextlib.suppress(TokenError):
            for _ in range(90):
                given = await process.refresh(given.refresh_token)
        process = Process(common)
    kept = await process.grants.find("refresh", digest(given.refresh_token))
    assert kept
    await process.grants.end(kept["grant"])
    assert {await process.ledger.state(record) == "good" for record in await process.ledger.all()} == {False}


@pytest.mark.parametrize("rechecked", [True, False], ids=["as it is", "it is asked once"])
async def test_a_revocation_while_a_token_is_issued_holds_for_it(
    common: Any, clock: Any, monkeypatch: pytest.MonkeyPatch, rechecked: bool
) -> None:
    process = Process(common)
    code = await process.begin(clock())
    good, asked = process.grants.good, 0

    async def then_revoked(grant: Grant) -> bool:
        nonlocal asked
        asked += 1
        if asked > 1 and not rechecked:
            return True
        answer = await good(grant)
        if asked == 1:
            await process.ledger.stop("ana")
        return answer

    monkeypatch.setattr(process.grants, "good", then_revoked)
    if rechecked:
        with pytest.raises(TokenError):
            await process.exchange(code)
    else:
        assert await process.oauth.verify_token((await process.exchange(code)).access_token), "the broken twin"
    assert all(record.revoked_at for record in await process.ledger.all()) == rechecked


async def test_what_is_revoked_between_the_form_and_the_code_is_revoked_for_it(common: Any, clock: Any) -> None:
    process, admitted = Process(common), clock()
    await process.ledger.stop("ana")
    with pytest.raises(TokenError):
        await process.exchange(await process.begin(admitted))


async def test_whoever_shows_a_used_code_again_and_again_has_nothing_written(
    common: Any, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(common)
    code = await process.begin(clock())
    given = await process.exchange(code)
    for _ in range(5):
        given = await process.refresh(given.refresh_token)
    assert await process.oauth.load_authorization_code(CLIENT, code) is None
    assert not await process.oauth.verify_token(given.access_token)
    written: list[str] = []
    put = process.store.put

    async def noted(key: str, value: dict[str, Any], *, collection: str, ttl: float | None = None) -> None:
        written.append(collection)
        await put(key, value, collection=collection, ttl=ttl)

    monkeypatch.setattr(process.store, "put", noted)
    for _ in range(3):
        assert await process.oauth.load_authorization_code(CLIENT, code) is None
    assert written == []


async def test_a_sign_in_of_a_version_before_is_read(common: Any, clock: Any) -> None:
    process = Process(common)
    old = asdict(Grant("g", "a program", "ana", "tool:*", clock(), clock() + 900)) | {"jtis": ["one", "two"]}
    await process.grants.keep("grants", "g", old, 900)
    found = await process.grants.grant("g")
    assert found
    assert found.jtis == {"one": 0, "two": 0}


async def test_a_sign_in_of_which_a_token_is_revoked_elsewhere_goes_on_no_more(common: Any, clock: Any) -> None:
    process = Process(common)
    given = await process.exchange(await process.begin(clock()))
    (record,) = await process.ledger.all()
    await Process(common).ledger.revoke(record.jti)
    assert await process.oauth.load_refresh_token(CLIENT, given.refresh_token) is None
