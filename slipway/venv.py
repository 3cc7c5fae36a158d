"""Lets `python tunnel.py` and `python server.py` work with any Python: they go on in .venv, with its packages."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def enter(needed: str) -> None:
    """Start the same command again under .venv if this Python lacks a package.

    Raises:
        SystemExit: there is no .venv yet, or it lacks the package too; with the next command.
    """
    if importlib.util.find_spec(needed):
        return
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and not sys.prefix.startswith(str(ROOT / ".venv")):
        os.execv(python, [str(python), *sys.argv])  # noqa: S606 our own interpreter, our own arguments
    sys.stderr.write("The packages of Slipway are not installed yet.\n  → Run ./scripts/up once\n")
    raise SystemExit(2)
