"""The public URL through unmodified pyngrok and an agent stand-in that really forwards: the whole of ./scripts/up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import psutil
import pytest
from fastmcp import Client

from slipway import tokens, tunnels
from slipway.ngrok_errors import ROWS, TunnelError
from slipway.tunnels import TunnelOptions, open_tunnel
from tests import ngrok_agent
from tests.conftest import AUTHTOKEN as TOKEN
from tests.conftest import Stack, clean_environment, wait_until
from tests.stack.test_streams import events, newest

pytestmark = pytest.mark.slow


Events = list[tuple[str, str]]
Opener = Callable[..., tuple[TunnelOptions, Events]]


@pytest.fixture
def options(
    account: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., TunnelOptions]]:
    """Make options in the stand-in's environment; whatever is left of its agents is ended."""
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    folders = []

    def make(
        upstream: str = "http://127.0.0.1:9", fault: str = "", folder: str = "conf", **more: object
    ) -> TunnelOptions:
        monkeypatch.setenv("STANDIN_FAULT", fault)
        folders.append(tmp_path / folder)
        given = {"authtoken": TOKEN, "ngrok_path": account["PYNGROK_NGROK_PATH"], "startup_timeout": 5} | more
        return TunnelOptions(upstream=upstream, config_dir=tmp_path / folder, **given)

    yield make
    for folder in folders:
        tunnels.end_agents(folder)


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def agents(account: dict[str, str]) -> list[psutil.Process]:
    agent = account["PYNGROK_NGROK_PATH"]
    return [p for p in psutil.process_iter() if agent in command_line(p) and "start" in command_line(p)]


def test_the_tunnel_forwards_and_leaves_nothing_behind(
    shared_stack: Stack, options: Callable[..., TunnelOptions], account: dict[str, str]
) -> None:
    upstream = shared_stack.edge_url.removesuffix("/mcp")
    with open_tunnel(options(upstream), lambda *_: None) as tunnel:
        with httpx2.Client(timeout=10) as client:
            assert client.get(tunnel.public_url + "/healthz").text == "ok\n"
        (agent,) = agents(account)
        assert TOKEN not in " ".join(agent.cmdline())
        config = Path(agent.cmdline()[agent.cmdline().index("--config") + 1])
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert not agents(account)


async def test_events_pass_the_tunnel_one_by_one_and_a_client_that_leaves_is_noticed(
    shared_stack: Stack, options: Callable[..., TunnelOptions]
) -> None:
    headers, call = newest(name="countdown", arguments={"n": 777, "seconds": 0.05})
    upstream = shared_stack.edge_url.removesuffix("/mcp")
    with open_tunnel(options(upstream), lambda *_: None) as tunnel:
        trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        async with (
            httpx2.AsyncClient(timeout=20, verify=trust) as http,
            http.stream(
                "POST", tunnel.public_url + "/mcp", headers=shared_stack.bearer() | headers, json=call
            ) as answer,
        ):
            seen = 0
            async for _, event in events(answer):
                seen += event.get("method") == "notifications/progress"
                if seen == 3:
                    break  # the tool has half a minute to go: what we hold was not buffered
        await asyncio.to_thread(wait_until, lambda: "countdown(777) was cancelled" in shared_stack.text("server"), 10)


@pytest.mark.parametrize(
    ("fault", "token", "code"),
    [
        ("", "", "ERR_NGROK_4018"), ("", "tiny", "ERR_NGROK_105"), ("", "revoked_0123456789abcdef", "ERR_NGROK_107"),
        *((code, TOKEN, f"ERR_NGROK_{code}") for code in ("121", "314", "320", "324", "725", "727", "9009")),
    ],
)  # fmt: skip
def test_an_error_of_ngrok_becomes_its_cause_cure_and_exit_code(
    options: Callable[..., TunnelOptions], account: dict[str, str], fault: str, token: str, code: str
) -> None:
    with pytest.raises(TunnelError) as caught, open_tunnel(options(fault=fault, authtoken=token), lambda *_: None):
        pass
    assert caught.value.code == code
    assert caught.value.exit_code == ROWS[code][2]
    assert not token or token not in str(caught.value)
    assert not agents(account)


