"""The edge on another address of this machine: its certificate, its page, and nothing else that is reachable there."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shlex
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import psutil
import pytest
from fastmcp import Client

from slipway import processes
from slipway.lan import note, trust
from slipway.lan.note import Lan
from tests import node_clients
from tests.conftest import ROOT, Stack, clean_environment, program, wait_until
from tests.stack.test_oauth import CALLBACK, Browser, _closed, invite, name
from tests.test_admin import status

pytestmark = pytest.mark.slow
__all__ = ["_closed"]

ADDRESS = "127.0.0.2"


def opened(folder: Path, caddyfile: str | None = None) -> Stack:
    """Start a stack as it is after door.open_."""
    stack = Stack(folder, caddyfile=caddyfile)
    note.ensure(stack.config.state)
    note.write(stack.config.state, Lan(ADDRESS, stack.config.tls_port, "AB:CD"))
    return stack.start()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = opened(tmp_path_factory.mktemp("lan"))
    yield running
    running.stop()


def base(stack: Stack) -> str:
    return f"https://{ADDRESS}:{stack.config.tls_port}"


def person(stack: Stack, **how: str) -> Browser:
    """A person in the room, at an address of their own."""
    browser = Browser(stack, **how)
    browser.http.base_url = base(stack)
    return browser


def joined(browser: Browser, code: str, who: str = "", **headers: str) -> httpx2.Response:
    csrf = re.search(r'name="csrf" value="(\w+)"', browser.http.get("/join").text)
    assert csrf
    return browser.http.post("/join", data={"csrf": csrf[1], "code": code, "name": who or name()}, headers=headers)


def reachable(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex((address, port)) == 0


def test_who_connects_to_the_address_gets_a_certificate_for_it_without_naming_it(stack: Stack) -> None:
    with socket.create_connection((ADDRESS, stack.config.tls_port)) as plain:
        trusting = stack.trust()
        trusting.check_hostname = False
        with trusting.wrap_socket(plain) as secured:  # no server_hostname: no SNI
            names = secured.getpeercert()["subjectAltName"]  # type: ignore[index]
    assert names == (("IP Address", ADDRESS),)
    with httpx2.Client(verify=stack.trust()) as client:
        assert client.get(f"{base(stack)}/healthz").text == "ok\n"
        assert client.get(f"https://localhost:{stack.config.tls_port}/healthz").text == "ok\n"


def test_the_authority_is_fetched_there_and_only_there(stack: Stack) -> None:
    with httpx2.Client(verify=False) as client:  # whoever fetches it has nothing to verify with
        answer = client.get(f"{base(stack)}{trust.PATH}")
        assert answer.text.strip() == stack.ca_file.read_text().strip()
        assert "PRIVATE" not in answer.text
        assert answer.headers["content-type"] == "application/x-x509-ca-cert"
        for path in ("/join/root.key", "/join/ca.crt/", "/JOIN/ca.crt", "//join/ca.crt"):
            assert client.get(httpx2.URL(base(stack), raw_path=path.encode())).status_code == 404, path
        local = f"https://localhost:{stack.config.tls_port}{trust.PATH}"
        assert client.get(local).status_code == 404


def test_no_other_port_and_no_hidden_path_is_reachable_there(stack: Stack) -> None:
    config = stack.config
    assert reachable(ADDRESS, config.tls_port)
    for port in (config.server_port, config.edge_port, config.console_port):
        assert reachable("127.0.0.1", port)
        assert not reachable(ADDRESS, port)
    assert not reachable("127.0.0.3", config.tls_port), "it is bound to more than the one address"
    forged: list[dict[str, str]] = [{}, {"x-forwarded-for": "127.0.0.1"}, {"forwarded": "for=127.0.0.1"}]
    token = {"authorization": stack.bearer()["authorization"]}
    with httpx2.Client(verify=stack.trust()) as client:
        for path in (
            "/admin/tokens",
            "/admin",
            "/metrics",
            "/readyz",
            "/",
            "/frame.html",
            "/config/",
            "/pki/ca/local",
        ):
            for more in forged:
                assert client.get(f"{base(stack)}{path}", headers=token | more).status_code == 404, path


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "evil.example", "127.0.0.3"])
def test_no_other_name_is_answered_there(stack: Stack, host: str) -> None:
    with httpx2.Client(verify=stack.trust()) as client:
        answer = client.get(f"{base(stack)}/healthz", headers={"host": f"{host}:{stack.config.tls_port}"})
    assert answer.status_code == 421
    assert f"Use {base(stack)}/join" in answer.text


def test_on_loopback_the_address_is_no_name_of_ours(stack: Stack) -> None:
    with httpx2.Client(verify=stack.trust()) as client:
        local = f"https://localhost:{stack.config.tls_port}/healthz"
        assert client.get(local, headers={"host": ADDRESS}).status_code == 421


def test_an_edge_bound_to_everything_would_be_seen(tmp_path: Path) -> None:
    broken = opened(
        tmp_path, (ROOT / "Caddyfile").read_text().replace("bind {$LAN_BIND}", "bind 127.0.0.2 127.0.0.3")
    )
    try:
        assert reachable("127.0.0.3", broken.config.tls_port)
    finally:
        broken.stop()


def test_metadata_and_challenge_name_the_address(stack: Stack) -> None:
    with httpx2.Client(verify=stack.trust(), base_url=base(stack)) as client:
        assert client.get("/.well-known/oauth-protected-resource/mcp").json()["resource"] == f"{base(stack)}/mcp"
        server = client.get("/.well-known/oauth-authorization-server").json()
        assert server["authorization_endpoint"] == f"{base(stack)}/oauth/authorize"
        challenge = client.post("/mcp", json={}).headers["www-authenticate"]
        assert f'resource_metadata="{base(stack)}/' in challenge


def test_a_sign_in_stays_at_the_address(stack: Stack) -> None:
    browser = person(stack)
    browser.base = base(stack)
    client_id = browser.register(CALLBACK).json()["client_id"]
    begun, verifier = browser.authorize(client_id)
    back = browser.consent(begun.headers["location"], invite(stack), name())
    told = parse_qs(urlsplit(back.headers["location"]).query)
    assert told["iss"] == [base(stack)]
    answer = browser.token(
        grant_type="authorization_code", code=told["code"][0], client_id=client_id, redirect_uri=CALLBACK,
        code_verifier=verifier, resource=f"{base(stack)}/mcp",
    )  # fmt: skip
    assert status(stack, answer.json()["access_token"], f"{base(stack)}/mcp") == 200


def test_guesses_count_for_the_true_address_whatever_a_header_says(stack: Stack) -> None:
    def guess(here: str, said: str) -> int:
        return joined(person(stack, address=here), "ACDE-FGHJ", **{"x-forwarded-for": said}).status_code

    codes = [guess("127.9.9.9", f"10.0.0.{n}") for n in range(11)]
    assert codes == [400] * 10 + [429]
    assert guess("127.9.9.8", "127.9.9.9") == 400


def test_the_server_takes_the_name_back_at_once_and_runs_on(tmp_path: Path) -> None:
    running = opened(tmp_path)
    try:
        state, lan = running.config.state, note.read(running.config.state)
        with httpx2.Client(verify=running.trust(), base_url=base(running)) as client:
            assert client.get("/healthz").status_code == 200
            note.write(state, None)
            assert client.get("/healthz").status_code == 421
            note.write(state, lan)
            assert client.get("/healthz").status_code == 200
    finally:
        running.stop()


@pytest.fixture(scope="module")
def page(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The page of someone who joined, and the folder where they put the certificate."""
    browser, folder = Browser(stack), tmp_path_factory.mktemp("attendee")
    browser.http.base_url = base(stack)
    (folder / trust.FILE).write_text(browser.http.get(trust.PATH).text)
    answer = joined(browser, invite(stack))
    assert answer.status_code == 200
    return answer.text, folder


