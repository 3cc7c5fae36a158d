"""The stack in Docker: whether Compose can be used here, and its up and down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from slipway import files, processes, settings
from slipway.errors import Problem, heard
from slipway.lan import note
from slipway.packages import failed
from slipway.targets import Target

CONTAINER_UID = 10001  # whom the containers run as when root starts them
START_TIMEOUT = 120  # seconds
_DOCKER = "docker"


def missing() -> str:
    """Say why Docker Compose cannot be used, in words, or "" where it can."""
    if not shutil.which(_DOCKER):
        return "Docker is not installed"
    try:
        info = _ask("info", "--format", "{{.ServerVersion}}")
        if info.returncode or not info.stdout.strip():
            if "permission denied" in (info.stderr + info.stdout).lower():
                return "you may not use Docker (sudo usermod -aG docker $USER, then log in again)"
            return "no Docker engine answers (is it started?)"
        compose = _ask("compose", "version")
    except (OSError, subprocess.TimeoutExpired):
        return "Docker does not answer"
    return "Docker has no Compose plugin" if compose.returncode else ""


def _ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([_DOCKER, *arguments], capture_output=True, text=True, timeout=10, check=False)


def routes_to_containers() -> bool:
    """Tell whether a neighbour in the local network reaches ports that are published on loopback.

    Who sends a Linux machine packets for a container's own address gets through, until Docker Engine 28.
    """
    version, _, system = _ask("info", "--format", "{{.ServerVersion}} {{.OperatingSystem}}").stdout.partition(" ")
    major = version.partition(".")[0]
    return major.isdigit() and int(major) < 28 and "Docker Desktop" not in system


def container_user() -> tuple[int, int]:
    """Return (uid, gid) of the containers: ours, or a nobody where we are root.

    The secret is a bind mount of mode 600: only its owner can read it in the container.
    """
    return (os.getuid(), os.getgid()) if os.getuid() else (CONTAINER_UID, CONTAINER_UID)


def has_init() -> bool:
    """Tell whether the engine can start an init process in a container (some distributions leave docker-init out)."""
    return _ask("info", "--format", "{{.InitCommit.ID}}").stdout.strip() not in ("", "N/A")


def containers(root: Path) -> Compose | None:
    """Return the Compose project of a checkout where it has containers."""
    found = None if missing() else Compose(root)
    return found if found and found.exists() else None


class Compose:
    """The Compose project of one checkout."""

    def __init__(self, root: Path) -> None:
        self._root = root
        uid, gid = container_user()
        digest = hashlib.sha256((root / "Caddyfile").read_bytes()).hexdigest()[:16]
        defaults = {"SLIPWAY_UID": str(uid), "SLIPWAY_GID": str(gid)}
        self._environment = {**defaults, **os.environ, "SLIPWAY_CADDYFILE_HASH": digest}
        self._progress = "auto" if sys.stderr.isatty() else "quiet"

    def _compose(self, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
        command = [_DOCKER, "compose", *arguments]
        return subprocess.run(command, cwd=self._root, env=self._environment, text=True, check=False, **how)

    def _run(self, *arguments: str) -> int:
        # Compose's story belongs on stderr: stdout is the configuration to paste
        return self._compose("--progress", self._progress, *arguments, stdout=sys.stderr).returncode

    def _ask(self, *arguments: str) -> str:
        return self._compose(*arguments, capture_output=True).stdout

    def _with_lan(self, config: settings.Settings) -> None:
        """Let Compose merge deploy/lan.yml into its files while the edge is open in the local network."""
        if not (lan := note.read(self._root / config.state)):
            return
        name = "COMPOSE_FILE"
        own = os.environ.get(name) or settings.read_env_file(self._root / ".env").get(name)
        read = own.split(os.pathsep) if own else _files(self._root)
        more = {name: os.pathsep.join([*read, "deploy/lan.yml"]), "COMPOSE_PATH_SEPARATOR": os.pathsep}
        self._environment |= more | {"LAN_ADDRESS": lan.address, "LAN_URL": lan.url}

    def edge(self, config: settings.Settings, record: Path) -> None:
        """Start the edge's container anew where it is open to other addresses than before, and nothing else.

        Args:
            record: of who watches: with the next edit they would bring back the edge that they know.
        Raises:
            Problem: after Compose's own words.
        """
        self._with_lan(config)
        if processes.stop(record):
            self._watch(record)
        if self._run("up", "--no-deps", "--wait", "--wait-timeout", str(START_TIMEOUT), "caddy"):
            cure = "Mend what it says, then: ./scripts/up"
            raise Problem("The edge did not start anew; Docker's own words are above.", cure)

    def exists(self) -> bool:
        """Tell whether containers of this project exist."""
        return bool(self._ask("ps", "--all", "--quiet").strip())

    def up(self, config: settings.Settings, target: Target | None = None) -> None:
        """Build what changed, start, and wait until both containers are healthy.

        Args:
            target: what to serve instead of server.py.
        Raises:
            Problem: after Compose's own words and the containers' last lines.
        """
        hand_over(self._root / config.state, self._root / config.secret_file)
        self._with_lan(config)
        self._environment |= _of_target(target, self._root / ".env", self._root / config.state / "run" / "target.env")
        if target and target.packages:
            self._build(target)
        if self._run("up", "--build", "--wait", "--wait-timeout", str(START_TIMEOUT)):
            if problem := self._heard(target):
                self._run("stop", "--timeout", "1", "server")  # it would end again and again
                raise problem
            sys.stderr.write("the last lines of the containers:\n")
            self._run("logs", "--tail", "15", "--no-log-prefix")
            raise Problem(
                "docker compose up failed; its own words are above.",
                "A port in use: change it in .env. Otherwise mend it, or go without Docker: ./scripts/up --local",
            )

    def _build(self, target: Target) -> None:
        """Build the layer with the target's packages.

        Raises:
            Problem: with the installer's words.
        """
        sys.stderr.write(f"building an image with {', '.join(target.packages)}\n")
        done = self._compose("--progress", "plain", "build", "server", capture_output=True)
        if done.returncode:
            said = re.findall(r"(?m)^#\d+ [\d.]+ (.*)$", done.stderr)  # what the step's program wrote
            raise failed(target, "\n".join(said) or done.stderr)

    def _heard(self, target: Target | None) -> Problem | None:
        """Return the problem that the server's container ended with, if it was one."""
        said = self._ask("logs", "--no-log-prefix", "--no-color", "--tail", "40", "server")
        if target and target.kind != "url":
            said = said.replace("/target/", f"{target.path.parent}/")
        code = self._exit_code()
        return heard(said, code) if code else None

    def _exit_code(self) -> int:
        """Return what the server's container ended with; 0 if it runs. Of replicas one speaks for all."""
        container = (self._ask("ps", "--all", "--quiet", "server").split() or [""])[0]
        code = 0

        def ended() -> bool:
            # while it is being started again, and until then, the engine says 0
            nonlocal code
            code = int(_ask("inspect", "--format", "{{.State.ExitCode}}", container).stdout.strip() or 0)
            return code != 0

        if container:
            processes.until(ended, 4)
        return code

    @contextlib.contextmanager
    def watching(self, record: Path) -> Iterator[None]:
        """Build and start the server anew whenever its files change, for the length of a block.

        Args:
            record: where to note who watches, for `down` after a kill.
        """
        processes.stop(record)
        watch = self._watch(record)
        try:
            yield
        finally:
            processes.stop(record)
            watch.wait()

    def crash(self) -> None:
        """Kill the server's containers and start them anew: an engine does so after a crash, but not after a kill."""
        self._run("kill", "--signal", "SIGKILL", "server")
        self._run("start", "server")

    def _watch(self, record: Path) -> subprocess.Popen[bytes]:
        watch = subprocess.Popen(
            [_DOCKER, "compose", "watch", "--no-up"], cwd=self._root, env=self._environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        with contextlib.suppress(psutil.Error):
            processes.write(record, {"process": processes.identity(watch.pid)})
        return watch

    def down(self) -> None:
        """Stop and remove the containers and their network."""
        # without the profiles Compose leaves their containers
        self._run("--profile", "*", "down", "--remove-orphans")


def _files(root: Path) -> list[str]:
    """Return what Compose reads unasked; once it is told files, it reads no other."""
    override = "docker-compose.override.yml"
    return ["docker-compose.yml", *([override] if (root / override).exists() else [])]


def _of_target(target: Target | None, env: Path, own: Path) -> dict[str, str]:
    """Return what docker-compose.yml asks for about the target, and write what .env holds for it into a file."""
    found = settings.own_names(settings.read_env_file(env))
    # in the container there is no .env to tell the target's names from all others
    named = found | {settings.TARGET_NAMES: ",".join(found)}
    files.write(own, "".join(f"{name}={_quoted(value)}\n" for name, value in named.items()))
    values = {"SLIPWAY_TARGET": "", "SLIPWAY_TARGET_INSIDE": "", "SLIPWAY_TARGET_PACKAGES": ""}
    if target is None:
        return values
    values["SLIPWAY_TARGET_PACKAGES"] = "\n".join(target.packages)
    if target.kind == "url":
        return values | {"SLIPWAY_TARGET_INSIDE": target.url}
    file, folder = target.path.name, target.path.parent
    values["SLIPWAY_TARGET_INSIDE"] = f"/target/{file}" + (f":{target.name}" if target.name else "")
    if folder in (Path.home(), Path(folder.anchor)):
        # its neighbours are the user's whole life
        return values | {"SLIPWAY_TARGET_MOUNT": str(target.path), "SLIPWAY_TARGET_AT": f"/target/{file}"}
    return values | {"SLIPWAY_TARGET_MOUNT": str(folder), "SLIPWAY_TARGET_AT": "/target"}


def _quoted(value: str) -> str:
    """Quote for Compose's env_file: single quotes are literal, double quotes know escapes."""
    if "'" not in value and "\n" not in value:
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("\n", "\\n")
    return f'"{escaped}"'


def hand_over(*paths: Path) -> None:
    """Give files and folders to the containers' user, where that is another than us."""
    if os.getuid():
        return
    uid, gid = container_user()
    for path in paths:
        for item in [path, *path.rglob("*")] if path.is_dir() else [path]:
            with contextlib.suppress(FileNotFoundError):
                os.chown(item, uid, gid, follow_symlinks=False)
