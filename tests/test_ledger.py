"""The ledger of tokens: what is revoked stays revoked, over restarts too, and nothing else is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from key_value.aio.stores.memory import MemoryStore

from slipway import store, tokens
from slipway.identity import ledger as room
from slipway.identity.ledger import Ledger

SECRET = tokens.Secret("0123456789abcdef" * 4)


def claims(subject: str = "ana", ttl: int = 600, **more: Any) -> dict[str, Any]:
    return tokens.mint(SECRET, subject=subject, scope="tool:*", ttl=ttl).claims | more


@pytest.fixture(params=["files", "shared"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A function that opens the ledger as another process would: anew over files, or beside the first."""
    if request.param == "files":
        return lambda: Ledger(store.open_store(tmp_path))
    common = MemoryStore()
    return lambda: Ledger(store.Store(common, shared=True))


async def test_a_revoked_token_stays_revoked_for_another_process(make: Any) -> None:
    first, one, other = make(), claims(), claims()
    await first.add(one, via="minted")
    await first.add(other, via="minted")
    assert await first.revoke(one["jti"])
    second = make()
    await second.load()
    for ledger in (first, second):
        assert "revoked by the operator" in await ledger.refusal(one)
        assert await ledger.refusal(other) == ""


async def test_a_token_that_was_never_seen_can_be_revoked(make: Any) -> None:
    ledger, leaked = make(), claims()
    assert await ledger.revoke(leaked["jti"]) is None
    again = make()
    await again.load()
    assert await again.refusal(leaked)


async def test_all_of_a_subject_or_of_everybody_until_now_and_none_of_later(make: Any) -> None:
    ledger, ana, bo = make(), claims("ana"), claims("bo")
    for each in (ana, bo):
        await ledger.add(each, via="minted")
    assert await ledger.revoke_before_now("ana") == 1
    assert "with all of ana" in await ledger.refusal(ana)
    assert await ledger.refusal(bo) == ""
    # one of the same second as the cutoff: given out by us it is known to be later, pasted it is not
    late, pasted = claims("ana"), claims("ana", iat=int(time.time()) - 1)
    await ledger.add(late, via="minted")
    assert await ledger.refusal(late) == ""
    assert await ledger.refusal(pasted)
    assert await ledger.revoke_before_now() == 2
    again = make()
    await again.load()
    assert "with all of everybody" in await again.refusal(bo)
    assert await again.refusal(claims("new", iat=int(time.time()) + 1)) == ""


async def test_a_pasted_token_is_noted_at_its_first_use_and_our_own_probes_are_not(make: Any) -> None:
    ledger, pasted = make(), claims()
    await ledger.seen(pasted)
    await ledger.seen(pasted)
    await ledger.seen(claims(client_id="self"))
    assert [(record.jti, record.via) for record in await ledger.all()] == [(pasted["jti"], "pasted")]


async def test_an_extended_token_ends_later(make: Any) -> None:
    ledger, one = make(), claims(ttl=1)
    await ledger.add(one, via="minted")
    until = int(time.time()) + 500
    record = await ledger.extend(one["jti"], until)
    assert record
    assert record.ends_at() == until
    assert await ledger.extended_to(one["jti"]) == until
    assert await ledger.extended_to("other") == 0
    assert await ledger.extend("other", until) is None


async def test_the_list_on_the_disk_is_written_for_revocations_and_not_for_each_token(tmp_path: Path) -> None:
    ledger = Ledger(store.open_store(tmp_path))
    file = tmp_path / "values" / "tokens" / "index.json"
    first = await ledger.add(claims(), via="minted")
    before = file.stat().st_ino
    for _ in range(3):
        await ledger.add(claims(), via="minted")
    assert file.stat().st_ino == before, "a token more would cost as much as all that there are"
    await ledger.revoke(first.jti)
    assert file.stat().st_ino != before
    assert first.jti in file.read_text()


