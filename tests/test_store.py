"""The state on the disk and behind Redis: written whole or not at all, and in trouble without lies and without noise."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from slipway import store, tokens
from slipway.files import Damaged, Files
from slipway.identity import ledger as room
from slipway.identity.grants import Grants
from slipway.identity.invites import InviteRefused, Invites
from slipway.identity.ledger import Ledger
from slipway.identity.names import Names
from slipway.identity.throttle import Throttle
from slipway.lab.seats import Labs
from slipway.store import Store, Trouble
from tests.conftest import free_ports
from tests.test_ledger import SECRET, claims

DAMAGE = {
    "empty": b"",
    "half": b'{"version": 1, "value": {"jti": "x", "revo',
    "zeros": b"\0" * 200,
    "binary": b"\xff\xfe\x00",
    "another kind": b"[1, 2]",
    "no value": b'{"version": 1}',
    "no record": b'{"version": 1, "value": {"who": "knows"}}',
    "an empty record": b'{"version": 1, "value": {}}',
}


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that fills the disk, and empties it again."""
    real = os.fsync

    def refuse(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)  # what had no room is not there
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda yes=True: monkeypatch.setattr(os, "fsync", refuse if yes else real)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# --- files


async def test_a_write_that_fails_leaves_the_value_before_and_no_litter(tmp_path: Path, full: Any) -> None:
    files = Files(tmp_path)
    await files.put("key", {"n": 1}, collection="things")
    full()
    with pytest.raises(OSError, match="No space"):
        await files.put("key", {"n": 2}, collection="things")
    assert await files.get("key", collection="things") == {"n": 1}
    assert [path.name for path in (tmp_path / "things").iterdir()] == ["key.json"]


async def test_nobody_ever_reads_half_a_value(tmp_path: Path) -> None:
    files, values = Files(tmp_path), [{"text": letter * 300_000} for letter in "ab"]
    await files.put("key", values[0], collection="things")
    stop = asyncio.Event()

    async def read() -> int:
        seen = 0
        while not stop.is_set():
            assert await files.get("key", collection="things") in values
            seen += 1
        return seen

    reading = asyncio.ensure_future(read())
    for n in range(60):
        await files.put("key", values[n % 2], collection="things")
    stop.set()
    assert await reading > 10


@pytest.mark.parametrize("key", ["index", "9f3a" * 16, "../../etc/passwd", "a/b", "ä b", "x" * 400, "", "."])
async def test_any_key_is_a_file_of_its_own_in_its_collection(tmp_path: Path, key: str) -> None:
    files = Files(tmp_path / "values")
    await files.put(key, {"n": 1}, collection="things")
    await files.put(f"{key}2", {"n": 2}, collection="things")
    assert await files.get(key, collection="things") == {"n": 1}
    assert set(await files.keys("things")) == {key, f"{key}2"}
    assert {path.parent for path in files_in(tmp_path)} == {tmp_path / "values" / "things"}
    assert await files.delete(key, collection="things") is True
    assert await files.delete(key, collection="things") is False


async def test_what_is_over_is_gone_and_what_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    files = Files(tmp_path)
    await files.put("short", {"n": 1}, collection="things", ttl=0.0)
    await files.put("long", {"n": 1}, collection="things", ttl=60)
    for name, age in (("old.tmp", 3600), ("new.tmp", 0)):
        (tmp_path / "things" / name).write_text("half")
        os.utime(tmp_path / "things" / name, (time.time() - age,) * 2)
    assert await files.get("short", collection="things") is None
    await files.cull()
    assert {path.name for path in (tmp_path / "things").iterdir()} == {"long.json", "new.tmp"}


