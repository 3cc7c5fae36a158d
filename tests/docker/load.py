"""Callers who write notes without a pause, each in a session of their own, and remember what was acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from fastmcp import Client

Connect = Callable[[str, str], Client]  # (subject, mode) → a client of that caller


@dataclass
class Caller:
    """One caller and what became of their calls."""

    subject: str
    mode: str
    acknowledged: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    async def work(self, connect: Connect, until: asyncio.Event) -> None:
        """Call until told to stop; a client that failed is replaced, as a user's host would."""
        number = 0
        while not until.is_set():
            try:
                async with connect(self.subject, self.mode) as client:
                    while not until.is_set():
                        number += 1
                        title = f"{self.subject} {number}"
                        await client.call_tool("save_note", {"title": title, "text": title})
                        self.acknowledged.append(title)
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")


class Load:
    """Several callers at once."""

    def __init__(self, connect: Connect, callers: list[Caller]) -> None:
        self._connect = connect
        self.callers = callers

    @property
    def failed(self) -> list[str]:
        """What went wrong, with whom it did."""
        return [f"{caller.subject}: {text}" for caller in self.callers for text in caller.failed]

    def count(self) -> int:
        """How many calls were acknowledged."""
        return sum(len(caller.acknowledged) for caller in self.callers)

    async def more(self, calls: int) -> None:
        """Wait until every caller had so many more acknowledged."""
        wanted = {caller.subject: len(caller.acknowledged) + calls for caller in self.callers}
        deadline = asyncio.get_running_loop().time() + 60
        while waiting := [c for c in self.callers if len(c.acknowledged) < wanted[c.subject]]:
            assert asyncio.get_running_loop().time() < deadline, f"nothing comes back to {waiting}"
            await asyncio.sleep(0.05)

    async def lost(self) -> set[str]:
        """Return what was acknowledged and cannot be read."""
        gone: set[str] = set()
        for caller in self.callers:
            async with self._connect(caller.subject, "auto") as client:
                kept = (await client.call_tool("list_notes")).data
                gone |= set(caller.acknowledged) - set(kept)
        return gone


@contextlib.asynccontextmanager
async def load(connect: Connect, name: str, each: int = 3) -> AsyncIterator[Load]:
    """Run callers of both eras for the length of a block; their last calls are waited for."""
    made = Load(connect, [Caller(f"{name}-{mode}-{n}", mode) for n in range(each) for mode in ("legacy", "auto")])
    until = asyncio.Event()
    tasks = [asyncio.create_task(caller.work(connect, until)) for caller in made.callers]
    try:
        await made.more(2)
        yield made
        await made.more(2)
    finally:
        until.set()
        await asyncio.gather(*tasks)
