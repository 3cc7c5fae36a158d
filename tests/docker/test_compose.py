"""The stack in real containers: hardened, on loopback only, back after a kill, live after an edit."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fastmcp import Client

from slipway import compose, settings, tokens
from tests.conftest import ROOT, clean_environment, copy_of_the_tree, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow]


class Containers:
    """One checkout's Compose project."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = clean_environment(
            root,
            COMPOSE_PROJECT_NAME=f"slipway-test-{os.getpid()}-{root.parent.name[-12:]}".lower().replace("_", "-"),
        )

    def run(self, *command: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=170
        )
        assert not ok or done.returncode == 0, done.stdout + done.stderr
        return done

    def up(self, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(".venv/bin/python", "-m", "slipway.stack", "up", ok=ok)

    def compose(self, *arguments: str, ok: bool = True) -> str:
        return self.run("docker", "compose", *arguments, ok=ok).stdout.strip()

    def id(self, service: str) -> str:
        return self.compose("ps", "--quiet", service)

    def inspect(self, service: str) -> dict[str, object]:
        return json.loads(self.run("docker", "inspect", self.id(service)).stdout)[0]

    @property
    def config(self) -> settings.Settings:
        return settings.load({}, self.root / ".env")

    def client(self, mode: str = "auto", tools: str = "*") -> Client:
        secret = tokens.read_secret(self.root / ".slipway" / "secret")
        token = tokens.mint(secret, subject="ana", scope=tokens.tool_scope(tools), ttl=600).token
        ca = self.root / ".slipway" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        trust = ssl.create_default_context(cafile=str(ca))
        return Client(
            f"https://localhost:{self.config.tls_port}/mcp", auth=token, verify=trust, mode=mode, timeout=30
        )


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """A running project, removed with its image at the end."""
    if missing := compose.missing():
        if os.environ.get("CI"):
            pytest.fail(f"CI needs Docker: {missing}")
        pytest.skip(missing)
    project = Containers(copy_of_the_tree(tmp_path_factory.mktemp("docker") / "slipway"))
    refused = project.run("docker", "compose", "up", ok=False)
    assert refused.returncode != 0
    assert "./scripts/up" in refused.stderr, "a bare docker compose up on a fresh clone must name the first command"
    try:
        project.up()
        yield project
    finally:
        project.compose("down", "--rmi", "local", "--remove-orphans", "--volumes", ok=False)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_client_uses_the_containers_in_both_eras(containers: Containers, mode: str) -> None:
    async with containers.client(mode) as client:
        assert (await client.call_tool("add", {"a": 2, "b": 3})).data == 5
        assert (await client.call_tool("whoami")).data["subject"] == "ana"


@pytest.mark.parametrize("service", ["server", "caddy"])
def test_a_container_is_hardened(containers: Containers, service: str) -> None:
    found = containers.inspect(service)
    host = found["HostConfig"]
    assert found["Config"]["User"].split(":")[0] not in ("", "0", "root")
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == (None if service == "server" else ["CAP_NET_BIND_SERVICE"]) or host["CapAdd"] == [
        "NET_BIND_SERVICE"
    ]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["Init"] is compose.has_init()
    status = containers.compose("exec", "-T", service, "cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapEff"], 16) == 0
    assert fields["Uid"].split()[0] != "0"
    assert containers.run("docker", "compose", "exec", "-T", service, "touch", "/new", ok=False).returncode != 0


def test_a_lab_is_rehearsed_in_containers_and_its_server_killed(containers: Containers) -> None:
    done = containers.run(containers.root / "scripts" / "rehearse", "--seats", "6", "--json", ok=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["failed"], told["summary"]["joined"]) == (0, 6)
    assert any("killed in the middle" in step["step"] for step in told["steps"])
    assert not list((containers.root / ".slipway").rglob("cards*"))


