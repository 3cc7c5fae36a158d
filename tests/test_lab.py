"""Checkpoints, the board's reasons, the tunnel's quota and scripts/lab's input, without a server."""

from __future__ import annotations

import argparse
import asyncio
import copy
import io
import itertools
import json
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from slipway import knocks, settings, tokens
from slipway.errors import Problem
from slipway.identity.grants import Grants, digest
from slipway.identity.invites import Invites
from slipway.identity.ledger import Ledger
from slipway.identity.names import Names
from slipway.knocks import Knock
from slipway.lab import checkpoints, command
from slipway.lab.board import NEVER, Board
from slipway.lab.budget import LEAST, Budget, plan
from slipway.lab.feed import Feed
from slipway.lab.routes import Instructor
from slipway.lab.seats import MAX_SEATS, Lab, Labs, Seat
from slipway.lan import note
from slipway.store import Store, Trouble, open_store

ROOT = Path(__file__).resolve().parent.parent
ROWS = {
    "add": {"title": "Called add", "lab": "01", "when": {"tool": "add", "outcome": ["ok"]}},
    "again": {"title": "After a 401", "lab": "02", "first": {"status": [401]}, "when": {"outcome": "ok"}},
    "progress": {"title": "Saw progress", "lab": "02", "when": {"progress": True}},
}
SECRET = tokens.Secret("0123456789abcdef" * 4)
numbers = itertools.count(1)


def lab(**more: Any) -> Lab:
    now = time.time()
    seats = [Seat(1, "ana", joined_at=now), Seat(2, "ben", joined_at=now), Seat(3)]
    return Lab("x", "MCP 101", "tool:*", now, now + 3600, seats=seats, **more)


def board() -> Board:
    return Board(lab(), checkpoints.parse(ROWS))


def knock(subject: str = "ana", **more: Any) -> Knock:
    given = {"time": time.time(), "subject": subject, "method": "tools/call", "tool": "add", "path": "/mcp"}
    given["request_id"] = f"r{next(numbers)}"
    return Knock(**{**given, "status": 200, "outcome": "ok", "ms": 5.0, "http": "POST", **more})


def row(board: Board, number: int = 1, *, named: bool = True) -> dict[str, Any]:
    return board.told(board.lab.seats[number - 1], named=named)


def test_a_checkpoint_is_reached_by_the_record_that_it_asks_for_and_in_its_order() -> None:
    known = board()
    known.take(knock(tool="other"))
    assert row(known)["checkpoints"] == []
    known.take(knock())
    known.take(knock(subject="ben", status=401, outcome="refused"))
    assert (row(known)["checkpoints"], row(known, 2)["checkpoints"]) == (["add"], [])
    known.take(knock(subject="ben", tool="x"))
    assert row(known, 2)["checkpoints"] == ["again"]
    known.take(knock(subject="ben", tool="x", progress=3))
    assert row(known, 2)["checkpoints"] == ["again", "progress"]


def test_a_client_is_known_by_its_name() -> None:
    condition = checkpoints.parse({"x": {"when": {"client": ["claude-code", "Visual Studio Code"]}}})[0].when
    found = [checkpoints.meets(knock(client=name), condition) for name in (
        "claude-code 2.1", "claude-code/2.1 (cli)", "Visual Studio Code 1.9", "claude-codex 1", "curl/8", "",
    )]  # fmt: skip
    assert found == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"x": {"when": {}}}, "not what is expected"),
        ({"x": {"title": "t"}}, "not what is expected"),
        ({"x": {"when": {"outcom": "ok"}}}, "no record has a field"),
        ({"x": {"when": {"outcome": "ok"}, "then": 1}}, "not what is expected"),
        ({"x": {"when": {"outcome": "ok"}, "title": "\x1b[2J"}}, "no short texts"),
        ({"x": {"when": ["ok"]}}, "a condition is a table"),
        ({str(n): {"when": {"outcome": "ok"}} for n in range(51)}, "50 are the most"),
    ],
)
def test_a_checkpoint_that_can_never_be_reached_is_refused(rows: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words):
        checkpoints.parse(rows)


