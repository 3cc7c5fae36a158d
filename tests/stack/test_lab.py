"""Workshop mode through the whole stack: seats, codes, the board's events, checkpoints, the end, and attackers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from fastmcp import Client

from slipway import tokens
from slipway.lab import checkpoints
from tests.conftest import Stack, wait_until
from tests.stack.test_join import form, token_of
from tests.stack.test_oauth import Browser, _closed
from tests.test_admin import ask, status

pytestmark = pytest.mark.slow
__all__ = ["_closed"]

ROWS = {
    "connected": {"title": "Connected", "when": {"path": "/mcp", "outcome": "ok"}},
    "called-add": {"title": "Called add", "when": {"tool": "add", "outcome": "ok"}},
    "saw-progress": {"title": "Saw progress", "when": {"progress": True}},
    "fixed-403": {
        "title": "Met a 403 and fixed it", "first": {"status": 403, "code": "origin"},
        "when": {"method": "tools/call", "outcome": "ok"},
    },
}  # fmt: skip
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ADD = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "add", "arguments": {"a": 1, "b": 2}}}


def new(stack: Stack, **asked: Any) -> dict[str, Any]:
    content = {"title": "MCP 101", "seats": 3, "for": "1h", "checkpoints": ROWS, "url": stack.tls_url[:-4]} | asked
    answer = ask(stack, "POST", "/lab", content)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def lab(stack: Stack) -> dict[str, Any]:
    return dict(ask(stack, "GET", "/lab").json()["lab"])


def seat(stack: Stack, number: int) -> dict[str, Any]:
    return dict(lab(stack)["seats"][number - 1])


def codes(stack: Stack) -> dict[int, str]:
    return {card["seat"]: card["code"] for card in ask(stack, "GET", "/lab/codes").json()["cards"]}


def join(stack: Stack, code: str, who: str, browser: Browser | None = None) -> str:
    page = form(browser or Browser(stack), code, who)
    assert page.status_code == 200, page.text
    return token_of(page)


def refused(stack: Stack, code: str, who: str, browser: Browser | None = None) -> str:
    page = form(browser or Browser(stack), code, who)
    assert page.status_code == 400
    return page.text


def send(stack: Stack, token: str, message: dict[str, Any] = LIST, url: str = "", **headers: str) -> int:
    given = stack.bearer() | {"authorization": f"Bearer {token}"} | headers
    with httpx2.Client(timeout=20, verify=stack.trust()) as client:
        return client.post(url or stack.tls_url, headers=given, json=message).status_code


def key(stack: Stack) -> dict[str, str]:
    minted = tokens.mint(stack.secret, subject="o", scope="x", ttl=60, audience=tokens.BOARD_AUDIENCE)
    return {"authorization": f"Bearer {minted.token}"}


@contextmanager
def watching(stack: Stack, view: str = "") -> Iterator[list[tuple[str, Any]]]:
    """Yield the list of the board's events, which grows."""
    found: list[tuple[str, Any]] = []
    url = f"http://127.0.0.1:{stack.config.server_port}/admin/lab/events?view={view}"
    client = httpx2.Client(timeout=httpx2.Timeout(20, read=None))

    def read() -> None:
        name = ""
        try:
            with client.stream("GET", url, headers=key(stack)) as answer:
                for line in answer.iter_lines():
                    if line.startswith("event: "):
                        name = line[7:]
                    elif line.startswith("data: "):
                        found.append((name, json.loads(line[6:])))
        except (httpx2.HTTPError, RuntimeError, OSError):
            pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        wait_until(lambda: found, 10, "the board's first event")
        yield found
    finally:
        client.close()