def configuration(page: str, title: str) -> str:
    found = re.search(rf"{re.escape(title)}</summary>.*?<pre[^>]*>(.*?)</pre>", page, re.S)
    assert found
    return html.unescape(found[1])


def test_the_page_leads_to_the_certificate_and_names_it_in_every_configuration(
    stack: Stack, page: tuple[str, Path]
) -> None:
    text, _ = page
    assert f'href="{trust.PATH}"' in text
    assert "AB:CD" in text
    assert html.escape(trust.trust_text(base(stack), "AB:CD")) in text
    assert f"NODE_EXTRA_CA_CERTS={trust.FILE}" in text
    local = joined(Browser(stack), invite(stack)).text
    assert trust.FILE not in local


def test_printed_programs_run_with_the_certificate_beside_them(stack: Stack, page: tuple[str, Path]) -> None:
    text, folder = page
    done = subprocess.run(
        shlex.split(configuration(text, "curl")), cwd=folder, capture_output=True, text=True, timeout=30
    )
    assert '"whoami"' in done.stdout, done.stderr
    script = configuration(text, "Python, fastmcp")
    python = ROOT / ".venv" / "bin" / "python"
    done = subprocess.run([python, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60)
    assert "whoami" in done.stdout, done.stderr
    openssl = [program("openssl"), "x509", "-noout", "-fingerprint", "-sha256", "-in", trust.FILE]
    shown = subprocess.run(openssl, cwd=folder, capture_output=True, text=True, timeout=10).stdout
    der = ssl.PEM_cert_to_DER_cert(stack.ca_file.read_text())
    assert shown.strip().endswith(fingerprint(der))


def fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).digest().hex(":").upper()