async def test_files_of_the_version_before_are_read(tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    kept = {"collection": "things", "created_at": "2026-01-01T00:00:00+00:00", "key": "k", "value": {"n": 1}}
    (tmp_path / "things" / "k.json").write_text(json.dumps(kept | {"version": 1}))
    (tmp_path / "things" / "o.json").write_text(json.dumps(kept | {"expires_at": "2026-01-02T00:00:00+00:00"}))
    assert await Files(tmp_path).get("k", collection="things") == {"n": 1}
    assert await Files(tmp_path).get("o", collection="things") is None


@pytest.mark.parametrize("damage", [d for d in DAMAGE if "record" not in d])
async def test_what_cannot_be_read_is_damaged_and_not_missing(tmp_path: Path, damage: str) -> None:
    (tmp_path / "things").mkdir()
    (tmp_path / "things" / "key.json").write_bytes(DAMAGE[damage])
    with pytest.raises(Damaged):
        await Files(tmp_path).get("key", collection="things")
    said: list[str] = []
    kept = Store(Files(tmp_path))
    kept.say = said.append
    for _ in range(3):
        assert await kept.get("key", collection="things") is None
    assert len(said) == 1
    assert "things/key" in said[0]


# --- the ledger over damaged files


@pytest.mark.parametrize("index", ["whole", "damaged, too"])
@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_token_whose_record_is_damaged_is_refused_and_no_other(
    tmp_path: Path, damage: str, index: str
) -> None:
    first, revoked, other = Ledger(store.open_store(tmp_path)), claims(), claims("bo")
    for each in (revoked, other):
        await first.add(each, via="minted")
    await first.revoke(revoked["jti"])
    (tmp_path / "values" / "tokens" / f"{revoked['jti']}.json").write_bytes(DAMAGE[damage])
    if index != "whole":
        (tmp_path / "values" / "tokens" / "index.json").write_bytes(DAMAGE[damage])
    for _ in range(2):  # what was mended at the first start is so at the second
        again = Ledger(store.open_store(tmp_path))
        await again.load()
        assert "revoked by the operator" in await again.refusal(revoked)
        assert await again.refusal(other) == ""
        assert {record.jti: record.purpose for record in await again.all()} == {
            revoked["jti"]: "its record is damaged", other["jti"]: "",
        }  # fmt: skip


async def test_a_revoked_record_that_is_gone_is_known_by_the_index(tmp_path: Path) -> None:
    first, revoked = Ledger(store.open_store(tmp_path)), claims()
    await first.add(revoked, via="minted")
    await first.revoke(revoked["jti"])
    (tmp_path / "values" / "tokens" / f"{revoked['jti']}.json").unlink()
    again = Ledger(store.open_store(tmp_path))
    await again.load()
    assert await again.refusal(revoked)


@pytest.mark.parametrize("damage", ["gone", *DAMAGE])
async def test_without_its_index_the_ledger_knows_all_that_it_knew(tmp_path: Path, damage: str) -> None:
    first, revoked, other = Ledger(store.open_store(tmp_path)), claims(), claims("bo")
    for each in (revoked, other):
        await first.add(each, via="minted")
    await first.revoke(revoked["jti"])
    path = tmp_path / "values" / "tokens" / "index.json"
    path.unlink() if damage == "gone" else path.write_bytes(DAMAGE[damage])
    again = Ledger(store.open_store(tmp_path))
    await again.load()
    assert {record.jti for record in await again.all()} == {revoked["jti"], other["jti"]}
    assert await again.refusal(revoked)
    assert await again.refusal(other) == ""


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d != "an empty record"])
async def test_if_nobody_can_tell_whose_tokens_were_revoked_all_until_now_are(tmp_path: Path, damage: str) -> None:
    first, before = Ledger(store.open_store(tmp_path)), claims(iat=int(time.time()) - 5)
    await first.revoke_before_now("ana")
    (tmp_path / "values" / "cutoffs" / "index.json").write_bytes(DAMAGE[damage])
    for _ in range(2):
        again = Ledger(store.open_store(tmp_path))
        await again.load()
        assert "everybody" in await again.refusal(before) or "ana" in await again.refusal(before)
        assert await again.refusal(claims("bo", iat=before["iat"]))
    after = claims("bo")
    await again.add(after, via="minted")
    assert await again.refusal(after) == ""


