"""What many tests need: free ports, a real stack of server and edge, tokens, waiting for events."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from xdist.scheduler import LoadScopeScheduling

from slipway import edge, settings, stack, tokens
from tests import ngrok_agent

ROOT = Path(__file__).resolve().parent.parent
# for a test that sends more than one caller should
UNLIMITED = {"SLIPWAY_CALLS_BURST": "0", "SLIPWAY_CALLS_PER_MINUTE": "0"}
AUTHTOKEN = "2abcDEFghijklmnopqrstuvwxyz_0123456789"  # pragma: allowlist secret


class OneEngine(LoadScopeScheduling):
    """Gives all tests of the Docker engine to one worker: they share its ports, its images and its one swarm.

    Those in Chromium, too: when the engine adds or removes a network, Chromium ends what it loads.

    Not by pytest-xdist's own groups: 3.8 does not see them with pytest 9.2, and says nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "docker" if nodeid.startswith(("tests/docker/", "tests/browser/")) else nodeid


def pytest_configure() -> None:
    """Let Ctrl-C work in what we start: who runs us in the background ignores it, and that is inherited."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return OneEngine(config, log)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def program(*names: str) -> str:
    """Return the path of the first of these programs that is here, or skip; in CI nothing may be missing."""
    places = (None, "/usr/sbin", str(ROOT / ".venv" / "uv" / "bin"))
    found = next(filter(None, (shutil.which(name, path=place) for name in names for place in places)), None)
    if not found:
        assert not os.environ.get("CI"), f"CI needs {names[0]}"
        pytest.skip(f"there is no {names[0]}")
    return found


def wait_until(true: Callable[[], object], seconds: float = 20.0, what: str = "it") -> None:
    """Poll until true, or fail."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.03)


@dataclass
class Stack:
    """A real server behind a real edge, on ports of its own."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)
    caddyfile: str | None = None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    root: Path = ROOT  # the checkout that is run

    def __post_init__(self) -> None:
        server, plain, tls, console = free_ports(4)
        self.environment = {
            "SERVER_PORT": str(server), "EDGE_PORT": str(plain), "TLS_PORT": str(tls), "CONSOLE_PORT": str(console),
            "SLIPWAY_STATE": str(self.folder / "state"), "SLIPWAY_SECRET_FILE": str(self.folder / "state" / "secret"),
            **self.extra,
        }  # fmt: skip
        self.config = settings.load(self.environment, None)
        self.secret = tokens.ensure_secret(self.config.secret_file)
        self.server_url = f"http://127.0.0.1:{server}/mcp"
        self.edge_url = f"http://127.0.0.1:{plain}/mcp"
        self.tls_url = f"https://localhost:{tls}/mcp"
        self.ca_file = edge.ca_file(self.config, self.root)

    def start(self, *names: str) -> Stack:
        """Start the named processes, both by default, and wait until they answer."""
        for folder in ("log", "run"):
            (self.config.state / folder).mkdir(parents=True, exist_ok=True)
        for name, (command, environment) in stack.children(self.config, self.root).items():
            if names and name not in names:
                continue
            if name == "caddy" and self.caddyfile is not None:
                path = self.folder / "Caddyfile"
                path.write_text(self.caddyfile)
                command = [str(path) if part.endswith("Caddyfile") else part for part in command]
            with (self.folder / f"{name}.log").open("ab") as output:
                self.processes[name] = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=output, start_new_session=True
                )
        wait_until(self._up, 120, f"the start of {names or 'the stack'}: {self.text('server')} {self.text('caddy')}")
        return self

    def _up(self) -> bool:
        assert all(process.poll() is None for process in self.processes.values()), self.text("server") + self.text(
            "caddy"
        )
        return stack.answers(self.config)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait for the end."""
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self) -> None:
        """End what runs."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(12)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def token(self, tools: str = "*", ttl: int = 600, subject: str = "ana") -> str:
        """Mint a token."""
        return tokens.mint(self.secret, subject=subject, scope=tokens.tool_scope(tools), ttl=ttl).token

    def bearer(self, tools: str = "*") -> dict[str, str]:
        """Return the headers of a good request."""
        return {
            "authorization": f"Bearer {self.token(tools)}",
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
        }

    def trust(self) -> ssl.SSLContext:
        """Return a context that trusts the local CA alone."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def text(self, name: str) -> str:
        """Return what a process said."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def log(self, name: str) -> list[dict[str, object]]:
        """Return the JSON lines of server.jsonl or edge.jsonl."""
        path = self.config.state / "log" / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def lines(self, **told: object) -> list[dict[str, Any]]:
        """Return the server's lines that tell this, once there is one; it is written after the answer."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log("server") if told.items() <= line.items()]

        wait_until(found, what=f"a line that tells {told}")
        return found()


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for all tests that change nothing in it."""
    running = Stack(tmp_path_factory.mktemp("stack")).start()
    yield running
    running.stop()


@pytest.fixture
def make_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Stacks that a test may break."""
    made: list[Stack] = []

    def make(caddyfile: str | None = None, **extra: str) -> Stack:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Stack(folder, extra, caddyfile))
        return made[-1].start()

    yield make
    for each in made:
        each.stop()


def copy_of_the_tree(copy: Path) -> Path:
    """Copy the working tree as a clone would have it, sharing our .venv, on ports of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in listed:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    server, plain, tls, console = free_ports(4)
    example = (copy / ".env.example").read_text()
    for old, new in ((8000, server), (8080, plain), (8443, tls), (8081, console)):
        example = example.replace(f"PORT={old}\n", f"PORT={new}\n")
    (copy / ".env.example").write_text(example)
    return copy


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of the tree; what was started in it is stopped at the end, and nothing may be left."""
    copy = copy_of_the_tree(tmp_path / "slipway")
    yield copy
    subprocess.run(
        [copy / "scripts" / "down"], cwd=copy, env=clean_environment(copy), capture_output=True, timeout=60
    )
    left = [p for p in psutil.process_iter() if _belongs(p, copy)]
    assert not left, f"left running: {left}"


def _belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        return str(folder) in " ".join(process.cmdline()) and process.pid != os.getpid()
    except psutil.Error:
        return False


def clean_environment(home: Path, **extra: str) -> dict[str, str]:
    """Return an environment without this machine's settings for Slipway or ngrok."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLIPWAY_", "NGROK_", "PYNGROK_", "STANDIN_"))}
    return {**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), **extra}


def certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for the stand-in's edge, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.DNSName("*.ngrok-free.app")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2)).add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def account(tmp_path: Path) -> dict[str, str]:
    """The environment in which the stand-in and its account live."""
    folder = tmp_path / "account"
    folder.mkdir()
    cert, key = certificate(folder)
    agent = ngrok_agent.write_executable(folder / "ngrok")
    return {
        "PYNGROK_NGROK_PATH": str(agent), "NGROK_AUTHTOKEN": AUTHTOKEN, "SSL_CERT_FILE": str(cert),
        "STANDIN_STATE": str(folder / "state"), "STANDIN_CERT": str(cert), "STANDIN_KEY": str(key), "STANDIN_OUTAGE": "0.5",
    }  # fmt: skip
