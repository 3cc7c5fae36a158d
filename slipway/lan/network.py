"""By which address others in the local network may reach this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import psutil

from slipway.errors import Problem

# interfaces of virtual networks: nobody in the room is on one
_VIRTUAL = (
    "docker", "br-", "veth", "virbr", "vEthernet", "vmnet", "vboxnet",
    "tun", "tap", "utun", "wg", "tailscale", "zt", "ppp",
)  # fmt: skip


def addresses() -> dict[str, str]:
    """Return {IPv4 address: interface} by which others in the local network may reach this machine."""
    states = psutil.net_if_stats()
    return {
        found.address: name
        for name, all_of_it in psutil.net_if_addrs().items()
        for found in all_of_it
        if found.family == socket.AF_INET and name in states and states[name].isup
        if not name.startswith(_VIRTUAL) and not ipaddress.ip_address(found.address).is_loopback
    }


def address(wanted: str = "") -> str:
    """Return the address to open: the wanted one, or that of the default route, or the only one.

    Raises:
        Problem: it is none of this machine's, there is none, or there are several and none is the default route's.
    """
    if wanted:
        return checked(wanted)
    known = addresses()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # chooses a route; for a datagram socket nothing is sent
            found = str(probe.getsockname()[0])
        except OSError:
            found = ""
    if found in known:
        return found
    if len(known) == 1:
        return next(iter(known))
    if known:
        raise Problem(f"This machine has several addresses: {_shown(known)}.", "Name one: --lan ADDRESS", 2)
    raise Problem("This machine is in no local network.", "Join the Wi-Fi or open a hotspot, then once more", 2)


def is_ours(address: str) -> bool:
    """Tell whether this machine has the address at this moment; 127.0.0.2 and its like will do for a rehearsal."""
    if not ipaddress.IPv4Address(address).is_loopback:
        # an interface's, since broadcast and multicast addresses can be bound, too
        return any(address == found.address for all_of_it in psutil.net_if_addrs().values() for found in all_of_it)
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind((address, 0))
        return True
    return False


def _shown(known: dict[str, str]) -> str:
    return ", ".join(f"{each} ({name})" for each, name in known.items()) or "none"


def checked(wanted: str) -> str:
    """Return the address, if it is one of ours that can be opened. Raises: Problem."""
    try:
        found = ipaddress.IPv4Address(wanted)
    except ValueError:
        raise Problem(f"{wanted[:100]!r} is no IPv4 address.", f"This machine has {_shown(addresses())}", 2) from None
    # 0.0.0.0 is every address, and 127.0.0.1 is open already
    if found.is_unspecified or found == ipaddress.IPv4Address("127.0.0.1") or not is_ours(wanted):
        cure = f"Name one that it has with --lan: {_shown(addresses())}"
        raise Problem(f"{wanted} is no address of this machine in a local network.", cure, 2)
    return wanted
