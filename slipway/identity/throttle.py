"""How often an address, and everybody together, may try something that costs us or that could be guessed."""

from __future__ import annotations

import time
from collections.abc import Callable

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.strategies import MovingWindowRateLimiter

from slipway.connections import PATIENCE
from slipway.counting import Limiter, network


class Throttle:
    """So many tries a minute, counted in memory or, over replicas, in Redis."""

    def __init__(
        self,
        name: str,
        *,
        per_address: int,
        overall: int,
        a_day: int = 0,
        redis_url: str = "",
        away: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take what is tried, and how often an address and everybody may, a minute and (0: no matter) a day.

        Args:
            away: whether Redis is known not to answer, so that nobody waits for it.
        """
        self._name = name
        self._limits: list[RateLimitItem] = [RateLimitItemPerMinute(per_address), RateLimitItemPerMinute(overall)]
        self._limits += [RateLimitItemPerDay(a_day)] if a_day else []
        self._limiter = Limiter(MovingWindowRateLimiter, redis_url, away, PATIENCE)

    def _keys(self, address: str) -> list[tuple[RateLimitItem, str]]:
        return [(item, "all" if index else network(address)) for index, item in enumerate(self._limits)]

    async def wait(self, address: str) -> int:
        """Return the seconds until another try is heard, 0 where one is heard now. It counts nothing."""

        async def ask(limiter: MovingWindowRateLimiter) -> int:
            for item, key in self._keys(address):
                if not await limiter.test(item, self._name, key):
                    window = await limiter.get_window_stats(item, self._name, key)
                    return max(1, int(window.reset_time - time.time()))
            return 0

        return await self._limiter.ask(ask)

    async def count(self, address: str) -> None:
        """Count a try."""

        async def hit(limiter: MovingWindowRateLimiter) -> None:
            for item, key in self._keys(address):
                await limiter.hit(item, self._name, key)

        await self._limiter.ask(hit)

    async def admits(self, address: str) -> bool:
        """Count a try if it is heard. Returns: whether it is; what an address is refused costs nobody else."""
        if await self.wait(address):
            return False
        await self.count(address)
        return True
