"""No secret in the repository nor in its past; what is planted in a copy is found."""

from __future__ import annotations

import os
import secrets
import string
import subprocess
from pathlib import Path

import jwt
import pytest

from tests import leaks
from tests.conftest import ROOT

LETTERS = string.ascii_letters + string.digits


def letters(count: int) -> str:
    """Return random letters and digits, a digit first."""
    return "2" + "".join(secrets.choice(LETTERS) for _ in range(count - 1))


PLANTED = {
    "our secret's own file": lambda: secrets.token_hex(32),
    "an ngrok authtoken in .env": lambda: f"NGROK_AUTHTOKEN={letters(27)}_{letters(21)}",
    "a token of ours": lambda: "x " + jwt.encode({"sub": "ana"}, secrets.token_hex(32)),
    "an AWS key": lambda: "AKIA" + "".join(secrets.choice(string.ascii_uppercase) for _ in range(16)),
    "a private key": lambda: "-----BEGIN " + "EC PRIVATE KEY-----",
    "a password in Python": lambda: f'password = "{letters(12)}"',
    "a password in a URL": lambda: f"redis://ana:{letters(12)}@redis:6379/0",
}


def commit(root: Path) -> None:
    """Commit all that is there."""
    who = ["-c", "user.name=t", "-c", "user.email=t", "-c", "commit.gpgsign=false"]
    for command in (["add", "-A"], [*who, "commit", "-qm", "a step"]):
        subprocess.run(["git", *command], cwd=root, check=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with one of our files in it."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "tokens.py").write_text((ROOT / "slipway" / "tokens.py").read_text())
    commit(tmp_path)
    return tmp_path


@pytest.mark.timeout(170)
def test_no_file_and_no_state_that_it_ever_had_holds_a_secret() -> None:
    if not (ROOT / ".git").exists():
        assert not os.environ.get("CI"), "CI needs the history"
        pytest.skip("this is no checkout of git")
    assert leaks.found(ROOT) == [], "look with: .venv/bin/python -m tests.leaks"


def test_a_repository_without_a_secret_is_called_clean(copy: Path) -> None:
    assert leaks.found(copy) == []


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_secret_is_found_in_the_files_and_in_the_history(what: str, copy: Path) -> None:
    (copy / "notes.py").write_text(f"one = 1\n{PLANTED[what]()}\n")
    commit(copy)
    assert {each.partition(":")[0] for each in leaks.found(copy)} == {"notes.py"}
    (copy / "notes.py").unlink()
    commit(copy)
    assert all(each.startswith("notes.py: ") and each.endswith("(in the history)") for each in leaks.found(copy))
    assert leaks.found(copy)


def test_a_marked_line_is_no_finding_and_its_past_is_none_either(copy: Path) -> None:
    line = f'password = "{letters(12)}"'
    (copy / "notes.py").write_text(line + "\n")
    commit(copy)
    (copy / "notes.py").write_text(f"{line}  # pragma: allowlist secret\n")
    commit(copy)
    assert leaks.found(copy) == []


def test_a_secret_in_a_commit_message_is_found(copy: Path) -> None:
    said = f"with NGROK_AUTHTOKEN={letters(27)}_{letters(21)}"
    who = ["-c", "user.name=t", "-c", "user.email=t", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, "commit", "-q", "--allow-empty", "-m", said], cwd=copy, check=True)
    assert leaks.found(copy) == ["commit messages: ngrok authtoken (in the history)"]