@pytest.mark.parametrize(
    ("more", "stuck"),
    [
        ({"status": 401, "code": "token_expired"}, "token expired"),
        ({"status": 401, "code": "token_revoked"}, "token revoked"),
        ({"status": 401, "code": "token_invalid"}, "401 token not accepted"),
        ({"code": "scope", "outcome": "forbidden"}, "403 tool not allowed"),
        ({"status": 403, "code": "origin"}, "403 origin"),
        ({"status": 421}, "421 wrong host"),
        ({"status": 404, "path": "/mcpx"}, "404 wrong URL"),
        ({"status": 404}, "404 session forgotten"),
        ({"status": 405}, "405 method"),
        ({"status": 406}, "406 Accept"),
        ({"status": 413}, "413 too large"),
        ({"status": 415}, "415 content type"),
        ({"status": 400}, "400 bad request"),
        ({"status": 400, "outcome": "limited", "limit": "json"}, "400 bad request"),
        ({"status": 408, "outcome": "limited", "limit": "slow_body"}, "408 body too slow"),
        ({"outcome": "limited", "limit": "answer"}, "result too large"),
        ({"status": 429, "outcome": "limited"}, "limit hit"),
        ({"outcome": "limited"}, "limit hit"),
        ({"status": 503, "outcome": "error"}, "server away"),
        ({"status": 418, "reason": "a \x1b[2Jteapot"}, "418 a [2Jteapot"),
    ],
)
def test_the_board_says_why_a_seat_is_stuck_until_it_is_not(more: dict[str, Any], stuck: str) -> None:
    known = board()
    known.take(knock(**{"outcome": "refused", **more}))
    assert row(known)["stuck"] == stuck
    assert row(known)["cure"] or stuck.startswith("418")
    known.take(knock(outcome="error"))
    assert (row(known)["stuck"], row(known)["cure"]) == ("", "")


@pytest.mark.parametrize("path", ["/mcp", "/mcp/"])
@pytest.mark.parametrize("http", ["GET", "DELETE"])
def test_a_client_that_leaves_is_not_stuck(http: str, path: str) -> None:
    known = board()
    known.take(knock(http=http, path=path, method="", status=405, outcome="refused"))
    assert row(known)["stuck"] == ""
    known.take(knock(status=406, outcome="refused"))
    known.take(knock(http=http, method="", status=404, outcome="refused"))
    assert row(known)["stuck"] == "406 Accept"


def test_who_joined_and_never_knocked_is_stuck_after_a_while() -> None:
    known = board()
    known.grow_old()
    assert not row(known)["stuck"]
    known.lab.seats[0].joined_at -= NEVER + 1
    before = known.version
    known.grow_old()
    assert row(known)["stuck"] == "never knocked"
    assert known.version > before
    known.take(knock())
    known.grow_old()
    assert not row(known)["stuck"]


def test_calls_errors_and_the_p95_are_counted_and_survive() -> None:
    known = board()
    for number in range(100):
        known.take(knock(ms=float(number + 1), outcome="error" if number < 3 else "ok", client="cursor 1.0"))
    told = row(known)
    assert (told["calls"], told["errors"], told["p95"], told["client"]) == (100, 3, 96.0, "cursor 1.0")
    again = board()
    again.recall(json.loads(json.dumps(known.kept())))
    assert row(again) == told
    again.recall({"1": {"calls": 1, "nonsense": 2}, "x": {}})
    assert row(again) == told
    blind = row(again, named=False)
    assert (blind["name"], blind["client"], blind["payload"], blind["calls"]) == ("", "", "", 100)


