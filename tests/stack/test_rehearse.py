"""scripts/lab and scripts/rehearse as an instructor uses them, against a stack that was started by the scripts."""

from __future__ import annotations

import json
import re
import ssl
import stat
import subprocess
from pathlib import Path

import httpx2
import pytest

from slipway import edge, settings
from slipway.lan import network
from tests.conftest import clean_environment

pytestmark = pytest.mark.slow


def run(checkout: Path, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts" / words[0], *words[1:]], cwd=checkout, env=clean_environment(checkout), input=typed,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def start(checkout: Path) -> None:
    done = subprocess.run(
        [checkout / ".venv/bin/python", "-m", "slipway.stack", "up", "--local"], cwd=checkout,
        env=clean_environment(checkout), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_lab_is_opened_shown_changed_and_ended_by_commands(checkout: Path) -> None:
    start(checkout)
    (checkout / "names.csv").write_text("name\nAna\nBen\n")
    assert "There is no lab" in run(checkout, "lab", "list").stderr
    opened = run(checkout, "lab", "new", "MCP 101", "--roster", "names.csv", "--for", "1h", "--labs", "01,03")
    assert opened.returncode == 0, opened.stderr
    assert "MCP 101, 2 seats, until " in opened.stdout
    assert "/join?code=" in opened.stdout and "█" in opened.stdout, "a QR code for the projector"
    assert "/board#key=" in opened.stdout
    assert "There is a lab already: MCP 101" in run(checkout, "lab", "new", "Other").stderr
    listed = run(checkout, "lab", "list").stdout
    assert "Ana" in listed and "free" in listed and "0/" in listed
    cards = run(checkout, "lab", "cards")
    assert cards.returncode == 0, cards.stderr
    file = checkout / ".slipway" / "lab" / "cards.html"
    codes = [card["code"] for card in json.loads(run(checkout, "lab", "cards", "--json").stdout)["cards"]]
    assert all(code in file.read_text() for code in codes)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "nobody new gets in" in run(checkout, "lab", "lock").stdout
    assert "join again" in run(checkout, "lab", "unlock").stdout
    assert "goes on until" in run(checkout, "lab", "extend", "1h").stdout
    reset = run(checkout, "lab", "reset", "1").stdout
    assert "seat 1 of Ana" in reset and "its new code" in reset
    assert "There is no seat 9" in run(checkout, "lab", "revoke", "9").stderr
    ended = run(checkout, "lab", "end", "--yes")
    assert "0 of 2 seats" in ended.stdout, ended.stderr
    assert not file.exists(), "codes that open nothing are not left lying about"
    (summary,) = (checkout / ".slipway" / "lab").glob("*-mcp-101.json")
    assert json.loads(summary.read_text())["seats"] == 2
    assert "Ana" not in summary.read_text()
    assert "There is no lab" in run(checkout, "lab", "end").stderr


def test_a_lab_without_a_tunnel_is_open_in_the_local_network_until_it_ends(checkout: Path) -> None:
    start(checkout)
    wrong = run(checkout, "lab", "new", "Offline", "--lan", "203.0.113.7")
    assert wrong.returncode and "203.0.113.7" in wrong.stderr
    assert "There is no lab" in run(checkout, "lab", "list").stderr
    opened = run(checkout, "lab", "new", "Offline", "--lan", "--seats", "2")
    assert opened.returncode == 0, opened.stderr
    address = next(iter(network.addresses()))
    assert "/join/ca.crt" in opened.stdout and "NODE_EXTRA_CA_CERTS" in opened.stdout
    config = settings.load({}, checkout / ".env")
    url, code = f"https://{address}:{config.tls_port}", opened.stdout.rsplit("?code=", 1)[1].strip()
    assert f"{url}/join" in opened.stdout
    assert "There is a lab already: Offline" in run(checkout, "lab", "new", "Offline").stderr
    assert run(checkout, "down").returncode == 0
    start(checkout)
    again = run(checkout, "lab", "new", "Offline", "--lan")
    assert "it was there already" in again.stdout, again.stderr
    assert again.stdout.rsplit("?code=", 1)[1].strip() == code
    trust = ssl.create_default_context(cafile=str(edge.ca_file(config, checkout)))
    with httpx2.Client(verify=trust, trust_env=False, base_url=url) as client:
        page = client.get("/join", params={"code": code})
        csrf = re.search(r'name="csrf" value="(\w+)"', page.text)
        assert csrf and code in page.text
        joined = client.post("/join", data={"csrf": csrf[1], "code": code, "name": "Ana"})
        assert f"{url}/mcp" in joined.text
        assert client.get("/admin/lab").status_code == client.get("/board").status_code == 404
        listed = run(checkout, "lab", "list", "--json").stdout
        assert json.loads(listed)["lab"]["budget"]["plan"] == "none", "the local network costs nothing"
        ended = run(checkout, "lab", "end", "--yes")
        assert "loopback only" in ended.stderr
        with pytest.raises(httpx2.ConnectError):
            client.get("/healthz")


def test_thirty_seats_rehearse_a_lab_with_every_fault_and_a_server_that_is_killed(checkout: Path) -> None:
    start(checkout)
    done = run(checkout, "rehearse", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["seats"], told["failed"], told["summary"]["joined"]) == (30, 0, 30)
    assert len(told["steps"]) >= 14
    assert told["summary"]["calls"] > 400
    assert "There is no lab" in run(checkout, "lab", "list").stderr


def test_a_rehearsal_fails_where_the_room_would(checkout: Path) -> None:
    caddyfile = checkout / "Caddyfile"
    text = caddyfile.read_text()
    assert "log_append refused origin" in text
    caddyfile.write_text(text.replace("log_append refused origin", "log_append refused_as origin"))
    start(checkout)
    done = run(checkout, "rehearse", "--seats", "2", "--no-kill")
    assert done.returncode == 1, done.stderr
    assert "✗ the board says: a page of a wrong origin" in done.stderr
    assert "✓ the board says: a wrong URL" in done.stderr
    assert "1 steps were not as they should be" in done.stdout
    assert "Traceback" not in done.stderr
