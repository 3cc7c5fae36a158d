"""The edge on an address of this machine through real Compose, asked by a device of the same network."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator

import httpx2
import psutil
import pytest

from slipway import compose, processes
from slipway.lan import note, trust
from tests.conftest import wait_until
from tests.docker.test_compose import Containers, containers
from tests.stack.test_lan import DOOR

pytestmark = [pytest.mark.docker, pytest.mark.slow]
__all__ = ["containers"]


class Device:
    """A network namespace with a cable to this machine: what a phone in the room can reach, and no more."""

    def __init__(self) -> None:
        number = os.getpid() % 250
        self.name = f"slipway-{os.getpid()}"
        self.ours, self.its = f"10.213.{number}.1", f"10.213.{number}.2"
        cable = f"sw{os.getpid() % 1_000_000}"
        for line in (
            f"ip netns add {self.name}",
            f"ip link add {cable} type veth peer name eth0 netns {self.name}",
            f"ip address add {self.ours}/24 dev {cable}",
            f"ip link set {cable} up",
            f"ip -n {self.name} address add {self.its}/24 dev eth0",
            f"ip -n {self.name} link set eth0 up",
            f"ip -n {self.name} route add default via {self.ours}",
        ):
            subprocess.run(line.split(), check=True, capture_output=True)

    def curl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, "curl", "-sS", "-m", "5", *words], capture_output=True, text=True, timeout=20
        )  # fmt: skip

    def reaches(self, port: int) -> bool:
        return self.curl("-k", f"telnet://{self.ours}:{port}").returncode == 28  # it waits for us to speak

    def unplug(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    if os.getuid() or not shutil.which("ip"):
        assert not os.environ.get("CI"), "CI needs root and ip, for a network namespace"
        pytest.skip("a network namespace needs root and ip")
    made = Device()
    yield made
    made.unplug()


def test_a_device_of_the_room_reaches_the_edge_and_nothing_else(containers: Containers, device: Device) -> None:
    config = containers.config
    server, edge = containers.id("server"), containers.id("caddy")
    url = f"https://{device.ours}:{config.tls_port}"
    assert not device.reaches(config.tls_port)

    done = containers.run(".venv/bin/python", "-c", DOOR, "open", device.ours)
    assert done.stdout.split()[0] == url
    assert containers.id("server") == server, "the server was started anew"
    assert containers.id("caddy") != edge

    ca = containers.root / trust.FILE
    assert device.curl("-k", "-o", str(ca), f"{url}{trust.PATH}").returncode == 0
    trusted = ("--cacert", str(ca))
    assert device.curl(*trusted, f"{url}/healthz").stdout == "ok\n"
    token = containers.run(".venv/bin/python", "-m", "slipway.mint", "--subject", "phone").stdout.strip()
    asked = '{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
    bearer = ("-H", f"Authorization: Bearer {token}", "-H", "Accept: application/json, text/event-stream",
              "-H", "Content-Type: application/json")  # fmt: skip
    assert '"whoami"' in device.curl(*trusted, *bearer, "-d", asked, f"{url}/mcp").stdout
    assert f"{url}/join" in device.curl(*trusted, f"{url}/join").stdout
    status = ("-o", "/dev/null", "-w", "%{http_code}")
    for path in ("/admin/tokens", "/metrics", "/readyz", "/"):
        for host in (device.ours, "localhost"):
            answer = device.curl(*trusted, *status, *bearer, "-H", f"Host: {host}", f"{url}{path}").stdout
            assert answer == ("404" if host == device.ours else "421"), path

    for port in (config.server_port, config.edge_port, config.console_port):
        assert not device.reaches(port)
    # what it is known by to the limits: its own address, not the engine's, and not what it says
    wrong = device.curl(*trusted, *status, "-H", "X-Forwarded-For: 8.8.8.8", f"{url}/healthz?who")
    assert wrong.stdout == "200"
    log = containers.root / ".slipway" / "log" / "edge.jsonl"
    wait_until(lambda: f'"client_ip":"{device.its}"' in log.read_text(), 10, "a line with the device's address")

    # `up` keeps it. The first starts the edge once more: Compose counts --no-deps as a change
    for _ in range(2):
        edge = containers.id("caddy")
        assert url in containers.up().stderr
    assert (containers.id("server"), containers.id("caddy")) == (server, edge)
    assert device.curl(*trusted, f"{url}/healthz").stdout == "ok\n"

    assert containers.run(".venv/bin/python", "-c", DOOR, "close").stdout == "True\n"
    assert containers.id("server") == server
    assert not device.reaches(config.tls_port)
    own = containers.root / ".slipway" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    with httpx2.Client(verify=ssl.create_default_context(cafile=str(own))) as client:
        assert client.get(f"https://localhost:{config.tls_port}/healthz").text == "ok\n"


def test_who_watches_for_edits_does_not_bring_back_the_edge_before(
    containers: Containers, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", containers.environment["COMPOSE_PROJECT_NAME"])
    record = containers.root / ".slipway" / "run" / "watch.json"

    def knows() -> str:
        """Return the address that the one who watches would publish on."""
        (pid, _) = processes.running(record)["process"]
        environment = psutil.Process(int(pid)).environ()
        assert ("deploy/lan.yml" in environment.get("COMPOSE_FILE", "")) == ("LAN_ADDRESS" in environment)
        return environment.get("LAN_ADDRESS", "")

    with compose.Compose(containers.root).watching(record):
        assert knows() == ""
        containers.run(".venv/bin/python", "-c", DOOR, "open", device.ours)
        assert knows() == device.ours
        containers.run(".venv/bin/python", "-c", DOOR, "close")
        assert knows() == ""
        left = processes.running(record)["process"]
    assert not processes.alive(left)


def test_a_neighbour_who_can_go_around_the_edge_is_warned_of(containers: Containers, device: Device) -> None:
    """Ask the server at its container's own address, as who routes through this machine can."""
    networks = containers.inspect("server")["NetworkSettings"]["Networks"].values()
    (own,) = [network["IPAddress"] for network in networks]
    status = ("-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: localhost")
    seen = device.curl(*status, f"http://{own}:8000/admin/tokens").stdout
    assert seen in ("401", "000")
    assert compose.routes_to_containers() == (seen == "401")


def test_an_address_that_is_gone_is_told_and_loopback_stays(containers: Containers, device: Device) -> None:
    containers.run(".venv/bin/python", "-c", DOOR, "open", device.ours)
    done = containers.run(".venv/bin/python", "-c", DOOR, "open", "203.0.113.9", ok=False)
    assert "203.0.113.9 is no address of this machine" in done.stderr
    state = containers.root / ".slipway"
    lan = note.read(state)
    assert lan
    assert lan.address == device.ours, "a mistake closed what was open"
    containers.run(".venv/bin/python", "-m", "slipway.stack", "down")
    assert note.read(state) is None
    assert not compose.Compose(containers.root).exists()