@pytest.mark.parametrize("first", [{"status": 499, "outcome": "left"}, {"outcome": "ok", "ms": 900.0}])
@pytest.mark.parametrize(("outcome", "errors", "p95"), [("ok", 0, 70.0), ("error", 1, 70.0), ("cancelled", 1, 0.0)])
def test_a_call_whose_client_left_counts_once_and_as_its_tool_ended(
    first: dict[str, Any], outcome: str, errors: int, p95: float
) -> None:
    known, when = board(), time.time()
    known.take(knock(time=when, request_id="x", **first))
    again = board()
    again.recall(json.loads(json.dumps(known.kept())))
    for each in (known, again):
        each.take(knock(time=when, request_id="x", outcome=outcome, ms=70.0))
        told = row(each)
        assert (told["calls"], told["errors"], told["p95"]) == (1, errors, p95)
    # a program may give all its requests one id
    known.take(knock(time=when + 1, request_id="x"))
    assert row(known)["calls"] == 2


def test_payloads_are_on_the_board_only_where_the_log_has_them() -> None:
    known = board()
    known.take(knock())
    assert row(known)["payload"] == ""
    known.take(knock(arguments='{"a": 1}', result="3"))
    assert row(known)["payload"] == '{"a": 1} → 3'


def test_refusals_of_nobody_stand_at_the_door_added_up() -> None:
    known = board()
    for _ in range(3):
        known.take(
            knock(subject="", status=403, outcome="refused", code="origin", reason="origin http://x is not in")
        )
    known.take(knock(subject="", status=401, outcome="refused", code="no_token"))
    assert [(each["what"], each["count"]) for each in known.door()] == [
        ("401 no token", 1), ("403 origin http://x is not in", 3),
    ]  # fmt: skip
    # who has a token but no seat is nobody's business here
    known.take(knock(subject="demo", status=406, outcome="refused"))
    assert len(known.door()) == 2


def test_the_door_has_room_for_the_latest_ten() -> None:
    known = board()
    for number in [*range(12), 2]:
        known.take(knock(subject="", status=418, outcome="refused", reason=str(number)))
    assert [each["what"] for each in known.door()] == [f"418 {number}" for number in (2, *range(11, 2, -1))]


def test_a_seat_that_is_reset_begins_anew() -> None:
    known = board()
    known.take(knock())
    anew = lab()
    anew.seats[0] = Seat(1, turn=1)
    before = known.version
    known.seats_changed(anew)
    assert known.version > before, "a kill must not bring back what was reset"
    assert (row(known)["calls"], row(known)["state"], row(known)["checkpoints"]) == (0, "free", [])


# --- the tunnel's quota


def spend(budget: Budget, requests: int, size: int = 600, ago: float = 30.0) -> None:
    for _ in range(requests):
        budget.take(time.time() - ago, size)


def test_the_free_plan_is_shared_among_the_seats() -> None:
    budget = Budget(plan("free"))
    assert budget.limits(lab()) == {"calls_per_minute": 1200, "calls_per_day": 6000}
    thirty = lab()
    thirty.seats = [Seat(number) for number in range(1, 31)]
    assert budget.limits(thirty) == {"calls_per_minute": 120, "calls_per_day": 600}
    assert budget.limits(None) == Budget(plan("none")).limits(lab()) == budget.limits(lab(lan=True)) == {}


def test_use_and_projection_are_told_and_warned_of_early() -> None:
    budget = Budget(plan("requests=1000,gb=0.5,per_minute=4000"))
    assert budget.told(lab())["warning"] == ""
    spend(budget, 100)
    told = budget.told(lab())
    # a hundred in what counts as the first minute, for the hour that is left
    assert (told["requests"], told["requests_most"], told["bytes"]) == (100, 1000, 100_000)
    assert 5500 < told["projected"] < 6200
    assert "requests will be at" in told["warning"]
    version = budget.version
    assert budget.told(lab()) == told
    assert budget.version == version


def test_seats_are_slowed_alike_before_the_quota_is_gone_and_not_below_the_least() -> None:
    budget = Budget(plan("requests=20000"))
    spend(budget, 17_000)
    assert budget.slowed(lab()) == 0
    spend(budget, 1_500)
    # 1,500 are left for sixty minutes and two people
    assert budget.slowed(lab()) == budget.limits(lab())["calls_per_minute"] == 1500 * 0.9 // 60 // 2
    spend(budget, 1_500)
    assert budget.slowed(lab()) == LEAST
    assert "requests" in budget.told(lab())["warning"]


