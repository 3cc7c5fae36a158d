"""Opens the edge on one address of the local network, proves that it answers there, and closes it again.

Only the edge is started anew; the server runs on. `stack up` keeps what is open, `stack down` forgets it.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
from pathlib import Path

import httpx2

from slipway import compose, edge, processes, stack
from slipway.errors import Problem
from slipway.lan import network, note
from slipway.lan.note import Lan
from slipway.settings import Settings

PATIENCE = 20.0  # seconds that a new certificate and a new container may take


def open_(config: Settings, address: str) -> Lan:
    """Let the edge answer on this address, too. Once open there, a second time changes nothing.

    Args:
        config: the settings of the running stack.
        address: what `network.address()` returned.
    Returns: what is open; its url and fingerprint are for `trust.trust_text`.
    Raises:
        Problem: nothing runs, the port is taken there, or no good answer comes from it; then it is closed again.
    """
    network.checked(address)
    edge.check(config)
    with stack.alone():
        state = stack.ROOT / config.state
        lan, before = Lan(address, config.tls_port, _fingerprint(config)), note.read(state)
        if lan == before and _answers(config, lan):
            return lan
        if before is None or before.address != address:
            stack.free(address, "TLS_PORT", lan.port)
        note.write(state, lan)
        try:
            if not stack.restart_edge(config):
                raise Problem("Server and edge were started by something else.", "End it, then: ./scripts/up")
            if not processes.until(lambda: _answers(config, lan), PATIENCE):
                verify(config, lan)
        except BaseException:
            with contextlib.suppress(Problem):
                _shut(config)
            raise
        return lan


def close(config: Settings) -> bool:
    """Leave the local network: the edge answers on loopback only. Returns: whether it was open."""
    state = stack.ROOT / config.state
    with stack.alone():
        lan = note.read(state)
        if lan is None:
            return False
        _shut(config)
    if not processes.until(lambda: not _listens(lan), PATIENCE):
        raise Problem(f"{lan.address}:{lan.port} still answers.", "Stop all of it: ./scripts/down")
    return True


def _shut(config: Settings) -> None:
    note.write(stack.ROOT / config.state, None)
    stack.restart_edge(config)


def warnings(lan: Lan) -> list[str]:
    """Return what the operator should know about who else can reach us there, a sentence each."""
    told = []
    if lan.public:
        told.append(f"{lan.address} is an address of the internet: not only the room can reach it.")
    if compose.containers(stack.ROOT) and compose.routes_to_containers():
        told.append(
            "With a Docker Engine before 28, a neighbour who sends packets for a container's own address reaches the "
            "loopback ports, too (which ask for tokens; /metrics does not). Use a newer one, or ./scripts/up --local"
        )
    return told


def verify(config: Settings, lan: Lan) -> None:
    """Ask over TLS for /healthz at the address, trusting the local authority alone.

    Raises:
        Problem: what came instead.
    """
    try:
        trust = ssl.create_default_context(cafile=str(_authority(config)))
        # a proxy from the environment has no business in the local network
        with httpx2.Client(verify=trust, trust_env=False, timeout=5) as client:
            answer = client.get(f"{lan.url}/healthz", headers={"user-agent": edge.USER_AGENT})
    except (httpx2.HTTPError, OSError) as error:
        text = str(error) or type(error).__name__
        cure = "See what the edge says: docker compose logs caddy, or .slipway/log/stack.log"
        raise Problem(f"{lan.url} does not answer: {text[:200]}.", cure, 5) from None
    if answer.status_code != 200 or "x-request-id" not in answer.headers:
        raise Problem(f"{lan.url} answers {answer.status_code} instead of our edge.", "Start it: ./scripts/up", 5)


def _answers(config: Settings, lan: Lan) -> bool:
    try:
        verify(config, lan)
    except Problem:
        return False
    return True


def _authority(config: Settings) -> Path:
    return edge.ca_file(config, stack.ROOT)


def _fingerprint(config: Settings) -> str:
    try:
        der = ssl.PEM_cert_to_DER_cert(_authority(config).read_text(encoding="ascii"))
    except (OSError, ValueError):
        cure = "Start the edge once, it makes its authority: ./scripts/up"
        raise Problem(f"The local authority's certificate {_authority(config)} cannot be read.", cure, 4) from None
    return hashlib.sha256(der).digest().hex(":").upper()


def _listens(lan: Lan) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((lan.address, lan.port)) == 0
