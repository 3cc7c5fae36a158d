"""How the tunnel behaves when agent, machine or program misbehave; test_tunnel.py has the ordinary ways."""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import psutil
import pytest
import yaml
from pydantic import SecretStr
from pyngrok import installer

from slipway import opening, settings, tunnels
from slipway.ngrok_errors import TunnelError
from slipway.tunnels import Tunnel, TunnelOptions, open_tunnel
from tests.conftest import AUTHTOKEN as TOKEN
from tests.conftest import ROOT, wait_until

pytestmark = pytest.mark.slow

Make = Callable[..., TunnelOptions]


class Said(list[tuple[str, str]]):
    """The events of a tunnel."""

    def __call__(self, kind: str, message: str) -> None:
        self.append((kind, message))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self]


@pytest.fixture
def make(account: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make options in the stand-in's environment; no agent may outlive the test."""
    for name, value in account.items():
        monkeypatch.setenv(name, value)

    def options(upstream: str = "http://127.0.0.1:9", fault: str = "", **more: object) -> TunnelOptions:
        monkeypatch.setenv("STANDIN_FAULT", fault)
        given = {"authtoken": TOKEN, "ngrok_path": account["PYNGROK_NGROK_PATH"], "startup_timeout": 20} | more
        return TunnelOptions(upstream=upstream, config_dir=tmp_path / "conf", **given)

    yield options
    left = agents(tmp_path)
    tunnels.end_agents(tmp_path / "conf")
    assert not left


def agents(folder: Path, conf: str = "conf") -> list[psutil.Process]:
    """Return the agents that run with the configuration in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if "--none" in line and str(folder / conf / "ngrok.yml") in line:
            found.append(process)
    return found


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was asked; /events sends its second event when told to."""

    protocol_version = "HTTP/1.1"
    go_on = threading.Event()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.path == "/events":
            self.wfile.write(b"data: 1\n\n")
            assert self.go_on.wait(20)
            self.wfile.write(b"data: 2\n\n")
        else:
            self.wfile.write(str(self.headers).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[str]:
    """A small HTTP server."""
    Echo.go_on.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Echo.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


def visit(url: str, **headers: str) -> httpx2.Response:
    trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    with httpx2.Client(timeout=10, verify=trust) as client:
        return client.get(url, headers=headers)


# --- the way of a request


def test_an_event_arrives_while_its_stream_is_still_open(make: Make, upstream: str) -> None:
    trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    with (
        open_tunnel(make(upstream), Said()) as tunnel,
        httpx2.Client(timeout=10, verify=trust) as client,
        client.stream("GET", tunnel.public_url + "/events") as answer,
    ):
        chunks = answer.iter_bytes()
        assert next(chunks) == b"data: 1\n\n"
        Echo.go_on.set()
        assert next(chunks) == b"data: 2\n\n"


def test_the_server_sees_the_public_host_and_who_asked(make: Make, upstream: str) -> None:
    with open_tunnel(make(upstream), Said()) as tunnel:
        seen = visit(tunnel.public_url, **{"x-forwarded-for": "198.51.100.7"}).text.lower()
    assert f"host: {tunnel.public_url.removeprefix('https://')}" in seen
    assert "x-forwarded-for: 198.51.100.7, 127.0.0.1" in seen
    assert "x-forwarded-proto: https" in seen


def test_a_server_that_is_down_is_told_apart_from_a_tunnel_that_is(make: Make) -> None:
    with open_tunnel(make("http://127.0.0.1:9"), Said()) as tunnel:
        answer = visit(tunnel.public_url)
    assert (answer.status_code, answer.headers["ngrok-error-code"]) == (502, "ERR_NGROK_8012")


# --- secrets

DRIVER = """
import sys
from pathlib import Path
from slipway import ngrok_errors, tunnels
token, folder, agent = sys.argv[1:]
options = tunnels.TunnelOptions(upstream="http://127.0.0.1:9", authtoken=token, config_dir=Path(folder), ngrok_path=agent)
try:
    tunnels.Tunnel(options, print).open()
except ngrok_errors.TunnelError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("token", "code"), [("tiny%SECRET", 21), ("revoked_0123456789SECRET", 22)])
def test_a_token_that_ngrok_echoes_reaches_no_stream(
    account: dict[str, str], tmp_path: Path, token: str, code: int
) -> None:
    command = [sys.executable, "-c", DRIVER, token, str(tmp_path / "conf"), account["PYNGROK_NGROK_PATH"]]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **account}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code, done.stderr
    assert "SECRET" not in done.stdout + done.stderr


def test_a_token_that_ngrok_echoes_reaches_no_log(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(TunnelError), open_tunnel(make(authtoken="revoked_0123456789SECRET"), Said()):
        pass
    assert "ERR_NGROK_107" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_configuration_that_others_could_read_is_closed_to_them(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "conf" / "ngrok.yml"
    path.parent.mkdir(mode=0o755)
    path.touch(mode=0o644)
    with open_tunnel(make(), Said()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# --- strangers


def test_a_program_that_has_our_configuration_open_is_no_agent_of_ours(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "conf" / "ngrok.yml"
    command = [sys.executable, "-c", "input()", str(path)]  # as an editor would be
    with subprocess.Popen(command, stdin=subprocess.PIPE) as editor:
        with open_tunnel(make(), Said()):
            pass
        assert editor.poll() is None
        editor.communicate(b"\n")


# --- an agent that fails later


def test_an_agent_that_ends_right_after_opening_is_brought_back(make: Make, upstream: str) -> None:
    said = Said()
    with open_tunnel(make(upstream, fault="exit-after-open"), said) as tunnel:
        wait_until(lambda: "back" in said.kinds(), 15, f"the return: {said}")
        assert visit(tunnel.public_url).status_code == 200


def test_an_agent_comes_back_though_its_port_was_taken_meanwhile(make: Make, tmp_path: Path) -> None:
    said, squatter = Said(), socket.socket()

    def on_event(kind: str, message: str) -> None:
        if kind == "died":  # before the agent is started again
            address = yaml.safe_load((tmp_path / "conf" / "ngrok.yml").read_text())["agent"]["web_addr"]
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", int(address.rpartition(":")[2])))
            squatter.listen()
        said(kind, message)

    with squatter, open_tunnel(make(), on_event):
        agents(tmp_path)[0].kill()
        wait_until(lambda: "back" in said.kinds(), 15, f"the return: {said}")


def test_a_new_url_is_said_with_the_old_one(make: Make, account: dict[str, str], tmp_path: Path) -> None:
    said = Said()
    with open_tunnel(make(), said) as tunnel:
        before = tunnel.public_url
        # another address for the account
        (Path(account["STANDIN_STATE"]) / "edge_port").unlink()
        agents(tmp_path)[0].kill()
        wait_until(lambda: "moved" in said.kinds(), 15, f"the move: {said}")
        assert tunnel.public_url != before
        assert before in said[-1][1]
        assert tunnel.public_url in said[-1][1]


def test_the_server_learns_of_a_new_url(make: Make, account: dict[str, str], tmp_path: Path) -> None:
    make()
    config = settings.Settings(ngrok_authtoken=SecretStr(TOKEN))
    (tmp_path / config.state / "run").mkdir(parents=True)
    said: list[str] = []
    with opening.opened(config, tmp_path, url="", public=True, say=said.append) as door:
        known = tmp_path / config.public_url_file
        assert known.read_text().strip() + "/mcp" == door.url
        (Path(account["STANDIN_STATE"]) / "edge_port").unlink()
        agents(tmp_path / config.state, "ngrok")[0].kill()
        wait_until(lambda: any("moved" in line for line in said), 15, f"the move: {said}")
        assert known.read_text().strip() + "/mcp" != door.url
        assert known.read_text().strip() in said[-1]


def test_an_agent_that_hangs_is_replaced(
    make: Make, upstream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "_PULSE", 0.2, raising=False)
    monkeypatch.setattr(tunnels, "_ANSWER", 0.3, raising=False)
    said = Said()
    with open_tunnel(make(upstream), said) as tunnel:
        agents(tmp_path)[0].send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: "back" in said.kinds(), 20, f"the return: {said}")
            assert visit(tunnel.public_url).status_code == 200
        finally:
            for agent in agents(tmp_path):
                agent.send_signal(signal.SIGCONT)


def test_a_listener_that_fails_does_not_end_the_watch(make: Make, tmp_path: Path) -> None:
    said = Said()

    def on_event(kind: str, message: str) -> None:
        said(kind, message)
        raise BrokenPipeError("the terminal is gone")

    with open_tunnel(make(), on_event):
        agents(tmp_path)[0].kill()
        wait_until(lambda: said.kinds() == ["died", "back"], 15, f"the return: {said}")
        agents(tmp_path)[0].send_signal(signal.SIGUSR1)
        wait_until(lambda: said.kinds() == ["died", "back", "dropped", "back"], 15, f"drop and return: {said}")


def test_closing_while_the_agent_is_brought_back_leaves_none(make: Make, tmp_path: Path) -> None:
    for _ in range(4):  # the moment differs a little every time
        reopening = threading.Event()
        with open_tunnel(make(), lambda *_, told=reopening: told.set()):
            agents(tmp_path)[0].kill()
            assert reopening.wait(10)
        assert not agents(tmp_path)


# --- the first run


def test_stdout_stays_the_product_while_the_agent_starts(make: Make, tmp_path: Path) -> None:
    own = sys.stdout
    tunnel = Tunnel(make(fault="silent", startup_timeout=1), Said())

    def opening_in_vain() -> None:
        with pytest.raises(TunnelError):
            tunnel.open()

    thread = threading.Thread(target=opening_in_vain)
    thread.start()
    wait_until(lambda: agents(tmp_path), 15, "the start of the agent")
    during = sys.stdout
    tunnel.close()
    thread.join()
    assert during is own


def test_a_download_may_take_longer_than_the_agent(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tunnels, "_PATIENCE", 0.1)
    never = threading.Event()

    def slow(*_: object, **__: object) -> None:
        never.wait(2)  # the slow network is the fault here
        raise TimeoutError("timed out")

    monkeypatch.setattr(installer, "urlopen", slow)
    given = make(ngrok_path=str(tmp_path / "none" / "ngrok"), startup_timeout=1)
    with pytest.raises(TunnelError) as caught, open_tunnel(given, Said()):
        pass
    assert caught.value.exit_code == 38
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "Downloading ngrok" in streams.err