def test_only_loopback_is_published(containers: Containers) -> None:
    ports = []
    for service in ("server", "caddy"):
        for bindings in containers.inspect(service)["NetworkSettings"]["Ports"].values():
            for binding in bindings or []:
                assert binding["HostIp"] == "127.0.0.1"
                ports.append(int(binding["HostPort"]))
    assert len(ports) == 4
    others = {a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET} - {
        "127.0.0.1"
    }
    assert others
    for address in others:
        for port in ports:
            with socket.socket() as probe:
                probe.settimeout(3)
                assert probe.connect_ex((address, port)) != 0, f"{address}:{port} is reachable"


def test_the_secret_is_in_no_environment_and_no_image(containers: Containers) -> None:
    secret = (containers.root / ".slipway" / "secret").read_text().strip()
    assert secret not in containers.run("docker", "inspect", containers.id("server")).stdout
    image = containers.inspect("server")["Image"]
    assert secret not in containers.run("docker", "history", "--no-trunc", image).stdout
    look = "find /app; env; find / -xdev -name slipway_secret -o -xdev -name .env -o -xdev -name pyngrok; true"
    inside = containers.run("docker", "run", "--rm", "--entrypoint", "sh", image, "-c", look).stdout
    assert "/app/server.py" in inside
    for unwanted in ("/secret", "tests", ".env", ".git", "conftest", "pyngrok"):
        assert unwanted not in inside.replace("SLIPWAY_SECRET", "")


def test_the_image_has_the_locked_packages_compiled_and_fast(containers: Containers) -> None:
    code = (
        "import uvloop, httptools, fastmcp, importlib.metadata as m, pathlib; print(m.version('fastmcp'));"
        "print(len(list(pathlib.Path(fastmcp.__file__).parent.glob('__pycache__/*.pyc'))) > 5,"
        "len(list(pathlib.Path('/app/slipway/__pycache__').glob('*.pyc'))) > 5)"
    )
    out = containers.compose("exec", "-T", "server", "python", "-c", code).split()
    assert f"fastmcp=={out[0]} " in (ROOT / "requirements.lock").read_text()
    assert out[1:] == ["True", "True"]


def test_the_host_of_an_open_tunnel_reaches_the_container_at_once(containers: Containers) -> None:
    note = containers.root / ".slipway" / "run" / "public_url"
    url = f"http://127.0.0.1:{containers.config.edge_port}/mcp"
    ask = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: demo.ngrok-free.app", "-d", "{}", url)
    assert containers.run(*ask).stdout == "421"
    note.write_text("https://demo.ngrok-free.app\n")
    assert containers.run(*ask).stdout == "401"
    note.unlink()
    assert containers.run(*ask).stdout == "421"


