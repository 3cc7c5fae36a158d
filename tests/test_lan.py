"""The local network: which address, what is remembered of it, what attendees are told."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from slipway import compose
from slipway.clients import CLIENTS, Endpoint, render
from slipway.errors import Problem
from slipway.lan import door, network, note, trust
from slipway.lan.note import Lan

LAN = Lan("192.168.1.7", 8443, "AB:CD")


def machine(monkeypatch: pytest.MonkeyPatch, route: str, down: tuple[str, ...] = (), **interfaces: str) -> None:
    """Give this machine other interfaces, and a default route by that address; "" is none."""

    class Probe(socket.socket):
        def connect(self, _: Any) -> None:
            if not route:
                raise OSError("Network is unreachable")

        def getsockname(self) -> Any:
            return route, 1

    def found(address: str) -> list[Any]:
        return [SimpleNamespace(family=socket.AF_INET, address=address)]

    known = {name.replace("_", "-"): address for name, address in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {name: found(address) for name, address in known.items()})
    states = {name: SimpleNamespace(isup=name not in down) for name in known}
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    monkeypatch.setattr(network.socket, "socket", Probe)


def test_the_address_is_that_of_the_default_route(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "192.168.1.7", lo="127.0.0.1", wlan0="192.168.1.7", eth0="10.0.0.5")
    assert network.address() == "192.168.1.7"


def test_without_a_route_the_only_network_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(
        monkeypatch, "", ("eth0",), lo="127.0.0.1", wlan0="192.168.1.7", eth0="10.0.0.5", docker0="172.17.0.1", br_1="172.18.0.1"
    )  # fmt: skip
    assert network.address() == "192.168.1.7"


def test_an_address_of_the_internet_and_an_engine_that_routes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compose, "missing", lambda: "no Docker")
    assert door.warnings(LAN) == []
    (told,) = door.warnings(Lan("8.8.8.8", 8443, "AB"))
    assert "internet" in told
    for info, routes in {
        "26.1.5+dfsg1 Debian GNU/Linux 13": True, "28.0.0 Ubuntu 24.04": False, "27.3.1 Docker Desktop": False, "": False
    }.items():  # fmt: skip
        monkeypatch.setattr(compose, "_ask", lambda *_, info=info: SimpleNamespace(stdout=f"{info}\n"))
        assert compose.routes_to_containers() is routes, info


def test_a_vpn_that_has_the_default_route_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "10.8.0.2", tun0="10.8.0.2", wlan0="192.168.1.7")
    assert network.address() == "192.168.1.7"


def test_several_networks_and_none_are_told_with_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "", wlan0="192.168.1.7", eth0="10.0.0.5")
    with pytest.raises(Problem, match=r"192\.168\.1\.7 \(wlan0\), 10\.0\.0\.5 \(eth0\)") as caught:
        network.address()
    assert "--lan ADDRESS" in caught.value.cure
    assert network.address("10.0.0.5") == "10.0.0.5"
    machine(monkeypatch, "", lo="127.0.0.1")
    with pytest.raises(Problem, match="no local network"):
        network.address()


@pytest.mark.parametrize(
    "wanted",
    ["10.9.9.9", "0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "192.168.1.255", "laptop", "::1", "1\n2"],
)
def test_an_address_that_is_not_ours_or_more_than_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    machine(monkeypatch, "", wlan0="192.168.1.7")
    with pytest.raises(Problem) as caught:
        network.address(wanted)
    assert "192.168.1.7 (wlan0)" in str(caught.value)


def test_what_is_open_is_remembered_and_forgotten(tmp_path: Path) -> None:
    note.ensure(tmp_path)
    watched = note.watched(tmp_path)
    assert watched() is note.read(tmp_path) is None
    note.write(tmp_path, LAN)
    assert watched() == note.read(tmp_path) == LAN
    assert LAN.url == "https://192.168.1.7:8443"
    assert note.path(tmp_path).stat().st_mode & 0o777 == 0o644, "the containers' user reads it"
    other = Lan("10.0.0.5", 443, "EF")
    note.write(tmp_path, other)
    assert watched() == other
    note.write(tmp_path, None)
    assert watched() is note.read(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["\0", "LAN_ADDRESS", "LAN_ADDRESS=0x7f.1\nLAN_URL=https://a:1\nLAN_FINGERPRINT=A\n", "\xff"]
)
def test_a_damaged_note_means_loopback_only(tmp_path: Path, text: str) -> None:
    note.ensure(tmp_path).write_text(text, encoding="latin-1")
    assert note.read(tmp_path) is None


def test_attendees_are_told_for_each_system_and_compare_before_they_trust() -> None:
    text = trust.trust_text(LAN.url, LAN.fingerprint)
    systems = ("macOS", "Windows", "Debian", "Fedora", "Firefox", "iOS", "Android", "Node", "Python", "curl")
    assert [name for name in systems if f"\n     {name} " not in text] == []
    assert f"curl -k -o slipway-ca.crt {LAN.url}/join/ca.crt" in text
    assert text.index(LAN.fingerprint) < text.index("NODE_EXTRA_CA_CERTS") < text.index("take it out")
    assert "192.168.1.7 port 8443" in trust.unreachable_text(LAN.url)


def test_what_runs_elsewhere_cannot_reach_a_local_network() -> None:
    endpoint = Endpoint("slipway", f"{LAN.url}/mcp", "t", trust.FILE)
    for name, client in CLIENTS.items():
        assert ("cannot reach" in render(name, endpoint).note) == (client.trust == "remote"), name
