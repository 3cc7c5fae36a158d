"""Runs a lab as a reader would: its sh blocks in order, in real terminals, and compares what is shown with what came.

What a lab says in comments of its Markdown, each on a line of its own before a block:

    <!-- terminal 1 -->            the next block is typed, or shown, in that terminal; without it in terminal 2, and what
                                   stands right below a block is shown where that was typed
    <!-- stays -->                 the next block runs on, like a server: it is waited for until its text is shown
    <!-- Ctrl-C in terminal 1 -->  what runs there is interrupted, and waited for
    <!-- run README.md#section --> the blocks of that section come first
    <!-- not run: why -->          the next block, and what it shows, are left to people

In a `text` block `…` is what varies: within a line any characters, alone on a line any lines.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import wait_until

MAIN = 2  # the terminal in which most is typed
PATIENCE = 60.0  # seconds for a block, on a busy machine
SILENT = {"powershell", "python", "json", "ini"}  # shown, never run
COMMENT = re.compile(r"<!-- (.*) -->")
FENCE = re.compile(r"```(\w*)")


@dataclass
class Block:
    """A step of a lab: `kind` is sh, text, ctrl-c or not run."""

    kind: str
    text: str
    where: str
    terminal: int = MAIN
    stays: bool = False


def section(text: str, slug: str) -> str:
    """Return the lines under the heading that GitHub gives this slug."""
    lines = text.split("\n")
    for start, line in enumerate(lines):
        level = len(line) - len(line.lstrip("#"))
        if level and re.sub(r"[^\w -]", "", line.strip("# ").lower()).replace(" ", "-") == slug:
            rest = lines[start + 1 :]
            ends = (n for n, one in enumerate(rest) if re.match(rf"#{{1,{level}}} ", one))
            return "\n".join(rest[: next(ends, len(rest))])
    raise AssertionError(f"there is no section #{slug}")


def blocks(text: str, name: str, folder: Path) -> list[Block]:
    """Read a lab. Unknown comments and languages are mistakes."""
    found: list[Block] = []
    terminal, stays, left_out = 0, False, ""
    lines = iter(enumerate(text.split("\n"), 1))
    for at, line in lines:
        where = f"{name}:{at}"
        if comment := COMMENT.fullmatch(line.strip()):
            said = comment[1]
            if match := re.fullmatch(r"terminal (\d)", said):
                terminal = int(match[1])
            elif match := re.fullmatch(r"Ctrl-C in terminal (\d)", said):
                found.append(Block("ctrl-c", "", where, int(match[1])))
            elif match := re.fullmatch(r"run (README\.md)#([\w-]+)", said):
                found += blocks(section((folder / match[1]).read_text("utf-8"), match[2]), said, folder)
            elif said.startswith("not run: "):
                left_out = said.removeprefix("not run: ")
            else:
                assert said == "stays", f"{where}: {said}"
                stays = True
        elif fence := FENCE.fullmatch(line):
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            if fence[1] in SILENT:
                continue
            assert fence[1] in ("sh", "text"), f"{where}: a block in {fence[1] or 'no language'}"
            left_over = found[-1].kind == "not run" if found and fence[1] == "text" else False
            kind = "not run" if left_out or left_over else fence[1]
            typed = found[-1] if found and fence[1] == "text" and found[-1].kind == "sh" else None
            number = terminal or (typed.terminal if typed else MAIN)
            found.append(Block(kind, left_out if kind == "not run" else "\n".join(body), where, number, stays))
            terminal, stays, left_out = 0, False, ""
    return found


def pattern(shown: str) -> str:
    """Return a regular expression of what a text block shows."""
    lines = [
        r"(?:[^\n]*\n)*?" if line.strip() == "…" else re.escape(line).replace("…", "[^\n]*") + "\n"
        for line in tidy(shown).split("\n")
    ]
    return "".join(lines)


def tidy(text: str) -> str:
    """Return text without what nobody sees: spaces at line ends, empty lines at both ends and next to others."""
    lines = "\n".join(line.rstrip() for line in text.replace("\r", "").split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip("\n")


@dataclass
class Terminal:
    """A bash that is typed into."""

    number: int
    folder: Path
    environment: dict[str, str]
    words: dict[str, str]  # what the labs say → what it is here
    read: int = 0
    typed: int = 0
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder.parent / f"terminal{self.number}.log"
        with self.log.open("wb") as output:
            self.bash = subprocess.Popen(
                ["bash", "--noprofile", "--norc"], cwd=self.folder, env=self.environment,
                stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._say("trap : INT")  # Ctrl-C is for what runs in it

    def _say(self, line: str) -> None:
        assert self.bash.stdin
        self.bash.stdin.write(f"{line}\n".encode())
        self.bash.stdin.flush()

    def came(self) -> str:
        """Return what came since it was last compared, in the words of the labs."""
        text = self.log.read_bytes()[self.read :].decode("utf-8", "replace")
        for theirs, ours in self.words.items():
            text = re.sub(rf"(?<!\d){re.escape(ours)}(?!\d)", theirs, text)
        return text

    def _mark(self) -> str:
        return f"[typed {self.typed}]"

    def _done(self) -> re.Match[str] | None:
        return re.search(re.escape(self._mark()) + r" (\d+)\n", self.log.read_text("utf-8", "replace"))

    def type(self, block: Block) -> None:
        """Type a block; unless it stays, wait for its end."""
        code = block.text
        for theirs, ours in self.words.items():
            code = re.sub(rf"(?<!\d){re.escape(theirs)}(?!\d)", ours, code)
        self.read = self.log.stat().st_size
        self.typed += 1
        script = self.folder.parent / f"terminal{self.number}.{self.typed}.sh"
        script.write_text(code + "\n", "utf-8")
        # bash reads its commands from a pipe that they must not read
        self._say(f". {script} </dev/null; printf '\\n%s %s\\n' '{self._mark()}' $?")
        if not block.stays:
            wait_until(self._done, PATIENCE, f"{block.where}: the end of\n{code}\n{self.came()}\n")

    def status(self) -> int:
        """Return the exit status of what was typed last."""
        done = self._done()
        assert done
        return int(done[1])

    def compare(self, shown: Block, *, whole: bool) -> None:
        """Hold what came against what is shown: all of it, or somewhere in what comes."""
        wanted = pattern(shown.text)
        if whole:
            text = tidy(re.sub(r"\[typed \d+\] \d+", "", self.came())) + "\n"
            assert re.fullmatch(wanted, text), f"{shown.where} shows\n{shown.text}\n-- but came\n{text}"
            return

        def there() -> re.Match[str] | None:
            return re.search("^" + wanted, tidy(self.came()) + "\n", re.MULTILINE)

        try:
            wait_until(there, PATIENCE)
        except AssertionError:
            raise AssertionError(f"{shown.where} shows\n{shown.text}\n-- but came\n{self.came()}") from None

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait for the end of what ran."""
        os.killpg(self.bash.pid, signal.SIGINT)
        wait_until(self._done, PATIENCE, f"the end of terminal {self.number}: {self.came()}")

    def close(self) -> None:
        """End bash and all that was started in it."""
        assert self.bash.stdin
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.bash.pid, signal.SIGTERM)
        self.bash.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.bash.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.bash.pid, signal.SIGKILL)
        self.bash.wait()


