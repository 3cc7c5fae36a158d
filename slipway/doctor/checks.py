"""The list of checks, in the order in which they are shown, and how they run at a hop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from slipway.doctor.hops import Finding, Hop, NotApplicable, warning

AT_ONCE = 6  # probes of one hop


@dataclass(frozen=True)
class Check:
    """A question that is asked at each hop."""

    id: str
    run: Callable[[Hop], Awaitable[Finding]]


CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Callable[[Hop], Awaitable[Finding]]], None]:
    """Put a function into CHECKS."""

    def add(run: Callable[[Hop], Awaitable[Finding]]) -> None:
        CHECKS[name] = Check(name, run)

    return add


def start(hop: Hop) -> None:
    """Begin every check of a hop; `hop.found` holds what will be found, by the check's id."""
    turns = asyncio.Semaphore(AT_ONCE)
    hop.found = {each.id: asyncio.ensure_future(_run(each, hop, turns)) for each in CHECKS.values()}


async def _run(each: Check, hop: Hop, turns: asyncio.Semaphore) -> Finding:
    async with turns:
        try:
            return await each.run(hop)
        except NotApplicable as why:
            return Finding("not-applicable", str(why))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            # an answer that no check foresaw must not take the others with it
            return warning(f"unreadable ({type(error).__name__})", "No such answer is known in MCP.", "Check the URL")
