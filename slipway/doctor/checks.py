"""The checks of all rooms, and how they run at a hop. examine.py says in which order they are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from slipway.doctor.hops import Finding, Hop, NotApplicable, warning

AT_ONCE = 6  # probes of one hop


Check = Callable[[Hop], Awaitable[Finding]]  # a question that is asked at each hop


class Checks(dict[str, Check]):
    """Checks by their ids."""

    def __call__(self, name: str) -> Callable[[Check], None]:
        """Return what takes in a function."""

        def add(run: Check) -> None:
            self[name] = run

        return add


CHECKS = Checks()


def start(hop: Hop) -> None:
    """Begin every check of a hop; `hop.found` holds what will be found, by the check's id."""
    turns = asyncio.Semaphore(AT_ONCE)
    hop.found = {name: asyncio.ensure_future(_run(check, hop, turns)) for name, check in CHECKS.items()}


async def _run(check: Check, hop: Hop, turns: asyncio.Semaphore) -> Finding:
    async with turns:
        try:
            return await check(hop)
        except NotApplicable as why:
            return Finding("not-applicable", str(why))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            # an answer that no check foresaw must not take the others with it
            return warning(f"unreadable ({type(error).__name__})", "No such answer is known in MCP.", "Check the URL")