def test_bytes_count_too_and_a_new_month_begins_at_nothing() -> None:
    budget = Budget(plan("gb=1"))
    spend(budget, 95, 10_000_000)
    assert budget.slowed(lab()) == LEAST
    budget.recall({"month": "2001-01", "requests": 5, "bytes": 7})
    spend(budget, 1)
    assert (budget.requests, budget.bytes) == (1, 1000)


# --- the feed


async def test_the_feed_counts_the_tunnels_requests_alone_and_each_once(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    budget = Budget(plan("free"))
    url = ["https://x.ngrok-free.app/mcp"]
    labs: Any = type("Labs", (), {"lab": None, "own_limits": {}, "refresh": _nothing})()
    feed = Feed(labs, Ledger(store), store, budget, tmp_path, lambda: url[0])
    log = tmp_path / "edge.jsonl"

    def line(host: str, when: float = 0.0) -> str:
        request = {"host": host, "uri": "/mcp", "method": "POST"}
        return json.dumps({"ts": when or time.time(), "request": request, "size": 100, "status": 200}) + "\n"

    log.write_text(line("x.ngrok-free.app", time.time() - 100))
    await feed.look()
    assert budget.requests == 0, "what was there before we ever counted is unknown"
    with log.open("a") as out:
        out.write(line("x.ngrok-free.app") + line("localhost:8443") + line("192.168.1.5:8443") + "no json\n[]\n")
    feed._read()
    feed._read()
    assert (budget.requests, budget.bytes) == (1, 500)
    await feed._save()
    after = Feed(labs, Ledger(store), store, Budget(plan("free")), tmp_path, lambda: url[0])
    with log.open("a") as out:
        out.write(line("x.ngrok-free.app", time.time() + 1))
    await after.look()
    assert after.budget.requests == 2, "what came while nobody counted is caught up on"
    url[0] = ""
    await after.look()
    assert not after._tails, "nobody reads without a tunnel or a lab"


async def test_two_who_look_at_once_count_nothing_twice(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    await store.put("month", {"at": 1.0, "month": "", "requests": 0, "bytes": 0}, collection="board")
    labs: Any = type("Labs", (), {"lab": None, "own_limits": {}, "refresh": _nothing})()
    feed = Feed(labs, Ledger(store), store, Budget(plan("free")), tmp_path, lambda: "https://x.ngrok-free.app/mcp")
    request = {"host": "x.ngrok-free.app", "uri": "/mcp", "method": "POST"}
    (tmp_path / "edge.jsonl").write_text(json.dumps({"ts": time.time(), "request": request, "size": 1}) + "\n")
    await asyncio.gather(*(feed.look() for _ in range(4)))
    assert feed.budget.requests == 1


async def test_a_lab_that_opens_while_the_tunnel_is_counted_counts_nothing_twice(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    labs: Any = type("Labs", (), {"lab": None, "own_limits": {}, "refresh": _refresh})()
    feed = Feed(labs, Ledger(store), store, Budget(plan("free")), tmp_path, lambda: "https://x.ngrok-free.app/mcp")
    await feed.look()
    request = {"host": "x.ngrok-free.app", "uri": "/mcp", "method": "POST"}
    (tmp_path / "edge.jsonl").write_text(json.dumps({"ts": time.time(), "request": request, "size": 1}) + "\n")
    (tmp_path / "server.jsonl").write_text("[]\n")
    feed._read()
    await feed._save()
    labs.lab = lab()
    await feed.look()
    assert (feed.budget.requests, feed.board is not None) == (1, True)


def feed_of(folder: Path, store: Store, url: str = "https://x.ngrok-free.app/mcp") -> tuple[Feed, Any]:
    labs: Any = type("Labs", (), {"lab": None, "own_limits": {}, "refresh": _refresh})()
    return Feed(labs, Ledger(store), store, Budget(plan("free")), folder, lambda: url), labs


def log_of(folder: Path, *found: Knock) -> None:
    with (folder / "server.jsonl").open("a") as out:
        out.writelines(json.dumps({name: getattr(one, name) for name in knocks.FIELDS}) + "\n" for one in found)


def calls(feed: Feed) -> int:
    assert feed.board
    return int(row(feed.board)["calls"])


async def test_a_call_that_came_as_the_lab_opened_counts_once(tmp_path: Path) -> None:
    feed, labs = feed_of(tmp_path, open_store(tmp_path / "state"))
    await feed.look()
    labs.lab = lab()
    log_of(tmp_path, knock())
    await feed.look()
    feed._read()
    assert calls(feed) == 1


async def test_what_was_kept_of_an_earlier_lab_hides_nothing_of_the_next(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    kept = {"lab": "earlier", "at": time.time() + 60, "rows": {"1": {"calls": 7}}}
    await store.put("board", kept, collection="board")
    feed, labs = feed_of(tmp_path, store)
    labs.lab = lab()
    log_of(tmp_path, knock())
    await feed.look()
    assert calls(feed) == 1


async def test_a_board_that_could_not_begin_begins_again_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "state")
    labs_lab = lab()
    kept = {"lab": labs_lab.id, "at": time.time() - 1, "rows": {"1": {"calls": 7, "last": 1.0}}}
    await store.put("board", kept, collection="board")
    log_of(tmp_path, knock())
    feed, labs = feed_of(tmp_path, store)
    labs.lab = labs_lab
    older = feed._older

    def away(*_: Any) -> Any:
        raise Trouble("The state cannot be read.", "Wait")

    monkeypatch.setattr(feed, "_older", away)
    with pytest.raises(Trouble):
        await feed.look()
    await feed._save()
    assert (await store.get("board", collection="board")) == kept
    monkeypatch.setattr(feed, "_older", older)
    await feed.look()
    assert calls(feed) == 8


async def test_a_log_that_is_rotated_as_it_is_looked_for_is_no_error(tmp_path: Path) -> None:
    feed, labs = feed_of(tmp_path, open_store(tmp_path / "state"))
    (tmp_path / "server.jsonl.1").symlink_to(tmp_path / "gone")
    log_of(tmp_path, knock())
    labs.lab = lab()
    await feed.look()
    assert calls(feed) == 1


async def _refresh(labs: Any) -> Lab | None:
    found: Lab | None = labs.lab
    return found


async def _nothing(_: Any = None) -> None:
    return None


def test_a_door_is_told_by_the_host() -> None:
    hosts = ["localhost:8443", "127.0.0.1", "[::1]:8000", "", "192.168.1.5:8443", "demo.local", "a.ngrok-free.app"]
    assert [knocks.door(host) for host in hosts] == ["", "", "", "", "lan", "lan", "tunnel"]


# --- seats and their names


class Room:
    """Labs in files, and what they are made of."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(folder / "state")
        self.ledger = Ledger(self.store)
        self.names = Names(self.ledger, Grants(self.store, self.ledger))
        self.labs = Labs(self.store, Invites(self.store, SECRET), self.ledger, self.names)

    async def new(self, **asked: Any) -> Lab:
        given = {"title": "MCP 101", "seats": 2, "life": 600, "scope": "tool:*"}
        return await self.labs.new(**{**given, **asked})

    async def free(self, name: str) -> bool:
        return await self.names.take(name, 1, browser="somebody else", invite="")


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


async def test_a_roster_that_is_refused_holds_no_name(room: Room) -> None:
    assert await room.names.take("Ben", 60, browser="b", invite="")
    with pytest.raises(Problem, match="'Ben' is in use"):
        await room.new(roster=["Ana", "Ben", "Cy"])
    assert await room.free("Ana")
    assert await room.free("Cy")


@pytest.mark.parametrize(("seats", "names"), [(MAX_SEATS + 1, 0), (2, MAX_SEATS + 1), (0, 0)])
async def test_no_roster_makes_a_lab_larger_than_it_may_be(room: Room, seats: int, names: int) -> None:
    with pytest.raises(Problem, match=f"1 to {MAX_SEATS} seats"):
        await room.new(seats=seats, roster=[f"Guest {number}" for number in range(names)])


@pytest.mark.parametrize(
    ("words", "seats"),
    [([], 30), (["--seats", "7"], 7), (["--roster", "x"], 2), (["--roster", "x", "--seats", "30"], 30)],
)
def test_the_seats_are_those_that_were_asked_for_else_the_rosters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], seats: int
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").write_text("Ana\nBen\n")
    server = Server()
    command._new(server, command._parser().parse_args(["new", "MCP 101", *words]), settings.Settings())
    assert server.asked["seats"] == seats


async def test_a_lab_that_is_extended_keeps_the_names_of_who_sits_there(room: Room) -> None:
    lab = await room.new(roster=["Ana"])
    invite = await room.labs._invites.redeem(room.labs.codes(lab)[2], "127.0.0.1")
    await room.labs.seat(invite, "Ben", "his browser")
    await room.labs.extend(lab.ends_at + 3600)
    held = [await Grants(room.store, room.ledger).find("names", digest(name)) for name in ("ana", "ben")]
    assert [round(one["ends"] - lab.ends_at) for one in held if one] == [3600, 3600]


async def test_a_lab_is_not_extended_over_who_took_a_name_meanwhile(room: Room) -> None:
    lab = await room.new(roster=["Ana"], life=-1)
    assert await room.free("Ana")
    with pytest.raises(Problem, match="somebody else took the name 'Ana'"):
        await room.labs.extend(lab.ends_at + 3600)
    assert room.labs.lab == lab


async def test_no_lab_is_extended_past_the_longest_life_of_a_token(room: Room) -> None:
    lab = await room.new(life=60)
    ours = copy.deepcopy(lab)
    ours.created_at, ours.ends_at = lab.created_at - 7200, lab.created_at - 3600
    await room.labs._save(ours)

    async def body() -> Any:
        return {"type": "http.request", "body": b'{"for": "2h"}'}

    request = Request({"type": "http", "method": "POST", "headers": []}, body)
    with pytest.raises(Problem, match="longer than 3h"):
        await Instructor(SECRET, room.labs, Any, max_ttl="3h")._extend(request)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [[{"id": "x", "title": "X", "when": {}}], None])
async def test_a_lab_of_another_version_is_forgotten_and_stands_in_nobodys_way(room: Room, rows: Any) -> None:
    lab = await room.new()
    await room.store.put("current", asdict(lab) | {"checkpoints": rows}, collection="lab")
    room.labs._read = False
    assert await room.labs.refresh() is None
    assert (await room.new()).id != lab.id


async def test_a_lab_of_the_local_network_moves_with_its_laptop(room: Room) -> None:
    here = await room.new(lan=True, url="https://192.168.1.7:8443")
    there = await room.new(lan=True, url="https://10.0.0.5:8443")
    assert (there.id, there.url) == (here.id, "https://10.0.0.5:8443")
    assert room.labs.lab == there
    for other in ({"lan": False}, {"lan": True, "title": "Another"}):
        with pytest.raises(Problem, match="There is a lab already: MCP 101"):
            await room.new(**other)
    there.ends_at = 1.0
    with pytest.raises(Problem, match="There is a lab already"):
        await room.new(lan=True, url="https://10.0.0.5:8443")


# --- what people type


class Server:
    """A server that says yes to everything, and what it was asked last."""

    def __init__(self, **more: Any) -> None:
        self.asked: dict[str, Any] = {}
        self.lab = {"title": "MCP 101", "seats": [], "ends_at": time.time() + 60, "lan": False, "join_url": ""} | more

    def ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        self.asked = content or {}
        summary = {"joined": 1, "seats": 2, "calls": 3, "errors": 0}
        return {"lab": self.lab, "code": "ACDE-3479", "summary": summary}

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:8000/admin{path}"

    def key(self, audience: str, ttl: int) -> str:
        return "key"

    def stream(self, path: str, audience: str) -> io.BytesIO:
        return io.BytesIO(b'event: seats\ndata: [{"seat": 1}]\n\n: beat\n\nevent: end\ndata: {}\n\n')


def test_the_summary_of_a_lab_is_kept_also_where_the_door_does_not_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stays_open(_: Any) -> bool:
        raise Problem("192.168.1.7:8443 still answers.", "./scripts/down")

    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command.door, "close", stays_open)
    config = settings.Settings()
    codes = command._folder(config) / "cards.html"
    codes.write_text("codes")
    with pytest.raises(Problem, match="still answers"):
        command._end(Server(), argparse.Namespace(yes=True), config)
    (summary,) = codes.parent.iterdir()
    assert json.loads(summary.read_text())["calls"] == 3


@pytest.mark.parametrize(
    ("there", "fine"),
    [
        ({"lan": True}, True),
        ({"lan": False}, False),
        ({"lan": True, "title": "Another"}, False),
        ({"lan": True, "ends_at": 1.0}, False),
    ],
)
def test_the_door_is_opened_anew_for_the_lab_that_was_there_behind_it(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, Any], fine: bool
) -> None:
    lan = note.Lan("10.0.0.5", 8443, "AB:CD")
    opened: list[str] = []

    def open_(_: Any, address: str) -> note.Lan:
        opened.append(address)
        return lan

    monkeypatch.setattr(command.network, "address", lambda wanted: wanted)
    monkeypatch.setattr(command.door, "open_", open_)
    monkeypatch.setattr(command.door, "warnings", lambda _: [])
    chosen = command._parser().parse_args(["new", "MCP 101", "--lan", "10.0.0.5"])
    server = Server(**there)
    if fine:
        _, told = command._new(server, chosen, settings.Settings())
        assert "it was there already" in told
        assert (opened, server.asked["url"]) == (["10.0.0.5"], lan.url)
    else:
        with pytest.raises(Problem, match="There is a lab already"):
            command._new(server, chosen, settings.Settings())
        assert not opened


def test_the_board_is_watched_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert command._watch(Server(), as_json=True) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"event": "seats", "content": [{"seat": 1}]}, {"event": "end", "content": {}},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ana\nBen\n\n", ["Ana", "Ben"]),
        ("\ufeffname,mail\nAna,a@x.example\nBen,\n", ["Ana", "Ben"]),
        ("mail,Name\na@x.example,Ana\n", ["Ana"]),
        ('"O\'Neil, Zoë"\n', ["O'Neil, Zoë"]),
    ],
)
def test_a_roster_is_a_list_or_a_table(tmp_path: Path, text: str, names: list[str]) -> None:
    (tmp_path / "names.csv").write_text(text)
    assert command._roster(str(tmp_path / "names.csv")) == names


def test_what_is_wrong_with_the_input_is_said_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("\n")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "bad.toml").write_text("[x\n")
    for call in (
        lambda: command._roster(str(tmp_path / "none.csv")),
        lambda: command._roster(str(tmp_path / "empty.csv")),
        lambda: command._roster(str(tmp_path / "bytes.csv")),
        lambda: checkpoints.read(tmp_path / "bad.toml"),
        lambda: checkpoints.read(tmp_path / "none.toml"),
        lambda: command._checkpoints("", "99"),
    ):
        with pytest.raises(Problem) as problem:
            call()
        assert problem.value.cure


@pytest.mark.slow
def test_the_command_says_what_it_does_and_what_is_missing(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "scripts" / "lab"), *words], capture_output=True, text=True, check=False, timeout=60,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SLIPWAY_SECRET_FILE": str(tmp_path / "secret")},
        )  # fmt: skip

    assert "scripts/lab cards" in run("--help").stdout
    for words in (("new",), ("reset", "x"), ()):
        assert run(*words).returncode == 2, words
    found = run("list")
    assert (found.returncode, "no secret" in found.stderr, "Traceback" in found.stderr) == (2, True, False)
