"""The one kind of error that a user sees: what happened, then the next command. No tracebacks, no secrets."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

_LOGGED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\{\"|  → ")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # Docker colours even where it is asked not to


class Problem(Exception):
    """Something a user can mend.

    Args:
        cause: one line, what happened.
        cure: one line, the next command or the line to change.
        exit_code: what the process ends with; 2 is a mistake in the input or the settings.
    """

    def __init__(self, cause: str, cure: str, exit_code: int = 1) -> None:
        super().__init__(f"{cause}\n  → {cure}")
        self.cause = cause
        self.cure = cure
        self.exit_code = exit_code


def command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command line to its end: a problem is told with its cure, Ctrl-C and a closed pipe end it in silence.

    Raises:
        SystemExit: with the exit code.
    """
    try:
        sys.exit(main(sys.argv[1:]))
    except Problem as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(problem.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # what is left in the buffer would be tried again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def heard(text: str, exit_code: int) -> Problem | None:
    """Return the problem that another process of ours printed, or None where its text holds none."""
    text = _ESCAPES.sub("", text)
    before, arrow, after = text.rpartition("\n  → ")
    # what a log or a former try wrote before it is no part of it
    lines = before.splitlines()
    begin = max((index + 1 for index, line in enumerate(lines) if _LOGGED.match(line)), default=0)
    cause = "\n".join(lines[begin:]).strip()
    return Problem(cause, after.splitlines()[0], exit_code) if arrow and cause else None
