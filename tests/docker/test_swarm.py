"""A swarm of one node from the same Compose file: rolling updates, a way back, secrets, nothing but loopback."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator

import psutil
import pytest

from slipway import compose
from tests.conftest import copy_of_the_tree, wait_until
from tests.docker.load import load
from tests.docker.test_scale import Replicas

pytestmark = [pytest.mark.docker, pytest.mark.slow]


class Swarm(Replicas):
    """A checkout that was deployed as a stack."""

    @property
    def service(self) -> str:
        return f"{self.environment['SLIPWAY_STACK']}_server"

    def ids(self) -> list[str]:
        label = f"label=com.docker.swarm.service.name={self.service}"
        return self.run("docker", "ps", "--quiet", "--filter", label).stdout.split()

    def spec(self) -> dict[str, object]:
        return json.loads(self.run("docker", "service", "inspect", self.service).stdout)[0]

    async def update(self, *arguments: str) -> str:
        """Change the service and wait until that is done, one way or the other. Returns: how it ended."""
        command = ["docker", "service", "update", "--quiet", "--detach=false", *arguments, self.service]
        await asyncio.to_thread(self.run, *command, ok=False)
        return str(self.spec()["UpdateStatus"]["State"])


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A swarm of this machine alone, left at the end."""
    if missing := compose.missing():
        assert not os.environ.get("CI"), f"CI needs Docker: {missing}"
        pytest.skip(missing)
    made = Swarm(copy_of_the_tree(tmp_path_factory.mktemp("swarm") / "slipway"))
    told = made.run("scripts/swarm", "up", ok=False) if not in_a_swarm(made) else None
    if told is None:
        assert not os.environ.get("CI"), "CI needs an engine that is in no swarm: docker swarm leave --force"
        pytest.skip("this machine is in a swarm that is not ours")
    assert (told.returncode, "docker swarm init" in told.stderr) == (2, True)
    name = f"slipway-test-{os.getpid()}"
    made.environment |= {"SLIPWAY_STACK": name, "SLIPWAY_IMAGE": name, "SLIPWAY_REPLICAS": "2"}
    try:
        made.run("docker", "swarm", "init", "--advertise-addr", "127.0.0.1")
        made.run("docker", "build", "--quiet", "--tag", name, ".")
        made.run("scripts/swarm", "up")
        yield made
    finally:
        made.run("scripts/swarm", "down", ok=False)
        tasks = ("docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.stack.namespace={name}")
        wait_until(lambda: not made.run(*tasks).stdout, 40, "the end of the tasks")
        made.run("docker", "swarm", "leave", "--force", ok=False)
        made.run("docker", "volume", "rm", "--force", f"{name}_data", ok=False)
        made.run("docker", "rmi", "--force", name, ok=False)


def in_a_swarm(made: Swarm) -> bool:
    return made.run("docker", "info", "--format", "{{.Swarm.LocalNodeState}}").stdout.strip() == "active"


def test_nothing_is_published_but_the_edge_on_loopback(swarm: Swarm) -> None:
    listed = swarm.run("docker", "service", "ls", "--format", "{{.Name}}|{{.Ports}}").stdout.split()
    assert sorted(listed) == sorted([f"{swarm.service}|", f"{swarm.service.removesuffix('server')}redis|"])
    others = {a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET}
    for address in others - {"127.0.0.1"}:
        for port in (
            swarm.config.edge_port,
            swarm.config.tls_port,
            swarm.config.console_port,
            swarm.config.server_port,
        ):
            with socket.socket() as probe:
                probe.settimeout(3)
                assert probe.connect_ex((address, port)) != 0, f"{address}:{port} is reachable"


def test_the_secret_is_a_secret_of_the_swarm_and_a_task_is_hardened(swarm: Swarm) -> None:
    secret = (swarm.root / ".slipway" / "secret").read_text().strip()
    assert secret not in json.dumps(swarm.spec())
    container = swarm.ids()[0]
    found = swarm.state(container)
    assert secret not in json.dumps(found)
    assert found["HostConfig"]["ReadonlyRootfs"] is True
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert found["HostConfig"]["PidsLimit"] > 0
    mode = swarm.run("docker", "exec", container, "stat", "-c", "%u %a", "/run/secrets/slipway_secret").stdout
    assert mode.strip() == "10001 400"


def test_the_operators_commands_reach_the_swarm_and_all_tasks_obey(swarm: Swarm) -> None:
    command = [".venv/bin/python", "-m", "slipway.operator", "tokens"]
    token = swarm.run(*command, "mint", "--subject", "mia", "--tools", "add").stdout.strip()
    port = swarm.config.edge_port
    newest = {"mcp-method": "tools/list"}
    assert swarm.post(port, token, "tools/list").status_code == 200
    swarm.run(*command, "revoke", "--subject", "mia")
    assert [swarm.post(port, token, "tools/list", **newest).status_code for _ in range(6)] == [401] * 6
    logs = [swarm.run("docker", "logs", each).stdout for each in swarm.ids()]
    assert all("revoked by the operator" in log for log in logs)


async def test_a_rolling_update_fails_no_call(swarm: Swarm) -> None:
    before = swarm.ids()
    async with load(swarm.connect, "update") as calls:
        assert await swarm.update("--force") == "completed"
    assert calls.failed == []
    assert await calls.lost() == set()
    wait_until(lambda: not set(before) & set(swarm.ids()), 20, "the end of the last old task")


async def test_a_version_that_does_not_become_ready_is_taken_back(swarm: Swarm) -> None:
    before = set(swarm.ids())
    async with load(swarm.connect, "back", each=1) as calls:
        assert await swarm.update("--env-add", "SLIPWAY_SESSIONS=broken") == "rollback_completed"
    assert before & set(swarm.ids())
    assert "broken" not in json.dumps(swarm.spec()["Spec"])
    assert calls.failed == []