def test_up_with_docker_ends_in_a_public_url(containers: Containers, account: dict[str, str]) -> None:
    up = subprocess.Popen(
        [containers.root / "scripts" / "up", "--json"], cwd=containers.root, env=containers.environment | account,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert up.stdout
    try:
        product = json.loads(up.stdout.readline())
        assert product["public"] is True
        words = shlex.split(product["clients"]["curl"]["text"])
        done = subprocess.run(
            [*words, "--cacert", account["SSL_CERT_FILE"]], capture_output=True, text=True, timeout=30
        )
        assert "whoami" in done.stdout, done.stderr
    finally:
        up.terminate()
        story = up.communicate(timeout=30)[1]
    assert up.returncode == 0, story
    assert "Traceback" not in story


def kill_server(containers: Containers) -> None:
    """SIGKILL the server itself, as the kernel would; `docker kill` would count as a wish to stop it."""
    pid = containers.inspect("server")["State"]["Pid"]
    children = psutil.Process(pid).children()
    os.kill(children[0].pid if children else pid, signal.SIGKILL)


async def test_a_killed_server_comes_back_in_the_middle_of_a_session(containers: Containers) -> None:
    async with containers.client("legacy") as client:
        await client.call_tool("add", {"a": 1, "b": 1})
        started = containers.inspect("server")["State"]["StartedAt"]
        kill_server(containers)
        wait_until(lambda: containers.inspect("server")["State"]["StartedAt"] != started, 30, "the restart")
        wait_until(lambda: containers.inspect("server")["State"]["Health"]["Status"] == "healthy", 30, "health")
        assert (await client.call_tool("add", {"a": 2, "b": 2})).data == 4


def test_a_second_up_changes_nothing(containers: Containers) -> None:
    before = [containers.id(service) for service in ("server", "caddy")]
    secret = (containers.root / ".slipway" / "secret").read_text()
    containers.up()
    assert [containers.id(service) for service in ("server", "caddy")] == before
    assert (containers.root / ".slipway" / "secret").read_text() == secret


def test_a_changed_setting_and_a_changed_caddyfile_take_effect(containers: Containers) -> None:
    before = containers.id("caddy")
    env = containers.root / ".env"
    env.write_text(env.read_text().replace("ORIGINS=", "ORIGINS=https://lab.example,"))
    with (containers.root / "Caddyfile").open("a") as stream:
        stream.write("\n# edited\n")
    containers.up()
    assert containers.id("caddy") != before
    done = containers.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Origin: https://lab.example",
                          f"http://127.0.0.1:{containers.config.edge_port}/healthz")  # fmt: skip
    assert done.stdout == "200"


