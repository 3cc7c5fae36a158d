"""The verbs in scripts/: each helps with an example and does nothing else, and both shells complete them."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, clean_environment, copy_of_the_tree, program, wait_until

VERBS = sorted(path.name for path in (ROOT / "scripts").iterdir() if os.access(path, os.X_OK))
NESTED = [
    ("lab", *words) for words in (["new"], ["list"], ["cards"], ["extend"], ["reset"], ["end"])
] + [(verb, sub) for verb, sub in (("tokens", "revoke"), ("tokens", "mint"), ("invite", "new"))]  # fmt: skip


def helped(verb: str, *words: str, root: Path = ROOT, flag: str = "--help") -> str:
    """Run a verb with --help from another folder, and return what it prints."""
    environment = clean_environment(root) | {"COLUMNS": "80", "NO_COLOR": "1"}
    # no Docker, whose absence must not matter
    environment["PATH"] = os.pathsep.join(["/usr/bin", "/bin", str(Path(sys.executable).parent)])
    ran = subprocess.run(
        [root / "scripts" / verb, *words, flag], cwd=root.parent, env=environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_tree(tmp_path_factory.mktemp("verbs") / "slipway")


def files(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*") if ".venv" not in path.parts and "__pycache__" not in path.parts}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_helps_with_an_example_in_eighty_columns_and_does_nothing_else(verb: str, tree: Path) -> None:
    before = files(tree)
    told = helped(verb, root=tree)
    assert max(map(len, told.splitlines())) <= 80
    assert f"scripts/{verb}" in told.partition("\n")[2], "no example"
    assert files(tree) == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_helps_before_anything_is_installed(verb: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "slipway" / "scripts")
    told = helped(verb, root=tmp_path / "slipway", flag="-h")
    assert f"scripts/{verb}" in told and not (tmp_path / "slipway" / ".venv").exists()


@pytest.mark.parametrize("words", NESTED, ids=" ".join)
def test_the_verb_of_a_verb_helps_too(words: tuple[str, ...]) -> None:
    told = helped(*words)
    assert max(map(len, told.splitlines())) <= 80 and "--json" in told


def test_help_lists_every_verb_in_a_line_of_its_own() -> None:
    ran = subprocess.run([ROOT / "scripts" / "help"], capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert [line.split()[0] for line in lines] == VERBS
    assert max(map(len, lines)) <= 80 and all(len(line.split()) > 3 for line in lines)


def typed(shell: list[str], keys: str, wanted: str, home: Path) -> str:
    """Type into an interactive shell that has our completion, and return what it shows once `wanted` is there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 200))
    environment = clean_environment(home) | {"TERM": "dumb", "PS1": "$ ", "HISTFILE": "/dev/null"}
    running = subprocess.Popen(
        shell, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = ""

    def shown(text: str) -> bool:
        nonlocal seen
        while select.select([ours], [], [], 0)[0]:
            seen += os.read(ours, 4096).decode(errors="replace")
        return text in seen

    try:
        os.write(ours, b"source scripts/completion.bash; echo lo''aded\n")
        wait_until(lambda: shown("loaded"), 30, f"the shell: {seen}")
        os.write(ours, keys.encode())
        deadline = time.monotonic() + 30
        while not shown(wanted) and time.monotonic() < deadline:
            time.sleep(0.05)
        return seen
    finally:
        running.kill()
        running.wait()
        os.close(ours)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("./scripts/lab new --sea\t", "--seats"),
        ("scripts/tokens rev\t", "revoke"),
        ("./scripts/up my_server.py --no-doc\t", "--no-doctor"),
        ("./scripts/up --client claude-des\t", "claude-desktop"),
        ("./scripts/break buffer-s\t", "buffer-sse"),
        ("./scripts/audit --subject ana --fol\t", "--follow"),
    ],
)
def test_a_shell_completes_verbs_options_and_names(shell: str, keys: str, wanted: str, tmp_path: Path) -> None:
    command = {"bash": [program("bash"), "--norc", "--noprofile", "-i"], "zsh": [program("zsh"), "-f", "-i"]}
    assert wanted in typed(command[shell], keys, wanted, tmp_path)


def test_the_completion_knows_every_verb() -> None:
    code = 'source scripts/completion.bash; complete -p | grep -o "[^ ]*$"'
    ran = subprocess.run(["bash", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    known = set(ran.stdout.split())
    assert known == {f"{prefix}scripts/{verb}" for verb in VERBS for prefix in ("", "./", f"{ROOT}/./")}


def commands(page: Path) -> list[list[str]]:
    """Return the words of every line of a page's shell blocks that begins with a verb of ours."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    lines = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line.partition(" > ")[0]) for line in lines if re.match(r"(\./)?scripts/", line)]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_and_verb_that_a_page_types_is_one(page: Path) -> None:
    typed_ = commands(page)
    assert typed_ or page.parent.name == "docs"
    for command, *words in typed_:
        verb = Path(command).name
        nested = words[:1] if verb in ("lab", "tokens", "invite") else []
        told = helped(verb, *nested)
        assert not nested or f"scripts/{verb} {nested[0]}" in told
        options = [word for word in words if word.startswith("-")]
        # pytest's are its own
        assert verb == "test" or not [option for option in options if option not in told], f"{verb} {words}"