@pytest.mark.node
def test_a_node_client_runs_with_the_certificate(stack: Stack, page: tuple[str, Path]) -> None:
    folder = node_clients.installed()
    ca = page[1] / trust.FILE
    done = node_clients.run(folder, "sdk.mjs", f"{base(stack)}/mcp", stack.token(), "newest", ca_file=ca)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sum"] == 5
    assert node_clients.run(folder, "sdk.mjs", f"{base(stack)}/mcp", stack.token(), "newest", ca_file="").returncode


# --- opened and closed in a running stack

DOOR = """
import os, sys
from slipway import settings, stack
from slipway.errors import command
from slipway.lan import door, network

def main(words):
    config = settings.load(os.environ, stack.ROOT / ".env")
    if words[0] == "close":
        print(door.close(config))
    else:
        lan = door.open_(config, network.address(words[1]))
        print(lan.url, lan.fingerprint)
    return 0

command(main)
"""


class Checkout:
    """A copy of the tree whose stack runs without Docker, as a user would run it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ports = dict(re.findall(r"(?m)^(\w+_PORT)=(\d+)$", (root / ".env.example").read_text()))
        self.tls = int(self.ports["TLS_PORT"])

    def run(self, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.root / ".venv" / "bin" / "python", *words], cwd=self.root, env=clean_environment(self.root),
            capture_output=True, text=True, timeout=150,
        )  # fmt: skip
        assert not ok or done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def stack(self, *words: str) -> str:
        return self.run("-m", "slipway.stack", *words).stderr

    def door(self, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("-c", DOOR, *words, ok=ok)

    @property
    def record(self) -> dict[str, Any]:
        return processes.read(self.root / ".slipway" / "run" / "stack.json")

    def server(self) -> int:
        edge = self.record["edge"]
        (pid,) = [int(who[0]) for who in self.record["children"] if who != edge]
        return pid

    def healthy(self, address: str) -> bool:
        ca = self.root / ".slipway" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        try:
            with httpx2.Client(verify=ssl.create_default_context(cafile=str(ca)), timeout=5) as client:
                return client.get(f"https://{address}:{self.tls}/healthz").text == "ok\n"
        except httpx2.HTTPError:
            return False


async def test_a_running_stack_is_opened_kept_and_closed_and_its_sessions_live(checkout: Path) -> None:
    mine = Checkout(checkout)
    told = mine.door("open", ADDRESS, ok=False)
    assert told.returncode
    assert "./scripts/up" in told.stderr, "nothing runs"
    mine.stack("up", "--local")
    server = mine.server()

    token = mine.run("-m", "slipway.mint", "--subject", "ana").stdout.strip()
    async with Client(f"http://127.0.0.1:{mine.ports['EDGE_PORT']}/mcp", auth=token, mode="legacy") as client:
        assert (await client.call_tool("add", {"a": 1, "b": 1})).data == 2
        with socket.socket() as taken:
            taken.bind((ADDRESS, mine.tls))
            taken.listen()
            told = mine.door("open", ADDRESS, ok=False)
        assert f"Port {mine.tls} on {ADDRESS} cannot be used" in told.stderr
        assert mine.healthy("localhost")

        url, shown = mine.door("open", ADDRESS).stdout.split()
        assert url == f"https://{ADDRESS}:{mine.tls}"
        assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", shown)
        assert mine.healthy(ADDRESS)
        assert mine.healthy("localhost")
        assert (await client.call_tool("add", {"a": 2, "b": 2})).data == 4
        edge = mine.record["edge"]
        mine.door("open", ADDRESS)
        assert f"the local network reaches the edge at {url}" in mine.stack("up", "--local")
        assert mine.record["edge"] == edge, "what is open already was started anew"

        assert mine.door("close").stdout == "True\n"
        assert not reachable(ADDRESS, mine.tls)
        assert mine.healthy("localhost")
        assert mine.door("close").stdout == "False\n"
        assert (await client.call_tool("add", {"a": 3, "b": 3})).data == 6
    assert mine.server() == server


def test_what_was_open_is_forgotten_by_down_and_in_another_network(checkout: Path) -> None:
    mine = Checkout(checkout)
    mine.stack("up", "--local")
    state = checkout / ".slipway"
    note.write(state, Lan("203.0.113.9", mine.tls, "AB"))
    assert "no longer 203.0.113.9" in mine.stack("up", "--local")
    assert note.read(state) is None
    mine.door("open", ADDRESS)
    edge = mine.record["edge"]
    psutil.Process(int(edge[0])).kill()
    wait_until(lambda: mine.record["edge"] != edge and mine.healthy(ADDRESS), 20, "the edge's return, still open")
    mine.stack("down")
    assert not reachable(ADDRESS, mine.tls)
    mine.stack("up", "--local")
    assert not reachable(ADDRESS, mine.tls)