def test_an_edit_of_server_py_is_live_while_up_runs(containers: Containers) -> None:
    up = subprocess.Popen(
        [containers.root / "scripts" / "up", "--no-public", "--json"],
        cwd=containers.root, env=containers.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert up.stdout
    assert json.loads(up.stdout.readline())["public"] is False
    path = containers.root / "server.py"
    text = path.read_text().replace("async def whoami(", "async def plus(")
    written = 0.0

    async def names() -> set[str]:
        async with containers.client() as client:
            return {tool.name for tool in await client.list_tools()}

    def edited() -> bool:
        nonlocal written
        if time.monotonic() > written + 6:  # what is written before Compose watches, it does not see
            written = time.monotonic()
            path.write_text(f"{text}\n# {written}\n")
        try:
            return "plus" in asyncio.run(names())
        except Exception:  # the server is being replaced
            return False

    try:
        wait_until(edited, 60, "the edit")
    finally:
        up.terminate()
        story = up.communicate(timeout=20)[1]
    assert "new: plus; gone: whoami" in story
    assert "Traceback" not in story


def test_a_stop_is_clean_and_a_bare_compose_up_works_after_the_first(containers: Containers) -> None:
    containers.compose("stop", "server")
    code = containers.run(
        "docker", "inspect", "-f", "{{.State.ExitCode}}", containers.compose("ps", "-aq", "server")
    ).stdout.strip()
    assert code in ("0", "143")
    containers.compose("up", "--detach", "--wait")
    done = containers.run("curl", "-s", f"http://127.0.0.1:{containers.config.edge_port}/healthz")
    assert done.stdout == "ok\n"


def test_a_port_in_use_is_told_without_a_traceback(containers: Containers) -> None:
    containers.run(".venv/bin/python", "-m", "slipway.stack", "down")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", containers.config.edge_port))
        taken.listen()
        done = containers.up(ok=False)
    assert done.returncode not in (0, 2)
    assert "Traceback" not in done.stderr
    assert "→" in done.stderr


def test_down_leaves_nothing_and_can_be_repeated(containers: Containers) -> None:
    containers.up()
    for _ in range(2):
        containers.run(".venv/bin/python", "-m", "slipway.stack", "down")
        name = containers.environment["COMPOSE_PROJECT_NAME"]
        label = f"label=com.docker.compose.project={name}"
        assert containers.run("docker", "ps", "-aq", "--filter", label).stdout == ""
        assert containers.run("docker", "network", "ls", "-q", "--filter", label).stdout == ""


# --- a target of the user's own; last, for it leaves the containers with another server

TARGET = """
import os
import humanize
from fastmcp import FastMCP
bot = FastMCP("bot")
@bot.tool
async def size(n: int) -> str:
    return humanize.naturalsize(n)
@bot.tool
async def environment() -> dict[str, str]:
    return dict(os.environ)
@bot.tool
async def write() -> str:
    with open(__file__, "a") as stream:
        return "written"
"""


@pytest.fixture
def readable(tmp_path: Path) -> Path:
    """A folder that the containers' user may read, as a user's own would be."""
    tmp_path.chmod(0o755)
    return tmp_path


def up_with(containers: Containers, target: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    return containers.run(".venv/bin/python", "-m", "slipway.stack", "up", target, ok=ok)


async def test_a_python_target_is_mounted_read_only_with_its_packages_and_its_own_variables(
    containers: Containers, readable: Path
) -> None:
    tmp_path = readable
    (tmp_path / "bot.py").write_text(TARGET)
    (tmp_path / "fastmcp.json").write_text(
        '{"source": {"path": "bot.py"}, "environment": {"dependencies": ["humanize"]}}'
    )
    secret = 'it\'s "quoted" $HOME'  # pragma: allowlist secret
    with (containers.root / ".env").open("a") as stream:
        stream.write(f'\nBOT_API_KEY="{secret.replace(chr(34), chr(92) + chr(34))}"\nNGROK_AUTHTOKEN=2abcDEF\n')
    up_with(containers, tmp_path / "bot.py")
    async with containers.client() as client:
        assert (await client.call_tool("size", {"n": 10**9})).data == "1.0 GB"
        seen = (await client.call_tool("environment")).data
        assert seen["BOT_API_KEY"] == secret
        assert not [name for name in seen if name.startswith(("SLIPWAY_", "NGROK_", "FASTMCP_"))]
        assert (await client.call_tool("write", raise_on_error=False)).is_error

    # an edit on this machine is served by the container, in the same process
    before = containers.inspect("server")["State"]["Pid"]
    (tmp_path / "bot.py").write_text(TARGET.replace("async def size", "async def how_big"))
    log = containers.root / ".slipway" / "log" / "server.jsonl"
    wait_until(lambda: "new: how_big; gone: size" in log.read_text(), 30, "the reload")
    async with containers.client("legacy") as client:
        assert (await client.call_tool("how_big", {"n": 1})).data == "1 Byte"
    assert containers.inspect("server")["State"]["Pid"] == before


def test_a_target_that_cannot_be_served_from_a_container_is_said_with_its_exit_code(
    containers: Containers, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "bad.py").write_text("import humanize\nraise RuntimeError('oops')\n")
    told = up_with(containers, tmp_path / "bad.py", ok=False)
    assert told.returncode == 51  # found before a container was started
    (tmp_path / "fastmcp.json").write_text('{"environment": {"dependencies": ["humanize"]}}')
    told = up_with(containers, tmp_path / "bad.py", ok=False)
    assert told.returncode == 51
    assert f"{tmp_path}/bad.py line 2: raise RuntimeError" in told.stderr
    (tmp_path / "fastmcp.json").write_text('{"environment": {"dependencies": ["no-such-package-of-slipway"]}}')
    told = up_with(containers, tmp_path / "bad.py", ok=False)
    assert told.returncode == 57
    assert "no-such-package-of-slipway" in told.stderr


def test_a_command_runs_on_this_machine_even_where_there_is_docker(containers: Containers, tmp_path: Path) -> None:
    command = shlex.join([str(ROOT / ".venv" / "bin" / "python"), str(ROOT / "tests" / "servers" / "talkative.py")])
    told = containers.run(".venv/bin/python", "-m", "slipway.stack", "up", command)
    try:
        assert "runs on this machine" in told.stderr
        assert not containers.id("server")
    finally:
        containers.run(".venv/bin/python", "-m", "slipway.stack", "down")