async def test_old_records_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_RECORDS", 3)
    ledger = Ledger(store.open_store(tmp_path))
    await ledger.add(claims(exp=int(time.time()) - room.KEPT - 5), via="minted")
    for _ in range(5):
        await ledger.add(claims(), via="minted")
    again = Ledger(store.open_store(tmp_path))
    await again.load()
    assert len(await again.all()) == 3
    assert len(list((tmp_path / "values" / "tokens").glob("*.json"))) == 4  # with the index


def test_no_file_holds_a_token_and_none_is_readable_for_others(tmp_path: Path) -> None:
    import asyncio

    minted = tokens.mint(SECRET, subject="ana", scope="tool:*", ttl=60)
    asyncio.run(Ledger(store.open_store(tmp_path)).add(minted.claims, via="minted"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert path.stat().st_mode & 0o077 == 0
        assert minted.token.split(".")[2] not in path.read_text()


async def test_a_container_and_this_machine_read_the_same_files(tmp_path: Path) -> None:
    one = claims()
    await Ledger(store.open_store(tmp_path / "here")).revoke(one["jti"])
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Ledger(store.open_store(tmp_path / "there"))
    await moved.load()
    assert await moved.refusal(one)


async def test_a_revoked_token_is_not_forgotten_however_many_come_after(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_RECORDS", 5)
    ledger, leaked = make(), claims(ttl=60)
    await ledger.add(leaked, via="oauth")
    await ledger.revoke(leaked["jti"])
    for _ in range(8):
        await ledger.add(claims(ttl=600), via="oauth")
    again = make()
    await again.load()
    for each in (ledger, again):
        assert await each.refusal(leaked)
        assert len(await each.all()) == 5


async def test_replicas_see_each_others_tokens_and_a_first_use_undoes_no_revocation() -> None:
    common = MemoryStore()
    one, other = (Ledger(store.Store(common, shared=True)) for _ in range(2))
    ana, bo = claims("ana"), claims("bo")
    await one.add(ana, via="minted")
    await other.add(bo, via="minted")
    third = Ledger(store.Store(common, shared=True))
    assert {record.subject for record in await third.all()} == {"ana", "bo"}

    # the use began before the revocation and is written after it
    read = one.get

    async def slow(jti: str) -> Any:
        found = await read(jti)
        one.get = read  # type: ignore[method-assign]
        await other.revoke(jti)
        return found

    one.get = slow  # type: ignore[method-assign, assignment]
    await one.seen(ana)
    await one.noted()
    assert await one.refusal(ana) and await other.refusal(ana)


async def test_a_first_call_does_not_wait_for_the_disk_and_outlives_a_restart(make: Any) -> None:
    ledger, many = make(), [claims() for _ in range(40)]
    free = asyncio.Event()
    put = ledger._store.put

    async def slow(*given: Any, **more: Any) -> None:
        await free.wait()
        await put(*given, **more)

    ledger._store.put = slow
    for one in many:
        await ledger.seen(one)  # a disk that is waited for would hold this for good
    assert await ledger.refusal(many[0]) == ""
    free.set()
    await ledger.noted()
    again = make()
    await again.load()
    assert {record.jti for record in await again.all()} >= {one["jti"] for one in many}
    assert all(record.first_used_at for record in await again.all() if record.jti in {one["jti"] for one in many})


async def test_a_token_that_is_revoked_while_its_first_use_is_noted_stays_so(make: Any) -> None:
    ledger, one = make(), claims()
    await ledger.seen(one)
    await ledger.revoke(one["jti"])
    await ledger.noted()
    again = make()
    await again.load()
    assert "revoked" in await again.refusal(one)


async def test_of_tokens_that_are_only_used_no_more_than_the_newest_are_remembered(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_RECORDS", 5)
    ledger = make()
    for _ in range(4 * room.BATCH):
        await ledger.seen(claims())
    await ledger.noted()
    kept = (ledger._records, ledger._index, ledger._noting, ledger._unsaved)
    assert [len(each) for each in kept] == [5, 5, 0, 0]
