"""The import table of the design: which room may know which."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = ROOT / "slipway"
ROOMS = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts): path
    for path in HOUSE.rglob("*.py") if path.stem != "__init__"
}  # fmt: skip

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "commandline": {"knocks"},
    "venv": set(),
    "settings": {"errors"},
    "tokens": {"errors"},
    "clients": {"errors"},
    "ngrok_errors": {"errors"},
    "processes": {"files"},
    "knocks": set(),
    "sessions": set(),
    "streams": set(),
    "leaving": set(),
    "guards": {"knocks"},
    "metrics": {"knocks"},
    "telemetry": {"knocks", "metrics", "traces"},
    "traces": {"knocks"},
    "connections": set(),
    "counting": {"connections"},
    "limits": {"counting"},
    "calls": {"knocks", "limits", "metrics"},
    "listing": {"calls", "knocks"},
    "audit": {"guards", "knocks", "metrics", "sessions"},
    "events": set(),
    "files": set(),
    "store": {"connections", "errors", "files"},
    "identity.records": {"tokens"},
    "identity.ledger": {"identity.records", "store", "tokens"},
    "identity.throttle": {"connections", "counting"},
    "identity.invites": {"identity.throttle", "store", "tokens"},
    "identity.admin": {
        "errors",
        "guards",
        "identity.invites",
        "knocks",
        "identity.ledger",
        "identity.records",
        "tokens",
    },
    "identity.redirects": set(),
    "identity.grants": {"identity.ledger", "store"},
    "identity.programs": {"identity.grants", "identity.redirects", "identity.throttle"},
    "identity.endpoints": {"identity.programs", "identity.throttle"},
    "identity.oauth": {
        "identity.endpoints",
        "identity.grants",
        "identity.verifier",
        "identity.programs",
        "identity.redirects",
        "tokens",
    },
    "identity.admission": {"identity.invites", "identity.names", "store"},
    "identity.pages": {"knocks", "tokens"},
    "identity.names": {"identity.grants", "identity.ledger"},
    "lab.seats": {
        "errors",
        "identity.admission",
        "identity.grants",
        "identity.invites",
        "identity.ledger",
        "identity.names",
        "store",
    },
    "lab.checkpoints": {"errors", "knocks"},
    "lab.board": {"knocks", "lab.checkpoints", "lab.reasons", "lab.seats"},
    "lab.reasons": {"knocks"},
    "lab.budget": {"lab.seats"},
    "lab.feed": {
        "events",
        "identity.ledger",
        "knocks",
        "lab.board",
        "lab.budget",
        "lab.checkpoints",
        "lab.seats",
        "store",
    },
    "lab.command": {
        "commandline",
        "edge",
        "errors",
        "files",
        "knocks",
        "lab.cards",
        "lab.checkpoints",
        "lab.watch",
        "lan.door",
        "lan.network",
        "lan.trust",
        "operator",
        "settings",
        "tokens",
    },
    "lab.routes": {
        "errors",
        "events",
        "guards",
        "identity.admin",
        "identity.pages",
        "lab.board",
        "lab.checkpoints",
        "lab.feed",
        "lab.seats",
        "tokens",
    },
    "identity.consent": {
        "knocks",
        "identity.admission",
        "identity.endpoints",
        "identity.grants",
        "identity.verifier",
        "identity.oauth",
        "identity.pages",
    },
    "identity.join": {
        "knocks",
        "events",
        "clients",
        "identity.admission",
        "identity.endpoints",
        "identity.grants",
        "identity.invites",
        "identity.ledger",
        "identity.pages",
        "lan.note",
        "lan.trust",
        "tokens",
    },
    "operator": {"commandline", "errors", "knocks", "settings", "tokens"},
    "identity.verifier": {"knocks", "identity.ledger", "listing", "store", "tokens"},
    "lab.cards": {"errors", "knocks"},
    "lab.drawing": {"knocks"},
    "lab.watch": {"knocks", "lab.drawing"},
    "app": {
        "identity.admin",
        "identity.admission",
        "lab.budget",
        "lab.feed",
        "lab.routes",
        "lab.seats",
        "audit",
        "calls",
        "files",
        "identity.consent",
        "identity.grants",
        "guards",
        "limits",
        "identity.verifier",
        "identity.invites",
        "identity.join",
        "knocks",
        "lan.note",
        "identity.ledger",
        "identity.names",
        "identity.oauth",
        "identity.pages",
        "listing",
        "metrics",
        "sessions",
        "settings",
        "store",
        "streams",
        "telemetry",
        "tokens",
    },
    "targets": {"errors"},
    "packages": {"errors", "targets"},
    "proxy.line": {"knocks"},
    "proxy.relay": {"knocks", "proxy.line"},
    "proxy.upstreams": {"proxy.line", "proxy.relay"},
    "proxy.children": {"errors", "knocks", "proxy.line", "proxy.relay", "targets", "proxy.upstreams"},
    "proxy.remote": {"errors", "knocks", "proxy.line", "proxy.relay", "targets", "telemetry", "proxy.upstreams"},
    "proxy.loading": {"proxy.children", "errors", "proxy.remote", "targets", "proxy.upstreams"},
    "serving": {
        "app",
        "errors",
        "knocks",
        "leaving",
        "packages",
        "proxy.loading",
        "settings",
        "store",
        "streams",
        "targets",
        "tokens",
    },
    "lan.note": {"files"},
    "lan.network": {"errors"},
    "lan.trust": set(),
    "lan.door": {"compose", "edge", "errors", "lan.network", "lan.note", "processes", "settings", "stack"},
    "compose": {"errors", "files", "lan.note", "packages", "processes", "settings", "targets"},
    "edge": {"errors", "knocks", "ngrok_errors", "settings"},
    "doctor.wire": set(),
    "doctor.hops": {"doctor.wire"},
    "doctor.checks": {"doctor.hops"},
    "doctor.transport": {"doctor.checks", "doctor.hops", "doctor.wire", "ngrok_errors"},
    "doctor.access": {"doctor.checks", "doctor.hops", "doctor.wire"},
    "doctor.protocol": {"doctor.checks", "doctor.hops", "doctor.wire"},
    "doctor.cors": {"doctor.checks", "doctor.hops", "doctor.wire"},
    "doctor.streams": {"doctor.checks", "doctor.hops", "doctor.wire"},
    "doctor.verdicts": {"clients", "doctor.hops"},
    "doctor.examine": {
        "doctor.access",
        "doctor.checks",
        "doctor.cors",
        "doctor.hops",
        "doctor.protocol",
        "doctor.streams",
        "doctor.transport",
        "doctor.verdicts",
        "edge",
        "errors",
        "settings",
        "tokens",
    },
    "doctor.report": {
        "clients",
        "commandline",
        "doctor.checks",
        "doctor.examine",
        "doctor.hops",
        "errors",
        "files",
        "settings",
        "tokens",
    },
    "doctor.__main__": {"commandline", "doctor.examine", "doctor.report", "errors", "settings", "tokens"},
    "handout": {"clients", "tokens"},
    "tunnels": {"ngrok_errors", "processes"},
    "opening": {"edge", "errors", "files", "processes", "settings", "tunnels"},
    "supervisor": {"processes"},
    "stack": {
        "compose",
        "errors",
        "lan.network",
        "lan.note",
        "packages",
        "processes",
        "settings",
        "targets",
        "tokens",
        "tunnels",
    },
    "mint": {"commandline", "errors", "settings", "tokens"},
    "trail": {"commandline", "errors", "knocks", "settings", "tokens"},
}
SERVER_SIDE = {
    "calls",
    "limits",
    "listing",
    "app",
    "proxy.children",
    "identity.consent",
    "identity.endpoints",
    "identity.programs",
    "identity.verifier",
    "identity.oauth",
    "identity.redirects",
    "proxy.loading",
    "proxy.line",
    "proxy.relay",
    "serving",
    "proxy.remote",
    "proxy.upstreams",
}
# a room past 250 lines is split by noun, or has a reason
LONG = {
    "app": "the one list of what the served app is made of",
    "clients": "33 clients, a row each",
    "compose": "every way in which Docker can be missing, with its cure",
    "doctor.hops": "the answers that checks share, asked once a hop",
    "doctor.transport": "twelve checks of the way to the server",
    "identity.ledger": "one record and all that may be done to it, under one lock",
    "knocks": "one record: written, rotated, read back, shown; the writer and the reader must agree",
    "lab.command": "ten verbs of one command",
    "lab.drawing": "what a board knows and how it is drawn; no second reader",
    "lab.feed": "one task that reads both logs and tells everyone who watches",
    "lab.seats": "one record and all that may be done to it, under one lock",
    "limits": "the same counts twice, in this process and in Redis",
    "operator": "two commands on one connection to /admin",
    "proxy.loading": "four kinds of target, and the errors of each",
    "serving": "one process from start to end: signals, reload and the end are one order of events",
    "settings": "forty settings, a row each",
    "stack": "start and stop, each with and without Docker",
    "store": "one interface over files and Redis, and what each does when it fails",
    "targets": "four kinds of target, and what each refuses",
    "tokens": "make, verify and explain are held to one list of rules",
    "tunnels": "one agent from start to end: every way in which it can go",
}
READS_THE_ENVIRONMENT = {
    "compose",
    "doctor.__main__",
    "doctor.transport",
    "lab.command",
    "mint",
    "operator",
    "serving",
    "stack",
    "trail",
    "tunnels",
}


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports."""
    names: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            names |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and item.module:
            names |= {item.module, *(f"{item.module}.{alias.name}" for alias in item.names)}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    used = {
        other for name in imported(ROOMS[room]) for other in ROOMS
        if f"{name}.".startswith(f"slipway.{other}.")
    }  # fmt: skip
    assert used <= MAY_IMPORT[room]


