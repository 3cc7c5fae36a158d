"""What a Python target needs besides our own packages: installed once into a folder of its own, never into .venv."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from slipway.errors import Problem
from slipway.targets import NO_PACKAGES, Target


def _folder(target: Target, state: Path) -> Path:
    wanted = "\n".join([sys.version, *sorted(target.packages)])
    return state / "packages" / hashlib.sha256(wanted.encode()).hexdigest()[:16]


def installed(target: Target | None, state: Path) -> Path | None:
    """Return the folder with the target's packages, or None where it needs none or they are not there yet."""
    if not target or not target.packages:
        return None
    folder = _folder(target, state)
    return folder if folder.is_dir() else None


def installer(root: Path) -> str:
    """Return the path of uv, "" where there is none, as in a container, which has the packages already."""
    own = root / ".venv" / "uv" / "bin" / "uv"
    return shutil.which("uv") or (str(own) if own.exists() else "")


def install(target: Target, state: Path, root: Path, say: Callable[[str], None], uv: str) -> None:
    """Install the packages, in the versions that our own lock file pins where it names them.

    Args:
        state: the state folder.
        root: the checkout, with the lock file.
        say: told what happens.
        uv: the program, "" where there is none.
    Raises:
        Problem: uv's own words, or that there is none.
    """
    folder = _folder(target, state)
    if folder.is_dir() or not target.packages:
        return
    if not uv:
        cure = "Install it (docs.astral.sh/uv), then the command again"
        raise Problem(f"{target.path.name} needs packages, and there is no uv to install them.", cure, NO_PACKAGES)
    say(f"installing {', '.join(target.packages)}")
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [
        uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(unfinished),
        "--no-verify-hashes", "--constraint", str(root / "requirements-host.lock"), "--", *target.packages,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise failed(target, done.stderr)
    unfinished.rename(folder)


def failed(target: Target, said: str) -> Problem:
    """Return the problem of packages that cannot be installed; `said` are the installer's words."""
    last = "".join(f"\n  {line[:200]}" for line in said.strip().splitlines()[-8:])
    return Problem(
        f"The packages of {target.path.name} cannot be installed:{last}",
        f"Mend them in fastmcp.json; where they need other versions of ours, serve it as a command: "
        f'./scripts/up "uv run {target.path}"',
        NO_PACKAGES,
    )
