"""What is remembered while the edge is open on a local network: run/lan.env, which server, edge and `up` read."""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from slipway import files


@dataclass(frozen=True)
class Lan:
    """Where the edge answers besides loopback.

    Attributes:
        address: an IPv4 address of this machine.
        port: of TLS, there as on loopback.
        fingerprint: of the local authority's certificate, SHA-256, AB:CD:…
    """

    address: str
    port: int
    fingerprint: str

    @property
    def url(self) -> str:
        """The base of all URLs."""
        return f"https://{self.address}:{self.port}"

    @property
    def public(self) -> bool:
        """Whether the address is one of the internet, as some universities give to laptops."""
        return ipaddress.IPv4Address(self.address).is_global


def path(state: Path) -> Path:
    """Return the file; an empty one, as a missing one, means: loopback only."""
    return state / "run" / "lan.env"


def ensure(state: Path) -> Path:
    """Return the file, which is there afterwards: Caddy ends where it is missing."""
    file = path(state)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(0o644)
    return file


def read(state: Path) -> Lan | None:
    """Return what is open, or None."""
    try:
        lines = path(state).read_text(encoding="utf-8").splitlines()
        values = dict(line.split("=", 1) for line in lines)
        address = str(ipaddress.IPv4Address(values["LAN_ADDRESS"]))
        return Lan(address, int(values["LAN_URL"].rsplit(":", 1)[1]), values["LAN_FINGERPRINT"])
    except (OSError, ValueError, LookupError):
        return None


def write(state: Path, lan: Lan | None) -> None:
    """Remember what is open, or with None that nothing is; in one step, and readable for the containers' user."""
    # Caddy's variables: without Docker it reads this file itself, whenever it starts
    values = (
        {"LAN_SITES": "lan", "LAN_ADDRESS": lan.address, "LAN_BIND": lan.address, "LAN_URL": lan.url,
         "LAN_FINGERPRINT": lan.fingerprint} if lan else {}
    )  # fmt: skip
    files.write(path(state), "".join(f"{name}={value}\n" for name, value in values.items()), 0o644)


def watched(state: Path) -> files.Watched[Lan | None]:
    """Return what tells what is open at this moment, for a server that runs on while it changes."""
    return files.Watched(path(state), functools.partial(read, state))
