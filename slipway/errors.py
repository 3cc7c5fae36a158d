"""The one kind of error that a user sees: what happened, then the next command. No tracebacks, no secrets."""

from __future__ import annotations


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
