"""Faults of containers: Redis hangs, is killed, comes back empty; the server is paused or loses its network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from slipway import compose, tokens
from slipway.store import Trouble, open_store
from tests.conftest import ROOT, Stack, free_ports, wait_until
from tests.docker.test_compose import Containers, containers
from tests.stack.test_edge import PAGE, assert_readable_by_a_page
from tests.stack.test_join import form
from tests.stack.test_oauth import Browser, _closed, invite, name
from tests.stack.test_streams import client, message, newest
from tests.test_admin import ask, mint, status

__all__ = ["_closed", "containers"]
pytestmark = [pytest.mark.docker, pytest.mark.slow]

BOUND = 60.0  # seconds in which any caller must have been told; far more than it takes


def docker(*arguments: str, ok: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60)
    assert not ok or done.returncode == 0, done.stderr
    return done.stdout.strip()


class Redis:
    """A real Redis in a container, on a port that it keeps over its ends."""

    def __init__(self, *, remembers: bool) -> None:
        (self.port,) = free_ports(1)
        keeps = ["--appendonly", "yes"] if remembers else ["--save", ""]
        publish = f"127.0.0.1:{self.port}:6379"
        self.id = docker(
            "run",
            "--detach",
            "--publish",
            publish,
            "redis:8-alpine",
            "redis-server",
            *keeps,
            "--protected-mode",
            "no",
        )
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._wait()

    def _wait(self) -> None:
        wait_until(lambda: "PONG" in docker("exec", self.id, "redis-cli", "ping", ok=False), 20, "Redis")

    def kill(self) -> None:
        docker("kill", "--signal", "KILL", self.id)

    def start(self) -> None:
        docker("start", self.id)
        self._wait()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        docker("pause", self.id)
        try:
            yield
        finally:
            docker("unpause", self.id)


@pytest.fixture
def make_redis() -> Iterator[Callable[..., Redis]]:
    if missing := compose.missing():
        assert not os.environ.get("CI"), f"CI needs Docker: {missing}"
        pytest.skip(missing)
    made: list[Redis] = []

    def make(*, remembers: bool = True) -> Redis:
        made.append(Redis(remembers=remembers))
        return made[-1]

    yield make
    for each in made:
        docker("rm", "--force", "--volumes", each.id)


@pytest.fixture
def replicas(
    make_stack: Callable[..., Stack], make_redis: Callable[..., Redis], tmp_path: Path
) -> Callable[..., tuple[Redis, Stack, Stack]]:
    """A Redis and two servers over it."""

    def make(*, remembers: bool = True, away: str = "refuse") -> tuple[Redis, Stack, Stack]:
        tokens.ensure_secret(tmp_path / "secret")
        redis = make_redis(remembers=remembers)
        more = {"SLIPWAY_SECRET_FILE": str(tmp_path / "secret"), "REDIS_URL": redis.url, "SLIPWAY_REDIS_AWAY": away}
        return redis, make_stack(**more), make_stack(**more)

    return make


def said(stack: Stack) -> list[str]:
    """Return what the server told of itself, not of requests."""
    return [str(line["reason"]) for line in stack.log("server") if line.get("client") == "slipway"]


def back(stack: Stack) -> None:
    wait_until(lambda: any("answers again" in line for line in said(stack)), BOUND, f"its return: {said(stack)}")


def listed(stack: Stack, token: str) -> httpx2.Response:
    headers = stack.bearer() | {"authorization": f"Bearer {token}", "origin": PAGE}
    with httpx2.Client(verify=stack.trust(), timeout=BOUND) as http:
        return http.post(stack.tls_url, headers=headers, json=message("tools/list"))


@pytest.mark.parametrize("fault", ["paused", "killed"])
async def test_while_redis_is_away_calls_are_refused_in_words_and_the_same_clients_go_on_afterwards(
    replicas: Callable[..., Any], fault: str
) -> None:
    redis, one, other = replicas()
    given, closed, code = mint(one), mint(one), invite(one)
    ask(one, "DELETE", f"/tokens/{closed['jti']}")
    async with client(one, "handshake") as session, client(other, "newest") as stateless:
        for c in (session, stateless):
            assert (await c.call_tool("add", {"a": 2, "b": 3})).data == 5
        with contextlib.ExitStack() as stack:
            if fault == "paused":
                stack.enter_context(redis.paused())
            else:
                redis.kill()
                stack.callback(redis.start)
            for _ in range(3):
                for c in (session, stateless):
                    with pytest.raises(Exception, match=r"503|error response"):
                        await asyncio.wait_for(c.call_tool("add", {"a": 2, "b": 3}), BOUND)
            answer = await asyncio.to_thread(listed, one, given["token"])
            assert answer.status_code == 503
            assert "(Redis) does not answer" in answer.json()["error"]
            assert int(answer.headers["retry-after"]) > 0
            assert_readable_by_a_page(answer)
            # without a token nothing is asked of Redis, and nothing else is told than before
            assert listed(one, "nonsense").status_code == 401
            for refused in (
                ask(one, "POST", "/tokens", {"subject": "x"}), ask(one, "GET", "/tokens"),
                ask(one, "DELETE", f"/tokens/{given['jti']}"), form(Browser(one), code, name()),
            ):  # fmt: skip
                assert refused.status_code == 503, refused.text
                assert "does not answer" in refused.text
            assert "refuses" in ask(one, "DELETE", f"/tokens/{given['jti']}").json()["error"]
        for each in (one, other):
            back(each)
        for c in (session, stateless):
            assert (await c.call_tool("add", {"a": 2, "b": 3})).data == 5
    # what was acknowledged is there, and what was only heard is written since
    assert [status(other, each["token"]) for each in (given, closed)] == [401, 401]
    assert form(Browser(other), code, name()).status_code == 200
    for each in (one, other):
        words = [line.split(" after")[0].split(" (")[0] for line in said(each)]
        assert words == [
            f"Redis at 127.0.0.1:{redis.port} does not answer",
            f"Redis at 127.0.0.1:{redis.port} answers again",
        ]


def test_while_redis_is_away_a_server_is_not_ready_but_docker_leaves_it_alone(replicas: Callable[..., Any]) -> None:
    redis, one, _ = replicas()
    asked_by_docker = re.findall(r"127\.0\.0\.1:8000(/[a-z]+)'", (ROOT / "docker-compose.yml").read_text())
    assert len(asked_by_docker) == 1

    def told(path: str) -> int:
        return httpx2.get(one.server_url.replace("/mcp", path), timeout=4).status_code

    assert [told("/readyz"), told(*asked_by_docker)] == [200, 200]
    with redis.paused():
        wait_until(lambda: told("/readyz") == 503, BOUND, "that it is not ready")
        assert [told("/readyz"), told(*asked_by_docker)] == [503, 200]
    back(one)
    assert [told("/readyz"), told(*asked_by_docker)] == [200, 200]


async def test_who_is_to_serve_on_does_so_by_what_is_known_and_says_it(replicas: Callable[..., Any]) -> None:
    redis, one, other = replicas(away="serve")
    given, closed, later = mint(one), mint(one), mint(one)
    ask(one, "DELETE", f"/tokens/{closed['jti']}")
    async with client(one, "handshake") as session, client(one, "newest") as stateless:
        with redis.paused():
            for c in (session, stateless):
                assert (await asyncio.wait_for(c.call_tool("add", {"a": 2, "b": 3}), BOUND)).data == 5
            assert [status(one, each["token"]) for each in (given, closed, later)] == [200, 401, 200]
            assert status(one, one.token(subject="unheard of")) == 200
            for refused in (
                ask(one, "POST", "/tokens", {"subject": "x"}), ask(one, "POST", "/invites", {"uses": 2}),
                ask(one, "DELETE", f"/tokens/{later['jti']}"),
            ):  # fmt: skip
                assert refused.status_code == 503, refused.text
            assert status(one, later["token"]) == 401
        back(one)
        assert (await stateless.call_tool("add", {"a": 2, "b": 3})).data == 5
    back(other) if said(other) else None
    # what one could not write then, the other knows now
    assert [status(other, each["token"]) for each in (given, closed, later)] == [200, 401, 401]
    assert "serving on" in said(one)[0]
    assert len(said(one)) == 2


@pytest.mark.parametrize("remembers", [True, False], ids=["with appendonly", "without"])
def test_a_redis_that_is_killed_opens_nothing_that_was_closed(replicas: Callable[..., Any], remembers: bool) -> None:
    redis, one, other = replicas(remembers=remembers)
    given, closed, of_bo = mint(one), mint(one), mint(one, subject="bo")
    code = invite(one, uses=2)
    assert form(Browser(other), code, name()).status_code == 200
    # only one knows of it, and the other must
    ask(one, "DELETE", f"/tokens/{closed['jti']}")
    ask(one, "POST", "/tokens/revoke", {"subject": "bo"})
    redis.kill()
    redis.start()
    done = time.monotonic() + BOUND
    for each in (other, one):  # they come back each in its own time
        seen: set[int] = set()
        while (now := status(each, given["token"])) != 200:
            seen.add(now)
            seen |= {status(each, token["token"]) for token in (closed, of_bo)}
            assert time.monotonic() < done
        assert seen <= {401, 503}
        assert [status(each, token["token"]) for token in (closed, of_bo)] == [401, 401]
    if remembers:
        (kept,) = ask(one, "GET", "/invites").json()["invites"]
        assert kept["used"] == 1
    else:
        assert ask(one, "GET", "/invites").json()["invites"] == []
    if remembers:
        assert not any("WITHOUT its memory" in line for line in said(other))
    else:
        wait_until(lambda: any("WITHOUT its memory" in line for line in said(other)), BOUND, "that it is told")


async def test_nobody_is_answered_from_a_redis_that_came_back_empty(make_redis: Callable[..., Redis]) -> None:
    """Also while somebody else is about to find out whose it is."""
    redis = make_redis(remembers=False)
    store = open_store(Path(), redis.url)
    watching = asyncio.ensure_future(store.watch())
    await store.put("closed", {"since": 1}, collection="c")

    async def ask() -> object:
        try:
            return await store.get("closed", collection="c")
        except Trouble:
            return "refused"

    try:
        # far more than there are connections
        assert await asyncio.gather(*(ask() for _ in range(300))) == [{"since": 1}] * 300
        redis.kill()
        redis.start()
        # those who ask and the one that looks come over connections of their own
        asked = asyncio.gather(*(ask() for _ in range(300)))
        await store._look()
        assert await asked == ["refused"] * 300
    finally:
        watching.cancel()
        await store._redis.aclose()


# --- containers of Compose


@pytest.fixture(scope="module")
def project(containers: Containers) -> Containers:
    """The project, with an edge that is sooner in seeing what it would see anyway."""
    path = containers.root / "Caddyfile"
    path.write_text(path.read_text().replace("read_timeout 45s", "read_timeout 2s"))
    containers.up()
    return containers


def call(project: Containers, timeout: float = BOUND) -> httpx2.Response:
    headers, asked = newest(name="add", arguments={"a": 2, "b": 3})
    secret = tokens.read_secret(project.root / ".slipway" / "secret")
    token = tokens.mint(secret, subject="ana", scope="tool:*", ttl=600).token
    headers |= {"authorization": f"Bearer {token}", "origin": PAGE, "accept": "application/json, text/event-stream"}
    with httpx2.Client(timeout=timeout) as http:
        return http.post(f"http://127.0.0.1:{project.config.edge_port}/mcp", headers=headers, json=asked)


def told(project: Containers) -> bool:
    with contextlib.suppress(httpx2.TimeoutException):
        answer = call(project)
        if answer.status_code in (502, 503, 504):
            assert "does not answer" in answer.json()["error"]
            assert answer.headers["retry-after"]
            assert_readable_by_a_page(answer)
            return True
    return False


@contextlib.contextmanager
def fault(project: Containers, which: str) -> Iterator[None]:
    server = project.id("server")
    network = next(iter(project.inspect("server")["NetworkSettings"]["Networks"]))  # type: ignore[index,call-overload]
    if which == "paused":
        docker("pause", server)
        undo = ["unpause", server]
    else:
        docker("network", "disconnect", network, server)
        undo = ["network", "connect", "--alias", "server", network, server]
    try:
        yield
    finally:
        docker(*undo)


@pytest.mark.parametrize("which", ["paused", "without a network"])
@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_container_that_cannot_be_reached_is_told_and_its_clients_go_on(
    project: Containers, which: str, mode: str
) -> None:
    async with project.client(mode) as client:
        assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5
        with fault(project, which):
            await asyncio.to_thread(wait_until, lambda: told(project), BOUND, "the edge's word")
            with pytest.raises(Exception, match=r"50[234]|error response"):
                await asyncio.wait_for(client.call_tool("add", {"a": 2, "b": 3}), BOUND)
        await asyncio.to_thread(wait_until, lambda: call(project).status_code == 200, BOUND, "its return")
        assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5


async def test_a_killed_edge_is_started_again_and_its_clients_go_on(project: Containers) -> None:
    async with project.client("legacy") as client:
        await client.call_tool("add", {"a": 2, "b": 3})
        started = project.inspect("caddy")["State"]["StartedAt"]  # type: ignore[index,call-overload]
        pid = project.inspect("caddy")["State"]["Pid"]  # type: ignore[index,call-overload]
        children = psutil.Process(pid).children()
        os.kill(children[0].pid if children else pid, signal.SIGKILL)
        wait_until(lambda: project.inspect("caddy")["State"]["StartedAt"] != started, BOUND, "the restart")  # type: ignore[index,call-overload]

        def answers() -> bool:
            with contextlib.suppress(httpx2.HTTPError):
                return call(project).status_code == 200
            return False

        await asyncio.to_thread(wait_until, answers, BOUND, "the edge")
        assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5