@pytest.mark.parametrize(
    ("fault", "exit_code"),
    [("silent", 37), ("no-api", 37), ("network", 39), ("web_addr", 34), ("slow-api", 36), ("exit", 41)],
)
def test_an_agent_that_says_nothing_useful_is_bounded_and_named(
    options: Callable[..., TunnelOptions],
    account: dict[str, str],
    fault: str,
    exit_code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tunnels, "_PATIENCE", 1.0)
    given = options(fault=fault, startup_timeout=5 if fault == "slow-api" else 1)
    with pytest.raises(TunnelError) as caught, open_tunnel(given, lambda *_: None):
        pass
    assert caught.value.exit_code == exit_code
    assert not agents(account)


def test_a_bad_url_is_refused_with_a_cure(options: Callable[..., TunnelOptions]) -> None:
    given = options(url="https://my.example/path")
    with pytest.raises(TunnelError) as caught, open_tunnel(given, lambda *_: None):
        pass
    assert caught.value.exit_code == 35


def test_no_agent_and_no_network_says_how_to_install_it(
    options: Callable[..., TunnelOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyngrok import installer

    def refuse(*_: object, **__: object) -> None:
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(installer, "urlopen", refuse)
    given = options(ngrok_path=str(tmp_path / "none" / "ngrok"))
    with pytest.raises(TunnelError) as caught, open_tunnel(given, lambda *_: None):
        pass
    assert caught.value.exit_code == 38


def test_too_many_agents_and_a_url_in_use_are_told_apart(
    options: Callable[..., TunnelOptions], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # pyngrok keeps one agent per path, so others need paths of their own
    others = [str(ngrok_agent.write_executable(tmp_path / f"ngrok{number}")) for number in (2, 3)]
    url = "https://mine.ngrok-free.app"
    first = options(folder="first", url=url)
    with open_tunnel(first, lambda *_: None):
        with (
            pytest.raises(TunnelError) as caught,
            open_tunnel(options(folder="second", url=url, ngrok_path=others[0]), lambda *_: None),
        ):
            pass
        assert caught.value.code == "ERR_NGROK_334"
        monkeypatch.setenv("STANDIN_MAX_SESSIONS", "1")
        with (
            pytest.raises(TunnelError) as caught,
            open_tunnel(options(folder="third", ngrok_path=others[1]), lambda *_: None),
        ):
            pass
        assert caught.value.code == "ERR_NGROK_108"


def test_a_dead_agent_is_brought_back_on_the_same_url(
    shared_stack: Stack, options: Callable[..., TunnelOptions], account: dict[str, str]
) -> None:
    said: Events = []
    upstream = shared_stack.edge_url.removesuffix("/mcp")
    with open_tunnel(options(upstream), lambda kind, text: said.append((kind, text))) as tunnel:
        before = tunnel.public_url
        agents(account)[0].kill()
        wait_until(lambda: "back" in [kind for kind, _ in said], 20, f"the return of the agent: {said}")
        assert [kind for kind, _ in said] == ["died", "back"]
        assert tunnel.public_url == before
        with httpx2.Client(timeout=10) as client:
            assert client.get(before + "/healthz").text == "ok\n"
    assert not agents(account)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_client_whose_agent_is_killed_in_a_stream_is_told_and_goes_on(
    shared_stack: Stack, options: Callable[..., TunnelOptions], account: dict[str, str], mode: str
) -> None:
    said: Events = []
    begun = asyncio.Event()

    async def on_progress(progress: float, total: float | None, text: str | None) -> None:
        if progress >= 2:
            begun.set()

    upstream = shared_stack.edge_url.removesuffix("/mcp")
    with open_tunnel(options(upstream), lambda kind, text: said.append((kind, text))) as tunnel:
        trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        url, token = tunnel.public_url + "/mcp", shared_stack.token()
        async with Client(url, auth=token, verify=trust, mode=mode, timeout=600) as client:
            running = asyncio.ensure_future(
                client.call_tool("countdown", {"n": 100, "seconds": 0.05}, progress_handler=on_progress)
            )
            await asyncio.wait_for(begun.wait(), 20)
            agents(account)[0].kill()
            # a session comes back with Last-Event-ID, if the agent is quicker than the client gives up
            with contextlib.suppress(Exception):
                assert (await asyncio.wait_for(asyncio.shield(running), 60)).data == "liftoff"
            assert running.done(), "the client waits for an agent that is gone"
            await asyncio.to_thread(
                wait_until, lambda: "back" in [kind for kind, _ in said], 20, f"the agent: {said}"
            )
            assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5


def test_a_dropped_session_is_said_and_so_is_its_return(
    options: Callable[..., TunnelOptions], account: dict[str, str]
) -> None:
    said: Events = []
    with open_tunnel(options(), lambda kind, text: said.append((kind, text))):
        agents(account)[0].send_signal(signal.SIGUSR1)
        wait_until(lambda: len(said) >= 2, 15, "drop and return")
    assert [kind for kind, _ in said] == ["dropped", "back"]


def test_an_orphan_of_an_earlier_run_is_ended_first(
    options: Callable[..., TunnelOptions], account: dict[str, str]
) -> None:
    given = options()
    orphan = tunnels.Tunnel(given, lambda *_: None)
    orphan.open()
    (left,) = agents(account)
    orphan._closing.set()  # its owner is gone: nobody watches it
    tunnels.ngrok.process._current_processes.clear()
    with open_tunnel(options(), lambda *_: None):
        assert not left.is_running()
        assert len(agents(account)) == 1


def test_a_proxy_in_the_environment_does_no_harm(
    options: Callable[..., TunnelOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with open_tunnel(options(), lambda *_: None) as tunnel:
        assert tunnel.public_url


# --- the whole, as a user runs it


class Up:
    """A running ./scripts/up --local, with its two streams."""

    def __init__(self, checkout: Path, environment: dict[str, str], *arguments: str) -> None:
        self.process = subprocess.Popen(
            [checkout / "scripts" / "up", "--local", *arguments],
            cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.story = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.story += line

    def product(self) -> str:
        """Read stdout to its end, which comes long before the end of the process."""
        assert self.process.stdout
        return self.process.stdout.read()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal and wait."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        code = self.process.wait(20)
        self._reader.join(10)
        assert not self._reader.is_alive(), "somebody still holds stderr"
        assert self.process.stdout
        assert self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
async def test_up_ends_in_a_public_url_that_a_client_can_use(
    checkout: Path, account: dict[str, str], number: int
) -> None:
    # Node reads SSL_CERT_FILE only where it is told to
    environment = clean_environment(checkout, **account, NODE_EXTRA_CA_CERTS=account["SSL_CERT_FILE"])
    up = Up(checkout, environment, "--json", "--subject", "ana", "--tools", "add,whoami", "--ttl", "10m")
    try:
        text = up.product()
        assert text.count("\n") == 1, up.story
        product = json.loads(text)
        assert set(product) == {
            "url",
            "public",
            "local_url",
            "ca_file",
            "token",
            "subject",
            "scope",
            "expires_at",
            "invite",
            "join_url",
            "console_url",
            "clients",
        }
        assert product["public"] is True
        console, _, fragment = product["console_url"].partition("/#")
        assert httpx2.get(console, trust_env=False).status_code == 200
        assert {f"url={quote(product['url'], safe='')}", f"token={product['token']}"} <= set(fragment.split("&"))
        assert product["scope"] == "tool:add tool:whoami"
        assert set(product["clients"]["cursor"]) == {"kind", "path", "text"}
        assert product["token"] in product["clients"]["cursor"]["text"]
        for url, ca in ((product["url"], account["SSL_CERT_FILE"]), (product["local_url"], product["ca_file"])):
            trust = ssl.create_default_context(cafile=ca)
            for mode in ("legacy", "auto"):
                async with Client(url, auth=product["token"], mode=mode, verify=trust) as client:
                    assert [tool.name for tool in await client.list_tools()] == ["whoami", "add"]
                    assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5
        wait_until(lambda: "tools/call add" in up.story, what="a line for the call")
        wait_until(lambda: "doctor   " in up.story, 40, "the doctor's word")
        assert "at 4 hops: all well" in up.story, up.story
        assert "slipway-check" not in up.story, "our own probes are no news"
        async with httpx2.AsyncClient(verify=ssl.create_default_context(cafile=account["SSL_CERT_FILE"])) as http:
            refused = await http.post(product["url"], headers={"authorization": "Bearer nonsense"}, json={})
            origin = product["url"].removesuffix("/mcp")
            secret = tokens.read_secret(checkout / ".slipway" / "secret")
            admin = tokens.mint(secret, subject="x", scope="admin", ttl=60, audience=tokens.ADMIN_AUDIENCE).token
            hidden = await http.get(f"{origin}/admin/tokens", headers={"authorization": f"Bearer {admin}"})
            assert hidden.status_code == 404
            assert product["join_url"] == f"{origin}/join"
            assert "Invite code" in (await http.get(product["join_url"])).text
            metadata = (await http.get(f"{origin}/.well-known/oauth-authorization-server")).json()
            assert metadata["issuer"] == origin
        assert f"sign in with {product['invite']}" in up.story
        assert refused.status_code == 401
        wait_until(lambda: "token refused: not a JWT" in up.story, what="a line for the refusal")
        assert TOKEN not in up.story
        assert product["token"] not in up.story
        (server,) = [p for p in psutil.process_iter() if f"{checkout}/server.py" in " ".join(command_line(p))]
        assert "NGROK_AUTHTOKEN" not in server.environ()
    finally:
        assert up.end(number) == 0
    assert "Traceback" not in up.story
    assert not agents(account)


def test_a_second_up_is_quick_and_keeps_secret_tokens_and_url(checkout: Path, account: dict[str, str]) -> None:
    environment = clean_environment(checkout, **account)
    products = []
    for _ in range(2):
        up = Up(checkout, environment, "--json")
        try:
            products.append(json.loads(up.product()))
            secret = (checkout / ".slipway" / "secret").read_text()
            with httpx2.Client(
                timeout=10, verify=ssl.create_default_context(cafile=account["SSL_CERT_FILE"])
            ) as client:
                for product in products:
                    headers = {
                        "authorization": f"Bearer {product['token']}",
                        "accept": "application/json, text/event-stream",
                    }
                    answer = client.post(
                        products[-1]["url"], headers=headers, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
                    )
                    assert answer.status_code == 200
        finally:
            up.end()
    assert products[0]["url"] == products[1]["url"]
    assert secret == (checkout / ".slipway" / "secret").read_text()
    assert "running already" in up.story


def test_without_an_authtoken_up_still_ends_in_something_that_works(checkout: Path) -> None:
    up = Up(checkout, clean_environment(checkout), "--client", "curl")
    try:
        command = up.product()
        wait_until(lambda: "who knocks" in up.story, what=f"the end of the story: {up.story}")
        assert "NGROK_AUTHTOKEN=" in up.story
        assert "dashboard.ngrok.com" in up.story
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20)
        assert '"name":"countdown"' in done.stdout, done.stderr
    finally:
        assert up.end() == 0


def test_down_stops_everything_even_a_running_tunnel(checkout: Path, account: dict[str, str]) -> None:
    environment = clean_environment(checkout, **account)
    up = Up(checkout, environment, "--json")
    up.product()
    done = subprocess.run(
        [checkout / "scripts" / "down"], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "stopped the tunnel" in done.stderr
    assert up.end() == 0
    assert not agents(account)
    again = subprocess.run(
        [checkout / "scripts" / "down"], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 0


def test_an_agent_left_by_a_killed_tunnel_is_ended_by_down(checkout: Path, account: dict[str, str]) -> None:
    environment = clean_environment(checkout, **account)
    up = Up(checkout, environment, "--json")
    up.product()
    tunnel = json.loads((checkout / ".slipway" / "run" / "tunnel.json").read_text())["process"][0]
    os.kill(tunnel, signal.SIGKILL)
    up.process.wait(10)
    assert agents(account)
    subprocess.run([checkout / "scripts" / "down"], cwd=checkout, env=environment, capture_output=True, timeout=60)
    assert not agents(account)
    up.end()


@pytest.mark.parametrize(
    ("setting", "arguments", "code", "told"),
    [
        ("SLIPWAY_SESSION=auto", [], 2, "did you mean SLIPWAY_SESSIONS"),
        ("", ["--client", "curser"], 2, "cursor"),
        ("", ["--ttl", "soon"], 2, "1h30m"),
        ("", ["--nonsense"], 2, "usage"),
        ("", ["--url", "http://x.example"], 2, "https"),
        ("", ["--url", "https://x.example"], 10, "NGROK_AUTHTOKEN"),
        ("SLIPWAY_SECRET_FILE=weak", [], 2, "shorter than 32 bytes"),
        ("EDGE_PORT=taken", [], 3, "cannot be used"),
    ],
)
def test_a_mistake_ends_in_one_cause_one_cure_and_its_exit_code(
    checkout: Path, setting: str, arguments: list[str], code: int, told: str
) -> None:
    import socket

    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    (checkout / "weak").write_text("abcdefghijkl\n")
    (checkout / ".env").write_text(
        (checkout / ".env.example").read_text() + "\n" + setting.replace("taken", str(taken.getsockname()[1])) + "\n"
    )
    up = Up(checkout, clean_environment(checkout), *arguments)
    assert up.product() == ""
    assert up.process.wait(60) == code, up.story
    up.end()
    taken.close()
    assert told in up.story
    assert "Traceback" not in up.story


def test_a_second_tunnel_prints_for_the_open_one_and_a_killed_server_comes_back(
    checkout: Path, account: dict[str, str]
) -> None:
    environment = clean_environment(checkout, **account)
    first = Up(checkout, environment, "--json")
    second = None
    try:
        product = json.loads(first.product())
        second = Up(checkout, environment, "--client", "cursor", "--qr", "--copy", "--subject", "eve")
        entry = json.loads(second.product())["mcpServers"]["slipway"]
        assert entry["url"] == product["url"]
        wait_until(lambda: "who knocks" in second.story, what="the end of the story")
        assert "the tunnel is open already" in second.story
        assert "█" in second.story or "▀" in second.story
        assert "clipboard" in second.story
        assert len(agents(account)) == 1
        (server,) = [p for p in psutil.process_iter() if f"{checkout}/server.py" in " ".join(command_line(p))]
        server.kill()
        trust = ssl.create_default_context(cafile=account["SSL_CERT_FILE"])
        headers = {"authorization": f"Bearer {product['token']}", "accept": "application/json, text/event-stream"}

        def answered() -> bool:
            with httpx2.Client(timeout=10, verify=trust) as client:
                body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
                return client.post(product["url"], headers=headers, json=body).status_code == 200

        wait_until(answered, 30, "the supervisor's new server")
        assert second.end() == 0
        assert len(agents(account)) == 1, "the second tunnel.py must not close what the first opened"
    finally:
        if second and second.process.poll() is None:
            second.end()
        assert first.end() == 0
    assert not agents(account)


def test_a_signal_while_the_tunnel_opens_leaves_no_agent(checkout: Path, account: dict[str, str]) -> None:
    up = Up(checkout, clean_environment(checkout, **account, STANDIN_FAULT="silent"), "--json")
    wait_until(lambda: agents(account), 30, "the start of the agent")
    assert up.end() == 0
    assert not agents(account)
    assert "Traceback" not in up.story


def test_two_ups_at_once_share_one_stack(checkout: Path) -> None:
    ups = [Up(checkout, clean_environment(checkout), "--json") for _ in range(2)]
    try:
        assert len({json.loads(up.product())["url"] for up in ups}) == 1
        assert sum("running already" in up.story for up in ups) == 1
        assert len([p for p in psutil.process_iter() if f"{checkout}/server.py" in " ".join(command_line(p))]) == 1
    finally:
        for up in ups:
            up.end()


@pytest.mark.parametrize("command", [["tunnel.py", "--list-clients"], ["server.py", "sse"]])
def test_any_python_finds_the_packages_or_names_the_command_that_brings_them(
    checkout: Path, command: list[str]
) -> None:
    bare = [sys._base_executable, "-S", *command]  # -S: nothing but the standard library
    found = subprocess.run(bare, cwd=checkout, env=clean_environment(checkout), capture_output=True, text=True)
    assert "Cursor" in found.stdout or "usage" in found.stderr, found.stderr
    (checkout / ".venv").unlink()
    lost = subprocess.run(bare, cwd=checkout, env=clean_environment(checkout), capture_output=True, text=True)
    assert lost.returncode == 2
    assert lost.stderr.count("\n") == 2
    assert "./scripts/up" in lost.stderr


def test_mint_prints_a_token_and_nothing_else_and_explains_it(checkout: Path) -> None:
    def mint(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [checkout / "scripts" / "mint", *arguments]
        return subprocess.run(command, env=clean_environment(checkout), capture_output=True, text=True, timeout=60)

    made = mint("--subject", "ana", "--tools", "add,countdown", "--ttl", "1h")
    assert made.stdout.count("\n") == 1
    assert made.stdout.count(".") == 2
    assert made.stderr == ""
    explained = mint("--explain", made.stdout.strip())
    assert explained.returncode == 0
    assert "tool:add tool:countdown" in explained.stdout
    refused = mint("--explain", made.stdout.strip()[:-3])
    assert refused.returncode == 1
    assert "refused:" in refused.stdout
    assert mint("--ttl", "soon").returncode == 2
