"""What users run works with the packages that users get: the developers' environment has more."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Stack, program

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter with what `scripts/venv host` installs, and nothing else."""
    uv, folder = program("uv"), tmp_path_factory.mktemp("host") / "venv"
    install = ["--quiet", "--require-hashes", "--no-deps", "-r", "requirements-host.lock"]
    for command in (["venv", "--quiet", str(folder)], ["pip", "install", *install]):
        subprocess.run([uv, *command], cwd=ROOT, env={**os.environ, "VIRTUAL_ENV": str(folder)}, check=True)
    return str(folder / "bin" / "python")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["-m", "slipway.doctor"], "All well"),
        (["tunnel.py", "--list-clients"], "chatgpt"),
        (["-m", "slipway.operator", "tokens", "list"], ""),
        (["-m", "slipway.operator", "invite", "new"], "-"),
        (["-m", "slipway.mint"], "eyJ"),
        (["-m", "tests.misbehaving", "--help"], "buffer-sse"),
        (["server.py", "check", "examples/mounted.py"], '"add"'),
        (["-c", "import examples.mounted as m; print(m.app.title)"], "notes-backend"),
    ],
)
def test_a_command_needs_no_package_that_users_do_not_get(
    shared_stack: Stack, python: str, command: list[str], says: str
) -> None:
    environment = {**os.environ, **shared_stack.environment, "PATH": f"{Path(python).parent}:{os.environ['PATH']}"}
    done = subprocess.run([python, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert says in done.stdout
