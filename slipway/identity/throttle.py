"""How often an address, and everybody together, may try something that costs us or that could be guessed."""

from __future__ import annotations

import ipaddress
import time

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter


class Throttle:
    """So many tries a minute, counted in memory or, over replicas, in Redis."""

    def __init__(self, name: str, *, per_address: int, overall: int, a_day: int = 0, redis_url: str = "") -> None:
        """Take what is tried, and how often an address and everybody may, a minute and (0: no matter) a day."""
        self._name = name
        self._limits: list[RateLimitItem] = [RateLimitItemPerMinute(per_address), RateLimitItemPerMinute(overall)]
        self._limits += [RateLimitItemPerDay(a_day)] if a_day else []
        self._limiter = MovingWindowRateLimiter(
            RedisStorage(f"async+{redis_url}", implementation="redispy") if redis_url else MemoryStorage()
        )

    def _keys(self, address: str) -> list[tuple[RateLimitItem, str]]:
        return [(item, "all" if index else network(address)) for index, item in enumerate(self._limits)]

    async def wait(self, address: str) -> int:
        """Return the seconds until another try is heard, 0 where one is heard now. It counts nothing."""
        for item, key in self._keys(address):
            if not await self._limiter.test(item, self._name, key):
                window = await self._limiter.get_window_stats(item, self._name, key)
                return max(1, int(window.reset_time - time.time()))
        return 0

    async def count(self, address: str) -> None:
        """Count a try."""
        for item, key in self._keys(address):
            await self._limiter.hit(item, self._name, key)

    async def admits(self, address: str) -> bool:
        """Count a try if it is heard. Returns: whether it is; what an address is refused costs nobody else."""
        if await self.wait(address):
            return False
        await self.count(address)
        return True


def network(address: str) -> str:
    """Return whose an address is: one line of IPv6 is a /64, and its holder has all of it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