@pytest.mark.parametrize("room", sorted(set(ROOMS) - SERVER_SIDE))
def test_fastmcp_stays_on_the_server_side(room: str) -> None:
    assert not [name for name in imported(ROOMS[room]) if name.split(".")[0] in ("fastmcp", "mcp", "mcp_types")]


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"tunnels"}))
def test_only_tunnels_knows_pyngrok(room: str) -> None:
    assert not [name for name in imported(ROOMS[room]) if name.startswith("pyngrok")]


@pytest.mark.parametrize("room", sorted(set(ROOMS) - READS_THE_ENVIRONMENT))
def test_settings_enter_at_the_door(room: str) -> None:
    tree = ast.parse(ROOMS[room].read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "environ"]


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_door_plate_and_no_buffering_middleware(room: str) -> None:
    text = ROOMS[room].read_text()
    assert ast.get_docstring(ast.parse(text))
    assert "BaseHTTPMiddleware" not in text
    assert len(text.splitlines()) <= (400 if room in LONG else 250)


def test_nobody_imports_an_entry_point() -> None:
    for path in ROOMS.values():
        assert not {"server", "tunnel"} & {name.split(".")[0] for name in imported(path)}


def test_no_file_names_a_registry_or_a_path_of_a_machine() -> None:
    hosts = [
        "py" + "pi.org",
        "python" + "hosted.org",
        "registry.npm" + "js.org",
        "deb.deb" + "ian.org",
        "/work" + "/main",
    ]
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in listed or [str(path.relative_to(ROOT)) for path in ROOMS.values()]:
        path = ROOT / name
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not [host for host in hosts if host in text], name
