"""Three replicas on one machine: one state, sessions that stay, and no acknowledged call lost when one goes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psutil
import pytest
from fastmcp import Client

from slipway import compose, operator, tokens
from tests.conftest import copy_of_the_tree, free_ports, wait_until
from tests.docker.load import load
from tests.docker.test_compose import Containers

pytestmark = [pytest.mark.docker, pytest.mark.slow]

HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}


class Replicas(Containers):
    """A checkout whose Compose project has three servers and Redis."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._made: dict[str, str] = {}

    def token(self, subject: str) -> str:
        """One token for each caller, as a user has one."""
        if subject not in self._made:
            secret = tokens.read_secret(self.root / ".slipway" / "secret")
            self._made[subject] = tokens.mint(secret, subject=subject, scope="tool:*", ttl=900).token
        return self._made[subject]

    def connect(self, subject: str, mode: str) -> Client:
        ca = self.root / ".slipway" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        trust = ssl.create_default_context(cafile=str(ca))
        url = f"https://localhost:{self.config.tls_port}/mcp"
        return Client(url, auth=self.token(subject), verify=trust, mode=mode, timeout=30)

    def post(self, port: int, token: str, method: str, params: object = None, **headers: str) -> httpx2.Response:
        """Send one request of the handshake era."""
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}
        headers = {"authorization": f"Bearer {token}", "accept": "application/json, text/event-stream", **headers}
        return httpx2.post(f"http://127.0.0.1:{port}/mcp", json=message, headers=headers, timeout=20)

    def ids(self) -> list[str]:
        return self.compose("ps", "--quiet", "server").split()

    def state(self, container: str) -> dict[str, object]:
        return json.loads(self.run("docker", "inspect", container).stdout)[0]

    def healthy(self, container: str) -> bool:
        return self.state(container)["State"]["Health"]["Status"] == "healthy"

    def ports(self) -> list[int]:
        """The server ports of the replicas, each on loopback."""
        found = [self.state(each)["NetworkSettings"]["Ports"]["8000/tcp"] for each in self.ids()]
        assert all(binding["HostIp"] == "127.0.0.1" for bindings in found for binding in bindings)
        return sorted(int(bindings[0]["HostPort"]) for bindings in found)

    def served_by(self, subject: str) -> set[str]:
        """Which replicas had requests of a caller."""
        logs = {each: self.run("docker", "logs", each).stdout for each in self.ids()}
        return {each for each, text in logs.items() if f'"subject":"{subject}"' in text}


def three_ports() -> int:
    """Return the first of three free ports in a row."""
    for _ in range(50):
        (first,) = free_ports(1)
        if first < 65000 and not any(taken(port) for port in (first + 1, first + 2)):
            return first
    pytest.fail("there are no three free ports in a row")


def taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Three servers, started as a user would, removed with their image at the end."""
    if missing := compose.missing():
        assert not os.environ.get("CI"), f"CI needs Docker: {missing}"
        pytest.skip(missing)
    root = copy_of_the_tree(tmp_path_factory.mktemp("scale") / "slipway")
    example, first = root / ".env.example", three_ports()
    lines = example.read_text().splitlines()
    mine = {"SERVER_PORT": first, "SERVER_PORT_LAST": first + 2, "REDIS_URL": "redis://redis:6379/0"}
    kept = [line for line in lines if line.partition("=")[0] not in mine]
    wanted = mine | {"COMPOSE_PROFILES": "scale", "SLIPWAY_REPLICAS": 3}
    example.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in wanted.items())]) + "\n")
    project = Replicas(root)
    try:
        project.up()
        yield project
    finally:
        project.compose("--profile", "scale", "down", "--rmi", "local", "--remove-orphans", "--volumes", ok=False)


def test_every_replica_has_a_port_on_loopback_and_redis_has_none(replicas: Replicas) -> None:
    first = replicas.config.server_port
    assert replicas.ports() == [first, first + 1, first + 2]
    redis = replicas.inspect("redis")
    assert not any(redis["NetworkSettings"]["Ports"].values())
    assert redis["HostConfig"]["ReadonlyRootfs"] is True
    assert redis["HostConfig"]["CapDrop"] == ["ALL"]
    assert redis["Config"]["User"].split(":")[0] not in ("", "0", "root")
    # the command of the documentation changes nothing where ./scripts/up has been
    before = replicas.ids()
    replicas.compose("--profile", "scale", "up", "--detach", "--wait", "--scale", "server=3")
    assert replicas.ids() == before


def test_what_one_replica_revokes_all_refuse(replicas: Replicas) -> None:
    token = replicas.token("eve")
    ports = replicas.ports()
    assert [replicas.post(port, token, "tools/list").status_code for port in ports] == [200, 200, 200]
    secret = tokens.read_secret(replicas.root / ".slipway" / "secret")
    operator.Server(replicas.config, secret).ask("POST", "/tokens/revoke", {"subject": "eve"})
    assert [replicas.post(port, token, "tools/list").status_code for port in ports] == [401, 401, 401]


def sessions_kept(replicas: Replicas, name: str) -> list[int]:
    """Open a session for each of twelve callers and end it. Returns: the answers; only where it lives it is known."""
    answers = []
    for number in range(12):
        token, port = replicas.token(f"{name}-{number}"), replicas.config.edge_port
        session = replicas.post(port, token, "initialize", HELLO).headers["mcp-session-id"]
        replicas.post(port, token, "tools/list", None, **{"mcp-session-id": session})
        headers = {"authorization": f"Bearer {token}", "mcp-session-id": session}
        answers.append(httpx2.delete(f"http://127.0.0.1:{port}/mcp", headers=headers).status_code)
    return answers


def test_sessions_stay_on_their_replica_and_all_else_goes_round(replicas: Replicas) -> None:
    assert sessions_kept(replicas, "stay") == [200] * 12
    used = [replicas.served_by(f"stay-{number}") for number in range(12)]
    assert [len(each) for each in used] == [1] * 12
    assert len(set.union(*used)) > 1


async def test_calls_of_the_newest_era_go_round(replicas: Replicas) -> None:
    async with replicas.connect("round", "auto") as client:
        for number in range(6):
            assert (await client.call_tool("add", {"a": number, "b": 1})).data == number + 1
    assert len(replicas.served_by("round")) == 3


def test_without_the_seats_sessions_are_lost(replicas: Replicas) -> None:
    """The broken twin: the same edge that hashes nothing."""
    path = replicas.root / "Caddyfile"
    whole = path.read_text()
    lines = [line for line in whole.splitlines() if not line.strip().startswith("request_header @")]
    try:
        path.write_text("\n".join(lines) + "\n")
        replicas.compose("restart", "caddy")
        wait_until(lambda: answers(replicas), 20, "the edge")
        assert sessions_kept(replicas, "twin") != [200] * 12
    finally:
        path.write_text(whole)
        replicas.compose("restart", "caddy")
        wait_until(lambda: answers(replicas), 20, "the edge")


def answers(replicas: Replicas) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{replicas.config.edge_port}/healthz").status_code == 200
    except httpx2.HTTPError:
        return False


async def test_a_killed_replica_loses_no_acknowledged_call(replicas: Replicas) -> None:
    victim = replicas.ids()[0]
    started = replicas.state(victim)["State"]
    async with load(replicas.connect, "kill") as calls:
        # as the kernel would; `docker kill` would count as a wish to stop it. With init, the server is its child
        os.kill(server_in(started["Pid"]), signal.SIGKILL)
        await calls.more(10)
        await asyncio.to_thread(
            wait_until, lambda: replicas.state(victim)["State"]["StartedAt"] != started["StartedAt"], 30
        )
        await asyncio.to_thread(wait_until, lambda: replicas.healthy(victim), 40, "recovery")
        await calls.more(5)
    assert await calls.lost() == set()
    # what was in work on the killed one: a caller has one call at a time
    assert all(len(caller.failed) <= 1 for caller in calls.callers), calls.failed
    await asyncio.to_thread(calls_are_answered_by, replicas, victim)


def server_in(pid: object) -> int:
    assert isinstance(pid, int)
    return next((child.pid for child in psutil.Process(pid).children()), pid)


def calls_are_answered_by(replicas: Replicas, container: str) -> None:
    """Wait until the edge sends to a replica again."""
    number = 0

    def served() -> bool:
        nonlocal number
        number += 1
        for _ in range(3):
            replicas.post(replicas.config.edge_port, replicas.token(f"again-{number}"), "tools/list")
        return container in replicas.served_by(f"again-{number}")

    wait_until(served, 20, "a call on the replica that came back")


async def test_a_rolling_restart_fails_no_call(replicas: Replicas) -> None:
    async with load(replicas.connect, "roll") as calls:
        for container in replicas.ids():
            await asyncio.to_thread(replicas.run, "docker", "restart", container)
            await asyncio.to_thread(wait_until, lambda each=container: replicas.healthy(each), 40, "health")
    assert calls.failed == []
    assert await calls.lost() == set()
