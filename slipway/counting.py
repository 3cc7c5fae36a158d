"""Counts of what somebody may do so often, in Redis for all replicas, or here; and whose an address is.

While a shared store is away each process counts for itself: a limit that is too generous by the number of replicas is
better than one that opens, and than callers who wait.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import RateLimiter

from slipway import connections

REST = 5.0  # seconds for which we count alone after Redis did not answer in time

Kind = TypeVar("Kind", bound=RateLimiter)
Result = TypeVar("Result")


class Limiter(Generic[Kind]):
    """A limiter of the library `limits` over Redis, and one in memory for when that does not answer."""

    def __init__(self, kind: type[Kind], redis_url: str, away: Callable[[], bool], patience: float) -> None:
        """Take the kind of window, where Redis is ("": nowhere), and how long it may take.

        Args:
            away: whether Redis is known not to answer, so that nobody waits for it.
        """
        self._near = kind(MemoryStorage())
        self._far: Kind | None = None
        if redis_url:
            pool = connections.pool(redis_url)
            self._far = kind(RedisStorage(f"async+{redis_url}", implementation="redispy", connection_pool=pool))
        self._away = away
        self._patience = patience
        self._alone_until = -math.inf

    async def ask(self, question: Callable[[Kind], Awaitable[Result]]) -> Result:
        """Return what the shared limiter says, or ours where it does not answer."""
        if self._far and not self._away() and time.monotonic() >= self._alone_until:
            try:
                async with asyncio.timeout(self._patience):
                    return await question(self._far)
            except Exception:  # the store tells the operator
                self._alone_until = time.monotonic() + REST
        return await question(self._near)


@functools.lru_cache(1000)
def network(address: str) -> str:
    """Return whose an address is: one line of IPv6 is a /64, and its holder has all of it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