async def test_a_damaged_invite_opens_nothing_and_one_that_the_index_lost_can_be_revoked(tmp_path: Path) -> None:
    invites = Invites(store.open_store(tmp_path), SECRET)
    codes = [await invites.new(uses=5, ttl=60, scope="tool:*", token_ttl=60) for _ in range(2)]
    folder = tmp_path / "values" / "invites"
    (folder / "index.json").write_bytes(b"")
    (folder / f"{codes[0][1].id}.json").write_bytes(b'{"value": {"uses": 3}}')
    again = Invites(store.open_store(tmp_path), SECRET)
    with pytest.raises(InviteRefused):
        await again.redeem(codes[0][0], "10.0.0.1")
    assert (await again.redeem(codes[1][0], "10.0.0.1")).used == 1
    assert await again.revoke(codes[1][1].id[:12]) is True
    with pytest.raises(InviteRefused):
        await again.redeem(codes[1][0], "10.0.0.1")


# --- a disk that is full


async def test_on_a_full_disk_a_revocation_holds_is_not_acknowledged_and_is_written_later(
    tmp_path: Path, full: Any
) -> None:
    said: list[str] = []
    kept = store.open_store(tmp_path)
    kept.say = said.append
    ledger, one, of_bo, fresh = Ledger(kept), claims(), claims("bo"), claims("eve")
    for each in (one, of_bo):
        await ledger.add(each, via="minted")
    full()
    with pytest.raises(Trouble, match=r"refuses .* from now on, but .* no space left") as caught:
        await ledger.revoke(one["jti"])
    assert caught.value.answer().status_code == 503
    with pytest.raises(Trouble, match="every token of bo"):
        await ledger.revoke_before_now("bo")
    with pytest.raises(Trouble):
        await ledger.add(fresh, via="minted")
    await ledger.seen(fresh)  # a good call goes on
    assert await ledger.refusal(one)
    assert await ledger.refusal(of_bo)
    assert len([line for line in said if "no space left" in line]) == 1
    with pytest.raises(Trouble):
        await kept._try_to_write()  # what `watch` does every second
    full(False)
    await kept._try_to_write()
    assert said[-1] == "the state can be written again"
    again = Ledger(store.open_store(tmp_path))
    await again.load()
    for each in (one, of_bo):
        assert await again.refusal(each)
    assert await again.refusal(fresh) == ""
    assert fresh["jti"] in {record.jti for record in await again.all()}


async def test_a_use_of_an_invite_that_cannot_be_written_is_not_given(tmp_path: Path, full: Any) -> None:
    invites = Invites(store.open_store(tmp_path), SECRET)
    code, _ = await invites.new(uses=1, ttl=60, scope="tool:*", token_ttl=60)
    full()
    with pytest.raises(Trouble):
        await invites.redeem(code, "10.0.0.1")
    full(False)
    assert (await invites.redeem(code, "10.0.0.1")).used == 1


def test_a_secret_that_could_not_be_written_is_not_there_at_the_next_start(tmp_path: Path, full: Any) -> None:
    full()
    with pytest.raises(Exception, match="cannot be written: No space") as caught:
        tokens.ensure_secret(tmp_path / "secret")
    assert caught.value.cure  # type: ignore[attr-defined]
    full(False)
    assert tokens.ensure_secret(tmp_path / "secret")


# --- a shared store that is away: what replicas over one memory see of it