def run(lab: Path, folder: Path, environment: dict[str, str], words: dict[str, str]) -> None:
    """Do a lab from its first line to its last.

    Args:
        lab: the Markdown file.
        folder: a checkout of its own.
        environment: of its terminals.
        words: {what the lab says: what is meant here}, ports for example.
    """
    terminals: dict[int, Terminal] = {}
    steps = [step for step in blocks(lab.read_text("utf-8"), lab.name, lab.parent) if step.kind != "not run"]
    typed: Block | None = None
    try:
        for number, step in enumerate(steps):
            if step.terminal not in terminals:
                terminals[step.terminal] = Terminal(step.terminal, folder, environment, words)
            terminal = terminals[step.terminal]
            if step.kind == "ctrl-c":
                terminal.interrupt()
            elif step.kind == "sh":
                terminal.type(step)
                typed = step
                after = steps[number + 1 : number + 2]
                shows = bool(after) and after[0].kind == "text" and after[0].terminal == step.terminal
                if not step.stays and not shows:
                    assert terminal.status() == 0, f"{step.where}: {step.text}\n{terminal.came()}"
            else:
                whole = typed is not None and not typed.stays and typed.terminal == step.terminal
                terminal.compare(step, whole=whole)
    finally:
        for terminal in terminals.values():
            terminal.close()