def test_a_seat_is_joined_by_its_own_code_and_by_the_code_for_all(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    code, own = new(stack)["code"], codes(stack)
    assert len({code, *own.values()}) == 4
    browser = Browser(stack)
    tokens_of_ana = [join(stack, code, "Ana", browser), join(stack, code, "Ana", browser)]
    join(stack, own[2], "Ben")
    assert [(row["seat"], row["name"], row["state"]) for row in lab(stack)["seats"]] == [
        (1, "Ana", "joined"), (2, "Ben", "joined"), (3, "", "free"),
    ]  # fmt: skip
    # somebody else by the same name, or by the card of a seat that is taken, does not become that person
    assert "Somebody has this name" in refused(stack, code, "ana")
    assert "Somebody else has this seat" in refused(stack, own[1], "Eve")
    # a person's own card works anywhere, under the name that they have
    again = join(stack, own[2], "Ben on the phone")
    assert tokens.verify(stack.secret, again)["sub"] == "Ben"
    assert [status(stack, token) for token in tokens_of_ana] == [200, 200]
    join(stack, code, "Cy")
    assert "Every seat is taken" in refused(stack, code, "Dan")


async def test_the_board_tells_what_each_seat_does_and_why_it_is_stuck(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    own = (new(stack), codes(stack))[1]
    with watching(stack) as events, watching(stack, "projector") as blind:
        first = events[0]
        assert first[0] == "lab"
        assert first[1]["title"] == "MCP 101"
        assert first[1]["checkpoints"][0] == {"id": "connected", "title": "Connected"}
        ana, ben = join(stack, own[1], "Ana"), join(stack, own[2], "Ben")
        # the edge refuses a page of another origin before anybody looks at the token: the board knows whose it was
        assert send(stack, ana, ADD, origin="https://evil.example") == 403
        wait_until(lambda: seat(stack, 1)["stuck"] == "403 origin", 10)
        assert "origin" in seat(stack, 1)["cure"]
        assert send(stack, ana, ADD) == 200
        wait_until(lambda: seat(stack, 1)["calls"] == 1, 10)
        row = seat(stack, 1)
        assert (row["stuck"], row["last_call"], row["errors"]) == ("", "add", 0)
        assert set(row["checkpoints"]) == {"connected", "called-add", "fixed-403"}
        assert row["p95"] > 0
        assert row["client"]
        # a token that was cut off while it was copied, or that somebody tinkered with
        assert [send(stack, each) for each in (ben[:-3], ben + "x")] == [401, 401]
        wait_until(lambda: seat(stack, 2)["stuck"] == "401 token not accepted", 10)
        for headers, url, why in (
            ({"accept": "application/json"}, "", "406 Accept"),
            ({}, stack.tls_url + "x", "404 wrong URL"),
        ):
            send(stack, ben, LIST, url, **headers)
            wait_until(lambda why=why: seat(stack, 2)["stuck"] == why, 10, why)  # type: ignore[misc]
        async with Client(stack.tls_url, auth=ben, verify=stack.trust()) as client:
            await client.call_tool("countdown", {"n": 2, "seconds": 0.01}, progress_handler=_progress)
        wait_until(lambda: "saw-progress" in seat(stack, 2)["checkpoints"], 10)
        assert not seat(stack, 2)["stuck"]
        assert send(stack, "x.y.z") == 401
        wait_until(lambda: any(name == "door" for name, _ in events), 10)
        assert [each["what"] for each in lab(stack)["door"]] == ["401 token not accepted"]
        wait_until(
            lambda: any(
                name == "seats" and row["seat"] == 2 for name, rows in blind if name == "seats" for row in rows
            ),
            10,
        )
    told = json.dumps(blind)
    assert "Ana" not in told and "Ben" not in told and "httpx" not in told
    assert "Ana" in json.dumps(events)


async def _progress(*_: Any) -> None:
    pass


def test_a_lab_survives_a_restart_and_ends_without_a_trace(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    code, own = new(stack)["code"], codes(stack)
    ana = join(stack, own[1], "Ana")
    assert send(stack, ana, ADD) == 200
    wait_until(lambda: seat(stack, 1)["calls"] == 1, 10)
    stack.kill("server")
    stack.start("server")
    wait_until(lambda: seat(stack, 1)["checkpoints"] == ["connected", "called-add"], 10)
    assert seat(stack, 1)["calls"] == 1
    assert codes(stack) == own
    assert send(stack, ana, ADD) == 200
    told = ask(stack, "DELETE", "/lab").json()["summary"]
    assert (told["joined"], told["seats"], told["checkpoints"]["Called add"]) == (1, 3, 1)
    assert "Ana" not in json.dumps(told)
    assert send(stack, ana) == 401
    assert ask(stack, "GET", "/lab").status_code == 404
    assert "not good" in refused(stack, code, "Ben")
    assert "not good" in refused(stack, own[2], "Ben")
    values = stack.config.state / "data" / "identity" / "values"
    for collection in ("lab", "invites"):
        left = [path.read_text() for path in (values / collection).iterdir()]
        assert not [text for text in left if "MCP 101" in text or "expires_at" in text], collection
    # the same people the next day, or after a rehearsal
    code = new(stack, roster=["Ana"])["code"]
    assert "has a card of its own" in refused(stack, code, "Ana")
    again = join(stack, codes(stack)[1], "whoever")
    assert tokens.verify(stack.secret, again)["sub"] == "Ana"
    assert send(stack, again) == 200
    anew = ask(stack, "POST", "/lab/seats/1/reset", {}).json()["code"]
    assert send(stack, again) == 401
    assert (seat(stack, 1)["name"], seat(stack, 1)["state"]) == ("Ana", "free")
    assert tokens.verify(stack.secret, join(stack, anew, "x"))["sub"] == "Ana"
    ask(stack, "DELETE", "/lab")
    new(stack)
    assert "Somebody has this name" in refused(stack, codes(stack)[1], "Ana")


def test_reset_revoke_lock_and_extend_do_what_they_say(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    own = (new(stack), codes(stack))[1]
    ana, ben = join(stack, own[1], "Ana"), join(stack, own[2], "Ben")
    assert send(stack, ana, ADD) == 200
    wait_until(lambda: seat(stack, 1)["calls"] == 1, 10)
    answer = ask(stack, "POST", "/lab/seats/1/reset", {}).json()
    assert answer["who"] == "Ana"
    assert (send(stack, ana), send(stack, ben)) == (401, 200)
    assert seat(stack, 1) | {"stuck": "", "cure": ""} == seat(stack, 3) | {"seat": 1}
    assert "not good" in refused(stack, own[1], "Ana")
    # tools may have kept something of Ana, which is not for whoever types her name
    assert "Somebody has this name" in refused(stack, answer["code"], "ana")
    anew = join(stack, answer["code"], "Anna")
    assert send(stack, anew) == 200
    ask(stack, "POST", "/lab/seats/2/revoke", {})
    assert (send(stack, ben), seat(stack, 2)["state"]) == (401, "revoked")
    assert "not good" in refused(stack, own[2], "Ben")
    ask(stack, "POST", "/lab/lock", {"locked": True})
    assert "locked" in refused(stack, own[3], "Cy")
    assert send(stack, join(stack, answer["code"], "Anna")) == 200
    ask(stack, "POST", "/lab/lock", {"locked": False})
    join(stack, own[3], "Cy")
    before = lab(stack)["ends_at"]
    ask(stack, "POST", "/lab/extend", {"for": "30m"})
    assert lab(stack)["ends_at"] == pytest.approx(before + 1800)
    jti = tokens.verify(stack.secret, anew)["jti"]
    assert ask(stack, "GET", f"/tokens/{jti}").json()["ends_at"] == int(before + 1800)
    for path, content in (("/lab/seats/9/reset", {}), ("/lab", {"title": "Another"}), ("/lab/extend", {"for": "x"})):
        answer = ask(stack, "POST", path, content)
        assert answer.status_code == 400, path
        assert answer.json()["cure"]


def test_a_seat_sees_nothing_of_another_and_no_token_of_one_opens_the_board(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    own = (new(stack), codes(stack))[1]
    ana, ben = join(stack, own[1], "Ana"), join(stack, own[2], "Ben")
    base = f"http://127.0.0.1:{stack.config.server_port}"
    for path in ("/admin/lab", "/admin/lab/codes", "/admin/lab/events", "/board"):
        for host in (stack.tls_url[:-4], stack.edge_url[:-4]):
            with httpx2.Client(verify=stack.trust()) as client:
                answer = client.get(host + path, headers={"authorization": f"Bearer {ana}"} | key(stack))
            assert answer.status_code == 404, (path, host)
        for headers in ({"authorization": f"Bearer {ana}"}, {}):
            if path != "/board":
                assert httpx2.get(base + path, headers=headers).status_code == 401, path
    # the board's key looks, and does nothing
    assert httpx2.get(f"{base}/admin/lab/codes", headers=key(stack)).status_code == 401
    assert httpx2.delete(f"{base}/admin/lab", headers=key(stack)).status_code == 401
    browser = Browser(stack)
    page = form(browser, own[1], "Ana")
    assert "Ben" not in page.text
    note = {
        "jsonrpc": "2.0",
        "id": 3,
        "method": "tools/call",
        "params": {"name": "save_note", "arguments": {"title": "t", "text": "Ana's"}},
    }
    send(stack, ana, note)
    read = {
        "jsonrpc": "2.0",
        "id": 4,
        "method": "tools/call",
        "params": {"name": "search_notes", "arguments": {"query": "Ana"}},
    }
    with httpx2.Client(verify=stack.trust()) as client:
        answer = client.post(stack.tls_url, json=read, headers=stack.bearer() | {"authorization": f"Bearer {ben}"})
    assert "Ana's" not in answer.text


async def test_the_join_page_ticks_off_what_its_own_seat_reached(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack()
    own = (new(stack), codes(stack))[1]
    browser = Browser(stack)
    page = form(browser, own[1], "Ana")
    watch = page.text.split('data-watch="')[1].split('"')[0]
    found: list[str] = []

    def read() -> None:
        with httpx2.Client(verify=stack.trust(), timeout=httpx2.Timeout(20, read=None)) as client:  # noqa: SIM117
            with client.stream("GET", f"{stack.tls_url[:-4]}/join?watch={watch}") as answer:
                found.extend(line for line in answer.iter_lines() if line)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    ben = join(stack, own[2], "Ben")
    assert send(stack, ben, ADD) == 200
    ana = token_of(page)
    for message, headers in ((LIST, {}), (ADD, {"origin": "https://evil.example"}), (ADD, {})):
        send(stack, ana, message, **headers)
    async with Client(stack.tls_url, auth=ana, verify=stack.trust()) as client:
        await client.call_tool("countdown", {"n": 2, "seconds": 0.01}, progress_handler=_progress)
    await asyncio.to_thread(thread.join, 15)
    assert not thread.is_alive(), "it ends once all is ticked off"
    assert "retry: 15000" in found
    assert "event: connected" in found
    last = json.loads(next(line for line in reversed(found) if line.startswith("data:"))[5:])
    assert set(last["reached"]) == set(ROWS)
    assert "Ben" not in "\n".join(found)


def test_seats_share_the_tunnels_quota(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_PLAN="requests=60,per_minute=1000")
    own = (new(stack), codes(stack))[1]
    ana, ben = join(stack, own[1], "Ana"), join(stack, own[2], "Ben")
    # 60 requests a month, of which three seats share nine tenths: eighteen each
    assert [send(stack, ana) for _ in range(18)] == [200] * 18
    assert (send(stack, ana), send(stack, ben)) == (429, 200)
    wait_until(lambda: seat(stack, 1)["stuck"] == "limit hit", 10)


def test_a_new_tunnel_url_changes_where_people_join_and_no_token(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(SLIPWAY_PLAN="requests=20")
    own = (new(stack), codes(stack))[1]
    ana = join(stack, own[1], "Ana")
    assert lab(stack)["join_url"] == f"{stack.tls_url[:-4]}/join"
    file = stack.config.public_url_file
    with watching(stack) as events:
        for host in ("one.ngrok-free.app", "two.ngrok-free.app"):
            file.write_text(f"https://{host}/mcp")
            wait_until(lambda: lab(stack)["join_url"] == f"https://{host}/join", 10)  # noqa: B023
            assert send(stack, ana, ADD, stack.edge_url, host=host) == 200
        assert send(stack, ana, ADD, stack.edge_url, host="one.ngrok-free.app") == 421
        urls = [content["join_url"] for name, content in events if name == "lab"]
        wait_until(lambda: "https://two.ngrok-free.app/join" in str(events), 10)
        assert urls[0] == f"{stack.tls_url[:-4]}/join"
        # three requests came by a tunnel; those of this machine cost nothing
        wait_until(lambda: lab(stack)["budget"]["requests"] == 3, 10)
        for _ in range(16):
            send(stack, ana, ADD, stack.edge_url, host="two.ngrok-free.app")
        wait_until(lambda: any(name == "budget" and content["warning"] for name, content in events), 10)
        wait_until(lambda: lab(stack)["budget"]["slowed"] > 0, 10)
    wait_until(lambda: any("the tunnel's quota" in str(line.get("reason")) for line in stack.log("server")), 10)


def test_the_labs_own_checkpoints_are_taken_by_the_server(shared_stack: Stack) -> None:
    rows = checkpoints.read(checkpoints.Path(__file__).parents[2] / "labs" / "checkpoints.toml")
    assert checkpoints.parse(rows)
    assert new(shared_stack, checkpoints=rows)["lab"]["checkpoints"]
    ask(shared_stack, "DELETE", "/lab")