class Away:
    """A Redis stand-in's values, which can stop to answer or forget. The real one is in tests/docker/test_faults.py."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}
        self.hangs = False
        self.full = False
        self.asked: list[str] = []

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()

    async def get(self, key: str, *, collection: str) -> dict[str, Any] | None:
        await self._answer()
        self.asked.append(f"get {collection}")
        found = self.kept.get((collection, key))
        return dict(found) if found else None

    async def get_many(self, keys: list[str], *, collection: str) -> list[dict[str, Any] | None]:
        await self._answer()
        self.asked.append(f"get {len(keys)} of {collection}")
        return [self.kept.get((collection, key)) for key in keys]

    async def put(self, key: str, value: dict[str, Any], *, collection: str, ttl: float | None = None) -> None:
        await self._answer()
        self.asked.append(f"put {collection}")
        if self.full:
            raise OutOfMemoryError("OOM command not allowed")
        self.kept[collection, key] = dict(value)

    async def delete(self, key: str, *, collection: str) -> bool:
        await self._answer()
        return self.kept.pop((collection, key), None) is not None


class Client:
    """The few commands of redis-py that the store itself sends."""

    def __init__(self, values: Away) -> None:
        self._values = values
        self.mark = ""

    async def set(self, name: str, value: str, *, nx: bool) -> None:
        await self._values._answer()
        self.mark = self.mark or value

    async def get(self, name: str) -> str:
        await self._values._answer()
        return self.mark

    def lock(self, name: str, **how: object) -> Client:
        return self

    async def acquire(self, **how: object) -> bool:
        await self._values._answer()
        return True

    async def release(self) -> None:
        await self._values._answer()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    monkeypatch.setattr(store, "SETTLE", 0.0)


def replica(values: Away, client: Client, *, serves_on: bool = False) -> tuple[Store, Ledger, list[str]]:
    kept, said = Store(values, client, where="redis:6379", serves_on=serves_on), []
    kept.say = said.append
    return kept, Ledger(kept), said


async def test_while_the_store_is_away_one_request_waits_and_the_others_do_not(quick: None) -> None:
    values = Away()
    kept, ledger, said = replica(values, Client(values))
    await kept._look()
    one = claims()
    await ledger.add(one, via="minted")
    values.hangs = True
    for _ in range(50):
        with pytest.raises(Trouble, match="does not answer"):
            await ledger.refusal(one)
    begun = time.monotonic()
    for _ in range(1000):
        with pytest.raises(Trouble):
            await ledger.refusal(one)
    assert time.monotonic() - begun < 1000 * 0.05 / 2, "each request waited for the store anew"
    for _ in range(3):
        await kept._look()
    assert len(said) == 1
    values.hangs = False
    await kept._look()
    assert await ledger.refusal(one) == ""
    assert [line.split(" after")[0] for line in said[1:]] == ["Redis at redis:6379 answers again"]


async def test_who_serves_on_goes_by_what_it_knows_and_gives_no_more_out(quick: None) -> None:
    values = Away()
    client = Client(values)
    kept, ledger, said = replica(values, client, serves_on=True)
    _, other, _ = replica(values, client)
    good, revoked, pasted = claims(), claims("bo"), claims("eve")
    for each in (good, revoked):
        await ledger.add(each, via="minted")
    await ledger.revoke(revoked["jti"])
    values.hangs = True
    assert await ledger.refusal(good) == ""
    assert await ledger.refusal(revoked)
    await ledger.seen(pasted)
    with pytest.raises(Trouble):
        await ledger.add(claims(), via="minted")
    with pytest.raises(Trouble, match="from now on, but"):
        await ledger.revoke(good["jti"])
    with pytest.raises(Trouble):
        await ledger.revoke_before_now("eve")
    assert await ledger.refusal(good)
    assert await ledger.refusal(pasted)
    values.hangs = False
    await kept._look()
    for each in (good, revoked, pasted):
        assert await other.refusal(each), "what was revoked meanwhile must reach the others"
    assert len(said) == 2
    assert "serving on" in said[0]


@pytest.mark.parametrize("gives_back", [True, False], ids=["as it is", "nothing is given back"])
async def test_a_store_that_forgot_is_told_what_was_revoked(quick: None, gives_back: bool) -> None:
    values = Away()
    client = Client(values)
    kept, ledger, said = replica(values, client)
    second, other, _ = replica(values, client)
    if not gives_back:
        kept.on_return.clear()
    for each in (kept, second):
        await each._look()
    one, of_bo = claims(), claims("bo")
    await ledger.revoke(one["jti"])
    await ledger.revoke_before_now("bo")
    values.kept.clear()
    client.mark = ""
    await kept._look()
    # the other asked nothing yet: all that it can know comes from the store
    await second._look()
    assert bool(await other.refusal(one) and await other.refusal(of_bo)) == gives_back
    assert any("WITHOUT its memory" in line for line in said)
    assert await ledger.refusal(one)


async def test_a_request_that_is_the_first_to_meet_a_store_that_forgot_is_not_answered_by_it(quick: None) -> None:
    values = Away()
    client = Client(values)
    kept, ledger, _ = replica(values, client)
    await kept._look()
    one = claims()
    await ledger.add(one, via="minted")
    values.kept.clear()
    client.mark = ""
    kept._connections += 1  # redis-py made a new one
    with pytest.raises(Trouble, match="without its memory"):
        await ledger.refusal(one)
    await kept._look()
    assert await ledger.refusal(one) == ""


def test_the_ledger_keeps_no_more_of_others_tokens_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_RECORDS", 5)
    values = Away()
    _, one, _ = replica(values, Client(values))
    _, other, _ = replica(values, Client(values))

    async def run() -> None:
        for _ in range(30):
            each = claims()
            await one.add(each, via="minted")
            await other.refusal(each)

    asyncio.run(run())
    assert len(other._records) <= 10


async def test_without_redis_a_process_counts_tries_for_itself() -> None:
    (nobody,) = free_ports(1)
    alone = Throttle("invite", per_address=2, overall=9, redis_url=f"redis://127.0.0.1:{nobody}/0")
    assert [await alone.admits("203.0.113.1") for _ in range(3)] == [True, True, False]
    assert await alone.admits("203.0.113.2")


async def test_a_read_that_began_before_a_revocation_does_not_undo_it() -> None:
    values = Away()
    _, ledger, _ = replica(values, Client(values))
    one = claims()
    await ledger.add(one, via="minted")
    read, go = asyncio.Event(), asyncio.Event()
    get = values.get

    async def slow(key: str, *, collection: str) -> dict[str, Any] | None:
        found = await get(key, collection=collection)
        if key == one["jti"]:
            read.set()
            await go.wait()
        return found

    values.get = slow  # type: ignore[method-assign]
    asking = asyncio.ensure_future(ledger.refusal(one))
    await read.wait()
    values.get = get  # type: ignore[method-assign]
    values.full = True
    with pytest.raises(Trouble, match="from now on"):
        await ledger.revoke(one["jti"])
    go.set()
    assert await asking, "it was answered by what Redis said before"
    assert await ledger.refusal(one)


async def test_what_is_revoked_already_is_not_written_again() -> None:
    values = Away()
    _, ledger, _ = replica(values, Client(values))
    one = claims()
    values.full = True
    with pytest.raises(Trouble):
        await ledger.revoke(one["jti"])
    values.full = False
    await ledger.revoke(one["jti"])
    assert values.kept["tokens", one["jti"]]["revoked_at"], "the order to revoke once more must reach Redis"
    values.asked.clear()
    assert await ledger.revoke(one["jti"])
    assert values.asked == ["get tokens"]


async def test_the_end_of_many_is_one_step_that_waits_for_no_count() -> None:
    values = Away()
    _, ledger, _ = replica(values, Client(values))
    many = [claims(f"seat-{n}") for n in range(20)]
    for each in many:
        await ledger.add(each, via="join")
    values.asked.clear()
    await ledger.stop(*(each["sub"] for each in many))
    assert values.asked == ["get cutoffs", "put cutoffs"]
    assert all([await ledger.refusal(each) for each in many])
    values.asked.clear()
    assert await ledger.revoke_before_now() == 0
    assert values.asked == ["get cutoffs", "put cutoffs", "get tokens", "get 20 of tokens"]


async def test_over_redis_a_lab_ends_and_a_name_is_taken_in_a_few_round_trips() -> None:
    values = Away()
    kept, ledger, _ = replica(values, Client(values))
    who, invites = Names(ledger, Grants(kept, ledger)), Invites(kept, SECRET)
    labs = Labs(kept, invites, ledger, who)
    await labs.new(title="MCP 101", seats=30, life=3600, scope="tool:*", roster=[f"Person {n}" for n in range(30)])
    for n in range(30):
        for _ in range(3):
            await ledger.add(claims(f"Person {n}"), via="join")
    values.asked.clear()
    assert await who.take("somebody else", 60, browser="theirs", invite="")
    assert len(values.asked) < 6
    values.asked.clear()
    await labs.end()
    assert len(values.asked) < 100
    assert "get 90 of tokens" not in values.asked


async def test_of_many_values_the_damaged_are_told_apart(tmp_path: Path) -> None:
    values = Away()
    kept, _, _ = replica(values, Client(values))
    for n in range(store.AT_ONCE + 3):
        values.kept["things", str(n)] = {"n": n}
    keys = [str(n) for n in range(store.AT_ONCE + 4)]
    assert await kept.get_many(keys, collection="things") == [*({"n": n} for n in range(store.AT_ONCE + 3)), None]
    files = store.open_store(tmp_path)
    await files.put("whole", {"n": 1}, collection="things")
    (tmp_path / "values" / "things" / "half.json").write_bytes(b"{")
    asked = ["half", "whole", "missing"]
    assert await files.get_many(asked, collection="things", instead={}) == [{}, {"n": 1}, None]


async def test_a_cutoff_never_becomes_an_earlier_one() -> None:
    values = Away()
    _, ledger, _ = replica(values, Client(values))
    ahead = time.time() + 5  # of a replica whose clock is fast
    values.kept["cutoffs", "index"] = {"ana": ahead}
    await ledger.stop("ana")
    assert values.kept["cutoffs", "index"]["ana"] == ahead


@pytest.mark.parametrize("what", ["record", "cutoffs"])
async def test_what_is_damaged_over_redis_counts_as_revoked(what: str) -> None:
    values = Away()
    _, ledger, _ = replica(values, Client(values))
    one = claims(iat=int(time.time()) - 5)
    await ledger.add(one, via="pasted")
    if what == "record":
        values.kept["tokens", one["jti"]] = {"who": "knows"}
    else:
        values.kept["cutoffs", "index"] = {"ana": "yesterday"}
    assert "revoked by the operator" in await ledger.refusal(one)
    later = claims()
    await ledger.add(later, via="minted")
    for _ in range(2):  # mended by the next list of cutoffs that is written
        assert await ledger.refusal(later) == ""
        assert await ledger.revoke_before_now("bo") == 0
        assert "revoked by the operator" in await ledger.refusal(one)


async def test_whatever_goes_wrong_in_a_look_the_store_is_looked_after(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOOK", 0.01)
    values = Away()
    kept, _, _ = replica(values, Client(values))
    back, broken = asyncio.Event(), [ValueError("a value that nobody expected")]

    async def returned(_: bool) -> None:
        if broken:
            raise broken.pop()
        back.set()

    kept.on_return.append(returned)
    kept.away = True
    watching = asyncio.ensure_future(kept.watch())
    try:
        await asyncio.wait_for(back.wait(), 5)
    finally:
        watching.cancel()


async def test_an_outage_is_as_long_as_it_was_and_not_as_the_one_before(quick: None) -> None:
    values = Away()
    client = Client(values)
    kept, _, said = replica(values, client)
    await kept._look()
    values.hangs = True
    await kept._look()
    kept._since -= 1000  # it was that long ago
    values.hangs = False
    await kept._look()
    client.mark = ""  # it forgets, and is there all the time
    await kept._look()
    told = [line for line in said if "answers again after" in line]
    assert [line.split("after ")[1] for line in told] == ["1000 s", "0 s"]
