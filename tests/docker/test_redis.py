"""Two replicas over a real Redis: what one revokes, lets in or begins, the other knows at the next request."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from slipway import compose, tokens
from tests.conftest import Stack, free_ports, wait_until
from tests.stack.test_join import form, token_of
from tests.stack.test_oauth import Browser, _closed, invite, name, refresh, signed_in
from tests.test_admin import ask, mint, status

__all__ = ["_closed"]
pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """A Redis of its own, on loopback."""
    if missing := compose.missing():
        assert not os.environ.get("CI"), f"CI needs Docker: {missing}"
        pytest.skip(missing)
    (port,) = free_ports(1)
    run = ["docker", "run", "--rm", "--detach", "--publish", f"127.0.0.1:{port}:6379", "redis:8-alpine"]
    container = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()

    def ping() -> bool:
        command = ["docker", "exec", container, "redis-cli", "ping"]
        return "PONG" in subprocess.run(command, capture_output=True, text=True).stdout

    try:
        wait_until(ping, 20, "Redis")
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        subprocess.run(["docker", "rm", "--force", container], capture_output=True)


@pytest.fixture
def replicas(make_stack: Callable[..., Stack], redis_url: str, tmp_path: Path) -> tuple[Stack, Stack]:
    """Two servers with one secret and one Redis."""
    tokens.ensure_secret(tmp_path / "secret")
    more = {"REDIS_URL": redis_url, "SLIPWAY_SECRET_FILE": str(tmp_path / "secret")}
    return make_stack(**more), make_stack(**more)


@pytest.mark.parametrize("how", ["id", "subject", "all"])
def test_a_revocation_on_one_replica_holds_on_the_next_request_at_the_other(
    replicas: tuple[Stack, Stack], how: str
) -> None:
    one, other = replicas
    who = name()
    given = mint(one, subject=who)
    assert status(other, given["token"]) == 200
    if how == "id":
        ask(one, "DELETE", f"/tokens/{given['jti']}")
    else:
        ask(one, "POST", "/tokens/revoke", {"subject": who} if how == "subject" else {"all": True})
    assert status(other, given["token"]) == 401
    assert status(one, given["token"]) == 401
    listed = {record["jti"]: record["state"] for record in ask(other, "GET", "/tokens").json()["tokens"]}
    assert "revoked by the operator" in listed[given["jti"]]
    assert status(other, mint(one, subject=name())["token"]) == 200


def test_an_invite_of_one_replica_is_used_up_at_the_other(replicas: tuple[Stack, Stack]) -> None:
    one, other = replicas
    code = invite(one, uses=1)
    browser, client_id, found = signed_in(other, code=code, name=name())
    given = browser.token(**found["asked"])
    assert given.status_code == 200
    assert status(one, given.json()["access_token"]) == 200
    begun, _ = Browser(one), client_id
    page = begun.http.get(begun.authorize(client_id)[0].headers["location"])
    assert "not good" in begun.send(page, code, name()).text
    # the grant goes on at the replica that never saw it begin
    assert refresh(Browser(one), client_id, given.json()["refresh_token"]).status_code == 200


def test_what_is_good_once_is_good_once_over_replicas(replicas: tuple[Stack, Stack]) -> None:
    code = invite(replicas[0], uses=1)
    with ThreadPoolExecutor(8) as pool:
        joined = list(pool.map(lambda n: form(Browser(replicas[n % 2]), code, name()).status_code, range(8)))
    assert joined.count(200) == 1
    browser, client_id, found = signed_in(replicas[0], name=name())
    first = browser.token(**found["asked"]).json()
    browsers = [Browser(each) for each in replicas]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: refresh(browsers[n % 2], client_id, first["refresh_token"]), range(6)))
    good = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(good) <= 1
    for given in good:
        assert status(replicas[1], given["access_token"]) == 401


def test_replicas_forget_none_of_each_others_tokens(replicas: tuple[Stack, Stack]) -> None:
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda n: mint(replicas[n % 2], subject=name())["jti"], range(16)))
    for each in replicas:
        assert set(given) <= {record["jti"] for record in ask(each, "GET", "/tokens").json()["tokens"]}


def test_no_redis_holds_a_token_or_a_code(replicas: tuple[Stack, Stack], redis_url: str) -> None:
    import redis

    code = invite(replicas[0])
    token = mint(replicas[0], subject=name())["token"]
    with redis.Redis.from_url(redis_url) as client:
        kept = b"".join(client.get(key) or b"" for key in client.scan_iter("*") if client.type(key) == b"string")
    assert kept
    assert token.split(".")[2].encode() not in kept
    assert code.replace("-", "").encode() not in kept


def test_the_numbers_say_whether_redis_answers(replicas: tuple[Stack, Stack]) -> None:
    url = replicas[0].server_url.replace("/mcp", "/metrics")
    assert "\nslipway_redis_up 1.0\n" in httpx2.get(url).text


def test_a_subject_has_one_account_over_all_replicas(
    make_stack: Callable[..., Stack], redis_url: str, tmp_path: Path
) -> None:
    tokens.ensure_secret(tmp_path / "secret")
    more = {"REDIS_URL": redis_url, "SLIPWAY_SECRET_FILE": str(tmp_path / "secret"), "SLIPWAY_CALLS_PER_MINUTE": "10"}
    both = [make_stack(**more), make_stack(**more)]
    headers = both[0].bearer() | {"authorization": f"Bearer {both[0].token(subject=name())}"}
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    codes = [
        httpx2.post(stack.server_url, headers=headers, json=ping, timeout=20).status_code
        for _ in range(10) for stack in both
    ]  # fmt: skip
    assert codes[:10] == [200] * 10
    assert codes[-1] == 429
    assert codes.count(200) <= 14  # a minute's edge lets a few more pass; counting alone, each would have let ten


def test_a_lab_is_one_over_the_replicas(replicas: tuple[Stack, Stack]) -> None:
    one, other = replicas
    opened = ask(one, "POST", "/lab", {"title": "MCP 101", "seats": 2, "for": "1h"}).json()
    page = form(Browser(other), opened["code"], "Ana")
    assert page.status_code == 200
    token = token_of(page)
    assert (status(one, token), status(other, token)) == (200, 200)
    seats = ask(one, "GET", "/lab").json()["lab"]["seats"]
    assert (seats[0]["name"], seats[0]["state"]) in {("Ana", "joined"), ("Ana", "connected")}
    assert ask(other, "POST", "/lab", {"title": "Another", "seats": 2}).status_code == 400
    ask(other, "DELETE", "/lab")
    assert (status(one, token), status(other, token)) == (401, 401)
    assert ask(one, "GET", "/lab").status_code == 404
    assert "not good" in form(Browser(one), opened["code"], "Ben").text
