"""The stack in Docker: whether Compose can be used here, and its up and down."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from slipway import settings
from slipway.errors import Problem

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


def container_user() -> tuple[int, int]:
    """Return (uid, gid) of the containers: ours, or a nobody where we are root.

    The secret is a bind mount of mode 600: only its owner can read it in the container.
    """
    uid = os.getuid() if hasattr(os, "getuid") else CONTAINER_UID
    gid = os.getgid() if hasattr(os, "getgid") else CONTAINER_UID
    return (uid, gid) if uid else (CONTAINER_UID, CONTAINER_UID)


def has_init() -> bool:
    """Tell whether the engine can start an init process in a container (some distributions leave docker-init out)."""
    return _ask("info", "--format", "{{.InitCommit.ID}}").stdout.strip() not in ("", "N/A")


class Compose:
    """The Compose project of one checkout."""

    def __init__(self, root: Path) -> None:
        self._root = root
        uid, gid = container_user()
        digest = hashlib.sha256((root / "Caddyfile").read_bytes()).hexdigest()[:16]
        defaults = {"SLIPWAY_UID": str(uid), "SLIPWAY_GID": str(gid)}
        self._environment = {**defaults, **os.environ, "SLIPWAY_CADDYFILE_HASH": digest}
        self._progress = "auto" if sys.stderr.isatty() else "quiet"

    def _run(self, *arguments: str) -> int:
        # Compose's story belongs on stderr: stdout is the configuration to paste
        return subprocess.run(
            [_DOCKER, "compose", "--progress", self._progress, *arguments],
            cwd=self._root,
            env=self._environment,
            stdout=sys.stderr,
            check=False,
        ).returncode

    def exists(self) -> bool:
        """Tell whether containers of this project exist."""
        ids = subprocess.run(
            [_DOCKER, "compose", "ps", "--all", "--quiet"],
            cwd=self._root, env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return bool(ids.stdout.strip())

    def up(self, config: settings.Settings) -> None:
        """Build what changed, start, and wait until both containers are healthy.

        Raises:
            Problem: after Compose's own words and the containers' last lines.
        """
        if hasattr(os, "getuid") and os.getuid() == 0:
            for path in (self._root / config.state, self._root / config.secret_file):
                _hand_over(path)
        if self._run("up", "--build", "--wait", "--wait-timeout", str(START_TIMEOUT)):
            sys.stderr.write("the last lines of the containers:\n")
            self._run("logs", "--tail", "15", "--no-log-prefix")
            raise Problem(
                "docker compose up failed; its own words are above.",
                "A port in use: change it in .env. Otherwise mend it, or go without Docker: ./scripts/up --local",
            )

    def down(self) -> None:
        """Stop and remove the containers and their network."""
        self._run("down", "--remove-orphans")


def _hand_over(path: Path) -> None:
    uid, gid = container_user()
    for item in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(FileNotFoundError):
            os.chown(item, uid, gid, follow_symlinks=False)
